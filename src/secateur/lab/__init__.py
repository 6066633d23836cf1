"""The lab: recipes, the steps they are made of, the store that remembers every outcome, and the engine that
runs them.

    from secateur.lab import Recipe, Store, run
    ran = run(Recipe.read("recipe.toml"), Store("runs"))
    print(ran.measurements)

The names are imported when first used, because most of them need torch.

>>> sorted(__all__)[:3]
['Progress', 'Ran', 'Recipe']
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "RunPlan": "secateur.lab.plan",
    "Progress": "secateur.lab.display.progress",
    "Ran": "secateur.lab.engine",
    "Recipe": "secateur.lab.recipe",
    "Store": "secateur.lab.store",
    "final_state": "secateur.lab.engine",
    "run": "secateur.lab.engine",
    "schema": "secateur.lab.recipe",
}

__all__ = ["Progress", "Ran", "Recipe", "RunPlan", "Store", "final_state", "run", "schema"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(
        f"module 'secateur.lab' has no attribute {name!r}; public names: {', '.join(__all__)}"
    )
