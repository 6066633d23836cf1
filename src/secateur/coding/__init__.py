"""Entropy coding of integers and floats without loss: the same bytes on every machine.

Arrays of integers or of floats' bits go in, bytes come out, and back. All arithmetic is in integers, or in floats where
it is exact; only numpy, constriction and Zstandard are used, never torch.
Where there is a C compiler, the longest loop runs in machine code.

Read the files in this order:

- `varint`: integers as bytes, and the checked reader all decoders use;
- `range_coder`: the arithmetic coder; `static`: symbols coded by one table of frequencies;
- `logistic`, `mixing`: probabilities of bits, mixed from several contexts;
- `planes`: contexts of quantized weights; `forecast`, `predicted_contexts`: contexts predicted by least squares;
- `mixed`: weights as bits with mixed probabilities; `indices`: the indices of a tensor, by one of three models;
- `compiled`: the same as `mixed` by `walk.c`, which `native` compiles and loads with `digits.c`,
  `tables.c` and `crc.c`;
- `crc`: the checksum of files, by `crc.c` or by zlib;
- `floats`: floats by byte planes; `digits`, `frames`: long ones in Zstandard frames;
- `room`: memory that one tensor after another uses;
- `ascending`: sorted integers, for codebooks; `huffman`: the textbook code, for comparison.

>>> import numpy as np
>>> from secateur.coding import static
>>> data = static.encode(np.array([2, 0, 2, 2, 1, 2]), 3)
>>> static.decode(data, 6, 3).tolist()
[2, 0, 2, 2, 1, 2]
"""
