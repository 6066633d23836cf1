"""Hostile .sct files: what is done to honest ones, and what the reader must make of them."""
