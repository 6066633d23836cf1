"""The .sct file: one self-contained, checked, losslessly coded file of tensors.

A model, a state dict or a checkpoint goes in; a file comes out, and from it the same tensors, bit for bit.
docs/format.md specifies every byte; docs/SECURITY.md lists what a hostile file cannot do.

Read the files in this order:

- `format`: the constants of the format, and what it says of a tensor; `limits`: what reading a file may cost;
  `frame`: the only reader of sections and records; `skimming`: one that leaves out long parts (none needs torch);
- `writer`, `compact_writer`: write the frame (no torch), or the short form of small models; `checksums`: the CRC-32
  arithmetic they need;
- `tensors`: one tensor as a record, by the smallest of the storage methods; `codebooks`: its distinct values; `slices`:
  those of every slice along an axis;
- `scalar_rounding`, `scalar_streams`: small tensors (scales, shifts, biases), rounded and coded together;
- `int8_weights`: weights as integers with scales and zero points, and torch's INT8 layers;
- `batch_norm`: batch norm folded into a scale and a shift; `arrays`: torch tensors as plain words and back;
- `opened`: a file whose name stands in every error; `reading`: all tensors of a file in order, by one or several
  `worker_pool` workers;
- `archive`: `save`, with the options in `save_options`; `loading`: `load`; `archive_checks`: what they refuse;
- `checkpoint`, `shards`: .safetensors and .pt files, and folders of the former, tensor by tensor;
- `pack`: these to .sct and back; `unpacked_files`, `resuming`: the files written, and what continues after a stop;
- `inspection`: where every byte of a file goes.

>>> import pathlib, tempfile, torch
>>> from secateur.container.archive import save
>>> from secateur.container.loading import load
>>> with tempfile.TemporaryDirectory() as folder:
...     saved = save({"w": torch.tensor([[0.0, 0.5], [1.0, 0.5]] * 40)}, pathlib.Path(folder) / "w.sct")
...     state = load(pathlib.Path(folder) / "w.sct")
>>> state["w"].shape, saved.dense, saved.size < 100
(torch.Size([80, 2]), 640, True)
"""
