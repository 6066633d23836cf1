"""How many planted bugs the tests find: `python benchmarks/mutants.py [--count N] [--seed N] [--rooms ROOM ...]`.

A mutant is the code with one small bug: `<` for `<=`, `and` for `or`, a number one higher, an argument or a call left
out. N mutants are drawn by seed from all that the rooms have room for, each by a digest of its own, so that the same
ones are drawn after a change elsewhere. Each is planted in a copy of the repository and the tests that run the changed
line are run, first those that found a bug in the same file, then the quickest, until one fails: then it is killed. A
mutant that lives is a line that no test holds.

Which tests run which line is found first, by one run of the rooms' own test folders, of `prune`'s tests and of the
examples in docstrings. Tests marked `slow`, `zoo`, `ray` or `browser` are left out. Python and the tests are loaded
once: a process is forked for each mutant, which gives the changed function its new code. Where the bug lies outside of
functions (a default, a constant), the package is loaded anew.

`--out FILE` keeps every result; a run that was stopped goes on from it, and `--only ROOM` runs a piece of the
sample with that room's tests alone: pieces that share a file add up to the whole. `--control` plants nothing: then
every mutant has to live. The copy is made of the files that git knows, as they are now.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import gc
import hashlib
import inspect
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

REPO = Path(__file__).resolve().parent.parent
ROOMS = (
    "criteria", "budget", "granularity", "structure/groups/rules", "container", "quantize", "metrics", "report",
)  # fmt: skip
CHOOSING = {"criteria", "budget", "granularity"}
ACROSS = ("tests/pruning", "tests/contracts/test_prune_contracts.py")  # what concerns these together
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
    function: str = ""
    nth: int = 0
    """Which one it is, of those in its function that change the same text in the same way."""

    @property
    def name(self) -> str:
        """What it is called in results: the same after a change elsewhere in the file."""
        nth = f" ({self.nth + 1})" if self.nth else ""
        return f"{self.file}:{self.function}{nth}: {self.before!r} -> {self.after!r}"

    def planted(self, source: bytes) -> bytes:
        """The source with the bug."""
        return source[: self.start] + self.after.encode() + source[self.end :]

    def lot(self, seed: int) -> bytes:
        """What it draws: those with the smallest are in the sample."""
        return hashlib.sha256(f"{seed} {self.name}".encode()).digest()


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
    found: list[Mutant] = []
    count: Counter[tuple[str, str, str]] = Counter()
    names = _function_names(tree)
    for node in _nodes(tree):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = source[start:end].decode()
        for made in _changed(node):
            text = ast.unparse(ast.fix_missing_locations(made))
            text = f"({text})" if isinstance(made, (ast.BinOp, ast.BoolOp, ast.Compare)) else text
            function = names.get(node.lineno, "")  # type: ignore[attr-defined]
            nth = count[function, before, text]
            count[function, before, text] += 1
            found.append(Mutant(file, node.lineno, start, end, before, text, function, nth))  # type: ignore[attr-defined]
    return found


def _function_names(tree: ast.AST, around: str = "") -> dict[int, str]:
    """The function or class that each line lies in, by its name with those around it."""
    found: dict[int, str] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{around}.{node.name}".lstrip(".")
            found |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), name)
            found |= _function_names(node, name)
        else:
            found |= _function_names(node, around)
    return found


# -- running tests in a forked process, which has torch in memory already
# -----------------------------------------------------------------------------------------

Reached = dict[str, tuple[float, dict[str, list[int]]]]  # test -> its seconds, and by file the lines it runs


def _seconds() -> float:
    """Processor time of this process and of those it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Recorder:
    """A pytest plugin: which lines every test runs, how long it takes, and whether it passes."""

    def __init__(self, root: Path, rooms: list[str]) -> None:
        self.root = f"{root}/"
        self.watched = tuple(f"{root}/src/secateur/{room}/" for room in rooms)
        self.seen: dict[str, set[int]] = {}
        self.tests: Reached = {}
        self.failed: set[str] = set()

    def trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., object] | None:
        """Note a line of the rooms; nothing else is traced."""
        file = frame.f_code.co_filename
        if not file.startswith(self.watched):
            return None
        lines = self.seen.setdefault(file, set())

        def inside(frame: FrameType, event: str, arg: object) -> Callable[..., object]:
            lines.add(frame.f_lineno)
            return inside

        return inside

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin a test."""
        self.seen = {}
        self.began = _seconds()
        sys.settrace(self.trace)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End a test."""
        if report.outcome != "passed":
            self.failed.add(report.nodeid)
        if report.when == "teardown":
            sys.settrace(None)
            lines = {file.removeprefix(self.root): sorted(found) for file, found in self.seen.items()}
            self.tests[report.nodeid] = (_seconds() - self.began, lines)


class UntilOneFails:
    """A pytest plugin: runs the chosen tests in this order until one fails, and notes which."""

    def __init__(self, chosen: list[str], kept: Path) -> None:
        self.chosen, self.kept = chosen, kept

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run them in place of all that were collected."""
        items = {item.nodeid: item for item in session.items}
        chosen = [items[name] for name in self.chosen if name in items]
        for item, then in zip(chosen, [*chosen[1:], None]):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=then)
            if session.testsfailed:
                self.kept.write_text(item.nodeid)
                break
        return True


class Instead:
    """A pytest plugin: does some work with the collected tests instead of running them."""

    def __init__(self, work: Callable[[pytest.Session], object]) -> None:
        self.work = work

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The work."""
        self.work(session)
        return True


def _pytest(root: Path, arguments: list[str], plugins: list[object]) -> int:
    os.chdir(root)
    base = ["-q", "-s", "-p", "no:cacheprovider", "-m", "not slow and not zoo and not ray and not browser"]
    return int(pytest.main([*base, *arguments], plugins=plugins))


def forked(work: Callable[[], int], seconds: float, quiet: bool = True) -> int | None:
    """What `work` returns in a process of its own that says nothing; None where it took too long."""
    ends, hands = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
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


def _paths(root: Path, rooms: list[str]) -> list[str]:
    """What is collected: the rooms' test folders, and their own files for the examples in them."""
    folders = {f"tests/{room.split('/')[0]}" for room in rooms}
    folders |= set(ACROSS) if CHOOSING & set(rooms) else set()
    paths = [*sorted(folders), *(f"src/secateur/{room}" for room in rooms)]
    return [path for path in paths if (root / path).exists()]


def reached(root: Path, rooms: list[str], kept: Path) -> Reached:
    """Every test that passes: its seconds and the lines it runs.

    Where the file `kept` holds them already, only test files that are newer are run.
    """
    known: Reached = json.loads(kept.read_text()) if kept.exists() else {}
    paths = _paths(root, rooms)
    if known:
        since = kept.stat().st_mtime
        files = [path for folder in paths for path in (root / folder).rglob("test_*.py")]
        paths = [str(path.relative_to(root)) for path in files if path.stat().st_mtime > since]

    def record() -> int:
        recorder = Recorder(root, rooms)
        code = _pytest(root, paths, [recorder])
        found = {name: row for name, row in known.items() if name.split("::")[0] not in paths}
        found |= {name: row for name, row in recorder.tests.items() if name not in recorder.failed}
        kept.write_text(json.dumps(found))
        return code

    if paths:
        forked(record, 7200)
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
    (root / ".temporary").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(root / ".temporary")
    return root


# -- planting a bug in code that is loaded
# -----------------------------------------------------------------------------------------


def _differ(one: CodeType, other: CodeType) -> bool:
    """Whether two codes differ, those of functions inside them aside."""
    kept = [[repr(c) for c in code.co_consts if not isinstance(c, CodeType)] for code in (one, other)]
    return (one.co_code, one.co_names, kept[0]) != (other.co_code, other.co_names, kept[1])


def _inside(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def changed_functions(one: CodeType, other: CodeType) -> dict[tuple[int, str], CodeType] | None:
    """The new codes of the functions that differ, by first line and name; None where what differs is no function.

    A function is replaced with all those inside it.
    """
    if len(_inside(one)) != len(_inside(other)):
        return None
    function = bool(one.co_flags & inspect.CO_OPTIMIZED)
    found = {(one.co_firstlineno, one.co_qualname): other} if function and _differ(one, other) else {}
    if not function and _differ(one, other):
        return None
    for mine, theirs in zip(_inside(one), _inside(other)):
        below = changed_functions(mine, theirs)
        if below is None:
            if not function:
                return None
            below = {(mine.co_firstlineno, mine.co_qualname): theirs}
        if below and function:
            found[one.co_firstlineno, one.co_qualname] = other
        found |= below
    return found


def _changed_code(root: Path, mutant: Mutant) -> dict[tuple[int, str], CodeType] | None:
    path = root / mutant.file
    source = path.read_bytes()
    codes = (compile(text, path, "exec", dont_inherit=True) for text in (source, mutant.planted(source)))
    return changed_functions(*codes)


def replaced(path: Path, fresh: dict[tuple[int, str], CodeType]) -> bool:
    """Whether the functions of a file that are loaded have their new code now."""
    found = False
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename == str(path):
            key = (each.__code__.co_firstlineno, each.__code__.co_qualname)
            if key in fresh:
                each.__code__ = fresh[key]
                found = True
    return found


# -- one mutant
# -----------------------------------------------------------------------------------------


def chosen(
    mutant: Mutant, source: bytes, tests: Reached, killers: Counter[str], most: float
) -> tuple[list[str], float]:
    """The tests that run the changed line, in the order to run them, and their seconds.

    A line outside of functions is run when the file is loaded: then those that run anything of the file, or, where
    none does, all of the room.
    """
    lines = _lines(mutant, source)
    near = [name for name, (_, seen) in tests.items() if lines & set(seen.get(mutant.file, []))]
    if not lines:
        room = mutant.file.split("/")[2]
        near = [name for name, (_, seen) in tests.items() if mutant.file in seen]
        near = near or [name for name in tests if name.startswith((f"tests/{room}/", mutant.file))]
    taken, spent = [], 0.0
    for name in sorted(near, key=lambda name: (-killers[name], tests[name][0], name)):
        if not taken or spent + tests[name][0] <= most:
            taken.append(name)
            spent += tests[name][0]
    return taken, spent


def _lines(mutant: Mutant, source: bytes) -> set[int]:
    """The lines of the statement that a mutant changes; empty outside of functions."""
    best: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for each in ast.walk(node):
                head = _head(each) if isinstance(each, ast.stmt) and each is not node else set()
                if mutant.line in head and (not best or len(head) <= len(best)):
                    best = head
    return best


def _head(node: ast.stmt) -> set[int]:
    """The lines of a statement, without those of the statements inside it."""
    last = node.end_lineno or node.lineno
    inner = [each.lineno for each in getattr(node, "body", []) if isinstance(each, ast.stmt)]
    return set(range(node.lineno, min([last + 1, *(max(line, node.lineno + 1) for line in inner)])))


def _bounded(work: Callable[[], int], spent: float) -> int:
    limit = int(10 + 4 * spent)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    return work()


class Trial:
    """Runs mutants, and keeps what became of them: `killed` and the test, `lives`, or `not reached` by any test."""

    def __init__(self, root: Path, tests: Reached, most: float, until: float) -> None:
        self.root, self.tests, self.most, self.until = root, tests, most, until
        self.kept: dict[str, dict[str, str]] = {}

    def one(self, mutant: Mutant, session: pytest.Session | None) -> dict[str, str] | None:
        """What becomes of one; None where its code could not be changed in the loaded package."""
        path = self.root / mutant.file
        source, stat = path.read_bytes(), path.stat()
        killers = Counter(
            row["test"] for row in self.kept.values() if row.get("test") and row["file"] == mutant.file
        )
        names, spent = chosen(mutant, source, self.tests, killers, self.most)
        if not names:
            return {"result": "not reached"}
        said = self.root / "said"
        said.unlink(missing_ok=True)
        fresh = _changed_code(self.root, mutant) if session is not None else {}
        if fresh is None:
            return None

        def work() -> int:
            until = UntilOneFails(names, said)
            if session is None:
                return _pytest(self.root, names, [until])
            if fresh and not replaced(path, fresh):
                return 77
            until.pytest_runtestloop(session)
            return int(bool(session.testsfailed))

        for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            old.unlink()
        path.write_bytes(mutant.planted(source))
        sys.dont_write_bytecode = True
        try:
            code = forked(lambda: _bounded(work, spent), 120 + 20 * spent)
        finally:
            sys.dont_write_bytecode = False
            path.write_bytes(source)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if code == 77:
            return None
        if code == 0:
            return {"result": "lives", "tests": str(len(names)), "seconds": f"{spent:.1f}"}
        return {"result": "killed", "test": said.read_text() if said.exists() else "", "code": str(code)}

    def all(self, mutants: list[Mutant], session: pytest.Session | None, out: Path) -> None:
        """Run each and append its row to the file `out`."""
        for number, each in enumerate(mutants):
            if time.monotonic() > self.until:
                return
            row = self.one(each, session)
            if row is None:
                continue
            self.kept[each.name] = {"name": each.name, "file": each.file, "line": str(each.line), **row}
            with out.open("a") as file:
                file.write(json.dumps(self.kept[each.name]) + "\n")
            if row["result"] != "killed":
                where = f"{number + 1}/{len(mutants)} {row['result']}: {each.file}:{each.line}"
                print(f"{where}\n{shown(self.root, each)}", flush=True)


def shown(root: Path, mutant: Mutant) -> str:
    """The lines that a mutant changes."""
    source = (root / mutant.file).read_bytes()
    before, after = source.decode().splitlines(), mutant.planted(source).decode().splitlines()
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join("    " + line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def _rows(out: Path) -> dict[str, dict[str, str]]:
    """What a file holds of results, the newest of each mutant."""
    if not out.exists():
        return {}
    return {row["name"]: row for row in map(json.loads, out.read_text().splitlines())}


def run(drawn: list[Mutant], asked: argparse.Namespace, out: Path) -> dict[str, dict[str, str]]:
    """The result of each mutant, from the file `out` or found now."""
    kept = _rows(out)
    wanted = (None, "lives", "not reached") if asked.again else (None,)
    missing = [each for each in drawn if kept.get(each.name, {}).get("result") in wanted]
    if not missing:
        return kept
    root = copied()
    map_of_tests = asked.map.absolute() if asked.map else root / "reached.json"
    tests = reached(root, asked.rooms, map_of_tests)
    trial = Trial(root, tests, asked.most, time.monotonic() + 60 * asked.minutes)
    trial.kept = kept
    inside = [each for each in missing if _changed_code(root, each) is not None]

    def loaded() -> int:
        work = Instead(lambda session: trial.all(inside, session, out))
        return _pytest(root, _paths(root, asked.rooms), [work])

    before = len(out.read_text().splitlines()) if out.exists() else 0
    if inside:
        forked(loaded, 24 * 3600, quiet=False)
    done = (
        {json.loads(row)["name"] for row in out.read_text().splitlines()[before:]} if out.exists() else set()
    )
    trial.kept.update(_rows(out))
    trial.all([each for each in missing if each.name not in done], None, out)
    shutil.rmtree(root)
    return _rows(out)


def main() -> int:
    """Draw, plant, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the draw")
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), help="folders of src/secateur")
    parser.add_argument(
        "--only", nargs="+", help="of those drawn, run what lies in these folders; the rest later"
    )
    parser.add_argument("--most", type=float, default=20.0, help="seconds of tests for one mutant")
    parser.add_argument("--out", type=Path, help="a file of JSON lines: kept results are not computed again")
    parser.add_argument(
        "--map", type=Path, help="a file of which tests run which lines: kept for the next run"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after so many minutes")
    parser.add_argument("--again", action="store_true", help="run those again that lived")
    parser.add_argument("--control", action="store_true", help="plant nothing")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hypothesis  # noqa: F401
    import torch  # noqa: F401

    files = [path for room in asked.rooms for path in sorted((REPO / "src/secateur" / room).rglob("*.py"))]
    drawn = [each for path in files for each in mutants_of(str(path.relative_to(REPO)), path.read_bytes())]
    print(
        f"{len(drawn):,} mutants in {len(files)} files; {asked.count} drawn with seed {asked.seed}",
        flush=True,
    )
    drawn = sorted(drawn, key=lambda each: each.lot(asked.seed))[: asked.count]
    if asked.only:
        near = tuple(f"src/secateur/{room}/" for room in asked.only)
        drawn, asked.rooms = [each for each in drawn if each.file.startswith(near)], asked.only
    if asked.control:
        drawn = [replace(each, after=each.before) for each in drawn]
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out.absolute() if asked.out else Path(folder) / "results"
        kept = run(drawn, asked, out)
    if missing := sum(each.name not in kept for each in drawn):
        print(f"{missing} of {len(drawn)} are left to run")
        return 1
    killed = sum(kept[each.name]["result"] == "killed" for each in drawn)
    print(f"killed {killed} of {len(drawn)}: {killed / len(drawn):.1%}")
    if not (asked.control or asked.only) and drawn:
        record(Figure("mutants killed", 100 * killed / len(drawn), "%", 90, "higher", 0.02))
    return 0 if killed >= 0.9 * len(drawn) else 1


if __name__ == "__main__":
    sys.exit(main())
