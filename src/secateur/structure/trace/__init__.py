"""structure/trace"""
