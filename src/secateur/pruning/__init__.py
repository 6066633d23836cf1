"""Pruning: criterion, granularity and budget together decide which weights are removed, as `Masks`.

In go a model and the three choices. Out comes one boolean tensor per parameter, True where the weight is kept. The
model itself is changed only by `hold` (removed weights stay zero while it is trained) and by `zero_dead_neurons`.

In reading order: `prune` (the verb), `taking_part` (the weights that take part), `scored_units` (the units and their
scores), `scoring` (one score per unit), `selection` (the input of a budget), `unit_masks` (from its choice to masks),
`cost` (the cost of a choice, for budgets that ask), `connectivity` (refuses masks that disconnect the network), `hold`,
`replaced` (parameters that took others' names meanwhile), `zeroing`, `dead_neurons`, `low_rank` (two layers for one).

>>> from torch import nn
>>> from secateur.pruning.prune import prune
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> masks = prune(model, criterion="l1", granularity="filter", budget=0.5, skip="2")
>>> masks["0.weight"].any(1).sum().item()  # of 8 rows
4
"""
