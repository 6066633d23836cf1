"""The model that a verb was given by name, and what it is called with.

>>> model_of("lenet-300-100", None, ["num_classes=7"], seed=0).training
False
>>> example_of("a model", model_of("lenet-300-100", None, None, 0), "2,1,28,28", seed=0).shape
torch.Size([2, 1, 28, 28])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelName", "ModelOptions", "Weights", "example_of", "model_of"]

ModelName = Annotated[
    str,
    typer.Argument(
        help="One of ours (`secateur list models`), timm/NAME, torchvision/NAME, hf/NAME, package.module:function.",
        show_default=False,
    ),
]
Weights = Annotated[Path | None, typer.Argument(help="A .safetensors, .pt or .sct file.", show_default=False)]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="What the model is made with: num_classes=10. Repeatable."
    ),
]


def model_of(name: str, weights: Path | None, options: list[str] | None, seed: int | None) -> nn.Module:
    """The model of that name, in evaluation mode."""
    import torch

    from secateur import models
    from secateur.lab.recipe import parse_setting
    from secateur.lab.weights import load_weights

    torch.manual_seed(seed or 0)
    model = models.build(name, **dict(parse_setting(option, "--option") for option in options or []))
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def example_of(name: str, model: nn.Module, shape: str | None, seed: int | None, batch: int = 1) -> Any:
    """What the model is called with: `--input`, else what the model itself says."""
    import torch

    from secateur import models

    chance = torch.Generator().manual_seed(seed or 0)
    if shape is not None:
        try:
            sizes = [int(part) for part in shape.replace("x", ",").split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            raise OptionError(f"--input {shape}: expected a shape of positive numbers, such as 1,3,224,224")
        example = torch.randn(sizes, generator=chance)
        try:
            with torch.no_grad():
                model(example)
        except Exception as error:
            raise OptionError(
                f"model {name!r} fails on an input of shape {shape} ({type(error).__name__}: {error}); give another "
                "--input, or see with --debug where it fails"
            ) from error
        return example
    found = models.input_shape(model)
    if found is not None:
        return torch.randn(batch, *found, generator=chance)
    dummy = getattr(model, "dummy_inputs", None)  # transformers' models bring one
    if isinstance(dummy, dict):
        return dummy
    raise OptionError(
        f"model {name!r} does not say what it takes; give the shape of one input: --input 1,3,224,224"
    )
