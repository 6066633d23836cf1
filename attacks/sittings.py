"""An attack in pieces: what earlier sittings did, kept in a file, so that their inputs add up.

Only inputs to the same readers add up: the counts belong to a digest of the sources of `secateur` and of `attacks`, and
sources that have changed begin at zero. Several processes may share a file. A piece has a number, and its number is its
seed, so no two pieces are the same inputs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import secateur
from attacks.judge import Tally

_ROOTS = (Path(secateur.__file__).parent, Path(__file__).parent)


class _Kept(TypedDict):
    claimed: dict[str, int]  # pieces of a target that were begun
    seconds: dict[str, float]  # processor time of a target
    verdicts: dict[str, int]
    slowest: float
    largest: int
    found: list[str]


def digest() -> str:
    """A digest of the sources that are attacked, and of those that attack."""
    found = hashlib.sha256()
    for root in _ROOTS:
        for path in sorted(root.rglob("*.py")):
            found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


class Sittings:
    """The counts in one file.

    Args:
        path: The file; made when it is first written to.
        sources: The digest that its counts belong to.
    """

    def __init__(self, path: Path, sources: str):
        self._path, self._sources = path, sources

    def claim(self, targets: Sequence[str]) -> tuple[str, int]:
        """The next piece of the target whose turn it is: its name, and the piece's number.

        A target that takes four times as long as another has half as many turns.

        Args:
            targets: The names to choose from; equal ones are decided by position.
        """
        with self._open() as kept:
            begun = kept["claimed"]
            name = min(
                targets, key=lambda each: math.sqrt(begun.get(each, 0) * kept["seconds"].get(each, 1e-9))
            )
            number = begun.get(name, 0)
            begun[name] = number + 1
        return name, number

    def done(self, tally: Tally, found: Sequence[str] = ()) -> None:
        """Add what came of a piece.

        Args:
            tally: Its counts.
            found: What broke the promise.
        """
        with self._open() as kept:
            kept["verdicts"] = dict(Counter(kept["verdicts"]) + tally.verdicts)
            for name, seconds in tally.seconds.items():
                kept["seconds"][name] = kept["seconds"].get(name, 0.0) + seconds
            kept["slowest"] = max(kept["slowest"], tally.slowest)
            kept["largest"] = max(kept["largest"], tally.largest)
            kept["found"] += found

    def total(self) -> tuple[Tally, list[str]]:
        """All that was done so far, and what broke the promise."""
        with self._open() as kept:
            counts = Counter(kept["verdicts"])
            return Tally(counts, kept["slowest"], kept["largest"], kept["seconds"]), kept["found"]

    @contextlib.contextmanager
    def _open(self) -> Iterator[_Kept]:
        """The counts, which are written back; other processes wait."""
        with open(self._path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole: dict[str, _Kept] = json.loads(self._path.read_text()) if self._path.exists() else {}
            empty: _Kept = {
                "claimed": {},
                "seconds": {},
                "verdicts": {},
                "slowest": 0.0,
                "largest": 0,
                "found": [],
            }
            yield whole.setdefault(self._sources, empty)
            scratch = self._path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(whole, indent=1))
            scratch.replace(self._path)
