"""Low rank: a linear layer or convolution as two smaller ones, by truncated singular value decomposition.

A weight W [outputs, inputs] of rank r is A @ B with A [outputs, r] and B [r, inputs]. With U the first r left
singular vectors of W, A = U and B = U.T @ W is the nearest such product. With data, U is taken of W @ C**0.5, where C
is the second moment of the layer's inputs: then the layer's *outputs* on the data are nearest. The verb is
`secateur.pruning.low_rank.factorise`.

A convolution's weight reads as such a matrix in two ways. Outputs by (inputs, height, width) gives a convolution with
the same kernel and a 1x1 convolution. (Outputs, width) by (inputs, height), the spatial form, gives a convolution with
a kernel one wide and one with a kernel one high (Jaderberg et al. 2014).

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> found = decompositions(model, {"0": factorisable(model)["0"]}, None)
>>> small, error = replaced(model, found, {"0": 4}, torch.randn(2, 16))
>>> tuple(small[0][0].weight.shape), tuple(small[0][1].weight.shape), error < 1e-9
((4, 16), (32, 4), True)
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from secateur.compensation.batches import read_all
from secateur.errors import (
    NonFiniteError,
    OptionError,
    PatternError,
    ProofError,
    StructureError,
    near,
)
from secateur.execution.example import Example, call_arguments
from secateur.execution.undisturbed import undisturbed

__all__ = [
    "Decomposition",
    "Layer",
    "check_ranks",
    "decompositions",
    "factorisable",
    "most_rank",
    "replace_",
    "replaced",
    "sides",
    "spatial_layers",
    "two_layers",
]

Layer: TypeAlias = nn.Linear | nn.Conv2d
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A layer's left singular vectors, and the squares of its singular values, largest first; in float64."""

    left: torch.Tensor
    squares: torch.Tensor


def decompositions(
    model: nn.Module,
    layers: Mapping[str, Layer],
    data: Iterable[Any] | None,
    spatial: Collection[str] = (),
) -> dict[str, Decomposition]:
    """The decomposition of every layer's weight, or with data of the weight times the root of its inputs' moment.

    The sum of the squares from rank r on is the squared error of the layer's outputs on the data at that rank.

    Args:
        model: The model.
        layers: The layers, by name.
        data: Batches of inputs, or None.
        spatial: The layers in the spatial form, which data cannot weight.
    """
    roots = _input_roots(model, layers, data)
    return {
        name: _decomposition(name, layer, roots.get(name), name in spatial) for name, layer in layers.items()
    }


def replaced(
    model: nn.Module,
    found: Mapping[str, Decomposition],
    ranks: Mapping[str, int],
    example: Example,
    spatial: Collection[str] = (),
) -> tuple[nn.Module, float]:
    """A copy with two layers for each of `ranks`, and how far it is from the truncated dense weights.

    Args:
        model: The model; it is not changed.
        found: The decompositions of these layers.
        ranks: The rank of each.
        example: What both are run on, in float64.
        spatial: The layers in the spatial form.
    """
    small, dense = copy.deepcopy(model), copy.deepcopy(model).double().eval()
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        pair = two_layers(layer, rank, name in spatial)
        product = _fill(layer, pair, found[name].left[:, :rank], name in spatial)
        small.set_submodule(name, pair)
        with torch.no_grad():
            dense.get_submodule(name).get_parameter("weight").copy_(product)
    return small, _proof_error(copy.deepcopy(small).double().eval(), dense, example)


def replace_(model: nn.Module, ranks: Mapping[str, int], spatial: Collection[str] = ()) -> nn.Module:
    """Put two layers for each of `ranks` into a model, with weights that are to be loaded; checked first.

    Args:
        model: A freshly built model; it is changed.
        ranks: The rank of each layer, by name. They may come from a file: a rank that saves no weights is refused.
        spatial: The layers in the spatial form.

    Raises:
        PatternError: A name is not that of a layer that can be factorised.
        OptionError: A rank is out of range.
    """
    layers = factorisable(model)
    check_ranks(layers, ranks, spatial)
    for name, rank in ranks.items():
        model.set_submodule(name, two_layers(layers[name], rank, name in spatial))
    return model


def check_ranks(layers: Mapping[str, Layer], ranks: Mapping[str, int], spatial: Collection[str] = ()) -> None:
    """Raise unless each name is a layer that can be factorised and each rank saves weights.

    Args:
        layers: The layers that can be factorised.
        ranks: The rank of each layer, by name.
        spatial: The layers in the spatial form.
    """
    strange = [name for name in spatial if name not in spatial_layers(layers)]
    if strange:
        raise PatternError(
            f"ranks: {strange[0]!r}: expected a convolution with a kernel of two axes that keeps the width, for the "
            "spatial form; factorise it in the other form"
        )
    for name, rank in ranks.items():
        if name not in layers:
            raise PatternError(
                f"ranks: {name!r} is not a layer that can be factorised: {near(name, list(layers))}"
            )
        most = most_rank(layers[name], name in spatial)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise OptionError(
                f"ranks: {name}: expected a whole number from 1 to {most}, the largest rank that saves weights, "
                f"got {rank!r}"
            )


def most_rank(layer: Layer, spatial: bool = False) -> int:
    """The largest rank that saves weights; 0 where none does.

    Args:
        layer: The layer.
        spatial: Whether it is in the spatial form.
    """
    return (layer.weight.numel() - 1) // sum(sides(layer, spatial))


def spatial_layers(layers: Mapping[str, Layer]) -> frozenset[str]:
    """The convolutions that have a spatial form: both axes of the kernel above 1, and as wide outputs as inputs.

    Args:
        layers: The layers that can be factorised.

    >>> sorted(spatial_layers({"a": nn.Conv2d(2, 2, 3, padding=1), "b": nn.Conv2d(2, 2, 3), "c": nn.Conv2d(2, 2, 1)}))
    ['a']
    """
    found = set()
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1 and not isinstance(layer.padding, str):
            wide = layer.dilation[1] * (layer.kernel_size[1] - 1)
            if layer.stride[1] == 1 and 2 * layer.padding[1] == wide:
                found.add(name)
    return frozenset(found)


def factorisable(model: nn.Module) -> dict[str, Layer]:
    """The layers that can be replaced: plain, not in two places, their weight in no other module and read by none.

    Args:
        model: The model.
    """
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
        if not _read_by_its_owner(model, name):
            found[name] = module
    return found


def _read_by_its_owner(model: nn.Module, name: str) -> bool:
    """Whether the module that holds a layer reads its weight itself, as `nn.TransformerEncoderLayer` does."""
    owner, _, attribute = name.rpartition(".")
    try:
        source = inspect.getsource(type(model.get_submodule(owner)).forward)
    except (OSError, TypeError):  # a forward without a source, such as a built-in one
        return False
    return re.search(rf"\.{re.escape(attribute)}\.(weight|bias)\b", source) is not None


def sides(layer: Layer, spatial: bool = False) -> tuple[int, int]:
    """The rows and columns of a layer's weight as a matrix: its outputs, and the inputs of one of them.

    Args:
        layer: The layer.
        spatial: Whether it is in the spatial form: outputs times width, and inputs times height.
    """
    if spatial:
        outputs, inputs, height, width = layer.weight.shape
        return outputs * width, inputs * height
    return layer.weight.shape[0], layer.weight[0].numel()


def _matrix(layer: Layer, spatial: bool) -> torch.Tensor:
    """The weight as a matrix, in float64."""
    weight = layer.weight.detach().double()
    return weight.permute(0, 3, 1, 2).reshape(sides(layer, True)) if spatial else weight.flatten(1)


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


def _decomposition(name: str, layer: Layer, root: torch.Tensor | None, spatial: bool) -> Decomposition:
    weight = _matrix(layer, spatial)
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(f"{name}.weight holds NaN or infinity; correct it before it is factorised")
    left, values, _ = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
    return Decomposition(left, values.square())


def two_layers(layer: Layer, rank: int, spatial: bool = False) -> nn.Sequential:
    """The two layers that replace one, on its device and in its mode; their weights are not filled in yet.

    Args:
        layer: The layer.
        rank: The width between the two.
        spatial: Whether it is in the spatial form.
    """
    with_bias = layer.bias is not None
    first: Layer
    second: Layer
    with torch.random.fork_rng(devices=[]):  # new layers draw weights that are overwritten
        if isinstance(layer, nn.Linear):
            first = nn.Linear(layer.in_features, rank, bias=False)
            second = nn.Linear(rank, layer.out_features, bias=with_bias)
        elif spatial:
            first, second = _one_wide_and_one_high(layer, rank)
        else:
            given = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            first = nn.Conv2d(layer.in_channels, rank, *given, bias=False)  # type: ignore[arg-type]
            second = nn.Conv2d(rank, layer.out_channels, 1, bias=with_bias)
    pair = nn.Sequential(first, second).to(layer.weight.device, layer.weight.dtype)
    for parameter in pair.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return pair.train(layer.training)


def _one_wide_and_one_high(layer: nn.Conv2d, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The two convolutions of the spatial form: along the height, then along the width."""
    (high, wide), (down, right), (below, beside) = layer.kernel_size, layer.stride, layer.dilation
    assert not isinstance(layer.padding, str)
    top, side = layer.padding
    first = nn.Conv2d(layer.in_channels, rank, (high, 1), (down, 1), (top, 0), (below, 1), bias=False)
    with_bias = layer.bias is not None
    return first, nn.Conv2d(
        rank, layer.out_channels, (1, wide), (1, right), (0, side), (1, beside), bias=with_bias
    )


@torch.no_grad()
def _fill(layer: Layer, pair: nn.Sequential, left: torch.Tensor, spatial: bool) -> torch.Tensor:
    """Fill in the weights of the two layers; return the dense weight that they represent, in float64."""
    first, second = pair[0], pair[1]
    assert isinstance(first, (nn.Linear, nn.Conv2d))
    assert isinstance(second, (nn.Linear, nn.Conv2d))
    first.weight.copy_((left.T @ _matrix(layer, spatial)).reshape(first.weight.shape))
    if spatial:  # rows of `left` are (outputs, width)
        outputs, _, _, width = layer.weight.shape
        second.weight.copy_(left.reshape(outputs, width, -1).transpose(1, 2)[:, :, None])
    else:
        second.weight.copy_(left.reshape(second.weight.shape))
    if layer.bias is not None and second.bias is not None:
        second.bias.copy_(layer.bias)
    if spatial:
        return torch.einsum("orw,rih->oihw", second.weight.double()[:, :, 0], first.weight.double()[..., 0])
    product = second.weight.double().flatten(1) @ first.weight.double().flatten(1)
    return product.reshape(layer.weight.shape)


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
