"""What random models are written with: a tensor of their forward, a class that is being written, a list of pieces.

A piece is a function that is given a writer and a tensor, adds parts and lines to the class, and gives another tensor.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ALL", "PIECES", "TAIL", "Feature", "Writer", "chain", "piece"]

_AXIS = {"image": 1, "line": 1, "tokens": -1, "vector": -1}
TAIL = {"image": ", 1, 1", "line": ", 1", "tokens": ",", "vector": ","}
_WIDTHS = (4, 6, 8, 12, 16)
_KEEP_ZERO = (
    "{}.relu()",
    "F.gelu({})",
    "F.silu({})",
    "{}.tanh()",
    "F.leaky_relu({}, 0.1)",
    "F.hardswish({})",
    "F.elu({})",
)
_LOSE_ZERO = (
    "{}.sigmoid()",
    "F.softplus({})",
    "({} + 1)",
    "(-{}.square()).exp()",
    "{}.cos()",
    "{}.clamp(min=0.1)",
)


@dataclass(frozen=True)
class Feature:
    """A tensor of the forward: its name, what its axes are, its channels, and a name for its other sizes."""

    name: str
    kind: str
    width: int
    place: str

    @property
    def axis(self) -> int:
        return _AXIS[self.kind]


class Writer:
    """Collects the parts and the lines of one class."""

    def __init__(self, rng: random.Random, classes: list[str], depth: int = 0):
        self.rng, self.classes, self.depth = rng, classes, depth
        self.parts: list[str] = []
        self.lines: list[str] = []
        self.pool: list[Feature] = []
        self.drawn: list[str] = []
        self.count = 0
        self.normed = rng.random() < 0.1

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def width(self) -> int:
        return self.rng.choice(_WIDTHS)

    def part(self, made: str) -> str:
        self.parts.append(f"self.p{len(self.parts)} = {made}")
        return f"self.p{len(self.parts) - 1}"

    def own(self, *shape: int) -> str:
        return self.part(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def value(self, expression: str) -> str:
        self.count += 1
        self.lines.append(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def new(self, like: Feature, expression: str, width: int | None = None, **other: str) -> Feature:
        made = Feature(
            self.value(expression),
            other.get("kind", like.kind),
            like.width if width is None else width,
            other.get("place", like.place),
        )
        self.pool.append(made)
        return made

    def number(self, value: int, expression: str) -> str:
        """A width: written out, worked out, or kept as a number of the module."""
        how = self.rng.randrange(3)
        if how == 0:
            self.parts.append(f"self.n{len(self.parts)} = {value}")
            return f"self.n{len(self.parts) - 1}"
        return str(value) if how == 1 else f"({expression})"

    def size(self, x: Feature) -> str:
        return self.number(x.width, f"{x.name}.shape[{x.axis}]")

    def mate(self, x: Feature, same_width: bool = True) -> Feature:
        """An earlier tensor that fits, or a new one."""
        found = [
            each
            for each in self.pool
            if (each.kind, each.place) == (x.kind, x.place)
            and each.name != x.name
            and (each.width == x.width or not same_width)
        ]
        if found and self.chance(0.6):
            return self.rng.choice(found)
        return self.mapped(x, x.width if same_width else self.width())

    def layer(self, x: Feature, width: int, groups: int = 1) -> str:
        """A layer as an expression that makes it."""
        bias = ", bias=False" if self.chance(0.3) else ""
        grouped = f", groups={groups}" if groups > 1 else ""
        if x.kind in ("tokens", "vector"):
            made = f"nn.Linear({x.width}, {width}{bias})"
        else:
            taps = self.rng.choice((1, 3))
            rank = 2 if x.kind == "image" else 1
            made = f"nn.Conv{rank}d({x.width}, {width}, {taps}, padding={taps // 2}{grouped}{bias})"
        if self.normed and self.chance(0.4):
            made = f"nn.utils.parametrizations.{self.rng.choice(('weight_norm', 'spectral_norm'))}({made})"
        return made

    def mapped(self, x: Feature, width: int, groups: int = 1) -> Feature:
        return self.new(x, f"{self.part(self.layer(x, width, groups))}({x.name})", width)

    def act(self, expression: str, loses: float = 0.3) -> str:
        return self.rng.choice(_LOSE_ZERO if self.chance(loses) else _KEEP_ZERO).format(expression)

    def cut(self, x: Feature, start: object, stop: object, step: object = "") -> str:
        """A slice of the channels."""
        inner = f"{start}:{stop}" + (f":{step}" if step else "")
        return f"{x.name}[..., {inner}]" if x.axis == -1 else f"{x.name}[:, {inner}]"

    def text(self, name: str, ends: str) -> str:
        parts = "".join(f"        {each}\n" for each in self.parts) or "        pass\n"
        lines = "".join(f"        {each}\n" for each in self.lines)
        return (
            f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{parts}\n"
            f"    def forward(self, x):\n{lines}        return {ends}\n"
        )


Piece = Callable[[Writer, Feature], Feature]
PIECES: dict[str, tuple[tuple[str, ...], Piece]] = {}
ALL = ("image", "line", "tokens", "vector")


def piece(*kinds: str) -> Callable[[Piece], Piece]:
    def listed(made: Piece) -> Piece:
        PIECES[made.__name__.lstrip("_")] = (kinds or ALL, made)
        return made

    return listed


def chain(w: Writer, x: Feature, many: int) -> Feature:
    w.pool.append(x)
    for _ in range(many):
        if x.width % 2 or x.width < 4:  # most pieces take halves
            x = w.mapped(x, w.width())
        fitting = [name for name, (kinds, _) in PIECES.items() if x.kind in kinds]
        name = w.rng.choice(fitting)
        w.drawn.append(name)
        x = PIECES[name][1](w, x)
        if x.width > 32:
            x = w.mapped(x, w.width())
    return x
