"""docs/studies.md from docs/studies/: `python docs/site/studies.py [--check]`.

`secateur study NAME --page docs/studies.md` keeps a study's section in docs/studies/NAME/. This script writes the page
of all of them: above the sections stand the tables that docs/studies/page.toml asks for. Their numbers are read from
the sections, so that the first table cannot say what a section does not. `--check` writes nothing, and ends with 1
where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from secateur import studies
from secateur.lab.steps.train import TrainBase
from secateur.studies.section import Section, markdown_table
from secateur.studies.tables import Tabulated

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "studies.md"
FOLDER = ROOT / "docs" / "studies"
EPOCHS = ROOT / "benchmarks" / "results" / "bench_epoch.csv"
NETWORKS = {
    ("sensitivity", "day"): "vgg12",
    ("sensitivity", "full"): "vgg12",
    ("deep-compression", "day"): "resnet20",
    ("deep-compression", "full"): "resnet20",
    ("resnet101", "day"): "resnet18",
    ("resnet101", "full"): "resnet101",
    ("at-init-vgg16", "day"): "vgg16-lottery",
    ("at-init-vgg16", "full"): "vgg16-lottery",
}

HEAD = """# The published studies, run with secateur

This page is written by `docs/site/studies.py` from what `secateur study NAME --page docs/studies.md` keeps in
`docs/studies/`. Where a figure was published it stands beside ours with the difference, ours less the published one. A
figure that cannot follow from the report's own model is marked, and compared with the one that does. Long tables are
files of their own.

## At a glance

Everything ran on two cores without an accelerator. "Not comparable" means a scale too small to say anything of the
published accuracy; counts, costs and files do not depend on that.
"""

COST = """
## What the scales that were not run would cost here

Epochs that a scale trains in all its parts, trainings that parts share counted once; seconds of an epoch of the 50,000
images of CIFAR-10 with the settings of `day`, by `benchmarks/bench_epoch.py` on one thread, while ten other programs
wanted the two cores: an upper bound. In turns on that machine these settings trained 3.3 (ResNet-20), 2.7 (ResNet-18)
and 2.7 (VGG-12, one turn) times as many images a second as those of `full`, which are fp32.
"""

MISSING = """
## What is not in the sections below

A part of a recipe that has no row, and why. Sections are of the time when they were computed.
"""

LAST = """
Rows of coupled channels in `cnn`, `resnet101` and `vae` (`coupled`) were computed before the recipes took over the
published ranking: they are what the recipes now call `with readers`. Unions, Level, dense models and controls are not
touched by that. In `std 0.25` and `percentile 0.25` of deep-compression, retraining made the network worse: a recipe
keeps its best epoch with `retrain.keep = "best"`; the state before it is the row "without retraining". The published
testing times, epoch times, FLOPs of single layers and losses of pruned auto-encoders by term were not at hand, so ours
stand alone.
"""


def kept() -> dict[str, Section]:
    """Every kept section, by its name."""
    paths = sorted(FOLDER.glob("*/section.json"), key=lambda path: path.parent.name)
    return {path.parent.name: Section.from_json(path.read_text(encoding="utf-8")) for path in paths}


def glance(rows: list[dict[str, Any]], sections: dict[str, Section]) -> Tabulated:
    """The first table.

    Args:
        rows: As page.toml has them.
        sections: What they are read from.
    """
    made = Tabulated(
        "", head=("study", "figure", "published", "ours", "gap", "verdict", "scale"), right=(2, 3, 4)
    )
    for row in rows:
        section = sections[row["study"]]
        ours, published, gap = cell(section, row)
        made.rows.append(
            (
                row["study"],
                row["figure"],
                published or "none",
                ours,
                gap,
                verdict(row, gap),
                f"`{section.scale}`",
            )
        )
    return made


def cell(section: Section, row: dict[str, Any]) -> tuple[str, str, str]:
    """Our figure of a row, the published one and the gap; the last two are empty where none was published."""
    table = next((one for one in section.tables if one.title == row["table"]), None)
    if table is None:
        raise KeyError(
            f"{section.study} has no table {row['table']!r}; it has {[one.title for one in section.tables]}"
        )
    if row["column"] == "ours":
        place = table.head.index("ours")
        order = (place, place - 1, place + 1)
    else:
        place = next(
            index for index, word in enumerate(table.head) if word.partition(" [")[0] == row["column"]
        )
        compared = table.head[place + 1 : place + 3] == ("published", "difference")
        order = (place, place + 1, place + 2) if compared else (place, -1, -1)
    for cells in table.rows:
        said = dict(zip(table.head, cells))
        if all(said[key] == value for key, value in row["of"].items()):
            ours, published, gap = (cells[index] if index >= 0 else "" for index in order)
            return ours, published, gap
    raise KeyError(f"{section.study}, {row['table']}: no row {row['of']}")


def verdict(row: dict[str, Any], gap: str) -> str:
    """The verdict: by the size of the gap where it is small, else the words of page.toml."""
    if gap == "0":
        return "the same"
    found = re.match(r"[+−]?([\d.,]+)", gap)
    if found and "within" in row and float(found.group(1).replace(",", "")) <= row["within"]:
        return "as published"
    return str(row["verdict"])


def epochs(name: str, scale: str) -> int:
    """The epochs that a study trains at a scale; a training that trials share counts once."""
    found: dict[str, int] = {}
    study = studies.read(name)
    needs = [f"{key}=given" for key in study.at(scale).needs]
    for _, recipe in study.recipes(scale, needs):
        for _, trial in recipe.trials():
            before = json.dumps(
                [trial.model.model_dump(), trial.data.model_dump()], sort_keys=True, default=str
            )
            for step in trial.steps:
                before += json.dumps([step.kind(), step.chosen()], sort_keys=True, default=str)
                if isinstance(step, TrainBase):
                    found[before] = step.training().epochs
    return sum(found.values())


def seconds_per_epoch() -> dict[str, float]:
    """The newest measured seconds of an epoch, by network."""
    if not EPOCHS.exists():
        return {}
    with EPOCHS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = ", seconds of an epoch"
    return {
        row["name"].removesuffix(ends): float(row["figure"]) for row in rows if row["name"].endswith(ends)
    }


def costs() -> Tabulated:
    """What each scale that was not run would cost."""
    made = Tabulated(
        "", head=("study", "scale", "epochs", "network", "seconds of an epoch", "hours"), right=(2, 4, 5)
    )
    measured = seconds_per_epoch()
    for (name, scale), network in NETWORKS.items():
        count, each = epochs(name, scale), measured.get(network)
        said = ("not measured", "") if each is None else (f"{each:,.0f}", f"{count * each / 3600:,.0f}")
        made.rows.append((name, f"`{scale}`", f"{count:,}", network, *said))
    return made


def page() -> str:
    """The whole page."""
    asked = tomllib.loads((FOLDER / "page.toml").read_text(encoding="utf-8"))
    sections = kept()
    missing = Tabulated("", head=("study", "part", "reason"))
    missing.rows = [(one["study"], one["part"], one["reason"]) for one in asked["missing"]]
    parts = [HEAD, markdown_table(glance(asked["row"], sections)) + "\n"]
    parts += [COST, markdown_table(costs()) + "\n"]
    parts += [MISSING, markdown_table(missing) + "\n", LAST]
    for name, section in sections.items():
        parts.append(f"<!-- study: {name} -->\n\n{section.markdown(FOLDER.name)}\n<!-- end of {name} -->\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is another")
    asked, text = parser.parse_args(), page()
    if asked.check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
