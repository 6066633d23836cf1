"""How a model is run: called on an example, on a chosen device, leaving no trace; copied; differentiated.

Every room above runs models through this one, so that all of them mean the same by an example and leave the caller's
model as they found it. A model goes in, with an example or with batches of data; outputs, gradients or a copy come out.

In reading order:

- `example`: what a model is called with (arguments, keywords or one argument), and how one is taken
  from data.
- `devices`: the device a model lies on, or the one a name means.
- `undisturbed`: run a model forward and backward and put everything back: gradients, statistics, modes, random state.
- `calling`: call a model on an example in evaluation mode, without gradients.
- `fast_copy`: copy a module tree as `copy.deepcopy` does, without its cost.
- `gradients`: gradients of the loss over many batches, summed in a wide type.
- `operator_costs`: the multiply-accumulates of every operator.
- `processors`: how many processors this process may use.

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
