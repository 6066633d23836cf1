r"""Structure: which channels of a model are removed together, and the smaller model without them.

A channel is in many tensors at once: the filter that computes it, its bias, its batch norm, and a slice of every layer
that reads it. To remove one, all of these must be cut, and nothing else. This package finds them by following one
forward pass position by position, cuts them out, and proves that the smaller model computes the same. Five steps:

    trace    the operators of one forward, with shapes                        trace/
    labels   a number for every position of every axis; tied where they meet  groups/labels, layout, rules/
    groups   positions with tied labels that an operator reads and another    groups/grouping, couplings
             one writes: units that compete with each other
    plan     which indices stay on which axis, as plain data                  cut/
    proof    masked and cut model give the same outputs in float64            proof, proving

A network of three layers shows each step. The convolution has 4 channels of 2 x 2 positions:

             0: Conv2d(3, 4, 3)        1: BatchNorm2d(4)     2: Flatten, 3: Linear(16, 2)
    image -> weight [4, 3, 3, 3]  ---> weight [4]       ---> weight [2, 16]  -> output
             bias   [4]                bias   [4]
    label    a                         a                     aaaa                (one letter: one
             b                         b                     bbbb                 channel, leaves
             c                         c                     cccc                 as a whole)
             d                         d                     dddd

>>> import torch
>>> from torch import nn
>>> from secateur.core.masks import Masks
>>> from secateur.structure.groups.couplings import analyse
>>> from secateur.structure.shrink import shrink
>>> from secateur.structure.trace.trace import trace
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
>>> x = torch.randn(1, 3, 4, 4)

*Trace.* The forward runs once, on tensors without values, and every operator is recorded:

>>> [op.name for op in trace(model, x).ops if op.name != "empty"]
['convolution', 'native_batch_norm', 'view', 't', 'addmm']

*Labels.* Each operator has a rule that says how labels go through it. Labels that meet are tied; where a position
cannot be removed (a colour of the image, a class of the output), its label is locked, which is written as class 0:

>>> found = analyse(model, x)
>>> [found.classes[found.slots[name]].tolist() for name in [("0.weight", 0), ("1.weight", 0), ("0.weight", 1)]]
[[1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0]]
>>> found.classes[found.slots["3.weight", 1]].tolist()
[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]

*Groups.* A class is one unit, and the units that touch the same axes form one group. Its slots say where they lie:

>>> group = found.groups[0]
>>> [(slot.name, slot.axis, slot.role, slot.positions.shape) for slot in group.slots][:4:3]
[('0.weight', 0, 'out', (4, 1)), ('1.bias', 0, 'along', (4, 1))]
>>> next(slot.positions.tolist()[1] for slot in group.slots if slot.role == "in")  # channel b in the linear layer
[4, 5, 6, 7]

*Plan.* Masks say which channels are removed; here b and c. The plan holds the indices that remain and the widths to
set:

>>> keep = torch.tensor([True, False, False, True])
>>> masks = Masks({"0.weight": keep[:, None, None, None].expand(4, 3, 3, 3)})
>>> small = shrink(model, masks, x)
>>> small.plan.keep["3.weight"][1], small.plan.attributes["3"]
((0, 1, 2, 3, 12, 13, 14, 15), {'in_features': 8})

*Proof.* The masked model and the cut one run in float64 on the same input, and every output is compared:

>>> small.model[0], small.proof.holds
(Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1)), True)

In reading order: `shrink` (the verbs `shrink` and `explain`), `trace/`, `groups/`, `cut/`, `cutting` (the whole cut),
`depth/` (whole blocks), `proof` (the value), `proof_inputs`, `proof_runs` and `proving` (how it is made, with
`selections` and `depthwise`), `beyond_masks` (what leaves although the masks keep it), `beyond_inputs` (what no input
reaches), `explain` with `explanation` (what it returns), `shrunk_files` (saving, loading), `carried` (the optimizer and
its state), `own_forwards` (a cut without rewritten forwards, for files of other libraries), `hf/` (configurations of
Hugging Face models).
"""
