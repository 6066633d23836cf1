"""Graph breaks of torch.compile, dense against shrunk: torchvision's classifiers and twenty transformers of timm.

    python benchmarks/graph_breaks.py                  # all; writes its section of docs/zoo.md
    python benchmarks/graph_breaks.py swin vit         # words of names; prints only
    python benchmarks/graph_breaks.py --write          # only writes the section, from the results kept

Half of every group is removed by l2. Goal: the shrunk model has no more graph breaks than the dense one. Each model
runs in a process of its own with limits on time and memory; results are kept as JSON lines, so that a run that is
stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from foreign import apart
from torch import nn

import secateur as sc
from models import CLASSIFIERS, FAMILIES, Entry, build, declare_torchvision
from secateur.structure.cutting import cut

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

ROOT = Path(__file__).resolve().parents[1]
TARGET, KEPT = ROOT / "docs" / "zoo.md", ROOT / "runs" / "graph_breaks.jsonl"
MARK = "## Graph breaks"
_SECONDS, _GIGABYTES = 300, 12
TRANSFORMERS = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "cait_xxs24_224",
    "swin_tiny_patch4_window7_224",
    "twins_svt_small",
    "twins_pcpvt_small",
    "pit_ti_224",
    "levit_128s",
    "xcit_nano_12_p16_224",
    "volo_d1_224",
    "convit_tiny",
    "coat_lite_tiny",
    "crossvit_tiny_240",
    "pvt_v2_b0",
    "davit_tiny",
    "hiera_tiny_224",
    "eva02_tiny_patch14_224",
    "tiny_vit_5m_224",
    "poolformer_s12",
]
HEAD = f"""{MARK}

Written by `python benchmarks/graph_breaks.py`: the number of graph breaks that torch.compile reports for the shrunk
model, and where it has any for the dense one, without gradients.

"""


def breaks(model: nn.Module, example: object) -> int:
    """The graph breaks of a model on an example."""
    torch._dynamo.reset()
    with torch.no_grad():
        return int(torch._dynamo.explain(model)(example).graph_break_count)


def run(entry: Entry) -> dict[str, Any]:
    """One row: both counts; that of the dense model is left out where the shrunk one has no break."""
    torch.manual_seed(0)
    model, example = build(entry)
    options = sc.PruneOptions(allow_collapse=True)
    masks = sc.prune(model, "l2", "channel", 0.5, example=example, options=options)
    small = cut(model, masks, example).model.eval()  # the zoo's table has the proof
    counts = {"shrunk": breaks(small, example)}
    if counts["shrunk"]:
        counts["dense"] = breaks(model, example)
    return {"library": entry.library, "name": entry.name, **counts}


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    counts = row.get("failed", "").replace("|", "/") or f"{row.get('dense', '')} | {row['shrunk']}"
    return f"| {row['library']}/{row['name']} | {counts} |"


def summary(rows: list[dict[str, Any]]) -> str:
    """The figures over all rows."""
    done = [row for row in rows if "failed" not in row]
    kept_to = sum(not row["shrunk"] or row["shrunk"] <= row["dense"] for row in done)
    whole = sum(not row["shrunk"] for row in done)
    listed = len(CLASSIFIERS) + len(TRANSFORMERS)
    return (
        f"{kept_to} of {len(done)} shrunk models have no more graph breaks than the dense one (goal: all); {whole} "
        f"have none at all. {len(rows) - len(done)} could not be counted; {listed} are on the list.\n"
    )


def write(rows: list[dict[str, Any]]) -> None:
    """Put the section into docs/zoo.md, in place of the one before; those around it stay."""
    before, _, rest = TARGET.read_text().partition(MARK)
    _, found, after = rest.partition("\n## ")
    worse = [row for row in rows if "failed" in row or row["shrunk"]]
    table = "\n".join(["| model | dense | shrunk |", "|---|---|---|", *map(line, worse)])
    text = f"{HEAD}{summary(rows)}" + (f"\nThose with a break:\n\n{table}\n" if worse else "")
    TARGET.write_text(f"{before.rstrip()}\n\n{text}" + (f"\n## {after}" if found else ""))


def main() -> None:
    torch.set_num_threads(1)
    declare_torchvision()
    wanted = {("torchvision", name) for name in CLASSIFIERS} | {("timm", name) for name in TRANSFORMERS}
    entries = [entry for entry in FAMILIES() if (entry.library, entry.name) in wanted]
    only_write = sys.argv[1:] == ["--write"]
    words = [] if only_write else sys.argv[1:]
    known = {}
    if KEPT.exists():
        rows = [json.loads(text) for text in KEPT.read_text().splitlines()]
        known = {(row["library"], row["name"]): row for row in rows}
    for entry in () if only_write else entries:
        key = (entry.library, entry.name)
        if key in known or (words and not any(word in entry.name for word in words)):
            continue
        row = apart(run, entry, _SECONDS, _GIGABYTES)
        known[key] = {"library": entry.library, "name": entry.name, **row}
        KEPT.parent.mkdir(exist_ok=True)
        with KEPT.open("a") as file:
            file.write(json.dumps(known[key]) + "\n")
        print(line(known[key]), flush=True)
    rows = [known[key] for entry in entries if (key := (entry.library, entry.name)) in known]
    print(summary(rows))
    if words:  # part of the list is no figure
        return
    # One that does not compile is no better than one with a break.
    more = sum("failed" in row or row["shrunk"] > row.get("dense", 0) for row in rows)
    record(Figure("shrunk models with more graph breaks", more, f"of {len(rows)}", 0, tolerance=0))
    write(rows)


if __name__ == "__main__":
    main()
