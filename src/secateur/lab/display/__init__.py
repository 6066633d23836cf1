"""lab/display"""
