"""The .sct file: `format` is the specification in code and needs no torch, `archive` saves, loads, packs and
unpacks.

docs/format.md is the specification in words.
"""
