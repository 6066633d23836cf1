"""The model that a verb was given by name, and an example input for it.

>>> ModelFlags("lenet-300-100", option=["num_classes=7"]).build().training
False
>>> flags = InputFlags("lenet-300-100", input_="2,1,28,28")
>>> flags.example(flags.build()).shape
torch.Size([2, 1, 28, 28])
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import Example, Seed
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["InputFlags", "ModelFlags", "ModelName", "ModelOptions", "Weights"]

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
        "--option", metavar="KEY=VALUE", help="Arguments of the model, such as num_classes=10. Repeatable."
    ),
]


@dataclass(frozen=True)
class ModelFlags:
    """A model by name, its weights, and its arguments."""

    model: ModelName
    weights: Weights = None
    option: ModelOptions = None
    seed: Seed = None

    def build(self) -> nn.Module:
        """The model with its weights, in evaluation mode."""
        import torch

        from secateur import models
        from secateur.lab.recipe import parse_setting
        from secateur.lab.weights import load_weights

        torch.manual_seed(self.seed or 0)
        model = models.build(
            self.model, **dict(parse_setting(text, "--option") for text in self.option or [])
        )
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval()


@dataclass(frozen=True)
class InputFlags(ModelFlags):
    """A model by name, and the shape of one input of it."""

    input_: Example = None

    def example(self, model: nn.Module, batch: int = 1) -> Any:
        """An input for the model: of the shape `--input`, else of the shape that the model itself names."""
        import torch

        from secateur import models

        chance = torch.Generator().manual_seed(self.seed or 0)
        if self.input_ is not None:
            example = torch.randn(_sizes(self.input_), generator=chance)
            try:
                with torch.no_grad():
                    model(example)
            except Exception as error:
                raise OptionError(
                    f"model {self.model!r} fails on an input of shape {self.input_} ({type(error).__name__}: {error}); "
                    "give another --input, or see with --debug where it fails"
                ) from error
            return example
        found = models.input_shape(model)
        if found is not None:
            return torch.randn(batch, *found, generator=chance)
        dummy = getattr(model, "dummy_inputs", None)  # transformers' models have one
        if isinstance(dummy, dict):
            return dummy
        raise OptionError(
            f"model {self.model!r} does not say which inputs it takes; give the shape of one input: --input 1,3,224,224"
        )


def _sizes(shape: str) -> list[int]:
    """The sizes in a shape written as 1,3,224,224 or 1x3x224x224.

    >>> _sizes("1x3x224x224")
    [1, 3, 224, 224]
    """
    try:
        sizes = [int(part) for part in shape.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OptionError(f"--input {shape}: expected a shape of positive numbers, such as 1,3,224,224")
    return sizes
