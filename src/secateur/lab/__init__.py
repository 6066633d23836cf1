"""The lab: run recipes, remember every outcome, and search recipe values.

In goes a recipe (data, model, steps, a grid), as TOML or as a `Recipe`. Out come Measurements, and the state after
every step, in a `Store`: a step that the store knows is never computed twice. Studies, searches and the command line
are built on it.

The files in reading order:

- `recipe`, `settings`, `grid`: a recipe, validated; the texts it is written in; the combinations of its grid;
  `old_words`: options by the names they had before.
- `steps/`: what a recipe can do to a model, one file per kind; `state`: the model that passes from step to step.
- `planning`: every trial and step, with the address of its outcome; `weights`, `trust`: what it loads, and may.
- `outcomes`, `objects`, `store`: what is remembered, and where, with `database`, `rows` (read from it) and `waste`
  (what nothing refers to); `provenance`: where a number comes from.
- `computing`, `engine`, `engines/`, `launched`: one step; a run; other processes; processes of a launcher.
- `training/`: the training loop; `calibration`: images without labels; `judging`: a user's own `evaluate`.
- `searching`: Optuna over recipe values; `requirements`: limits that a run must hold;
  `measured_names`: what steps measure, known before any work.
- `comparing`: pruning methods over seeds; `varied`: what each changes in a recipe.
- `display/`, `tables`, `table_files`, `reporting`, `watching`, `demonstration`, `usage`, `probe`: output for people;
  what a run takes, and estimates of its time.

>>> import tempfile; from secateur.lab import Recipe, Store, run
>>> recipe = Recipe.parse('''
... [model]
... name = "fc"
... [[step]]
... kind = "prune"
... budget = 0.5
... ''')
>>> with tempfile.TemporaryDirectory() as folder:
...     store = Store(folder)
...     first, again = run(recipe, store), run(recipe, store)
...     store.close()
>>> first.computed, again.computed, round(first.measurements[0].value, 2)
(1, 0, 0.5)

The names are imported when first used, because most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.lab.comparing import MethodComparison as MethodComparison
    from secateur.lab.comparing import compare_methods as compare_methods
    from secateur.lab.display import Progress as Progress
    from secateur.lab.engine import Ran as Ran
    from secateur.lab.engine import final_state as final_state
    from secateur.lab.engine import local_engine as local_engine
    from secateur.lab.engine import run as run
    from secateur.lab.engines import Engine as Engine
    from secateur.lab.engines.ray import Needs as Needs
    from secateur.lab.engines.ray import RayEngine as RayEngine
    from secateur.lab.engines.worker_pool import WorkerPool as WorkerPool
    from secateur.lab.outcomes import Outcome as Outcome
    from secateur.lab.planning import RunPlan as RunPlan
    from secateur.lab.planning import plan as plan
    from secateur.lab.recipe import Recipe as Recipe
    from secateur.lab.recipe import schema as schema
    from secateur.lab.searching import SearchOptions as SearchOptions
    from secateur.lab.searching import search as search
    from secateur.lab.state import State as State
    from secateur.lab.steps import Result as Result
    from secateur.lab.steps import Step as Step
    from secateur.lab.steps import Work as Work
    from secateur.lab.store import Store as Store
    from secateur.lab.training import GradualPruning as GradualPruning
    from secateur.lab.training import Snapshot as Snapshot
    from secateur.lab.training import TrainingContext as TrainingContext
    from secateur.lab.training import TrainingOptions as TrainingOptions
    from secateur.lab.training import evaluate as evaluate
    from secateur.lab.training import train as train

# public name -> module that holds it
_NAMES = {
    "Engine": "secateur.lab.engines",
    "GradualPruning": "secateur.lab.training",
    "MethodComparison": "secateur.lab.comparing",
    "Needs": "secateur.lab.engines.ray",
    "Outcome": "secateur.lab.outcomes",
    "Progress": "secateur.lab.display",
    "Ran": "secateur.lab.engine",
    "RayEngine": "secateur.lab.engines.ray",
    "Recipe": "secateur.lab.recipe",
    "Result": "secateur.lab.steps",
    "RunPlan": "secateur.lab.planning",
    "SearchOptions": "secateur.lab.searching",
    "Snapshot": "secateur.lab.training",
    "State": "secateur.lab.state",
    "Step": "secateur.lab.steps",
    "Store": "secateur.lab.store",
    "TrainingContext": "secateur.lab.training",
    "TrainingOptions": "secateur.lab.training",
    "Work": "secateur.lab.steps",
    "WorkerPool": "secateur.lab.engines.worker_pool",
    "compare_methods": "secateur.lab.comparing",
    "evaluate": "secateur.lab.training",
    "final_state": "secateur.lab.engine",
    "local_engine": "secateur.lab.engine",
    "plan": "secateur.lab.planning",
    "run": "secateur.lab.engine",
    "schema": "secateur.lab.recipe",
    "search": "secateur.lab.searching",
    "train": "secateur.lab.training",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> object:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(
        f"module 'secateur.lab' has no attribute {name!r}; public names: {', '.join(__all__)}"
    )
