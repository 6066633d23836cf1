"""The zoo: prune half of the channels of every model it knows, shrink, prove; write docs/zoo.md.

    python benchmarks/zoo.py                      # everything installed; writes docs/zoo.md
    python benchmarks/zoo.py torchvision resnet   # one library, names that contain a word; prints only
    python benchmarks/zoo.py --redo convnext      # what failed in docs/zoo.md and names that contain a word, in place

Weights are random, batch norm is randomised, budget 0.5 of every group by l1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

from hf import PARAMETERS

import secateur as sc
from models import FAMILIES, Entry, build
from secateur.structure.groups.couplings import analyse

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

ROOT = Path(__file__).resolve().parents[1]


def run_one(entry: Entry, budget: float = 0.5) -> dict[str, object]:
    """One row: prune, shrink, prove, count."""
    row: dict[str, object] = {"library": entry.library, "name": entry.name}
    try:
        torch.manual_seed(0)
        model, example = build(entry)
        found = analyse(model, example)
        explained = sc.explain(model, example)
        row["prunable"] = explained.prunable
        start = time.perf_counter()
        options = sc.PruneOptions(allow_collapse=True, parameters=PARAMETERS.get(entry.name))
        masks = sc.prune(model, "l1", "channel", budget, example=example, options=options)
        row["prune_s"] = time.perf_counter() - start
        start = time.perf_counter()
        small = sc.shrink(model, masks, example)
        row["shrink_s"] = time.perf_counter() - start
        before, after = found.macs(), analyse(small.model, example).macs()
        counts = [sum(p.numel() for p in m.parameters()) for m in (model, small.model)]
        row.update(
            error=small.proof.error,
            scale=small.proof.scale,
            parameters=counts[0],
            removed=1 - counts[1] / counts[0],
            macs=before,
            macs_removed=1 - after / before,
            locked=[f"{lock.operator} in {lock.path}: {lock.reason}" for lock in small.locked],
            rewrites=len(small.plan.rewrites),
            why=reasons(explained),
        )
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
        if "-v" in sys.argv:
            traceback.print_exc()
    gc.collect()
    return row


def reasons(explained: object) -> list[str]:
    """The reasons for locks that come first, each once, those of the edges of the model left out."""
    seen: dict[str, int] = {}
    for lock in explained.locks:  # type: ignore[attr-defined]
        if lock.operator == "output" or lock.reason.startswith("meets"):
            continue
        key = f"{lock.reason} ({lock.operator})"
        seen[key] = seen.get(key, 0) + lock.positions
    return [key for key, _ in sorted(seen.items(), key=lambda item: -item[1])][:3]


def line(row: dict[str, object]) -> str:
    """A row as a line of the table."""
    name = f"{row['library']}/{row['name']}"
    if "failed" in row:
        return f"| {name} | failed | | | | | | {row['failed']} |"
    notes = [*row["locked"][:2], *row["why"][:2]]  # type: ignore[index]
    if row["rewrites"]:
        notes.insert(0, f"{row['rewrites']} forwards rewritten")
    if not row["scale"]:
        notes.insert(0, "the output is constant 0")
    return (
        f"| {name} | {row['prunable']:.2f} | {row['removed']:.2f} | {row['macs_removed']:.2f} | {row['error']:.0e} | "
        f"{row['prune_s']:.2f} | {row['shrink_s']:.2f} | {'; '.join(notes).replace('|', '/')} |"
    )


HEAD = """# Zoo

Written by `python benchmarks/zoo.py`: random weights, batch norm randomised, half of every group removed by l1, one
thread. *prunable* is the share of parameters with an axis that can be cut; *removed* and *MACs* are the shares gone;
*error* is the largest difference between masked and shrunk model, of the largest output, in float64 (mixtral has
operators without float64 and is proved in float32; its experts are bare parameters, asked for by `parameters=`);
*prune* and *shrink* are seconds once the model is traced (shrink includes the proof), on a machine with other work.

"""
TABLE = "| model | prunable | removed | MACs | error | prune | shrink | notes |\n|---|---|---|---|---|---|---|---|\n"


def summary(rows: list[dict[str, object]]) -> str:
    """The figures over all rows."""
    good = [row for row in rows if "failed" not in row]
    if not good:
        return "nothing ran\n"
    removed = sorted(float(row["macs_removed"]) for row in good)  # type: ignore[arg-type]
    tight = sum(float(row["error"]) < 1e-9 for row in good)  # type: ignore[arg-type]
    return (
        f"{len(good)} of {len(rows)} models shrink with a proof, {tight} of them under 1e-9; "
        f"the median model loses {removed[len(removed) // 2]:.0%} of its MACs.\n\n"
    )


def count(rows: list[dict[str, object]]) -> None:
    """Record how many shrink, and by how much."""
    good = [row for row in rows if "failed" not in row]
    if not good:
        return
    removed = sorted(float(row["macs_removed"]) for row in good)  # type: ignore[arg-type]
    tight = sum(float(row["error"]) < 1e-9 for row in good)  # type: ignore[arg-type]
    record(
        Figure("models with a proof under 1e-9", tight, f"of {len(rows)}", len(rows), "higher", 0),
        Figure("MACs removed, the median model", 100 * removed[len(removed) // 2], "%", 60, "higher", 0.02),
    )


FOREIGN = "## Foreign models"
"""The section that `foreign.py` writes, which stays as it is."""


def write(rows: list[dict[str, object]], lines: list[str]) -> None:
    """Write this benchmark's part of docs/zoo.md."""
    target = ROOT / "docs" / "zoo.md"
    foreign = "".join(target.read_text().partition(FOREIGN)[1:])
    target.write_text(HEAD + summary(rows) + TABLE + "\n".join(lines) + "\n" + (foreign and f"\n{foreign}"))


def redo(words: set[str]) -> None:
    """Run again what failed in docs/zoo.md, or has one of these words in its name, and count anew."""
    target = ROOT / "docs" / "zoo.md"
    own = target.read_text().split(FOREIGN)[0]
    lines = [text for text in own.splitlines() if text.startswith("| ")][1:]
    entries = {f"{entry.library}/{entry.name}": entry for entry in FAMILIES()}
    rows: list[dict[str, object]] = []
    for position, text in enumerate(lines):
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if cells[1] != "failed" and not any(word in cells[0] for word in words):
            rows.append({"macs_removed": float(cells[3]), "error": float(cells[4])})
            continue
        rows.append(run_one(entries[cells[0]]))
        lines[position] = line(rows[-1])
        print(lines[position], flush=True)
    write(rows, lines)
    print(summary(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="?", default="all")
    parser.add_argument("words", nargs="*")
    parser.add_argument("-v", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--redo",
        action="store_true",
        help="only the models that failed in docs/zoo.md and those named, in place",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.redo:
        return redo({options.library, *options.words} - {"all"})
    rows = []
    for entry in FAMILIES():
        if options.library not in ("all", entry.library):
            continue
        if options.words and not any(word in entry.name for word in options.words):
            continue
        rows.append(run_one(entry))
        print(line(rows[-1]), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(summary(rows))
    count(rows)
    if options.library == "all" and not options.words:
        write(rows, [line(row) for row in rows])


if __name__ == "__main__":
    main()
