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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secateur import studies
from secateur.lab.steps.train import TrainBase
from secateur.studies.section import Section, markdown_table
from secateur.studies.tables import Tabulated

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "studies.md"
FOLDER = ROOT / "docs" / "studies"
WHOLE = 50_000  # training images of CIFAR-10
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
images of CIFAR-10 with the scale's settings, by `benchmarks/bench_epoch.py` on one thread, with a core to itself. In
turns there these settings trained 1.9 (ResNet-20), 1.3 (ResNet-18), 1.6 (VGG-12) and 1.7 times (VGG-16) as many images
a second as those of `full`, which are fp32.
"""

MISSING = """
## What is not in the sections below

A part of a recipe that has no row, and why; the epochs that it would train at the scale named, those of networks
trained before it included, and the minutes of these here: by the table above, or at the pace of the study's own
section. Sections are of the time when they were computed.
"""

LAST = """
Rows of coupled channels in `cnn`, `resnet101` and `vae` (`coupled`) were computed before the recipes took over the
published ranking: they are what the recipes now call `with readers`. Unions, Level, dense models and controls are not
touched by that. The published SynFlow of VGG-16 is that of one round
(`at-init-vgg16-once`): the FLOP ratios follow from it. VGG-16 was trained at `smoke` alone, and `counts` has no row of
a = 2 for the other criteria; a = 1 of all criteria is the 13 hours of `day` above. Of the published reports, testing
times, epoch times, FLOPs of single layers and losses of pruned auto-encoders by term were not at hand, so ours stand
alone.
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


Wanted = Callable[[str, Mapping[str, Any]], bool]


def every_trial(part: str, settings: Mapping[str, Any]) -> bool:
    """Every trial is wanted."""
    return True


def epochs(name: str, scale: str, wanted: Wanted = every_trial) -> float:
    """The epochs that a study trains at a scale, those of fewer images as parts; a shared training counts once.

    Args:
        name: The study.
        scale: The scale.
        wanted: Whether a trial counts, by its part and settings.
    """
    found: dict[str, float] = {}
    study = studies.read(name)
    needs = [f"{key}=given" for key in study.at(scale).needs]
    for part, recipe in study.recipes(scale, needs):
        for settings, trial in recipe.trials():
            if not wanted(part.name, settings):
                continue
            share = min(1.0, (trial.data.limit or WHOLE) / WHOLE)
            before = json.dumps(
                [trial.model.model_dump(), trial.data.model_dump()], sort_keys=True, default=str
            )
            for step in trial.steps:
                before += json.dumps([step.kind(), step.chosen()], sort_keys=True, default=str)
                if isinstance(step, TrainBase):
                    found[before] = step.training().epochs * share
    return sum(found.values())


def lacks(one: dict[str, Any]) -> Wanted:
    """Whether a trial is one that a row of the missing parts means."""
    return lambda part, settings: (
        part == one["part"] and ("only" not in one or one["only"] in settings.values())
    )


def price(one: dict[str, Any], asked: list[dict[str, Any]], sections: dict[str, Section]) -> tuple[str, str]:
    """The epochs that a missing part would train, and the minutes of these.

    An epoch takes what `benchmarks/bench_epoch.py` measured; of a network that it does not train, what an epoch of
    the section took with all else that it did.

    Args:
        one: The missing part, with the scale that would run it.
        asked: All missing parts.
        sections: Every kept section.
    """
    count = epochs(one["study"], one["scale"], lacks(one))
    if not count:
        return "0", ""
    network = NETWORKS.get((one["study"], "day"))
    if network is not None:
        each = seconds_per_epoch().get((network, "day"))
    else:
        section = sections[one["study"]]
        gone = [lacks(row) for row in asked if row["study"] == one["study"]]
        ran = epochs(
            section.study,
            section.scale,
            lambda part, settings: not any(lack(part, settings) for lack in gone),
        )
        each = took(section.ran) / ran
    return f"{count:.3g}", "not measured" if each is None else f"{max(1, round(count * each / 60)):,}"


def took(ran: str) -> int:
    """The seconds that the steps of a section took, from its line.

    >>> took("seed 0; the steps took 1 h 10 min when they were computed."), took("the steps took 4 min 14 s when")
    (4200, 254)
    """
    said = ran.partition("the steps took ")[2].partition(" when")[0]
    sizes = {"h": 3600, "min": 60, "s": 1}
    return sum(int(number) * sizes[unit] for number, unit in re.findall(r"(\d+) (h|min|s)\b", said))


def seconds_per_epoch() -> dict[tuple[str, str], float]:
    """The newest measured seconds of an epoch of all images, by network and scale."""
    if not EPOCHS.exists():
        return {}
    with EPOCHS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"].endswith(", images a second")]
    words = [row["name"].split(", ") for row in rows]
    return {(one[0], one[1]): WHOLE / float(row["figure"]) for one, row in zip(words, rows, strict=True)}


def costs() -> Tabulated:
    """What each scale that was not run would cost."""
    made = Tabulated(
        "", head=("study", "scale", "epochs", "network", "seconds of an epoch", "hours"), right=(2, 4, 5)
    )
    measured = seconds_per_epoch()
    for (name, scale), network in NETWORKS.items():
        count, each = epochs(name, scale), measured.get((network, scale))
        said = ("not measured", "") if each is None else (f"{each:,.0f}", f"{count * each / 3600:,.0f}")
        made.rows.append((name, f"`{scale}`", f"{count:,.0f}", network, *said))
    return made


def page() -> str:
    """The whole page."""
    asked = tomllib.loads((FOLDER / "page.toml").read_text(encoding="utf-8"))
    sections = kept()
    missing = Tabulated("", head=("study", "part", "reason", "scale", "epochs", "minutes"), right=(4, 5))
    for one in asked["missing"]:
        cost = price(one, asked["missing"], sections)
        missing.rows.append((one["study"], one["part"], one["reason"], f"`{one['scale']}`", *cost))
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
