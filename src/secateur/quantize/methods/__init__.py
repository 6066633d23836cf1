"""quantize/methods"""
