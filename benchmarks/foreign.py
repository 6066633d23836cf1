"""Foreign models: prune, shrink and prove models of libraries that no rule was written for; compare independently.

    python benchmarks/foreign.py                       # everything importable; writes its section of docs/zoo.md
    python benchmarks/foreign.py --only monai kornia   # libraries, or words of names; prints only
    python benchmarks/foreign.py --peer                # Torch-Pruning on the same models, where it is importable
    python benchmarks/foreign.py --fresh ...           # forgets the results kept for these models

Weights are random and batch norm is randomised; half of every group is removed by l2. Each model runs in a process of
its own with limits on time and memory, the quickest of the last run first. Results are kept as JSON lines, so a run
that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from foreign_models import Foreign, listed
from torch import nn
from torch.overrides import TorchFunctionMode

import secateur as sc
from models import declare_torchvision
from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.calling import call

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "zoo.md"
KEPT = ROOT / "runs" / "foreign.jsonl"
MARK = "## Foreign models"
_PATIENCE = 40
"""How many times its processor time a model may take by the clock."""
PEER_SECONDS = 40
"""The processor time that Torch-Pruning may take for a model, and `SECONDS` what we may."""
SECONDS = 120
ENOUGH = 0.4
"""A model that loses less of its parameters must say why."""


CHOOSING = frozenset(
    ["topk", "sort", "argsort", "argmax", "argmin", "max", "min", "nonzero", "floor", "ceil", "round", "trunc",
     "gt", "ge", "lt", "le", "eq", "ne", "__gt__", "__ge__", "__lt__", "__le__"]
)  # fmt: skip
"""Functions whose result jumps when what they look at moves by a rounding error."""


class Noted(TorchFunctionMode):
    """Notes what a forward chooses from and what it chooses; with `wide`, leaves conversions to float32 out.

    Their rounding differs between two models that compute the same.
    """

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.made: list[tuple[str, torch.Tensor, list[torch.Tensor]]] = []

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.wide and func is torch.Tensor.float:
            return args[0].double()
        if self.wide:
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            kwargs = {key: torch.float64 if each is torch.float32 else each for key, each in kwargs.items()}
        out = func(*args, **kwargs)
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if name in CHOOSING and isinstance(first, torch.Tensor) and first.is_floating_point():
            picked = [each for each in tensors_in(out) if not each.is_floating_point()]
            rounded = [out] if name in ("floor", "ceil", "round", "trunc") else picked
            self.made.append((name, first.detach(), rounded))
        return out


# -- one model ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def masked(model: nn.Module, masks: sc.Masks, plan: Any) -> nn.Module:
    """The dense model in float64, with 0 where the masks say so and where the plan removes something."""
    dense = copy.deepcopy(model)
    masks.apply_(dense)
    for name, parameter in dense.named_parameters():
        for axis, kept in plan.keep.get(name, {}).items():
            gone = torch.ones(parameter.shape[axis], dtype=torch.bool)
            gone[torch.as_tensor(kept)] = False
            if name.endswith(".parametrizations.weight.original1") and axis == 0:
                continue  # the direction of a weight norm, which 0 would make 0 / 0; its scale is 0 there
            parameter.index_fill_(axis, gone.nonzero().flatten(), 0.0)
    return dense


def difference(
    dense: nn.Module, small: nn.Module, example: object, gradients: bool, dtype: torch.dtype
) -> tuple[float, str]:
    """The largest difference of their outputs over the largest output, and "".

    Where the two choose differently, the largest difference of what they chose from up to there, and by what they did.
    """
    call_with = map_tensors(
        lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, example
    )

    def run(
        model: nn.Module,
    ) -> tuple[list[torch.Tensor], list[tuple[str, torch.Tensor, list[torch.Tensor]]]]:
        torch.manual_seed(0)
        with torch.set_grad_enabled(gradients), Noted(dtype == torch.float64) as noted:
            outputs = call(model, call_with)
        return [tensor.detach() for tensor in tensors_in(outputs)], noted.made

    (want, first), (got, second) = run(dense), run(small)
    if [name for name, *_ in first] != [name for name, *_ in second]:
        want, first = run(dense)  # a table that is worked out once, and then kept
    worst = largest = 0.0
    for (name, a, one), (_, b, other) in zip(first, second):
        if a.shape != b.shape:
            continue  # of what was cut, such as a largest value for each head: what it serves is compared later
        absolute, scale = apart_by([a], [b])
        largest = max(largest, scale)
        scale = max(scale, 1e-6 * largest)  # a small tensor may be nothing but rounding errors
        worst = max(worst, absolute / scale if scale else absolute)
        if len(one) != len(other) or not all(torch.equal(x, y) for x, y in zip(one, other)):
            return worst, name
    absolute, scale = apart_by(want, got)
    return absolute / scale if scale else absolute, ""


def apart_by(some: list[torch.Tensor], others: list[torch.Tensor]) -> tuple[float, float]:
    """The largest difference and the largest value of two lists of tensors; infinity where shapes differ."""
    if [tensor.shape for tensor in some] != [tensor.shape for tensor in others]:
        return float("inf"), 0.0
    absolute = scale = 0.0
    for a, b in zip(some, others, strict=True):
        if not a.numel():
            continue
        a, b = (tensor.to(torch.complex128 if a.is_complex() else torch.float64) for tensor in (a, b))
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf"), 0.0
        if finite.any():
            absolute = max(absolute, float((a - b)[finite].abs().max()))
            scale = max(scale, float(a[finite].abs().max()))
    return absolute, scale


def compared(
    entry: Foreign, model: nn.Module, shrunk: sc.Shrunk, masks: sc.Masks, *examples: object
) -> dict[str, Any]:
    """Dense against shrunk at both shapes, with gradients and without; what the dense model refuses is left out."""
    dtype = torch.float64 if shrunk.proof.dtype == "float64" else torch.float32
    was = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        dense = masked(model, masks, shrunk.plan).to(dtype).eval()
        small = copy.deepcopy(shrunk.model).to(dtype).eval()
        errors, parted = [], set()
        for index, example in enumerate(examples):
            for gradients in (True, False):
                try:
                    error, at = difference(dense, small, example, gradients, dtype)
                    errors.append(error)
                    parted |= {at} - {""}
                except Exception as error:
                    try:
                        difference(dense, dense, example, gradients, dtype)
                    except Exception:
                        continue
                    return {"wrong": f"shape {index}: {type(error).__name__}: {str(error)[:200]}"}
    finally:
        torch.set_default_dtype(was)
    worst = max(errors, default=float("inf"))
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    row: dict[str, Any] = {"compared": len(errors), "difference": worst, "parted": sorted(parted)}
    return row if worst <= bound else {**row, "wrong": f"differs by {worst:.1e} of the largest output"}


def parameters(model: nn.Module) -> int:
    """The number of its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def run_one(entry: Foreign) -> dict[str, Any]:
    """One row: build, prune, shrink with the proof, compare."""
    row: dict[str, Any] = {"library": entry.library, "name": entry.name}
    try:
        model, example, other = entry.build()
        row["parameters"] = parameters(model)
        with torch.no_grad():
            call(model, example)
    except Exception as error:
        return {**row, "unbuilt": f"{type(error).__name__}: {str(error)[:300]}"}
    start = time.process_time()
    try:
        masks = chosen(model, example)
        shrunk = sc.shrink(model, masks, example)
    except Exception as error:
        return {**row, "failed": f"{type(error).__name__}: {str(error)[:600]}"}
    row["seconds"] = time.process_time() - start
    row["removed"] = 1 - parameters(shrunk.model) / row["parameters"]
    row["proof"] = shrunk.proof.error
    row["domain"] = str(shrunk.proof.domain)
    row["selected"] = list(shrunk.proof.selected)
    row.update(compared(entry, model, shrunk, masks, example, other))
    if row["removed"] < ENOUGH:
        row["why"] = why(sc.explain(model, example), model)
    return row


def chosen(model: nn.Module, example: object) -> sc.Masks:
    """Half of every group; experts that are one parameter of three axes are asked for by name."""
    experts = any(".experts." in name and each.dim() == 3 for name, each in model.named_parameters())
    options = sc.PruneOptions(allow_collapse=True, parameters="*.experts.*" if experts else None)
    return sc.prune(model, "l2", "channel", 0.5, example=example, options=options)


def why(explained: Any, model: nn.Module) -> list[str]:
    """The locks of most positions, by operator and module, those of inputs and outputs left out if others are there."""
    seen: dict[str, int] = {}
    for edge in (False, True):
        for lock in explained.locks:
            if edge == (lock.operator == "output" or lock.reason.startswith("meets")):
                key = f"{lock.reason} ({lock.operator} in {lock.path or 'the model'})"
                seen[key] = seen.get(key, 0) + lock.positions
        if seen:
            break
    unused = sum(model.get_parameter(name).numel() for name in explained.untouched)
    share = unused / parameters(model)
    found = [key for key, _ in sorted(seen.items(), key=lambda item: -item[1])][:3]
    return [
        *([f"{share:.0%} of the parameters are not used by this forward"] if share > 0.05 else []),
        *found,
    ]


def run_peer(entry: Foreign) -> dict[str, Any]:
    """What Torch-Pruning makes of the same model: the share it removes and whether it runs; it proves nothing.

    Its last layer of weights is left out, as its guide does with a classifier.
    """
    import torch_pruning

    model, example, other = entry.build()
    model.requires_grad_(True)
    with torch.no_grad():
        shapes = [[tensor.shape for tensor in tensors_in(call(model, each))] for each in (example, other)]
    before, start = parameters(model), time.process_time()
    inputs = example if isinstance(example, (tuple, dict)) else (example,)
    try:
        last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
        torch_pruning.pruner.MagnitudePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=last,
        ).step()
        seconds = time.process_time() - start
        with torch.no_grad():
            got = [[tensor.shape for tensor in tensors_in(call(model, each))] for each in (example, other)]
    except Exception as error:
        return {"peer_failed": f"{type(error).__name__}: {str(error)[:200]}"}
    removed = 1 - parameters(model) / before
    return {"peer_removed": removed, "peer_seconds": seconds, "peer_shapes": got == shapes}


# -- a process for each ------------------------------------------------------------------------------------------------
def apart(work: Any, entry: Foreign, seconds: int, gigabytes: int) -> dict[str, Any]:
    """What `work` gives for a model, run in a forked process with limits; how it ended if it gave nothing.

    The time is that of the processor, so that it is the same on a machine with other work.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            row = work(entry)
        except BaseException as error:
            row = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        with os.fdopen(writer, "w") as file:
            json.dump(row, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        ready, _, _ = select.select([file], [], [], _PATIENCE * seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = file.read() if ready else ""
    _, status, used = os.wait4(child, 0)
    if text:
        return json.loads(text)
    late = not ready or os.WTERMSIG(status) == signal.SIGXCPU
    spent = f"stopped after {used.ru_utime + used.ru_stime:.0f} s of processor time"
    ended = spent if late else f"the process died (memory over {gigabytes} GiB?)"
    return {"library": entry.library, "name": entry.name, "failed": ended}


# -- the table ---------------------------------------------------------------------------------------------------------
def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    ended = "too long" if row.get("peer_failed", "").startswith("stopped") else "fails"
    peer = f"{row['peer_removed']:.2f}" if "peer_removed" in row else ended if "peer_failed" in row else ""
    peer += "" if row.get("peer_shapes", True) else ", other outputs"
    name = f"{row['library']}/{row['name']}"
    if "failed" in row:
        text = row["failed"].replace("|", "/").replace("\n", " ")[:240]
        return f"| {name} | refused | | | {row.get('seconds', 0):.1f} | {peer} | {text} |"
    notes = row.get("wrong") or "; ".join(row.get("why", ()))
    if row.get("parted"):
        chosen_by = f"compared up to the choice by {', '.join(row['parted'])}"
        notes = "; ".join(filter(None, [chosen_by, notes]))
    return (
        f"| {name} | {row['removed']:.2f} | {row['proof']:.0e} "
        f"| {row.get('difference', 0):.0e} ({row.get('compared', 0)}) "
        f"| {row['seconds']:.1f} | {peer} | {notes.replace('|', '/')} |"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """The figures over all rows."""
    good = [row for row in rows if "failed" not in row and "wrong" not in row]
    wrong = [row for row in rows if "wrong" in row]
    enough = [row for row in good if row["removed"] >= ENOUGH]
    said = [row for row in good if row["removed"] < ENOUGH and row.get("why")]
    peers = [row for row in rows if "peer_removed" in row or "peer_failed" in row]
    runs = sum("peer_removed" in row for row in peers)
    text = (
        f"{len(good)} of {len(rows)} foreign models shrink with a proof, equal in an independent comparison at two "
        f"shapes with gradients and without; {len(wrong)} are wrong, {len(rows) - len(good) - len(wrong)} refused. "
        f"{len(enough)} lose at least {ENOUGH:.0%} of their parameters; {len(said)} more say why not."
    )
    if peers:
        whole = sum(bool(row.get("peer_shapes")) for row in peers)
        least = sum(bool(row.get("peer_shapes")) and row["peer_removed"] >= ENOUGH for row in peers)
        text += (
            f" Torch-Pruning's model runs at both shapes for {runs} of the {len(peers)} it was tried on, for {whole} "
            f"with outputs of the shapes that they had, {least} of these smaller by {ENOUGH:.0%}; it proves nothing."
        )
    return text + "\n\n"


HEAD = f"""{MARK}

Written by `python benchmarks/foreign.py` (packages: benchmarks/foreign-requirements.txt): models of libraries that no
rule was written for, small configurations, random weights, half of every group removed by l2. *proof* is the error of
the proof; *compared* is the largest difference between masked and shrunk model in a comparison that shares no code with
the proof, and in how many runs (two shapes, with gradients and without; fewer where the dense model refuses one; where
the two models choose differently between almost equal scores, what they choose from is compared up to there);
*seconds* is prune and shrink, of processor time; *Torch-Pruning* is the share of parameters that it removes at the same
ratio, "fails" where it raises or its model does not run, "too long" where it takes over {PEER_SECONDS} seconds of
processor time. Models that could not be built here, or do not run, are not listed. A row is of the run in which it was
last made: results are kept from run to run, and `--fresh` makes them anew.

"""
TABLE = "| model | removed | proof | compared | seconds | Torch-Pruning | notes |\n|---|---|---|---|---|---|---|\n"


def write(rows: list[dict[str, Any]]) -> None:
    """Put the section into docs/zoo.md, in place of the one before; those around it stay."""
    listing = f"{len(rows)} models of the list have a result and are in the table; {len(listed())} are on the list.\n\n"
    before, _, rest = TARGET.read_text().partition(MARK)
    _, found, after = rest.partition("\n## ")
    text = f"{HEAD}{listing}{summary(rows)}{TABLE}" + "\n".join(map(line, rows)) + "\n"
    TARGET.write_text(f"{before.rstrip()}\n\n{text}" + (f"\n## {after}" if found else ""))


def kept() -> dict[str, dict[str, Any]]:
    """The results of earlier runs, by model."""
    rows: dict[str, dict[str, Any]] = {}
    if KEPT.exists():
        for text in KEPT.read_text().splitlines():
            row = json.loads(text)
            key = f"{row['library']}/{row['name']}"
            rows[key] = {**beside(rows.get(key, {}), row), **row}
    return rows


def beside(old: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What stays of an earlier result beside a new one: the peer's figures, or all but these."""
    return {key: value for key, value in old.items() if row.get("more") or key.startswith("peer")}


def keep(row: dict[str, Any]) -> None:
    """Append a result to those kept."""
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(json.dumps(row) + "\n")


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="libraries, words of names, or LIBRARY/NAME")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument(
        "--failed", action="store_true", help="run again what failed, was wrong, or not built"
    )
    parser.add_argument(
        "--peer", action="store_true", help="run Torch-Pruning instead, where it is importable"
    )
    parser.add_argument("--write", action="store_true", help="only write the section from the results kept")
    parser.add_argument("--seconds", type=int, help="processor time for one model")
    parser.add_argument("--gigabytes", type=int, default=12, help="the limit of address space for one model")
    return parser.parse_args()


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    declare_torchvision()
    run_one(
        listed()[0]
    )  # what is imported only when it is needed is imported once, before the processes part
    known, missing = kept(), set()
    work = run_peer if asked.peer else run_one
    mark = "peer" if asked.peer else "parameters"
    entries = [
        entry
        for entry in listed()
        if not asked.only
        or any(
            word in (entry.library, f"{entry.library}/{entry.name}")
            or ("/" not in word and word in entry.name)
            for word in asked.only
        )
    ]
    taken = {key: row.get("seconds") or 1e9 for key, row in known.items()}  # what was stopped comes last
    quickest = sorted(entries, key=lambda entry: taken.get(f"{entry.library}/{entry.name}", 0.0))
    for entry in () if asked.write else quickest:
        key = f"{entry.library}/{entry.name}"
        old = known.get(key)
        again = asked.fresh or (
            asked.failed and old is not None and bool({"failed", "wrong", "unbuilt"} & set(old))
        )
        if old is not None and not again and any(name.startswith(mark) for name in old):
            continue
        if entry.library != "own" and importlib.util.find_spec(entry.library) is None:
            missing.add(entry.library)
            continue
        if entry.library != "own":
            importlib.import_module(entry.library)
        limit = asked.seconds or (PEER_SECONDS if asked.peer else SECONDS)
        row = apart(work, entry, limit, asked.gigabytes)
        if work is not run_one:
            row = {"peer_failed" if key == "failed" else key: value for key, value in row.items()}
            row = {"library": entry.library, "name": entry.name, "more": True, **row}
        keep(row)
        known[key] = {**beside(known.get(key, {}), row), **row}
        shown = (
            f"{key}: not built: {row['unbuilt']}"
            if "unbuilt" in row
            else line(row)
            if work is run_one
            else row
        )
        print(shown, flush=True)
    rows = [known[key] for entry in entries if (key := f"{entry.library}/{entry.name}") in known]
    rows = [row for row in rows if "unbuilt" not in row and ("failed" in row or "removed" in row)]
    print(summary(rows))
    wrong = sum("wrong" in row for row in rows)
    good = sum("failed" not in row and "wrong" not in row for row in rows)
    if rows and not asked.only and work is run_one:  # part of the list is no figure
        record(
            Figure("foreign models that shrink with a proof", good, f"of {len(rows)}", None, "higher", 0.005),
            Figure("wrong", wrong, f"of {len(rows)}", 0, tolerance=0),
        )
    if missing:
        print(
            f"not importable, left out: {', '.join(sorted(missing))} (see benchmarks/foreign-requirements.txt)"
        )
    if not asked.only:
        write(rows)


if __name__ == "__main__":
    main()
