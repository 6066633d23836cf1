"""How a model walks through the rooms: scores are computed in one place, and calls go down the table of rooms."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

import secateur as sc

SOURCE = Path(sc.__file__).parent
ROOMS = re.findall(
    r"^\| `([a-z]+)/` \|",
    (SOURCE.parents[1] / "ARCHITECTURE.md").read_text().partition("## A tensor's")[0],
    re.M,
)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextmanager
def walked() -> Iterator[list[tuple[str, str]]]:
    """The calls from one file of the package to another: (from, to), in order."""
    calls: list[tuple[str, str]] = []
    start = str(SOURCE) + "/"

    def seen(frame: FrameType, event: str, arg: object) -> None:
        to = frame.f_code.co_filename
        if event != "call" or not to.startswith(start) or frame.f_code.co_name == "<module>":
            return
        before = frame.f_back
        while before is not None and not before.f_code.co_filename.startswith(start):
            before = before.f_back
        if before is not None and before.f_code.co_filename != to:
            calls.append((before.f_code.co_filename.removeprefix(start), to.removeprefix(start)))

    was = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(was)


def scored(run: Callable[[], object]) -> int:
    """How often the scoring helper is entered."""
    with walked() as calls:
        run()
    return sum(to == "pruning/scoring.py" for _, to in calls)


def test_the_table_of_rooms_is_read() -> None:
    assert ROOMS[0] == "cli"
    assert ROOMS[-1] == "core"
    assert len(ROOMS) > 20


def test_prune_enters_the_scoring_helper_once() -> None:
    model = sc.models.build("resnet20").eval()
    assert scored(lambda: sc.prune(model, "l2", "channel", 0.5, example=X)) == 1
    assert scored(lambda: sc.prune(model, "magnitude", "element", 0.5)) == 1
    rounds = sc.PruneOptions(schedule=sc.Exponential(3))
    assert scored(lambda: sc.prune(model, "synflow", "element", 0.5, example=X, options=rounds)) == 3


def test_scan_climbs_at_most_eight_times() -> None:
    """A climb is a pair of files of which the first calls the second, whose room is further up: hooks and callbacks."""
    model = sc.models.build("resnet20").eval()
    batches = [(X, torch.arange(2))]
    with walked() as calls:
        sc.scan(model, batches, "filter", [0.5], options=sc.ScanOptions(only=["conv1"]))
    room = {name: place for place, name in enumerate(ROOMS)}
    pairs = {(a, b) for a, b in calls if a.partition("/")[0] in room and b.partition("/")[0] in room}
    climbs = {(a, b) for a, b in pairs if room[b.partition("/")[0]] < room[a.partition("/")[0]]}
    assert 0 < len(climbs) <= 8, sorted(climbs)
