"""`factorise`: a linear layer or convolution as two smaller ones, by truncated singular value decomposition.

A weight W [outputs, inputs] of rank r is A @ B with A [outputs, r] and B [r, inputs]. With U the first r left
singular vectors of W, A = U and B = U.T @ W is the nearest such product. With data, U is taken of W @ C**0.5, where C
is the second moment of the layer's inputs: then the layer's *outputs* on the data are nearest.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> small = sc.factorise(model, {"0": 4}, torch.randn(2, 16))
>>> tuple(small.model[0][0].weight.shape), tuple(small.model[0][1].weight.shape), small.proof_error < 1e-9
((4, 16), (32, 4), True)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from secateur.compensation.batches import read_all
from secateur.core.model_kinds import plain_model
from secateur.errors import (
    NonFiniteError,
    NothingToDoError,
    OptionError,
    PatternError,
    ProofError,
    StructureError,
    near,
)
from secateur.execution.example import Example, call_arguments
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = ["Factorised", "factorise"]

Layer: TypeAlias = nn.Linear | nn.Conv2d
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Factorised:
    """What `factorise` returns: the model with two layers for one, and how far it is from the truncated dense weights.

    Attributes:
        model: A copy in which each factorised layer is an `nn.Sequential` of two.
        ranks: Each factorised layer's rank. `factorise` with these gives a fresh model the same layers.
        parameters_before: Parameters of the model given.
        parameters_after: Parameters of the copy.
        proof_error: Largest difference from the model with truncated dense weights, in float64 on the example, as a
            share of the largest output.
    """

    model: nn.Module
    ranks: dict[str, int]
    parameters_before: int
    parameters_after: int
    proof_error: float


@verb
def factorise(
    model: nn.Module,
    ranks: Mapping[str, int] | float,
    example: Example,
    *,
    data: Iterable[Any] | None = None,
) -> Factorised:
    """Replace linear layers and convolutions by two smaller ones each, by truncated SVD of their weights.

    A convolution becomes one with its own kernel and `rank` outputs, and a 1x1 convolution behind it. Layers with
    groups, padding other than zeros, or a weight that is used elsewhere too are left as they are. The model given
    stays as it is.

    Args:
        model: The model to factorise.
        ranks: Each layer's rank, by the layer's name; or the share of weights that every layer keeps at most. With a
            share, the layers in which it is less than one rank are left as they are.
        example: An input of the model, or a tuple of inputs, on which the result is proved.
        data: Batches of inputs that weight the decomposition by what the layers really receive; without, all inputs
            count alike.

    Returns:
        A `Factorised`: the copy, its ranks, its parameters and the proof's error.

    Raises:
        OptionError: A rank or share is out of range, or a rank saves no weights.
        PatternError: A name is no layer that can be factorised.
        NothingToDoError: No layer is left to factorise.
        NonFiniteError: A weight, or what a layer receives, holds NaN or infinity.
        StructureError: The model reads a layer's weight itself, or the data never reach a layer.
        ProofError: The result and the truncated dense weights compute different outputs.
    """
    model = plain_model(model)
    layers = _layers(model)
    chosen = _ranks(layers, ranks)
    roots = _input_roots(model, {name: layers[name] for name in chosen}, data)
    small, dense = copy.deepcopy(model), copy.deepcopy(model).double().eval()
    for name, rank in chosen.items():
        with torch.random.fork_rng(devices=[]):  # new layers draw weights that are overwritten
            pair, product = _pair(name, layers[name], rank, roots.get(name))
        small.set_submodule(name, pair)
        with torch.no_grad():
            dense.get_submodule(name).get_parameter("weight").copy_(product)
    error = _proof_error(copy.deepcopy(small).double().eval(), dense, example)
    return Factorised(small, chosen, _count(model), _count(small), error)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _layers(model: nn.Module) -> dict[str, Layer]:
    """The layers that can be replaced: plain, not in two places, and their weight in no other module."""
    found: dict[str, Layer] = {}
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    for name, module in model.named_modules():
        if name == "" or type(module) not in (nn.Linear, nn.Conv2d) or places[id(module.weight)] > 1:
            continue
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        if isinstance(module, nn.Conv2d) and (
            module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros"
        ):
            continue
        found[name] = module
    return found


def _ranks(layers: Mapping[str, Layer], ranks: Mapping[str, int] | float) -> dict[str, int]:
    """Each layer's rank, in the order of the model's layers; checked."""
    if not isinstance(ranks, Mapping):
        if isinstance(ranks, bool) or not isinstance(ranks, (int, float)) or not 0 < ranks < 1:
            raise OptionError(
                f"ranks: expected ranks by layer, or a share of weights kept in (0, 1), got {ranks!r}"
            )
        shared = {name: int(ranks * _numel(layer) / sum(_sides(layer))) for name, layer in layers.items()}
        chosen = {name: rank for name, rank in shared.items() if rank >= 1}
    else:
        for name, rank in ranks.items():
            if name not in layers:
                raise PatternError(
                    f"ranks: {name!r} is no layer that can be factorised: {near(name, list(layers))}"
                )
            _check_rank(name, layers[name], rank)
        chosen = {name: ranks[name] for name in layers if name in ranks}
    if not chosen:
        raise NothingToDoError(
            "factorise: no layer is left to factorise; give ranks by layer, or a larger share"
        )
    return chosen


def _check_rank(name: str, layer: Layer, rank: int) -> None:
    most = (_numel(layer) - 1) // sum(_sides(layer))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise OptionError(
            f"ranks: {name}: expected a whole number from 1 to {most}, the largest rank that saves weights, "
            f"got {rank!r}"
        )


def _sides(layer: Layer) -> tuple[int, int]:
    return layer.weight.shape[0], layer.weight[0].numel()


def _numel(layer: Layer) -> int:
    return layer.weight.numel()


def _columns(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's inputs as [rows, inputs of one output], in float64."""
    inputs = inputs.detach().double()
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    if inputs.dim() == 3:
        inputs = inputs[None]
    assert not isinstance(layer.padding, str)
    size = (layer.kernel_size[0], layer.kernel_size[1])
    patches = functional.unfold(inputs, size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _input_roots(
    model: nn.Module, layers: Mapping[str, Layer], data: Iterable[Any] | None
) -> dict[str, torch.Tensor]:
    """The square root of each layer's second moment of inputs; none without data."""
    if data is None:
        return {}
    moments: dict[str, torch.Tensor] = {}

    def watch(name: str, layer: Layer) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = _columns(layer, args[0])
            moments[name] = moments.get(name, 0) + rows.T @ rows

        return layer.register_forward_pre_hook(hook)

    with undisturbed(model, mode="eval"), torch.no_grad():
        handles = [watch(name, layer) for name, layer in layers.items()]
        try:
            for batch in read_all("factorise", data, model):
                model(*batch.args, **batch.kwargs)
        finally:
            for handle in handles:
                handle.remove()
    roots = {}
    for name in layers:
        if name not in moments:
            raise StructureError(
                f"factorise: {name} did not run on the data, so there is nothing to weight it by; give ranks by layer, "
                "without it"
            )
        moment = moments[name]
        if not bool(moment.isfinite().all()):
            raise NonFiniteError(
                f"{name}: its inputs on the data hold NaN or infinity; leave those batches out"
            )
        values, vectors = torch.linalg.eigh(moment)
        roots[name] = vectors * values.clamp(min=0).sqrt()
    return roots


def _pair(
    name: str, layer: Layer, rank: int, root: torch.Tensor | None
) -> tuple[nn.Sequential, torch.Tensor]:
    """The two layers, and the dense weight that they stand for, in float64."""
    weight = layer.weight.detach().double().flatten(1)
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(f"{name}.weight holds NaN or infinity; mend it before it is factorised")
    left = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)[0][:, :rank]
    with_bias = layer.bias is not None
    first: Layer
    second: Layer
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=with_bias)
    else:
        size, stride = layer.kernel_size, layer.stride
        first = nn.Conv2d(layer.in_channels, rank, size, stride, layer.padding, layer.dilation, bias=False)  # type: ignore[arg-type]
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=with_bias)
    pair = nn.Sequential(first, second).to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        first.weight.copy_((left.T @ weight).reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
        product = second.weight.double().flatten(1) @ first.weight.double().flatten(1)
    for parameter in pair.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return pair.train(layer.training), product.reshape(layer.weight.shape)


def _proof_error(small: nn.Module, dense: nn.Module, example: Example) -> float:
    """The largest difference of their outputs as a share of the largest output; a `ProofError` if it is too large."""
    args, kwargs = call_arguments(example)
    args, kwargs = tree_map(_doubled, args), tree_map(_doubled, kwargs)
    with torch.no_grad():
        want = tree_leaves(dense(*args, **kwargs))
        try:
            got = tree_leaves(small(*args, **kwargs))
        except AttributeError as error:
            raise StructureError(
                f"factorise: the model reads a layer's weight itself, so that layer cannot be replaced ({error}); "
                "give ranks by layer, without it"
            ) from error
    pairs = [(a.double(), b.double()) for a, b in zip(want, got, strict=True) if isinstance(a, torch.Tensor)]
    scale = max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)
    off = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    share = off / scale if scale else off
    if not pairs or not share <= _TOLERANCE:
        raise ProofError(
            f"factorise: expected the outputs of the truncated dense weights within {_TOLERANCE:g} of the largest "
            f"output, got {share:.2e} on {len(pairs)} outputs; give ranks for fewer layers to find the one that differs"
        )
    return share


def _doubled(value: object) -> object:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
