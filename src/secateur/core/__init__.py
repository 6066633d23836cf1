"""The values that all other rooms exchange: small, frozen, checked when made. No room below it but errors and registry.

In reading order: `targets` (which weights of a model can be pruned), `left_alone` (what is said of
the others), `context` (data, loss and seed of a call),
`scores` (a score per weight), `units` (what is removed as one), `masks` and `lines` (which weights remain),
`codebook` (a tensor of few values), `schedule` (sparsity by round), `measurement` (a number with its definition),
`over_seeds` (the mean of several seeds),
`atomic_files` (files that appear whole or not at all), `file_endings` (names that promise another format), `json_text`,
`safetensors_header` and `terminal` (reading untrusted text, and printing it).

Helpers that every room uses: `nested` (tensors in nested values), `parameters` (by name), `wrapped_layers` (names from
before LoRA wrapped them), `pareto`, `optimizers`,
`fetching` (many numbers from a device at once), `rounding` (how far it may move outputs),
`model_kinds` (wrappers are taken off, other kinds refused), `cut_mark`
(models that were cut), `interrupts`, `out_of_memory`, `user_warnings`, `missing_files` (what errors say), `new_folders`
(what may be written), `renamed` (arguments by their old names), `torch_calls` (types of intercepted calls),
`html_table` and `plotting` (values in notebooks).

>>> import torch
>>> from secateur.core.masks import Masks
>>> Masks({"fc.weight": torch.tensor([[True, False], [False, False]])}).sparsity
0.75
"""
