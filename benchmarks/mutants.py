"""How many planted bugs the tests find: `python benchmarks/mutants.py [--count N] [--seed N] [--rooms ROOM ...]`.

A mutant is the code with one small bug: `<` for `<=`, `and` for `or`, a number one higher, an argument or a call left
out. N mutants are drawn by seed from all that the rooms have room for. Each is planted in a copy of the repository and
the tests that reach the changed function are run, the quickest first, until one fails: then it is killed. A mutant
that lives is a line that no test holds.

Which tests reach which function is found first, by one run of the rooms' own test folders and of the examples in their
docstrings. Tests marked `slow`, `zoo`, `ray` or `browser` are left out. `--out FILE` keeps every result; a run that was
stopped goes on from it. `--control` plants nothing: then every mutant has to live. The copy is made of the files that
git knows, as they are now.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

REPO = Path(__file__).resolve().parent.parent
ROOMS = (
    "criteria", "budget", "granularity", "structure/groups/rules", "container", "quantize", "metrics", "report",
)  # fmt: skip
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One bug: the file, the line, where the changed text begins and ends in bytes, the text before and after."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """What it is called in results."""
        return f"{self.file}:{self.line}:{self.start}: {self.before!r} -> {self.after!r}"

    def planted(self, source: bytes) -> bytes:
        """The source with the bug."""
        return source[: self.start] + self.after.encode() + source[self.end :]


# -- which bugs there are
# -----------------------------------------------------------------------------------------


def _changed(node: ast.AST) -> Iterator[ast.AST | None]:
    """The bugs of one node: what stands in its place."""
    made = copy.deepcopy(node)
    if isinstance(made, ast.Compare) and len(made.ops) == 1 and type(made.ops[0]) in COMPARE:
        made.ops = [COMPARE[type(made.ops[0])]()]
        yield made
    elif isinstance(made, ast.BinOp) and type(made.op) in ARITHMETIC and not _text(made):
        made.op = ARITHMETIC[type(made.op)]()
        yield made
    elif isinstance(made, ast.BoolOp):
        made.op = ast.Or() if isinstance(made.op, ast.And) else ast.And()
        yield made
    elif isinstance(made, ast.UnaryOp) and isinstance(made.op, ast.Not):
        yield made.operand
    elif isinstance(made, ast.Constant):
        value = made.value
        if isinstance(value, bool):
            yield ast.Constant(not value)
        elif isinstance(value, int):
            yield ast.Constant(value + 1)
        elif isinstance(value, float):
            yield ast.Constant(value * 2 if value else 1.0)
    elif isinstance(made, ast.Call):
        for index, keyword in enumerate(made.keywords):
            if keyword.arg is not None:
                less = copy.deepcopy(made)
                del less.keywords[index]
                yield less
    elif isinstance(made, ast.Expr) and isinstance(made.value, ast.Call):
        yield ast.Pass()


def _text(node: ast.BinOp) -> bool:
    """Whether it joins texts or lists, which cannot be taken from each other."""
    sides = (node.left, node.right)
    joined = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
    return any(
        isinstance(s, joined) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes a bug may be planted in: no annotations, decorators, messages, or texts with values in them."""
    if isinstance(node, (ast.JoinedStr, ast.Raise)):
        return
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    skipped = {"annotation", "returns", "decorator_list", "type_params"}
    if hasattr(node, "lineno"):
        yield node
    for field, value in ast.iter_fields(node):
        if field not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _nodes(child)


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Every bug a file has room for."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in _nodes(tree):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = source[start:end].decode()
        for made in _changed(node):
            text = ast.unparse(ast.fix_missing_locations(made))
            text = f"({text})" if isinstance(made, (ast.BinOp, ast.BoolOp, ast.Compare)) else text
            found.append(Mutant(file, node.lineno, start, end, before, text))  # type: ignore[attr-defined]
    return found


def function_at(source: bytes, line: int) -> tuple[int, ...]:
    """First lines of the functions around a line, the innermost first; empty where it is outside all functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if node.body[0].lineno <= line <= (node.end_lineno or 0):
                found.append((node.lineno, first))
    return tuple(first for _, first in sorted(found, reverse=True))


# -- running tests in a forked process, which has torch in memory already
# -----------------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin: which functions every test calls, how long it takes, and whether it passes."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen, self.tests = str(root / "src"), set(), {}
        self.failed: set[str] = set()

    def trace(self, frame: object, event: str, arg: object) -> None:
        """Note a call; nothing is traced inside it."""
        self.seen.add(frame.f_code)  # type: ignore[attr-defined]

    def pytest_runtest_setup(self, item: object) -> None:
        """Begin a test."""
        self.seen = set()
        self.began = time.perf_counter()
        sys.settrace(self.trace)

    def pytest_runtest_logreport(self, report: object) -> None:
        """End a test."""
        if report.outcome != "passed":  # type: ignore[attr-defined]
            self.failed.add(report.nodeid)  # type: ignore[attr-defined]
        if report.when != "teardown":  # type: ignore[attr-defined]
            return
        sys.settrace(None)
        seconds = time.perf_counter() - self.began
        called = [
            f"{code.co_filename[len(self.root) - 3 :]}:{code.co_firstlineno}"
            for code in self.seen
            if code.co_filename.startswith(self.root)
        ]
        self.tests[report.nodeid] = (seconds, called)  # type: ignore[attr-defined]


def _pytest(root: Path, arguments: list[str], plugins: list[object]) -> int:
    import pytest

    os.chdir(root)
    base = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not zoo and not ray and not browser"]
    return int(pytest.main([*base, *arguments], plugins=plugins))


def forked(work: Callable[[], int], seconds: float) -> int | None:
    """What `work` returns in a process of its own that says nothing; None where it took too long."""
    ends, hands = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 99
        with contextlib.suppress(BaseException):
            code = work()
        os.write(hands, bytes([code & 255]))
        os._exit(0)
    os.close(hands)
    ready, _, _ = select.select([ends], [], [], seconds)
    said = os.read(ends, 1) if ready else b""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ends)
    return (said[0] if said else 99) if ready else None


def reached(root: Path, rooms: list[str]) -> dict[str, tuple[float, list[str]]]:
    """Every test that passes: its seconds and the functions it calls."""
    folders = {f"tests/{room.split('/')[0]}" for room in rooms}
    paths = [*sorted(folders), *(f"src/secateur/{room}" for room in rooms)]
    kept = root / "reached.json"

    def record() -> int:
        recorder = Recorder(root)
        code = _pytest(root, [path for path in paths if (root / path).exists()], [recorder])
        good = {name: found for name, found in recorder.tests.items() if name not in recorder.failed}
        kept.write_text(json.dumps(good))
        return code

    forked(record, 3600)
    return json.loads(kept.read_text())


def copied() -> Path:
    """A copy of the files that git knows, whose code is imported from here on."""
    root = Path(tempfile.mkdtemp(prefix="mutants"))
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in names.stdout.decode().split("\0"):
        if name and (REPO / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, root / name)
    sys.path.insert(0, str(root / "src"))
    os.environ["PYTHONPATH"] = str(root / "src")
    return root


def tried(root: Path, mutant: Mutant, tests: dict[str, tuple[float, list[str]]], most: float) -> str:
    """`killed`, `lives`, or `not reached` by any test."""
    path = root / mutant.file
    source = path.read_bytes()
    around = function_at(source, mutant.line)
    keys = {f"{mutant.file}:{first}" for first in around[:1]}
    room = mutant.file.split("/")[2]
    near = [
        (seconds, name)
        for name, (seconds, called) in tests.items()
        if (keys & set(called) if keys else name.startswith((f"tests/{room}/", mutant.file)))
    ]
    chosen, spent = [], 0.0
    for seconds, name in sorted(near):
        if chosen and spent + seconds > most:
            break
        chosen.append(name)
        spent += seconds
    if not chosen:
        return "not reached"
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        old.unlink()
    path.write_bytes(mutant.planted(source))
    try:
        sys.dont_write_bytecode = True
        code = forked(lambda: _pytest(root, ["-x", *chosen], []), 30 + 4 * spent)
    finally:
        sys.dont_write_bytecode = False
        path.write_bytes(source)
    return {0: "lives", 1: "killed", 2: "killed", None: "killed"}.get(code, f"pytest ended with {code}")


def shown(root: Path, mutant: Mutant) -> str:
    """The lines that a mutant changes."""
    source = (root / mutant.file).read_bytes()
    before, after = source.decode().splitlines(), mutant.planted(source).decode().splitlines()
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join("    " + line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def main() -> int:
    """Draw, plant, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the draw")
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), help="folders of src/secateur")
    parser.add_argument("--most", type=float, default=20.0, help="seconds of tests for one mutant")
    parser.add_argument("--out", type=Path, help="a file of JSON lines: kept results are not computed again")
    parser.add_argument("--again", action="store_true", help="run those again that lived")
    parser.add_argument("--control", action="store_true", help="plant nothing")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = copied()
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    files = [path for room in asked.rooms for path in sorted((REPO / "src/secateur" / room).rglob("*.py"))]
    drawn = [each for path in files for each in mutants_of(str(path.relative_to(REPO)), path.read_bytes())]
    print(
        f"{len(drawn):,} mutants in {len(files)} files; {asked.count} drawn with seed {asked.seed}",
        flush=True,
    )
    drawn = random.Random(asked.seed).sample(drawn, min(asked.count, len(drawn)))
    kept = {}
    if asked.out and asked.out.exists():
        kept = {row["name"]: row["result"] for row in map(json.loads, asked.out.read_text().splitlines())}
    if asked.control:
        drawn = [replace(each, after=each.before) for each in drawn]
    missing = [
        each
        for each in drawn
        if kept.get(each.name) in ((None, "lives", "not reached") if asked.again else (None,))
    ]
    tests = reached(root, asked.rooms) if missing else {}
    for number, each in enumerate(missing):
        kept[each.name] = tried(root, each, tests, asked.most)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps({"name": each.name, "result": kept[each.name]}) + "\n")
        if kept[each.name] != "killed":
            print(
                f"{number + 1}/{len(missing)} {kept[each.name]}: {each.file}:{each.line}\n{shown(root, each)}",
                flush=True,
            )
    killed = sum(kept[each.name] == "killed" for each in drawn)
    print(f"killed {killed} of {len(drawn)}: {killed / len(drawn):.1%}")
    if not asked.control and drawn:
        record(Figure("mutants killed", 100 * killed / len(drawn), "%", 90, "higher", 0.02))
    shutil.rmtree(root)
    return 0 if killed >= 0.9 * len(drawn) else 1


if __name__ == "__main__":
    sys.exit(main())
