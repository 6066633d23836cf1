"""Entropy coding in whole numbers: numpy and constriction only, no torch, the same bytes on every machine.

`range_coder` is the arithmetic coder, `static` codes symbols by one table, `mixing`, `planes`, `forecast` and
`foretold` are the context models of quantised weights, `indices` puts them together, `floats` packs numbers
without loss (`digits` and `frames` long ones, in Zstandard frames), `huffman` is the textbook code.

>>> import numpy as np
>>> from secateur.coding import static
>>> data = static.encode(np.array([2, 0, 2, 2, 1, 2]), 3)
>>> static.decode(data, 6, 3).tolist()
[2, 0, 2, 2, 1, 2]
"""
