"""structure/hf"""
