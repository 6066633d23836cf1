"""Hugging Face models: the configuration that describes a model after it was cut, so that `from_pretrained` builds it.

- `configs`: the fields that hold a width are changed until a model built from the configuration has the new shapes.
- `rotary`: frequencies of rotary embeddings that a cut left, written as a kind that every rotary model reads.
- `auto_classes`: the AutoModel class that builds the very class which a configuration names.
- `hub_code`: a configuration that names an attention of the hub, which is code, is refused.

A model without a configuration has nothing to fit:

>>> from torch import nn
>>> from secateur.structure.hf.configs import fitted_config
>>> fitted_config(nn.Linear(2, 2), nn.Linear(2, 1), [(2, 1)])
(None, '')
"""
