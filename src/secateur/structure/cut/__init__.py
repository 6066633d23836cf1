"""structure/cut"""
