"""structure/groups"""
