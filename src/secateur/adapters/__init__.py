"""Adapters: to and from other libraries. Nothing here is imported until it is used, and each library is optional.

Files, in reading order:

- `export`: `sc.export`, a model as ONNX (in floats or INT8) or as a `torch.export` archive. It uses `programs` (record,
  write, compare), `int8` (quantise, compare, leave sensitive layers in float; `int8_layers`
  puts layers into the form that is fastest; `int8_quantisers`, `onnx_weights` and `onnx_norms` prepare the graph and
  quantise it; `onnx_settled` leaves out what is the same for every input, `onnx_few` writes it with fewer operators,
  `onnx_heads` keeps heads beside each other, `onnx_attention` puts attention into one operator),
  `onnx_model` (a file that is called like a module) and `runtimes` (OpenVINO and ExecuTorch).
- `huggingface`: `sc.save_pretrained`, a model of transformers as a folder that loads without secateur. It uses
  `hf_forms` (the simplest form that says the widths), `hf_layers` (`per_layer_config`, fewer layers), `hf_modelling` (a
  generated modelling file), `served` and `_fresh` (an artefact run in a process that cannot import secateur).
  `promises` records what an artefact promises, and checks it.
- `ultralytics`: `sc.save_yolo` and `sc.yolo_trainer`, YOLO models as checkpoints that load without secateur, and
  ultralytics' trainer for models that are cut; `ultralytics_training`: `train_yolo`, which reads no pickle meanwhile.
- `two_of_four`: the speed-up of a 2:4 pattern on this machine.
- `free_axes`: which sizes of the inputs a file leaves open; `padding`: what outputs mean nothing at; `recurrent`: LSTM
  and GRU layers keep the time open; `onnx_names`: what outputs and free axes are called in an ONNX file.
- `names`: models by the names other libraries give them: `timm/NAME`, `torchvision/NAME`, `hf/NAME`, `module:function`.
- `functions`: what a user names as `module:function`, imported: of a model, of data, of a judgement. `own_sources`: the
  files that such code is made of, found by following its imports.
- `lightning`, `trainer`: callbacks that hold masks, or make them gradually, while Lightning's or transformers'
  `Trainer` trains. Both use `holding`.

>>> import torch
>>> from torch import nn
>>> from secateur.adapters.names import call
>>> from secateur.adapters.two_of_four import has_two_of_four
>>> has_two_of_four(call("torch.nn:Linear", {"in_features": 8, "out_features": 2}))
False
"""
