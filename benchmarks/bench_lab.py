"""A sweep that shares its baseline against the same trials run separately, in one process and interleaved.

    python benchmarks/bench_lab.py [--epochs 15] [--retrain 3] [--limit 0]

27 trials (3 criteria x 9 sparsities) of the demo's ResNet-20 on the embedded digits: train, prune, retrain,
measure. The sweep's trials share one store, so the training is done once; run separately each has a store of
its own. Trial by trial both sides take turns, so that both see the same machine. Aim: the sweep at least 3
times as fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from secateur.lab import Recipe, Store, run

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

RECIPE = """
name = "bench"
[data]
name = "digits"
size = 16
{limit}
[model]
name = "resnet20"
[lab]
threads = 1
[[step]]
kind = "train"
epochs = {epochs}
lr = 0.1
batch_size = 64
schedule = "cosine"
[[step]]
kind = "prune"
[[step]]
kind = "retrain"
epochs = {retrain}
lr = 0.02
batch_size = 64
[[step]]
kind = "measure"
what = ["accuracy", "params"]
[grid]
"prune.criterion" = ["magnitude", "taylor", "random"]
"prune.budget" = "0.1:0.9:0.1"
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--retrain", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="images; 0: all 1,797")
    chosen = parser.parse_args()
    limit = f"limit = {chosen.limit}" if chosen.limit else ""
    recipe = Recipe.parse(RECIPE.format(epochs=chosen.epochs, retrain=chosen.retrain, limit=limit))
    trials = [one for _, one in recipe.trials()]
    together = separately = 0.0
    steps = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        shared = Store(Path(folder) / "shared")
        for index, trial in enumerate(trials):
            start = time.perf_counter()
            steps[0] += (one := run(trial, shared)).computed
            together += time.perf_counter() - start
            start = time.perf_counter()
            steps[1] += (other := run(trial, Store(Path(folder) / str(index)))).computed
            separately += time.perf_counter() - start
            assert one.measurements["accuracy"].value == other.measurements["accuracy"].value
    print(f"{len(trials)} trials, {chosen.epochs} + {chosen.retrain} epochs{', ' + limit if limit else ''}")
    print(f"{'':<26}{'sweep':>10}{'separately':>12}{'ratio':>8}")
    print(f"{'steps computed':<26}{steps[0]:>10}{steps[1]:>12}{steps[1] / steps[0]:>7.2f}x")
    print(f"{'seconds':<26}{together:>10.1f}{separately:>12.1f}{separately / together:>7.2f}x")
    record(
        Figure("steps computed, separately over together", steps[1] / steps[0], "x", None, "higher", 0.001),
        Figure("seconds, separately over together", separately / together, "x", 3, "higher"),
    )


if __name__ == "__main__":
    main()
