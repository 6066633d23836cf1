"""The modelling file of a Hugging Face model with widths of its own in some layers: what differs, and its source.

What differs from a model that is built from the configuration is a table: for each module the shapes of its tensors and
the numbers it keeps as attributes. The generated class builds the original one and changes these modules; `config.json`
holds the table.

>>> from torch import nn
>>> differences(nn.Linear(4, 2), nn.Linear(4, 3))
{'': {'tensors': {'weight': [2, 4], 'bias': [2]}, 'attributes': {'out_features': 2}}}
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import textwrap
from collections.abc import Mapping
from types import FunctionType

from torch import nn

from secateur.errors import PlanError
from secateur.structure.cut.call_sites import HELPER, resized
from secateur.structure.cut.heads import FewerHeads

__all__ = ["FILE", "KEY", "Changes", "differences", "modelling_source", "original_class"]

FILE = "modeling_shrunk.py"
KEY = "shrunk_modules"

Changes = dict[str, dict[str, object]]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before a cut gave it a subclass.

    Args:
        module: The module.
    """
    found: type[nn.Module] = getattr(type(module), "_secateur_base", type(module))
    return found


def differences(model: nn.Module, base: nn.Module) -> Changes:
    """By module, how a model differs from one that was built from its configuration.

    Args:
        model: The model.
        base: The model that the configuration gives, its tensors without values.

    Returns:
        Shapes of tensors and values of attributes, as plain data.

    Raises:
        PlanError: A module exists in only one of the two.
    """
    ours, theirs = dict(model.named_modules()), dict(base.named_modules())
    alone = sorted(set(ours) ^ set(theirs))
    if alone:
        raise PlanError(
            f"{type(model).__name__}: module {alone[0]!r} is in "
            f"{'the model' if alone[0] in ours else 'what its configuration builds'} only; set the number of layers "
            "in model.config first"
        )
    found: Changes = {}
    for path, module in ours.items():
        other = theirs[path]
        tensors = _tensors(module, other)
        attributes = {
            name: _listed(value)
            for name, value in vars(module).items()
            if _is_number(value) and name not in _NOT_WIDTHS and value != getattr(other, name, None)
        }
        entry: dict[str, object] = {"tensors": tensors} if tensors else {}
        if attributes:
            entry["attributes"] = attributes
        if original_class(module) is not type(module) or type(module) is FewerHeads:
            entry["class"] = ""
        if entry:
            found[path] = entry
    return found


_NOT_WIDTHS = ("training", "layer_idx")


def _tensors(module: nn.Module, other: nn.Module) -> dict[str, list[int]]:
    """The shapes of a module's own tensors that differ from those of another one."""
    own = [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]
    return {
        name: list(tensor.shape)
        for name, tensor in own
        if getattr(getattr(other, name, None), "shape", None) != tensor.shape
    }


def _is_number(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(isinstance(each, int) for each in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def modelling_source(model: nn.Module, changes: Changes) -> str:
    """The modelling file, as text; the class of every changed module is put into `changes`.

    Args:
        model: The model.
        changes: What differs, from `differences`.

    Raises:
        PlanError: A changed class cannot be written as source.
    """
    kind = original_class(model)
    if kind.__module__.partition(".")[0] != "transformers":
        raise PlanError(
            f"{kind.__name__} comes from {kind.__module__}, not from transformers: a modelling file can only build on "
            "classes that whoever loads it has; use small.save and sc.load_shrunk"
        )
    classes = _Classes()
    for path, entry in changes.items():
        if "class" in entry:
            entry["class"] = classes.name_of(type(model.get_submodule(path)), path)
    imports = {kind.__module__: {kind.__name__}}
    for module, names in classes.imports.items():
        imports.setdefault(module, set()).update(names)
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    return _TEMPLATE.format(
        kind=kind.__name__,
        imports="\n".join(sorted(lines)),
        classes="".join(f"\n\n{text.rstrip()}\n" for text in classes.texts.values()),
        table=", ".join(f'"{name}": {name}' for name in classes.made.values()),
        key=KEY,
    )


class _Classes:
    """The source of the classes that a cut made, each written once, and its imports."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.imports: dict[str, set[str]] = {}
        self.made: dict[type, str] = {}
        self._owners: dict[str, str] = {}

    def name_of(self, kind: type, path: str) -> str:
        """The name that a class has in the file; its source is added where it is new."""
        if kind in self.made:
            return self.made[kind]
        if kind is FewerHeads:
            self.texts["FewerHeads"] = inspect.getsource(FewerHeads)
            self._import("torch.nn", "functional as F")
            self.made[kind] = "FewerHeads"
            return "FewerHeads"
        base = kind.__mro__[1]
        methods = {name: each for name, each in vars(kind).items() if _text(each) is not None}
        if "forward" not in methods:
            raise PlanError(
                f"the forward of {path!r} ({base.__name__}) has widths that cannot be changed in its source, so that "
                "no modelling file can say them; use small.save and sc.load_shrunk"
            )
        name = f"{base.__name__}Cut{len(self.made) + 1}"
        self.made[kind] = name
        body = [textwrap.indent((_text(each) or "").strip(), "    ") for each in methods.values()]
        for each in methods.values():
            self._needs(each, set())
        self._import(base.__module__, base.__name__)
        self.texts[name] = (
            f"class {name}({base.__name__}):\n"
            f'    """{base.__name__} whose calls ask for the sizes that were kept."""\n\n' + "\n\n".join(body)
        )
        return name

    def _needs(self, function: FunctionType, within: set[str]) -> None:
        """Import, or add, every global name that a function uses."""
        tree = ast.parse(textwrap.dedent(_text(function) or ""))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(names - within):
            value = function.__globals__.get(name)
            if name == HELPER:
                self.texts.setdefault(HELPER, _helper())
            elif isinstance(value, FunctionType) and _text(value) is not None:
                if name not in self.texts:
                    self.texts[name] = _text(value) or ""
                    self._needs(value, {name})
            elif name in function.__globals__ and not hasattr(builtins, name):
                self._import(function.__module__, name)

    def _import(self, module: str, name: str) -> None:
        if name in ("torch", "nn"):
            return
        if self._owners.setdefault(name, module) != module:
            raise PlanError(
                f"{name!r} means one thing in {module} and another in {self._owners[name]}, so that no "
                "modelling file can use both; use small.save and sc.load_shrunk"
            )
        self.imports.setdefault(module, set()).add(name)


def _helper() -> str:
    """The function that edited forwards call, without annotations, whose names the file would have to import."""
    tree = ast.parse(inspect.getsource(resized)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.returns, tree.body = None, tree.body[1:]
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.Name) and node.id == tree.name:
            node.id = HELPER
    tree.name = HELPER
    return ast.unparse(tree)


def _text(function: object) -> str | None:
    """The source of a function that a cut edited; None for any other."""
    if not isinstance(function, FunctionType) or not function.__code__.co_filename.startswith("<secateur: "):
        return None
    if function.__closure__ is not None and function.__code__.co_freevars != ("__class__",):
        return None
    lines = linecache.getlines(function.__code__.co_filename)
    return _inner("".join(lines)) if lines else None


def _inner(text: str) -> str:
    """The function itself, without the one around it that gives it its closure."""
    tree = ast.parse(text).body[0]
    if isinstance(tree, ast.FunctionDef) and tree.name == "_secateur_closure":
        return ast.unparse(tree.body[0])
    return text


def table_of(changes: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The table as lines for a reader: module, tensor, shape.

    Args:
        changes: What differs.

    >>> table_of({"fc": {"tensors": {"weight": [2, 4]}}})
    ['| `fc.weight` | 2 x 4 |']
    """
    lines = []
    for path, entry in changes.items():
        tensors = entry.get("tensors")
        for name, shape in tensors.items() if isinstance(tensors, dict) else ():
            lines.append(f"| `{path}.{name}` | {' x '.join(map(str, shape))} |")
    return lines


_TEMPLATE = '''"""{kind} with fewer channels in some layers.

The original class is built first. Then each module that `{key}` in config.json names gets tensors of other shapes and
other values of its attributes. Nothing but transformers and torch is needed.
"""

import torch
from torch import nn
{imports}
{classes}

CLASSES = {{{table}}}


def change(module, entry):
    """Give a module its tensors, attributes and class."""
    for name, shape in entry.get("tensors", {{}}).items():
        old = getattr(module, name)
        new = old.detach()[tuple(slice(size) for size in shape)].clone()
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            module.register_buffer(name, new)
    for name, value in entry.get("attributes", {{}}).items():
        setattr(module, name, tuple(value) if isinstance(getattr(module, name, None), tuple) else value)
    if "class" in entry:
        module.__class__ = CLASSES[entry["class"]]


class Shrunk{kind}({kind}):
    """{kind} with the widths that config.json lists."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, entry in config.{key}.items():
            change(self.get_submodule(path), entry)
'''
