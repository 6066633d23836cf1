"""Ctrl-C, SIGTERM and SIGHUP at random instants of commands: `python -m attacks.signals --each 20`.

Each command runs in a forked process, which sends itself the signal at its n-th call of a function. It must leave with
130, 143 or 129, without a traceback, and with no file that is half written; what the command writes is there whole or
not at all. The same command is then run again and must come to the same bytes, with nothing left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import save_file

from attacks.tiny_recipe import tiny
from secateur import cli
from secateur.container.pack import pack

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMANDS = {
    "prune": "prune in.safetensors out.safetensors --workers 1",
    "share": "share in.safetensors out.safetensors --workers 1",
    "pack": "pack in.safetensors out.sct",
    "unpack": "unpack in.sct out.safetensors",
    "shrink": "shrink lenet5 --trials 1 --out out.sct",
    "scan": "scan fc --subset 20 --levels 0.5 --out out.json",
    "auto": "auto in.toml --tries 1 --epochs 1 --goal small --store store",
}
# What a stopped command may leave, so that it goes on when it is run again.
_GOES_ON = (".partial", "store")


def prepare(folder: Path) -> None:
    """Write the inputs of all commands."""
    generator = torch.Generator().manual_seed(0)
    state = {f"{name}.weight": torch.randn(30, 20, generator=generator).round(decimals=1) for name in "abc"}
    save_file(state, folder / "in.safetensors")
    pack(folder / "in.safetensors", folder / "in.sct")
    steps = '[[step]]\nkind = "train"\nepochs = 1\n[[step]]\nkind = "prune"\nbudget = 0.5\n'
    (folder / "in.toml").write_text(tiny(steps, limit=40))


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code, as a shell has it.
        calls: How many functions it had called.
        shown: What it printed.
        files: The digest of each file that it left, by name; of a store "".
    """

    code: int
    calls: int
    shown: str
    files: dict[str, str] = field(default_factory=dict)


def command(words: str, folder: Path, number: int = 0, at: int = 0) -> Ended:
    """Run a command in a forked process.

    Args:
        words: The command, without the program's name.
        folder: Where it runs.
        number: The signal that it sends itself.
        at: At which call of a function; 0 is never.
    """
    told = folder.parent / "told"
    given = {path.name for path in folder.iterdir()}
    child = os.fork()
    if child == 0:
        _child(words, folder, told, number, at)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls, _, shown = told.read_text(errors="replace").partition("\n")
    files = {
        path.name: "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in given
    }
    return Ended(128 - code if code < 0 else code, int(calls), shown, files)


def _child(words: str, folder: Path, told: Path, number: int, at: int) -> None:
    """Run the command here, and end this process."""
    code, calls = 70, [0]
    printed = told.with_name("printed")
    try:
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        with open(printed, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

        def count(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                calls[0] += 1
                if calls[0] == at:
                    os.kill(os.getpid(), number)

        sys.argv = ["secateur", *words.split()]
        sys.setprofile(count)
        try:
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            sys.setprofile(None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        told.write_text(f"{calls[0]}\n{printed.read_text(errors='replace')}")
        os._exit(code)


def attack(name: str, number: int, at: int, honest: Ended, inputs: Path, scratch: Path) -> list[str]:
    """Send one signal to one command; gives what was wrong.

    Args:
        name: The command.
        number: The signal.
        at: At which call of a function.
        honest: How the command ends when it is left alone.
        inputs: The folder of the inputs.
        scratch: An empty folder.
    """
    folder = scratch / "work"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    ended, wrong = command(COMMANDS[name], folder, number, at), []
    # What comes when a command has done its work and is leaving finds nothing to end.
    done = not ended.code and ended.files == honest.files and ended.calls - at < 100
    if ended.code != 128 + number and not done:
        wrong.append(f"exit code {ended.code} after {ended.calls - at} more calls: {ended.shown[-800:]}")
    if "Traceback" in ended.shown or "Exception ignored" in ended.shown:
        begin = max(ended.shown.find("Traceback"), ended.shown.find("Exception ignored"))
        wrong.append(ended.shown[max(0, begin - 200) : begin + 1300])
    for file, held in ended.files.items():
        if file in honest.files:
            if held != honest.files[file]:
                wrong.append(f"{file} is not what the command writes")
        elif not any(part in file for part in _GOES_ON):
            wrong.append(f"{file} was left")
    again = command(COMMANDS[name], folder)
    files = ended.files | again.files
    if again.code or (files.keys() != honest.files.keys()):
        wrong.append(f"run again: {again.code}, {sorted(files)}: {again.shown[-800:]}")
    elif any(files[file] != held for file, held in honest.files.items()):
        wrong.append("run again it writes something else")
    return [f"{name}, signal {number} at call {at} of {honest.calls}: {each}" for each in wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=20, help="signals of each kind to each command")
    parser.add_argument("--in-turn", action="store_true", help="one of the signals a command, in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=COMMANDS, nargs="*", default=[*COMMANDS], help="all unless given")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chance, found = random.Random(options.seed), list[str]()
    with tempfile.TemporaryDirectory() as name:
        inputs, scratch = Path(name) / "in", Path(name) / "scratch"
        for each in (inputs, scratch):
            each.mkdir()
        prepare(inputs)
        for place, (verb, words) in enumerate(COMMANDS.items()):
            if verb not in options.only:
                continue
            wrong = list[str]()
            honest = command_alone(words, inputs, scratch)
            sent = SIGNALS[place % 3 :][:1] if options.in_turn else SIGNALS
            for number in sent * options.each:
                wrong += attack(verb, number, chance.randrange(1, honest.calls), honest, inputs, scratch)
            print(
                f"{verb:<8} {len(sent) * options.each:>4} signals in {honest.calls:>8,} calls: {len(wrong)} went wrong",
                flush=True,
            )
            found += wrong
    for each in found:
        print(each)
    return int(bool(found))


def command_alone(words: str, inputs: Path, scratch: Path) -> Ended:
    """How a command ends that is left alone; it is run here first, so that everything has been imported."""
    for name in ("here", "alone"):
        folder = scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(inputs, folder)
        if name == "here":
            _here(words, folder)
    ended = command(words, folder)
    if ended.code:
        raise RuntimeError(f"{words}: {ended.shown}")
    return ended


def _here(words: str, folder: Path) -> None:
    """Run a command in this process."""
    before, arguments = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["secateur", *words.split()]
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            cli.main()
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(f"{words} ended with {leaving.code}") from leaving
    finally:
        sys.argv = arguments
        os.chdir(before)
        for number, held in zip((1, 2), kept):
            os.dup2(held, number)
            os.close(held)


if __name__ == "__main__":
    sys.exit(main())
