"""Checkpoints larger than memory: verbs that read and write them tensor by tensor, or block by block. In goes a folder
of safetensors files with their index, the layout of Hugging Face, or one file. Out comes such a folder again, or one
.sct file. No model class is needed, except to run blocks on data.

In reading order: `in_flight` (several tensors at a time within a limit of memory), `rewriting` (read, change, write; a
killed run continues), `skeleton` (the layers of a checkpoint, from names and shapes; `tied` ones are one tensor of
several names), `pruned` (`prune_checkpoint`), with `threshold` (one threshold for all tensors, in passes), `shared`
(`share_checkpoint`), `listed` (`inspect_checkpoint`); then `blocks` (a model of which one block at a time has
weights), `block_work` (the work on one block), `block_runs` (all blocks, here or on a Ray cluster), `compensated`
(`compensate_checkpoint`: criteria on data, and the remaining weights refitted), `shrunk` (`shrink_checkpoint`:
channels and heads cut out) and `sequences` (tokens of a text to calibrate on, by the model's own `tokenizers`).

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import load_file, save_file
>>> from secateur.streaming.pruned import prune_checkpoint
>>> with tempfile.TemporaryDirectory() as folder:
...     source, target = pathlib.Path(folder) / "in", pathlib.Path(folder) / "out"
...     source.mkdir()
...     save_file({"fc.weight": torch.tensor([[1.0, -4.0, 3.0, 2.0]])}, source / "model.safetensors")
...     done = prune_checkpoint(source, target, budget=0.5)
...     load_file(target / "model.safetensors")["fc.weight"].tolist()
[[0.0, -4.0, 3.0, 0.0]]
"""
