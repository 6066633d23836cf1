"""The demo: its table of dense, shrunk and stored model, and a statement of what was done and what was not.

>>> rows = table(Measurements([
...     Measurement("accuracy", 0.99, context={"trial": 0, "variant": "dense", "step": "measure"}),
...     Measurement("accuracy", 0.98, context={"trial": 0, "variant": "file", "step": "measure"})]))
>>> rows[0]
['accuracy on the test images', '99.00 %', '', '98.00 %']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from secateur.core.measurement import Measurement, Measurements
from secateur.lab.display.progress import Progress
from secateur.lab.engine import Ran, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.tables import variants, write_results

__all__ = ["HEAD", "demonstrate", "statement", "table"]

HEAD = ["", "dense", "shrunk", "in the file"]
_VARIANTS = ("dense", "shrunk", "file")

Row = Mapping[str, Measurement]


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name].value:,}" if name in row else ""


def _speedup(row: Row) -> str:
    found = row.get("speedup")
    if found is None:
        return ""
    low, high = found.spread.get("low", found.value), found.spread.get("high", found.value)
    text = f"{found.value:.2f}x  [{low:.2f}, {high:.2f}]"
    return f"{text}  no difference shown" if low <= 1.0 <= high else text


def _bytes(row: Row) -> float | None:
    """Bytes on disk: of the .sct file where there is one, else of the state dict as torch saves it."""
    found = row.get("file_bytes") or row.get("size")
    return float(found.value) if found is not None else None


def table(measurements: Measurements) -> list[list[str]]:
    """The rows of the table: a name, then dense, shrunk, and what came back from the file."""
    found = {variant: row for (_, variant), row in variants(measurements).items()}
    if "file" in found:
        found["file"] = {
            **found["file"],
            **{k: v for k, v in found.get("pack", {}).items() if k == "file_bytes"},
        }
    if "shrunk" in found and "latency" in found.get("file", {}):
        # Times are only comparable within one interleaved measurement: show the two sides of the last one.
        last = [m for m in measurements if m.name == "latency" and m.context.get("variant") == "dense"][-1:]
        found["dense"] = {**found["dense"], **{m.name: m for m in last}}
        found["shrunk"] = {name: m for name, m in found["shrunk"].items() if name != "latency"}
    rows = [found.get(variant, {}) for variant in _VARIANTS]
    dense = _bytes(rows[0])

    def ratio(row: Row) -> str:
        own = _bytes(row)
        return f"{dense / own:.2f}x" if dense and own else ""

    lines: list[tuple[str, Callable[[Row], str]]] = [
        (
            "accuracy on the test images",
            lambda row: f"{row['accuracy'].value:.2%}".replace("%", " %") if row else "",
        ),
        ("parameters", _count("params")),
        ("non-zero parameters", _count("nonzeros")),
        ("multiply-accumulates, one image", _count("macs")),
        ("  of them with a non-zero weight", _count("macs_nonzero")),
        ("latency, median", lambda row: f"{row['latency'].value:.3g} ms" if "latency" in row else ""),
        ("  times as fast as dense", _speedup),
        ("bytes on disk", lambda row: f"{_bytes(row):,.0f}" if _bytes(row) else ""),
        ("  times as small as dense", ratio),
    ]
    return [[name, *(cell(row) for row in rows)] for name, cell in lines]


def statement(ran: Ran, store: Store, out: Path) -> str:
    """What was done, what was not, and what to do next, in plain sentences."""
    recipe = ran.plan.recipe
    lines = ran.lines(store)
    size = recipe.data.size
    found = {variant: row for (_, variant), row in variants(ran.measurements).items()}
    batch = next((getattr(step, "batch", 1) for step in recipe.steps if step.label == "file"), 1)
    seconds = f"{ran.seconds:.0f} s" if ran.computed else "no time, because every step was in the store"
    parts = [
        f"Done: {recipe.model.name} on the {recipe.data.name} images ({size} x {size}), seed "
        f"{recipe.lab.seed}: "
        f"trained ({lines.get('train', '')}); half of the channels cut out "
        f"({lines.get('shrink', '')}); retrained; {lines.get('weights', '')}; retrained again; weights "
        "shared "
        f"({lines.get('share', '')}); written as one file and loaded back ({lines.get('pack', '')}).",
        "Not done: the zeros left inside the remaining channels make the file smaller, but dense kernels do "
        "not skip "
        "them, so they make nothing faster; nothing was retrained after sharing; the digits are an easy "
        "task, and other "
        "networks on other data will lose more accuracy at these sparsities.",
        f"How: latency is the median over interleaved repetitions of a batch of {batch} on this machine's "
        f"{ran.plan.device}, "
        "the brackets bound the ratio with 95 % confidence; dense and shrunk bytes are those of torch.save, "
        "the file's "
        "are everything it holds.",
    ]
    speedup = found.get("file", {}).get("speedup")
    if speedup is not None and speedup.spread.get("low", speedup.value) <= 1.0:
        parts.append("The time did not measurably improve on this machine: the interval includes 1.")
    parts.append(
        f"It took {seconds} ({ran.computed} steps computed, {ran.cached} cached). The file is "
        f"{out / 'resnet20.sct'}; "
        f"`secateur show {ran.run}` tells where every number comes from."
    )
    return "\n".join(parts)


def demonstrate(recipe: Recipe, store: Store, out: Path, progress: Progress) -> Ran:
    """Run the demo's recipe and write the small model."""
    ran = run(recipe, store, progress=progress)
    write_results(ran, store, out)
    return ran
