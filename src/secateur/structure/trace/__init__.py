"""The trace of one forward: the operators it runs, with shapes and the parameters they use, without computing anything.

A model and an example go in, a `Trace` comes out. The model is copied without its weights, run once on tensors
that have a shape and no values (meta tensors), and the copy is discarded.

In reading order:

- `trace`: the recorder and its records: `Op`, `TensorRef`, `Trace`.
- `calls`: the calls that were given sizes in Python (`x.view(b, 8, -1)`), matched with the operators they became.
- `meta_shapes`: the output shapes of the most frequent operators, computed faster than torch does.
- `other_shapes`: the other batches, image sizes and lengths that the model accepts; `refused`: one that it does not.
- `in_training`: whether a model does something else in training, and its recording there.
- `flags`: the booleans among the inputs that decide which parameters are used, and the recordings of the other choice.
- `fixed_count_norms`: means and norms that divide by the dense model's count; the recorder sees them as the plain ones.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.trace.trace import trace
>>> found = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.zeros(2, 3, 4))
>>> [(op.name, op.results()[0].shape) for op in found.ops]
[('view', (2, 12)), ('t', (12, 4)), ('addmm', (2, 4))]
>>> sorted(found.parameters)
['1.bias', '1.weight']
"""
