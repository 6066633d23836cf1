"""Depth: which blocks of a model can be removed whole, and the model without them.

A block is an entry of an `nn.Sequential` or `nn.ModuleList`. It can be removed if its branches are added to its input,
and everything else between its input and its output vanishes with them. The recorded forward decides this, never a
name:

    x ──┬── norm ── attention ──┐
        └───────────────────────+── y        residual: with zeros for weights, y is x, exactly
    x ──┬── attention ──┐
        └───────────────+── norm ── y        normalised: a norm of x is left; the block is bypassed

In reading order: `zeros` (the result of an operator on tensors that are 0), `blocks` (`find_blocks`), `numbered`
(those that a forward asks for by number), `bypass` (`bypass_`: a block returns its input), `entries` (the remaining
entries of containers: names before and after, and how the others are removed), `leaving` (the blocks that masks drop,
and the model without them).

>>> import torch
>>> from torch import nn
>>> from secateur.structure.depth.blocks import find_blocks
>>> class Residual(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.fc = nn.Linear(4, 4)
...     def forward(self, x):
...         return x + self.fc(x)
>>> model = nn.Sequential(nn.Linear(3, 4), Residual(), Residual(), nn.Linear(4, 2))
>>> [(block.path, block.kind) for block in find_blocks(model, torch.zeros(1, 3)).found]
[('1', 'residual'), ('2', 'residual')]
"""
