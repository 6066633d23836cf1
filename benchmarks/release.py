"""The release candidate: the same bytes twice, then its wheel in an empty environment.

Builds wheel and source archive twice, from two copies of the last commit in different folders, with different file
times, time zones and permissions, and compares them byte for byte. Then installs the wheel into an empty environment,
and prints how large that is, how many packages it holds, and how long `import secateur` takes; and runs
`secateur demo` from a folder that cannot be written, outside the checkout.

    python benchmarks/release.py             # build, compare, keep in dist/
    python benchmarks/release.py --install   # then install and measure; needs uv
    python benchmarks/release.py --demo      # then run the demo too, and once more by `uvx --from`
    python benchmarks/release.py --pages     # then every command and example of README.md and of the start page

`--python` names the interpreter of the empty environment. The demo's folder cannot be written: run as root, this runs
it as the user nobody, who has to be able to run that interpreter.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shlex
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import Figure, record

ROOT = Path(__file__).resolve().parents[1]


def _run(words: list[str], **more: object) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def build(into: Path) -> list[Path]:
    """Build twice; return the files, the same twice.

    Raises:
        SystemExit: A file differs, or is built once only.
    """
    epoch = _run(["git", "log", "-1", "--format=%ct"], cwd=ROOT).strip()
    with tempfile.TemporaryDirectory() as scratch:
        built = []
        for number, (zone, mask) in enumerate((("UTC", 0o022), ("Asia/Tokyo", 0o077))):
            source, out = Path(scratch) / ("source" * (number + 1)), Path(scratch) / f"dist{number}"
            _run(["git", "clone", "--quiet", str(ROOT), str(source)], umask=mask)
            for path in source.rglob("*.py"):
                os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
            words = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
            _run(words, cwd=source, umask=mask, env={**os.environ, "SOURCE_DATE_EPOCH": epoch, "TZ": zone})
            built.append({path.name: path for path in sorted(out.iterdir())})
        one, two = built
        if one.keys() != two.keys() or len(one) != 2:
            raise SystemExit(f"expected a wheel and a source archive twice, got {[*one]} and {[*two]}")
        for name in one:
            if not filecmp.cmp(one[name], two[name], shallow=False):
                raise SystemExit(f"{name}: expected the same bytes twice, got others")
        into.mkdir(exist_ok=True)
        return [Path(shutil.copy(path, into)) for path in one.values()]


def install(wheel: Path, folder: Path, interpreter: str) -> Path:
    """Install the wheel into an empty environment; print what it is; return its `secateur`."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is needed for an empty environment: pip install uv")
    _run([uv, "venv", "--quiet", "--python", interpreter, str(folder)])
    python, program = folder / "bin" / "python", folder / "bin" / "secateur"
    _run([uv, "pip", "install", "--quiet", "--python", str(python), *_torch(), str(wheel)])
    packages = [name for name in _run([uv, "pip", "list", "--python", str(python)]).splitlines()[2:] if name]
    where = Path(_run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    total, own, torch = (_bytes(path) for path in (where, where / "secateur", where / "torch"))
    record(Figure("packages beside secateur", len(packages) - 1))
    record(Figure("bytes installed", total, "bytes", detail=f"torch {torch}, secateur {own}"))
    print(f"packages installed beside secateur  {len(packages) - 1}")
    print(f"bytes installed                     {total:,}: secateur {own:,}, torch {torch:,}")
    for what, words in (
        ("import secateur", [str(python), "-c", "import secateur"]),
        ("secateur --help", [str(program), "--help"]),
        ("a bare python", [str(python), "-c", "pass"]),
        ("import torch", [str(python), "-c", "import torch"]),
    ):
        seconds = _seconds(words)
        record(Figure(what, seconds, "s", detail="processor time, median of five"))
        print(f"seconds of processor time, {what:18}{seconds:6.2f}")
    return program


def _torch() -> list[str]:
    """The processor's build of torch that this environment has, where it is one."""
    from importlib.metadata import version

    return [
        f"torch=={version('torch')}",
        *(["--find-links", found] if (found := os.environ.get("PIP_FIND_LINKS")) else []),
    ]


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _seconds(words: list[str], repetitions: int = 5) -> float:
    """Median processor time of a command, which a busy machine changes little."""
    found = []
    for _ in range(repetitions + 1):
        before = os.times()
        _run(words)
        after = os.times()
        found.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return statistics.median(found[1:])


def demo(words: list[str], what: str) -> None:
    """Run the demo in a folder that cannot be written, as a user without rights where this one has all."""
    with tempfile.TemporaryDirectory() as scratch:
        home, closed = Path(scratch) / "home", Path(scratch) / "closed"
        Path(scratch).chmod(0o755)
        for folder in (home, closed):
            folder.mkdir()
        home.chmod(0o777)
        closed.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        more: dict[str, object] = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
        environment.pop("PYTHONPATH", None)
        start = time.monotonic()
        print(f"{what}:\n{_run(words, cwd=closed, env=environment, **more)}")
        print(f"{time.monotonic() - start:.0f} s; {len(list(closed.iterdir()))} files in the closed folder")


_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages(program: Path) -> None:
    """Run what README.md and the start page say, by the installed wheel, in an empty folder outside the checkout.

    `make` and `pip install .` are left out: they are for a clone.

    Raises:
        SystemExit: A command or an example failed.
    """
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for page in ("README.md", "docs/index.md"):
        ran, examples = 0, []
        with tempfile.TemporaryDirectory() as scratch:
            for language, text in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
                if language == "python":
                    examples.append(text)
                elif language == "toml":
                    Path(scratch, text.split()[2]).write_text(
                        text, encoding="utf-8"
                    )  # its first line: # file: NAME
                elif language == "bash":
                    for line in text.strip().splitlines():
                        words = shlex.split(line, comments=True)
                        if words and words[0] == "secateur":
                            _run(words, cwd=scratch, env=environment)
                            ran += 1
            Path(scratch, "examples.py").write_text("\n".join(examples), encoding="utf-8")
            _run([str(program.parent / "python"), "examples.py"], cwd=scratch, env=environment)
        print(f"{page}: {ran} commands and {len(examples)} examples run by the installed wheel")
        record(Figure(f"commands of {page} that run", ran + len(examples), "", ran + len(examples), "higher"))


def main() -> None:
    """Build, and whatever else is asked for."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--install", action="store_true", help="also install and measure")
    options.add_argument("--demo", action="store_true", help="also run the demo from the wheel, and by uvx")
    options.add_argument("--pages", action="store_true", help="also run README.md and the start page")
    options.add_argument("--python", default=sys.executable, help="the interpreter of the empty environment")
    given = options.parse_args()
    files = build(ROOT / "dist")
    for path in files:
        record(Figure(path.name, path.stat().st_size, "bytes", detail="the same bytes twice"))
        print(f"{path.name}: {path.stat().st_size:,} bytes, the same twice")
    if not (given.install or given.demo or given.pages):
        return
    wheel = next(path for path in files if path.suffix == ".whl")
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        program = install(wheel, Path(scratch) / "empty", given.python)
        if given.pages:
            pages(program)
        if given.demo:
            demo([str(program), "demo", "--no-report", "--quiet"], "secateur demo")
            torch, *links = _torch()
            words = ["uvx", *links, "--with", torch, "--from", str(wheel), "secateur", "demo"]
            print(f"uvx --from {wheel.name} secateur demo:\n{_run(words, cwd=scratch)}")


if __name__ == "__main__":
    main()
