"""Mutations of plain data (what JSON holds): hostile keys and values in the place of honest ones."""

from __future__ import annotations

import copy
import json
import pickle
import random
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 70, -(1 << 63), 0.5, -0.0,
    1e308, float("nan"), float("inf"), "", "w", "0", "-1", "__class__", "F32", "BOOL", "longrope", "\x1b[2J", "\ud800",
    "a\0b", "n" * 5000, "../../etc/passwd", [], {}, [0], [0, 1], [0, 1 << 60], [1, 0], [0, 1, 2], [[]], {"": {}},
    [None], ["a"], {"a": 1}, [0] * 70,
]  # fmt: skip
KEYS = [
    "", "0", "1", "-1", "2", "x", "name", "format", "version", "keep", "attributes", "rewrites", "shapes", "model",
    "factors", "layers", "spatial", "proof", "inner", "inner.heads", "stack",
    "fc", "fc.weight", "fc.bias", "inner.norm", "weight", "out_features", "in_features", "normalized_shape",
    "width", "sizes",
    "__class__", "__dict__", "__class__.__init__.__defaults__", "__class__.forward", "_parameters", "_modules",
    "forward", "training", "config", "config.hidden_size", "config.head_dim", "config._secret", "config.name",
    "config.rope_parameters", "config.__class__.to_dict", "config.to_dict", "function", "call", "site", "dtype",
    "shape", "data_offsets", "__metadata__", "cells", "dense", "costs", "value", "units", "sparsity", "\x1b", "\ud800",
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            waiting.append(value)
    return found


def mutate(tree: Any, rng: random.Random) -> Any:
    """The tree with one to four places changed."""
    tree = pickle.loads(pickle.dumps(tree))  # a copy, in a tenth of the time of `deepcopy`
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        known = places(tree)
        if not known:
            return rng.choice(VALUES)
        node, key = rng.choice(known)
        kind = rng.randrange(7)
        other, place = rng.choice(known)
        if kind == 0:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 1:
            del node[key]
        elif kind == 2 and isinstance(node, dict):
            node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3 and isinstance(node, dict):
            node[rng.choice(KEYS)] = node.pop(key)
        elif kind == 4:
            value = node[key]
            node[key] = value + rng.choice((-1, 1, 100)) if isinstance(value, int) else [value]
        elif kind == 5:
            node[key] = (
                copy.deepcopy(other[place])
                if place in (other if isinstance(other, dict) else range(len(other)))
                else 0
            )
        elif isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(rng.choice(VALUES)))
        else:
            node[key] = {rng.choice(KEYS): node[key]}
    return tree


def text_of(tree: Any, rng: random.Random) -> str:
    """The tree as JSON, now and then with a damage that no tree can express."""
    text = json.dumps(tree)
    kind = rng.randrange(40)
    at = rng.randrange(len(text) + 1)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return (
            text[:at]
            + rng.choice(("[" * 3000, '{"a":' * 3000, "NaN", "9" * 5000, "\\ud800", '"', "\x00"))
            + text[at:]
        )
    return text
