"""How a model is run: called on an example, on a chosen device, leaving no trace; copied; differentiated.

Every room above runs models through this one, so that examples mean the same everywhere and the caller's model is not
changed. A model goes in, with an example or with batches of data; outputs, gradients or a copy come out.

In reading order:

- `example`: the arguments of one call of a model (arguments, keywords or one argument), and how they are taken from
  data. `recorded`: the arguments of a model's first call in a training.
- `devices`: the device of a model, or the one that a name means.
- `undisturbed`: run a model forward and backward and restore everything: gradients, statistics, modes, random state.
- `calling`: call a model on an example in evaluation mode, without gradients.
- `fast_copy`: copy a module tree as `copy.deepcopy` does, without its cost.
- `gradients`: gradients of the loss over many batches, summed in a wide type.
- `sound_weights`: refuse a model with NaN in its weights.
- `operator_costs`: the multiply-accumulates of every operator.
- `processors`: how many processors this process may use, and whether they multiply bfloat16.
- `verb`: the guarantees of every verb: a failure leaves the model as it was, and two threads do not share one.

>>> import torch
>>> from torch import nn
>>> from secateur.execution.calling import call, evaluating
>>> from secateur.execution.example import first_example
>>> model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
>>> data = [(torch.ones(4, 2), torch.zeros(4)), (torch.ones(4, 2), torch.zeros(4))]
>>> with evaluating(model, first_example(data)) as example:
...     outputs = call(model, example)
>>> outputs.shape, outputs.requires_grad, model.training
(torch.Size([4, 3]), False, True)
"""
