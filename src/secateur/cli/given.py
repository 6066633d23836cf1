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
    import torch
    from torch import nn

    from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["InputFlags", "ModelFlags", "ModelName", "ModelOptions", "Weights"]

ModelName = Annotated[
    str,
    typer.Argument(
        help="One of ours (`secateur list models`), timm/NAME, torchvision/NAME, hf/NAME, ultralytics/NAME or "
        "ultralytics/FILE.pt, the folder of a Hugging Face model, package.module:function.",
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

    def folder(self) -> Path | None:
        """The folder that the name is of, if it is that of a Hugging Face model; `hf/` before it may be left out.
        `hf/bert` is an architecture, whatever folder is called `bert`.
        """
        from secateur import models

        place = Path(self.model.removeprefix("hf/"))
        ours = self.model.replace("_", "-").lower() in models.names() or self._architecture()
        return place if not ours and (place / "config.json").is_file() else None

    def _architecture(self) -> bool:
        """Whether the name is that of an architecture of transformers, which has no weights."""
        library, _, name = self.model.partition("/")
        if library != "hf" or not name or "/" in name:
            return False
        try:
            from transformers import CONFIG_MAPPING
        except ImportError:  # building the model says what is missing
            return False
        return name in CONFIG_MAPPING

    def _options(self) -> dict[str, Any]:
        from secateur.lab.recipe import parse_setting

        return dict(parse_setting(text, "--option") for text in self.option or [])

    def trained(self) -> bool:
        """Whether weights were given, in a file or with the model itself; else they are random. A function of the
        user's own may give either, and is not doubted.
        """
        asked = self._options().get("pretrained")
        if self.weights is not None or asked is not None:
            return self.weights is not None or bool(asked)
        library, _, name = self.model.partition("/")
        if ":" in self.model:
            return True
        if library == "ultralytics":
            return name.endswith(".pt")
        return self.folder() is not None or (library == "hf" and not self._architecture())

    def build(self) -> nn.Module:
        """The model with its weights, in evaluation mode."""
        return self.build_cut()[0]

    def build_cut(self) -> tuple[nn.Module, ShrinkPlan | None]:
        """The model, and the plan with which it was cut before, where its weights come with one (a .sct file)."""
        import torch

        from secateur import models
        from secateur.container.loading import plan_in
        from secateur.lab.weights import find_weights, load_weights

        if self.weights is not None and self.model.startswith("ultralytics/") and self.model.endswith(".pt"):
            raise OptionError(
                f"{self.weights}: expected no weights beside {self.model}, a checkpoint of ultralytics, which has its "
                "own; leave the second file out"
            )
        torch.manual_seed(self.seed or 0)
        folder = self.folder()
        # By its whole path, which is no architecture's name.
        model = models.build(self.model if folder is None else f"hf/{folder.resolve()}", **self._options())
        earlier = None
        if self.weights is not None:
            if self.weights.suffix == ".sct":
                earlier = plan_in(find_weights(self.weights), model)
            load_weights(model, self.weights)
        return model.eval(), earlier


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
            return self._given(model, self.input_, chance)
        found = models.input_shape(model)
        if found is not None:
            return torch.randn(batch, *found, generator=chance)
        dummy = getattr(model, "dummy_inputs", None)  # transformers' models have one
        if isinstance(dummy, dict):
            return dummy
        raise OptionError(
            f"model {self.model!r} does not say which inputs it takes; give the shape of one input: --input "
            "1,3,224,224, or a function of yours that returns one: --input module:function"
        )

    def _given(self, model: nn.Module, text: str, chance: torch.Generator) -> Any:
        """The input that `--input` asks for, with which the model has to run."""
        import torch

        from secateur.adapters import functions
        from secateur.execution.example import call_arguments

        own = ":" in text
        if own:
            example = functions.find(text, "input")()
        else:
            sizes = _sizes(text)
            example = _tokens(model, sizes, chance)
            example = torch.randn(sizes, generator=chance) if example is None else example
        args, keywords = call_arguments(example)
        try:
            with torch.no_grad():
                model(*args, **keywords)
        except Exception as error:
            what = text if own else f"shape {text}"
            raise OptionError(
                f"model {self.model!r} fails on an input of {what} ({type(error).__name__}: {error}); give another "
                "shape, or module:function that returns an input; --debug shows where it fails"
            ) from error
        return example


def _tokens(model: nn.Module, sizes: list[int], chance: torch.Generator) -> dict[str, torch.Tensor] | None:
    """Token numbers for a model of transformers that takes them; None for another model."""
    import torch

    known: Any = getattr(model, "dummy_inputs", None)
    most = getattr(getattr(model, "config", None), "vocab_size", None)
    if getattr(model, "main_input_name", None) != "input_ids" or not isinstance(known, dict) or most is None:
        return None
    if not isinstance(most, int) or most < 1:
        raise OptionError(f"the model's configuration: vocab_size: expected a number from 1 on, got {most!r}")
    names = [name for name in ("input_ids", "decoder_input_ids") if name in known]
    return {name: torch.randint(most, sizes, generator=chance) for name in names}


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
