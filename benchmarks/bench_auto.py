"""What `auto` makes of the scan: `python benchmarks/bench_auto.py [--seeds 3] [--epochs 8] [--store DIR]`.

A ResNet-20 on the embedded digits (the demo's network), trained alike for every seed. `auto` may lose 1 % of the
validation accuracy. As `auto` does by default (where the scan says it hurts least, half way to that, or uniformly where
only that holds), against uniformly only: multiply-accumulates left, so a ratio below 1 is a win. Both go through the
same steps down, and `auto` trains up to three times as often at each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from secateur.errors import BudgetNotMetError
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.search.auto import AutoOptions

sys.path.insert(0, str(Path(__file__).parent))
from _common import Row, report

import secateur as sc

RECIPE = """
[data]
name = "digits"
size = 16
[model]
name = "resnet20"
[lab]
seed = {seed}
threads = 1
[[step]]
kind = "train"
epochs = {epochs}
lr = 0.1
batch_size = 64
schedule = "cosine"
weight_decay = 5e-4
augment = {{crop = 2, flip = false}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--retrain", type=int, default=5)
    parser.add_argument("--tries", type=int, default=8)
    parser.add_argument("--store", default=None)
    given = parser.parse_args()
    folder = given.store or tempfile.mkdtemp(prefix="bench-auto-")
    rows = []
    for seed in range(given.seeds):
        recipe = Recipe.parse(RECIPE.format(seed=seed, epochs=given.epochs), name=f"seed-{seed}")
        left = {}
        retrain = {"epochs": given.retrain, "lr": 0.05, "batch_size": 64, "weight_decay": 5e-4}
        for allocation in ("uniform", "best"):
            try:
                found = sc.auto(
                    recipe,
                    Store(folder),
                    attempts=given.tries,
                    options=AutoOptions(allocation, retrain),
                )
                print(f"--- seed {seed}, {allocation}\n{found}", flush=True)
                macs = [m.value for m in found.final if m.name == "macs"]
                left[allocation] = 100.0 * macs[1] / macs[0]
            except BudgetNotMetError as error:
                print(f"--- seed {seed}, {allocation}: {error}", flush=True)
                left[allocation] = 100.0
        rows.append(Row(f"MACs left, seed {seed}", left["best"], left["uniform"], 1.0, "%"))
    return report(
        rows, "auto on the digits: allocation by scan against uniform, at most 1 % lost on validation"
    )


if __name__ == "__main__":
    sys.exit(main())
