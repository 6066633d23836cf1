"""`architecture`: the layers of a model with their widths, its text, and with an example the coupled groups.

>>> from torch import nn
>>> rows = architecture(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
>>> rows["widths"].value, rows["widths"].per_layer
(5, {'0': 3, '2': 2})
>>> rows["architecture"].context["layers"][0]
{'name': '0', 'kind': 'Linear', 'width': 3, 'inputs': 4, 'parameters': 15, 'group': ''}
"""

from __future__ import annotations

from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError
from secateur.execution.example import Example

__all__ = ["architecture"]

BY_DEFAULT = False
MORE_ROWS = ("widths",)

_WIDTHS = (
    ("out_channels", "in_channels"),
    ("out_features", "in_features"),
    ("nf", "nx"),
    ("embed_dim", "embed_dim"),
)


def architecture(model: nn.Module, example: Example = None) -> Measurements:
    """Two rows: the layers with their text, and the widths.

    Args:
        model: The model.
        example: What it is called with; given, the coupled groups are traced as well.
    """
    layers = []
    groups, note = _groups(model, example)
    for name, module in model.named_modules():
        for out, into in _WIDTHS:
            width = getattr(module, out, None)
            if isinstance(width, int) and getattr(module, "weight", None) is not None:
                layers.append(
                    {
                        "name": name or "(model)",
                        "kind": type(module).__name__,
                        "width": width,
                        "inputs": int(getattr(module, into)),
                        "parameters": sum(parameter.numel() for parameter in module.parameters()),
                        "group": groups.get(name, ""),
                    }
                )
                break
    text = "convolutions and linear layers, by the width of their output"
    return Measurements(
        [
            Measurement(
                "architecture",
                len(layers),
                "layers",
                text,
                notes=note,
                context={"text": str(model), "layers": layers},
            ),
            Measurement(
                "widths",
                sum(layer["width"] for layer in layers),
                "units",
                "output channels of convolutions and output features of linear layers",
                per_layer={str(layer["name"]): int(layer["width"]) for layer in layers},
            ),
        ]
    )


def _groups(model: nn.Module, example: Example) -> tuple[dict[str, str], tuple[str, ...]]:
    """Per layer, the coupled group its outputs belong to; only groups of two layers or more."""
    if example is None:
        return {}, ()
    from secateur.structure.groups.couplings import analyse

    try:
        structure = analyse(model, example)
    except SecateurError as error:
        return {}, (f"coupled groups are not shown: {error}",)
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    for group in structure.groups:
        members = {
            slot.name.rpartition(".")[0]
            for slot in group.slots
            if slot.name.endswith("weight") and slot.axis == _out_axis(modules, slot.name)
        }
        members = {name for name in members if any(hasattr(modules[name], out) for out, _ in _WIDTHS)}
        if len(members) > 1:
            found |= dict.fromkeys(members, group.name)
    return found, ()


def _out_axis(modules: dict[str, nn.Module], name: str) -> int:
    module = modules[name.rpartition(".")[0]]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return 1 if isinstance(module, transposed) or type(module).__name__ == "Conv1D" else 0
