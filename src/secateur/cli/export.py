"""`export`: the measurements of a run as a table, or a model as ONNX or as a `torch.export` archive.

>>> VERBS[0].__name__
'export'
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import runs
from secateur.cli.given import ModelOptions, Weights, example_of, model_of
from secateur.cli.options import STORE, Debug, Example, Json, Seed, StoreFolder
from secateur.cli.output import print_json, show_table
from secateur.errors import OptionError

__all__ = ["VERBS"]

_TABLES, _MODELS = (".csv", ".parquet", ".json"), (".onnx", ".pt2")


def export(
    which: Annotated[
        str, typer.Argument(help="A run's number, `last`, or (for .onnx and .pt2) the name of a model.")
    ] = "last",
    weights: Weights = None,
    out: Annotated[
        Path, typer.Option("--out", help="The file: .csv, .parquet, .json; or .onnx, .pt2.")
    ] = Path("measurements.csv"),
    option: ModelOptions = None,
    input_: Example = None,
    time: Annotated[
        bool, typer.Option("--time", help="Also time eager, ONNX Runtime and torch.compile.")
    ] = False,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Timed repetitions.")] = 25,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the timing.")] = 1,
    store: StoreFolder = STORE,
    seed: Seed = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's measurements as CSV, Parquet or JSON, or a model (a run's last, or one by name) as .onnx or
    .pt2, checked against what PyTorch computes."""
    if out.suffix not in (*_MODELS, *_TABLES):
        raise OptionError(
            f"{out}: expected a name that ends in {', '.join(_TABLES)} for measurements, or in "
            f"{' or '.join(_MODELS)} for a model"
        )
    if out.suffix not in _MODELS:
        runs.export(which, out, store, debug)
        return
    from secateur.adapters.export import export as write
    from secateur.adapters.onnx_model import times

    if which == "last" or which.isdigit():
        net, example = _of_run(which, store)
    else:
        net = model_of(which, weights, option, seed)
        example = example_of(which, net, input_, seed)
    done = write(net, out, example)
    found: Any = []
    if time and out.suffix == ".onnx":
        found = times(net, out, example, trials=trials, threads=threads, compiled=True)
    if json:
        print_json(
            {
                "file": str(out),
                "format": done.format,
                "bytes": done.size,
                "error": done.error,
                "notes": list(done.notes),
                "measurements": [item.to_dict() for item in found],
            }
        )
        return
    print(done)
    if found:
        rows = [[str(m.context.get("variant", "")), m.name, m.text(), m.definition] for m in found]
        show_table(["", "measure", "value", "definition"], rows, right=(2,))


def _of_run(which: str, store: Path) -> tuple[Any, Any]:
    """The model that a run's first trial ended with, and one image."""
    from secateur.lab.engine import final_state
    from secateur.lab.planning import data_of, plan
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    trial = plan(Recipe.of(opened.run(which).recipe)).trials[0]
    state = final_state(trial, opened)
    return state.model.eval(), data_of(trial.recipe).example


VERBS = (export,)
