"""Search: find the fastest or the smallest model that loses at most a given accuracy.

In goes a recipe that trains the dense model and a run store; out comes a `SearchResult`: every attempt with the reason
why it was kept or dropped, the best one, and its measurements on the test images.

    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

    found = sc.auto(Recipe.read("recipe.toml"), Store("runs"), lost=0.01, goal="fast")
    print(found.best.keep, found.final)

Files, in reading order:

- `frame`: the parts of every search: baseline, loop over attempts, choice of the next share, result.
- `auto`: the strategy of `sc.auto`: cut channels (or weights), retrain, halve or go half way back.
- `compress`: the strategy of `sc.compress`, for a trained model in Python without a recipe; `compressed`: what it is
  asked and what it gives; `aims`: the least cost that holds a limit, or the best of a given size; `unseen`: the layers
  that its data does not reach; `shown`: its steps on a display.
- `smallest`: the strategy of `sc.smallest`: train for a number of bytes, halve it or go half way back; `size_settings`:
  what it starts from, and what an attempt is made with.

Searches over arbitrary recipe values with Optuna are in `secateur.lab.searching`.

>>> from secateur.search.frame import next_share
>>> next_share(holds=0.5, fails=0.0)
0.25
"""

from secateur.search.auto import AutoOptions, AutoResult, SpeedAttempt, auto
from secateur.search.compress import compress
from secateur.search.compressed import CompressAttempt, Compressed, CompressOptions
from secateur.search.frame import Attempt, SearchResult
from secateur.search.smallest import (
    ByteSettings,
    SizeAttempt,
    SizeSettings,
    SmallestOptions,
    SmallestResult,
    smallest,
)

__all__ = [
    "Attempt",
    "AutoOptions",
    "AutoResult",
    "ByteSettings",
    "CompressAttempt",
    "CompressOptions",
    "Compressed",
    "SearchResult",
    "SizeAttempt",
    "SizeSettings",
    "SmallestOptions",
    "SmallestResult",
    "SpeedAttempt",
    "auto",
    "compress",
    "smallest",
]
