"""Call sites: the place of a size-taking call in the source, and the source with other sizes in it.

A forward with a hard-coded width gets its new width in the source: a copy of the function, in which that one call has
other sizes, replaces it in a subclass. The result is ordinary Python: torch.compile, torch.export and torch.jit.script
read it as they read the original. Only functions whose source can be read, and calls that are reached through plain
functions and methods, can be edited; for the rest `edited` gives None.

A site is plain data: for each function from the module's forward to the call, its name, a digest of its source and the
index of the call expression within it. It only locates code, and never contains any.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.trace.trace import trace
>>> net = nn.Sequential(nn.Unflatten(1, (2, 3)))
>>> site = site_of(nn.Unflatten, trace(net, torch.zeros(4, 6)).calls[0].chain)
>>> [(name, index) for name, _, index in site]
[('Unflatten.forward', 0)]
"""

from __future__ import annotations
import __future__

import ast
import hashlib
import inspect
import linecache
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

import torch

from secateur.structure.trace.calls import Chain

__all__ = ["Edit", "Site", "edited", "resized", "site_of"]

Site = tuple[tuple[str, str, int], ...]
"""For each function on the way to a call: (qualified name, digest of its source, index of the call expression)."""


class Edit(Protocol):
    """Gives a call expression its new sizes; None where it cannot be edited. Equal edits make the same of it."""

    def __call__(self, node: ast.expr, modules: Collection[str]) -> ast.expr | None:
        """Edit a call expression, knowing which of the function's names are modules."""

    def __hash__(self) -> int: ...


_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_ORIGINS: dict[CodeType, tuple[CodeType, list[int]]] = {}
"""By the code of an edited function: that of the function it was made from, and which of its calls each call was."""

HELPER = "_secateur_resized"
"""Name of the helper that edited source may call; calls of it have no index."""


def resized(asked: Any, *changes: tuple[int, Any]) -> Any:
    """The sizes a forward asks for, with some of them changed.

    Args:
        asked: A size, or several.
        changes: (position, value) pairs: a value is a size, or (a, b) for a/b of the size asked for.

    >>> resized((4, 8, 6), (1, 2), (2, (1, 3)))
    (4, 2, 2)
    """
    if isinstance(asked, (int, torch.SymInt)):
        return resized((asked,), *changes)[0]
    sizes = list(asked)
    for position, value in changes:
        sizes[position] = sizes[position] * value[0] // value[1] if isinstance(value, tuple) else value
    return tuple(sizes)


@lru_cache(maxsize=512)
def _parsed(code: CodeType) -> tuple[ast.FunctionDef, str] | None:
    """The syntax tree of a function, with lines and columns as in its file, and a digest of its source."""
    try:
        source = inspect.getsource(code)
        tree = ast.parse("if 1:\n" + source if source[:1].isspace() else "\n" + source)
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, code.co_firstlineno - 2)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            same = node.name == code.co_name
            return (node, hashlib.sha256(source.strip().encode()).hexdigest()[:16]) if same else None
    return None


def _expressions(tree: ast.AST) -> list[ast.expr]:
    """The calls and subscripts of a function, in a fixed order; calls of the helper are not counted."""
    return [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == HELPER))
    ]


@lru_cache(maxsize=512)
def _expressions_of(code: CodeType) -> list[ast.expr]:
    """The calls and subscripts of a function whose source can be read; they are never changed."""
    parsed = _parsed(code)
    assert parsed is not None
    return _expressions(parsed[0])


@lru_cache(maxsize=512)
def _names_in(code: CodeType) -> frozenset[str]:
    """The names in a function whose source can be read."""
    parsed = _parsed(code)
    return frozenset(
        node.id for node in ast.walk(parsed[0] if parsed else ast.Pass()) if isinstance(node, ast.Name)
    )


@lru_cache(maxsize=512)
def _indices(code: CodeType) -> list[int | None]:
    """For every instruction of a function: which call expression it belongs to."""
    parsed = _parsed(code)
    places: dict[tuple[int | None, ...], int] = {}
    for index, node in enumerate(_expressions_of(code) if parsed is not None else ()):
        places.setdefault((node.lineno, node.end_lineno, node.col_offset, node.end_col_offset), index)
    return [places.get(position) for position in code.co_positions()]


def _index_at(code: CodeType, instruction: int) -> int | None:
    """Which call expression of a function an instruction belongs to."""
    found = _indices(code)
    return found[instruction // 2] if 0 <= instruction // 2 < len(found) else None


def _copied(value: Any) -> Any:
    """The same as `copy.deepcopy` of a syntax tree, in a fifth of the time."""
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if not isinstance(value, ast.AST):
        return value  # a name, a number, a place in the source
    made = type(value).__new__(type(value))
    vars(made).update({key: _copied(item) for key, item in vars(value).items()})
    return made


def site_of(base: type, chain: Chain) -> Site | None:
    """The site of a recorded call, or None where it cannot be edited.

    Args:
        base: The class of the module whose forward made the call.
        chain: The place of the call, as recorded.
    """
    function = _function(base, "forward")
    steps: list[tuple[str, str, int]] = []
    for position, (code, instruction) in enumerate(chain):
        if function is None or function.__code__ is not code:
            return None
        index = _index_at(code, instruction)
        origin, was = _ORIGINS.get(code, (code, None))
        parsed = _parsed(origin)
        if index is None or parsed is None:
            return None
        steps.append((origin.co_qualname, parsed[1], index if was is None else was[index]))
        if position + 1 < len(chain):
            here = _parsed(code)
            assert here is not None
            function = _callee(base, function, _expressions_of(code)[index], _self_name(here[0]))
    return tuple(steps) if steps else None


def _function(base: type, name: str) -> FunctionType | None:
    found = inspect.getattr_static(base, name, None)
    return found if isinstance(found, FunctionType) else None


def _self_name(tree: ast.FunctionDef) -> str | None:
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    return arguments[0].arg if arguments else None


def _callee(base: type, function: FunctionType, node: ast.expr, own: str | None) -> FunctionType | None:
    """The plain function that a call expression calls: by name, through a module, or as a method of `self`."""
    if not isinstance(node, ast.Call):
        return None
    target = node.func
    found: object = None
    if isinstance(target, ast.Name):
        found = function.__globals__.get(target.id)
    elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        owner = function.__globals__.get(target.value.id)
        if isinstance(owner, ModuleType):
            found = getattr(owner, target.attr, None)
        elif target.value.id == own and function.__qualname__.count("."):
            found = _function(base, target.attr)
    return found if isinstance(found, FunctionType) else None


def edited(base: type, edits: Sequence[tuple[Site, Edit]]) -> dict[str, FunctionType] | None:
    """The functions of a subclass in which the calls at some sites have other sizes.

    Args:
        base: The class.
        edits: A site and its edit, for each call.

    Returns:
        Methods by name, `forward` among them; None if the source has changed, or cannot be edited.
    """
    forward = _function(base, "forward")
    if forward is None or not edits:
        return None
    methods: dict[str, FunctionType] = {}
    try:
        made = _edited(base, forward, list(edits), methods)
    except Exception:
        # a user's source may raise anything when it is defined again; the caller has another way
        return None
    if made is None:
        return None
    return {**methods, "forward": made}


def _edited(
    base: type,
    function: FunctionType,
    edits: list[tuple[Site, Edit]],
    methods: dict[str, FunctionType],
    prefix: str = "",
) -> FunctionType | None:
    """One function with its edits, and those of the functions it calls; `prefix` tells copies of one apart."""
    parsed = _parsed(function.__code__)
    if parsed is None or not _all_in(function, parsed[1], [site for site, _ in edits]):
        return None
    nodes, own = _expressions_of(function.__code__), _self_name(parsed[0])
    new: dict[str, object] = {}
    changes: list[tuple[int, Edit]] = []
    for index in sorted({site[0][2] for site, _ in edits}):
        if not 0 <= index < len(nodes):
            return None
        here = [(site, edit) for site, edit in edits if site[0][2] == index]
        if all(len(site) == 1 for site, _ in here):
            if len(here) > 1:
                return None
            changes.append((index, here[0][1]))
            continue
        call = nodes[index]
        callee = _callee(base, function, call, own)
        if callee is None or not isinstance(call, ast.Call) or any(len(site) == 1 for site, _ in here):
            return None
        inside = [(site[1:], edit) for site, edit in here]
        inner = _edited(base, callee, inside, methods, f"{prefix}_{index}")
        if inner is None:
            return None
        as_method = _calls_on(call, own)
        (methods if as_method else new)[inner.__name__] = inner
        changes.append((index, _CallInstead(inner.__name__, as_method)))
    where = f"{function.__module__}.{function.__qualname__}"
    known = function.__globals__
    modules = frozenset(
        name for name in _names_in(function.__code__) if isinstance(known.get(name), ModuleType)
    )
    code = _edited_code(function.__code__, where, prefix, tuple(changes), modules)
    return None if code is None else _defined(function, code, new)


@lru_cache(maxsize=512)
def _edited_code(
    code: CodeType,
    where: str,
    prefix: str,
    changes: tuple[tuple[int, Edit], ...],
    modules: frozenset[str],
) -> _EditedCode | None:
    """The code that defines a function with some of its expressions edited; None where one cannot be.

    A cut asks for the same ones several times: for the copies that are recorded, and for the model that it returns.

    Args:
        code: The function's code.
        where: Its module and qualified name.
        prefix: What tells it from other copies of the function; empty for the forward itself.
        changes: The numbers of expressions, and their edits.
        modules: The names in the function that are modules.
    """
    parsed = _parsed(code)
    assert parsed is not None
    tree: ast.FunctionDef = _copied(parsed[0])
    nodes = _numbered(tree)
    for index, edit in changes:
        made = edit(nodes[index], modules)
        if made is None:
            return None
        if made is not nodes[index]:
            _replace(nodes[index], made)
    if prefix:
        tree.name = f"_secateur{prefix}_{tree.name}"
    return _definition(tree, where, code)


@dataclass(frozen=True)
class _CallInstead:
    """The edit that lets a call go to an edited function: a method of `self`, or a name of its own.

    Attributes:
        name: The name of the edited function.
        as_method: Whether the call is one of a method.
    """

    name: str
    as_method: bool

    def __call__(self, node: ast.expr, modules: Collection[str]) -> ast.expr:
        assert isinstance(node, ast.Call)
        if self.as_method:
            assert isinstance(node.func, ast.Attribute)
            node.func.attr = self.name
        else:
            node.func = ast.Name(self.name, ast.Load())
        return node


def _calls_on(call: ast.Call, own: str | None) -> bool:
    """Whether a call is one of a method of the function's own `self`."""
    target = call.func
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == own


def _numbered(tree: ast.FunctionDef) -> list[ast.expr]:
    """The expressions of a function, each of which knows its number."""
    nodes = _expressions(tree)
    for index, node in enumerate(nodes):
        node._secateur_index = index  # type: ignore[attr-defined]
    return nodes


def _all_in(function: FunctionType, digest: object, sites: Sequence[Site]) -> bool:
    """Whether every site begins in this function, as it is written now."""
    return all(site and site[0][:2] == (function.__code__.co_qualname, digest) for site in sites)


def _replace(old: ast.expr, new: ast.expr) -> None:
    """Turn a node into another one, in place."""
    index = vars(old)["_secateur_index"]
    old.__class__ = new.__class__
    for key in list(vars(old)):
        delattr(old, key)
    vars(old).update(vars(new), _secateur_index=index)


@dataclass(frozen=True, eq=False)
class _EditedCode:
    """Code that defines an edited function, which has the name `name`, and which of its calls each call was."""

    code: CodeType
    name: str
    origin: CodeType
    indices: list[int]


def _definition(tree: ast.FunctionDef, where: str, origin: CodeType) -> _EditedCode:
    """The code of an edited tree, compiled under a file name of its own, by which its lines are found."""
    indices = [vars(node)["_secateur_index"] for node in _expressions(tree)]
    tree.decorator_list = []  # the function as it is was found under its name, so they gave it back
    tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
    tree.args.kw_defaults = [None if each is None else ast.Constant(None) for each in tree.args.kw_defaults]
    free = origin.co_freevars
    body: ast.stmt = tree
    if free:
        body = ast.parse(f"def {_CLOSURE}({', '.join(free)}):\n    return {tree.name}").body[0]
        assert isinstance(body, ast.FunctionDef)
        body.body.insert(0, tree)
    text = ast.unparse(ast.fix_missing_locations(ast.Module([body], []))) + "\n"
    digest = hashlib.sha256(f"{where}{text}".encode()).hexdigest()[:16]
    filename = f"<secateur: {where} {digest}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    code = compile(text, filename, "exec", origin.co_flags & _FUTURE, dont_inherit=True)
    return _EditedCode(code, tree.name, origin, indices)


_CLOSURE = "_secateur_closure"


def _defined(function: FunctionType, edited: _EditedCode, new: Mapping[str, object]) -> FunctionType:
    """The edited function: the same name, defaults, annotations and closure, and globals with a few more."""
    scope = {**function.__globals__, **new, HELPER: resized}
    # by it torch.compile would take the globals for those of the module of that name
    scope.pop("__name__", None)
    exec(edited.code, scope)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made = scope[_CLOSURE](*cells) if edited.origin.co_freevars else scope[edited.name]
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    made.__qualname__, made.__module__, made.__doc__ = (
        function.__qualname__,
        function.__module__,
        function.__doc__,
    )
    made.__annotations__ = dict(function.__annotations__)
    made.__dict__.update(function.__dict__)
    _ORIGINS[made.__code__] = edited.origin, edited.indices
    assert isinstance(made, FunctionType)
    return made
