"""Sensitivity: how much accuracy each layer costs when it alone is pruned, and the sparsities that follow from it.

In go a model and an evaluation: batches, or a function of the model. Out comes a `Scan`, a table of
values by layer and level, and from it an `Allocation`: a sparsity for each layer, with the least predicted loss within
a budget.

In reading order: `scan` (the verb), `scan_result` (`Scan`, `Cell`, `Allocation`), `scan_file` (what an interrupted scan
resumes from), `allocate` (the verb that searches for the shares of all layers together), `evaluation` (one evaluation
under many masks), `distributed` (its jobs over threads, processes or a pool of workers), then two ways to make it fast:
`prefix_cache` (keeps what the model computes before the masked layer) and `screened_top1` (the exact count of correct
predictions) with `folded_forward` and `graph_steps`.

>>> import torch
>>> from torch import nn
>>> from secateur.sensitivity.scan import scan
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
>>> batches = [(torch.randn(16, 4), torch.randint(0, 3, (16,)))]
>>> len(scan(model, batches, granularity="element", levels=[0.5, 0.9]).cells)  # two layers at two levels
4
"""
