"""From a recorded forward to groups: the channels that must be removed together, and those that cannot be, with
reasons.

A `Trace` goes in, a `Structure` comes out: groups, locks, and the layout of every tensor, against which a cut forward
is checked. In reading order:

- `labels`: `Labels`, the store of numbered positions, of ties between them and of locks; `Field` and `Layout`, the
  labels of one tensor.
- `layout`: how layouts go through a broadcast, a reduction, a reshape, a slice, a concatenation.
- `rules/`: one function for each operator, by family. An operator without a rule locks the labels that reach it.
- `grouping`: tied labels collected into units and groups.
- `couplings`: `analyse`, which does all of it for a model and an example, and `Structure`.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.groups.couplings import analyse
>>> found = analyse(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
>>> [(group.name, group.count) for group in found.groups]
[('0', 8)]
>>> [(lock.operator, lock.reason) for lock in found.locked()]
[('addmm', 'meets an axis that cannot be cut'), ('output', "the model's output")]
"""
