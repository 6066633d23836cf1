"""Accuracy without retraining: the remaining weights of each layer refitted by least squares, from inputs alone.

Pruning and sharing change the outputs layer by layer, and a layer is a linear map: given its inputs and the outputs
that it should have, the best weights are the solution of least squares. That needs no label, no loss, no training
pipeline, only a few hundred inputs. How it works, from the verb inwards:

1. `compensate.compensate` (the verb `sc.compensate`) copies the model, applies the masks, and puts everything together.
2. `batches` reads the calibration data once; `walking.Walk` runs a forward pass that stops before every layer, so that
   all batches wait at the same layer while it is solved. Nothing is computed twice, and any forward will do: layers are
   recognised when their function is called, not by the model's class. What waiting passes hold beyond a gibibyte is
   kept in temporary files (`waiting`).
3. `calls.Call` reads such a call as a matrix product, whatever the layer: linear, convolution of any rank, grouped,
   depthwise, transposed.
4. `moments.Moments` adds up the second moments of the layer's inputs (those of the *compressed* model, as they now are)
   and of the *dense* model's outputs: X^T X and X^T Y, all that least squares needs.
5. `solver.LeastSquares`, with `least_squares.solve`, finds the weights on the remaining support of each output.
6. `fitting.fit` is the loop over layers that joins 2 to 5; biases and running means of batch norm follow each layer.
   Where an output is added to what goes around the layer (`sums`), the layer is solved for the sum.
7. `tuning.tune`, the optional second stage, takes gradient steps on the outputs of blocks and of the whole model;
   `recombined` puts token sequences together again for it.

`shares` says how much each layer should lose, by the error that each caused in a first round.

`progress` is what is reported after each layer. `low_rank` writes a layer as two smaller ones.

`support` chooses which weights should remain, from the same moments; the criteria `wanda` and `obs` use it. `sc.share`
with `data=` finds codebooks by the same loop (`quantize.calibrated`).

A layer of two inputs that always agree loses one of its weights, and the other compensates for it:

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
>>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 3.0]]))
>>> inputs = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
>>> masks = sc.Masks({"0.weight": torch.tensor([[False, True]])})
>>> result = sc.compensate(model, masks, [inputs], solver=sc.LeastSquares(damping=0.0))
>>> [round(w, 4) for w in result.model[0].weight[0].tolist()]
[0.0, 4.0]
"""
