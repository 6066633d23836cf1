"""A call in the source of a forward with the sizes of a `Rewrite`, as an edit of its syntax tree.

>>> from secateur.structure.cut.rewrite_data import Rewrite
>>> node = ast.parse("x.reshape(n, 8)", mode="eval").body
>>> ast.unparse(edit(Rewrite("reshape", 0, ((1, 6),)), node, ()))
'x.reshape(n, 6)'
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from dataclasses import dataclass, field

from secateur.structure.cut.call_sites import HELPER
from secateur.structure.cut.rewrite_data import Rewrite, Value
from secateur.structure.trace.calls import MADE, PIECES

__all__ = ["EditedCall", "edit"]


@dataclass(frozen=True)
class EditedCall:
    """The edit that gives a call the sizes of a rewrite.

    Attributes:
        item: The rewrite.
        shown: Its sizes as text: 8 and 8.0 are equal numbers, and not the same in a call.
    """

    item: Rewrite
    shown: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", repr(self.item.sizes))

    def __call__(self, node: ast.expr, modules: Collection[str]) -> ast.expr | None:
        """Edit a call; see `edit`."""
        return edit(self.item, node, modules)


def edit(item: Rewrite, node: ast.expr, modules: Collection[str]) -> ast.expr | None:
    """A call expression with the sizes of a rewrite; None where it is written in a way that cannot be edited.

    Args:
        item: The rewrite.
        node: The expression; it may be changed.
        modules: The names in its function that are modules: `torch.reshape(x, ...)` is no method of a tensor.
    """
    if item.function == "__getitem__":
        return _edited_subscript(item, node)
    if not isinstance(node, ast.Call) or _called(node) != item.function:
        return None  # a site in a plan may point anywhere
    if any(keyword.arg is None for keyword in node.keywords):
        return None
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name) and node.func.value.id in modules
    )
    first = 0 if method or item.function in MADE else 1  # of the arguments after the tensor itself
    if item.function in PIECES:
        return _edited_pieces(item, node, method)
    if item.function == "narrow":
        if len(node.args) != first + 3 or node.keywords:
            return None
        node.args[first + 1 :] = [_constant(value) for _, value in item.sizes]
        return node
    return _edited_call(item, node, first)


def _edited_call(item: Rewrite, node: ast.Call, first: int) -> ast.expr | None:
    """A call whose sizes are one argument or several, from argument `first` on."""
    keys = {"pad": ("pad",), "unflatten": ("sizes",)}.get(item.function, ("size", "shape", "sizes"))
    keyword = next((keyword for keyword in node.keywords if keyword.arg in keys), None)
    if keyword is not None:
        keyword.value = _edited_sizes(item, keyword.value)
        return node
    first += 1 if item.function == "unflatten" else 0
    if len(node.args) <= first:
        return None
    one = len(node.args) == first + 1 or item.function in ("pad", "unflatten", "full", "new_full")
    if one or isinstance(node.args[first], (ast.Tuple, ast.List)):
        node.args[first] = _edited_sizes(item, node.args[first])
        return node
    if any(isinstance(each, ast.Starred) for each in node.args[first:]):
        whole = ast.Tuple(node.args[first:], ast.Load())
        node.args[first:] = [_edited_sizes(item, whole)]
        return node
    for position, value in item.sizes:
        if first + position >= len(node.args):
            return None
        node.args[first + position] = _edited_size(node.args[first + position], value)
    return node


def _called(node: ast.Call) -> str:
    """The name under which an expression calls a function."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _edited_pieces(item: Rewrite, node: ast.Call, method: bool) -> ast.expr | None:
    """`x.chunk(2, 1)` or `torch.chunk(x, 2, 1)` as `x.split([4, 3], 1)`."""
    arguments = list(node.args) if method else node.args[1:]
    if not method and not node.args:
        return None
    dim: ast.expr = arguments[1] if len(arguments) > 1 else ast.Constant(0)
    dim = next((keyword.value for keyword in node.keywords if keyword.arg == "dim"), dim)
    assert not method or isinstance(node.func, ast.Attribute)
    source = node.func.value if method and isinstance(node.func, ast.Attribute) else node.args[0]
    pieces = ast.List([_constant(value) for _, value in item.sizes], ast.Load())
    return ast.Call(ast.Attribute(source, "split", ast.Load()), [pieces, dim], [])


def _edited_subscript(item: Rewrite, node: ast.expr) -> ast.expr | None:
    """`x[:, :8]` with other bounds."""
    if not isinstance(node, ast.Subscript):
        return None
    whole = isinstance(node.slice, ast.Tuple)
    index = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    for position, (start, stop, _) in item.sizes:
        if position >= len(index) or not isinstance(index[position], ast.Slice):
            return None
        index[position] = ast.Slice(_constant(start), _constant(stop), None)
    node.slice = ast.Tuple(index, ast.Load()) if whole else index[0]
    return node


def _edited_sizes(item: Rewrite, node: ast.expr) -> ast.expr:
    """An expression for several sizes: its elements if it is written as a tuple or list, else its value."""
    if isinstance(node, (ast.Tuple, ast.List)) and not any(isinstance(e, ast.Starred) for e in node.elts):
        for position, value in item.sizes:
            node.elts[position] = _edited_size(node.elts[position], value)
        return node
    changes: list[ast.expr] = []
    for position, value in item.sizes:
        pair = (
            ast.Tuple([_constant(part) for part in value], ast.Load()) if isinstance(value, tuple) else None
        )
        changes.append(ast.Tuple([_constant(position), pair or _constant(value)], ast.Load()))
    return ast.Call(ast.Name(HELPER, ast.Load()), [node, *changes], [])


def _edited_size(node: ast.expr, value: Value) -> ast.expr:
    """An expression for one size."""
    if not isinstance(value, tuple):
        return _constant(value)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return _constant(node.value * value[0] // value[1])
    times = ast.BinOp(node, ast.Mult(), _constant(value[0])) if value[0] != 1 else node
    return ast.BinOp(times, ast.FloorDiv(), _constant(value[1])) if value[1] != 1 else times


def _constant(value: int | float) -> ast.expr:
    """A number as an expression; a negative one as a unary minus, which TorchScript requires."""
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)
