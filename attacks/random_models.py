"""Random models: from a seed, the source of a small network as strangers write them, with a real forward.

A network is a chain of pieces drawn by chance: layers, norms, attention, and the ways in which forwards take channels
apart, put them together and make something else of their zeros. Widths are now numbers, now taken from a shape.

>>> made = source_of(3)
>>> made.text.startswith("class Net(nn.Module):"), made == source_of(3)
(True, True)
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from attacks import model_kinds, model_pieces
from attacks.model_writer import PIECES, Feature, Writer, chain

__all__ = ["RandomModel", "built", "source_of"]

_HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"


@dataclass(frozen=True)
class RandomModel:
    """A network as text, and what it is called with.

    Attributes:
        text: The classes; the network is `Net`.
        shapes: Shapes of one input each; the first is the example's, the model may refuse the others.
        words: How many words the input's numbers are of, where it holds words; 0 where it holds floats.
        pieces: The names of the pieces that were drawn.
    """

    text: str
    shapes: tuple[tuple[int, ...], ...]
    words: int
    pieces: tuple[str, ...]

    def inputs(self, seed: int = 0) -> list[torch.Tensor]:
        """One input for each of the shapes.

        Args:
            seed: The seed of their values.
        """
        made = torch.Generator().manual_seed(seed)
        if self.words:
            return [torch.randint(self.words, shape, generator=made) for shape in self.shapes]
        return [torch.randn(shape, generator=made) for shape in self.shapes]


def _end(w: Writer, x: Feature) -> str:
    """The last lines, and what the forward gives."""
    if x.kind == "vector" or w.chance(0.3):
        out = w.mapped(x, 3) if w.chance(0.9) else x
    else:
        axes = {"image": "(2, 3)", "line": "2", "tokens": "1"}[x.kind]
        out = w.mapped(w.new(x, f"{x.name}.{w.rng.choice(('mean', 'amax'))}({axes})", kind="vector"), 3)
    if w.chance(0.8):
        return out.name
    other = w.rng.choice(w.pool)
    if w.chance(0.5):
        other = w.mapped(other, 2)
    return w.rng.choice(("({0}, {1})", "{{'out': {0}, 'aux': {1}}}", "[{0}, {{'aux': {1}}}]")).format(
        out.name, other.name
    )


_STARTS: Sequence[tuple[str, int, tuple[tuple[int, ...], ...]]] = (
    ("image", 3, ((2, 3, 8, 8), (3, 3, 8, 8), (1, 3, 12, 10))),
    ("line", 4, ((2, 4, 8), (3, 4, 8), (1, 4, 13))),
    ("tokens", 6, ((2, 5, 6), (3, 5, 6), (1, 8, 6))),
    ("vector", 7, ((2, 7), (3, 7), (1, 7))),
    ("words", 0, ((2, 5), (3, 5), (1, 8))),
)


def source_of(seed: int, pieces: int = 0) -> RandomModel:
    """The network of a seed.

    Args:
        seed: The seed.
        pieces: How many pieces it is made of; 0 draws two to six.
    """
    rng = random.Random(seed)
    classes: list[str] = []
    w = Writer(rng, classes)
    kind, width, shapes = rng.choice(_STARTS)
    if kind == "words":
        width = rng.choice((6, 8, 12))
        table = w.part(f"nn.Embedding(11, {width})")
        x = (
            w.mapped(Feature(w.value(f"{table}(x)"), "tokens", width, "i"), width)
            if rng.random() < 0.3
            else Feature(w.value(f"{table}(x)"), "tokens", width, "i")
        )
    else:
        x = w.mapped(Feature("x", kind, width, "i"), w.width())
    x = chain(w, x, pieces or rng.randrange(2, 7))
    if kind == "words" and x.kind == "tokens" and rng.random() < 0.5:
        ends = f"F.linear({w.mapped(x, width).name}, {table}.weight)"
    else:
        ends = _end(w, x)
    if rng.random() < 0.1:
        w.part("nn.Linear(5, 5)")
    text = "\n\n".join([*classes, w.text("Net", ends)])
    return RandomModel(text, shapes, 11 if kind == "words" else 0, tuple(w.drawn))


assert PIECES, (model_kinds, model_pieces)  # imported for the pieces that they add
_FOLDER = tempfile.TemporaryDirectory(prefix="secateur-models-")


def built(made: RandomModel, seed: int = 0) -> nn.Module:
    """The network with random values everywhere, in evaluation mode; its class can be imported, as `pickle` asks.

    Args:
        made: The network as text.
        seed: The seed of the values.
    """
    name = f"random_model_{hashlib.sha256(made.text.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        path = Path(_FOLDER.name) / f"{name}.py"
        path.write_text(_HEAD + made.text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    torch.manual_seed(seed)
    net: nn.Module = sys.modules[name].Net().eval()
    with torch.no_grad():
        for key, value in net.named_parameters():
            if value.dim() < 2 and not key.endswith("original0"):
                value.copy_(torch.randn_like(value) * 0.4 + (0.8 if "weight" in key else 0.1))
        for key, value in net.named_buffers():
            if key.endswith("running_mean"):
                value.normal_(0, 0.3)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2)
    return net
