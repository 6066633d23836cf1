"""What is attacked of interrupted commands: journals and finished parts in the hidden folder beside a target."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import nn

from attacks import targets, trees
from attacks.folder_targets import joined, parted
from attacks.lab_targets import damaged
from attacks.targets import Target, attempt, damaged_safetensors, scratch
from secateur.container import resuming
from secateur.container.pack import pack, unpack
from secateur.container.resuming import ResumableJob
from secateur.container.shards import open_source
from secateur.streaming.block_runs import BlockRun
from secateur.streaming.pruned import StreamOptions, prune_checkpoint
from secateur.streaming.shrunk import _CutBlocks
from secateur.structure.cut.plan import ShrinkPlan

_FOLDER = scratch("resumed")
Progress = Callable[[int, int, str], object]
_LARGE = 1 << 20  # zeros of float32 in a section of their own


def _source() -> Path:
    folder = _FOLDER / "in"
    folder.mkdir()
    parts = {
        "a.safetensors": {"a.weight": torch.zeros(_LARGE), "b.weight": torch.arange(12.0).reshape(3, 4)},
        "b.safetensors": {"c.weight": torch.arange(24.0).reshape(6, 4)},
    }
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    where = {key: name for name, tensors in parts.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


_SOURCE = _source()


class _Interrupted:
    """A command that was interrupted, whose hidden folder is attacked.

    Args:
        name: The name of what it writes.
        write: The command: writes a path, and calls its second argument for every tensor.
        done: How many tensors are finished.
    """

    def __init__(self, name: str, write: Callable[[Path, Progress], object], done: int):
        self._write, place = write, _FOLDER / Path(name).stem
        place.mkdir()
        self._target = place / name
        self._end_after(done)
        (self._folder,) = place.glob(".secateur-*.job")
        self.parts = {
            str(path.relative_to(self._folder)): path.read_bytes()
            for path in sorted(self._folder.rglob("*"))
            if path.is_file()
        }
        self.parts["owner"] = b""
        shutil.rmtree(self._folder)
        seen: list[object] = []
        write(self._target, lambda *given: seen.append(given))
        self._count, self._honest = len(seen), _content(self._target)
        _remove(self._target)

    def _end_after(self, done: int) -> None:
        """Run the command until so many tensors are marked."""
        mark, every = ResumableJob.mark, resuming._EVERY

        def ending(job: ResumableJob, number: int, *rest: Any) -> None:
            mark(job, number, *rest)
            if number >= done:
                raise KeyboardInterrupt

        ResumableJob.mark, resuming._EVERY = ending, 1  # type: ignore[method-assign]
        try:
            self._write(self._target, lambda *given: None)
        except KeyboardInterrupt:
            pass
        finally:
            ResumableJob.mark, resuming._EVERY = mark, every  # type: ignore[method-assign]

    def honest(self) -> bytes:
        """The hidden folder as it was left."""
        return joined(b"", list(self.parts.values()))

    def make(self, rng: random.Random) -> bytes:
        """A mutated journal, or a damaged part."""
        parts = dict(self.parts)
        name = "journal.json" if rng.randrange(4) else rng.choice(list(parts))
        if name == "journal.json":
            tree = trees.mutate(json.loads(parts[name]), rng)
            parts[name] = trees.text_of(tree, rng).encode("utf-8", "surrogatepass")
        elif name == "owner":
            parts[name] = rng.choice([b"x", b"\xff", b"9" * 40, b"-1", b"0", b"1" * 19])
        else:
            parts[name] = damaged(parts[name], rng)
        return joined(b"", list(parts.values()))

    def run(self, data: bytes) -> str:
        """Continue the command: "refused" is an error, or that it began anew.

        Where the finished part is whole, what is written is right, or is refused when it is read.
        """
        seen: list[object] = []
        given = dict(zip(self.parts, parted(data)[1:], strict=True))
        for name, content in given.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        verdict = attempt(lambda: self._write(self._target, lambda *told: seen.append(told)))
        whole = all(
            given[name] == self.parts[name] for name in given if name not in ("journal.json", "owner")
        )
        if verdict == "refused" and self._target.exists():
            raise AssertionError("a refused journal left a target")
        if verdict == "taken" and whole and _content(self._target) != self._honest:
            back = self._target.with_name("back")
            verdict = attempt(lambda: unpack(self._target, back))
            if verdict == "taken" and _content(back) != _content(_SOURCE):  # it may state a later version
                raise AssertionError("another file was written, and other tensors are read from it")
        for path in (self._target, self._target.with_name("back"), self._folder):
            _remove(path)
        return verdict if len(seen) < self._count else "refused"


def _content(path: Path) -> dict[str, bytes]:
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in sorted(files)}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _prune(path: Path, progress: Progress) -> None:
    prune_checkpoint(_SOURCE, path, options=StreamOptions(workers=1), progress=progress)


_PACKING = _Interrupted(
    "packed.sct", lambda path, progress: pack(_SOURCE, path, workers=1, progress=progress), 1
)
_PRUNING = _Interrupted("pruned", _prune, 2)
pack(_SOURCE, _FOLDER / "whole.sct", workers=1)
_UNPACKING = _Interrupted(
    "unpacked", lambda path, progress: unpack(_FOLDER / "whole.sct", path, workers=1, progress=progress), 1
)


# -- blocks
class _Blocks:
    """Two blocks of a model larger than memory, as far as what is kept of them is read."""

    prefix = "layers"

    def __init__(self) -> None:
        with torch.no_grad():
            self.blocks = [nn.Linear(4, 6, bias=False).requires_grad_(False) for _ in range(2)]
            for block in self.blocks:
                block.weight.copy_(torch.arange(24.0).reshape(6, 4))
        self.model = nn.ModuleDict({"layers": nn.ModuleList(self.blocks)})


_STATE = torch.get_rng_state()
_BLOCKS = _Blocks()
torch.set_rng_state(_STATE)  # what the layers drew
_JOB = ResumableJob(_FOLDER / "blocks", "none", 1)
_FIRST = [torch.ones(2, 3, 4), torch.ones(1, 3, 4)]
_HIDDEN = safetensors_bytes(
    {f"{kind}.{index}": each.clone() for kind in ("dense", "student") for index, each in enumerate(_FIRST)}
)


def _run_hidden(data: bytes) -> str:
    _JOB.folder.mkdir(exist_ok=True)
    (_JOB.folder / "hidden-1.safetensors").write_bytes(data)
    run = BlockRun(_SOURCE, cast(Any, _BLOCKS), True, cast(Any, None), False, None, _JOB)
    return attempt(lambda: run._hidden(_FIRST))


class _Cut(_CutBlocks):
    """Cut blocks whose model has no configuration to fit."""

    def config(self, plans: Sequence[ShrinkPlan]) -> object:
        for plan, block in zip(plans, copy.deepcopy(self.blocks.blocks), strict=True):
            plan.apply_(block)
        return targets.Config()


_CUT_PLAN = {
    "format": "secateur-plan",
    "version": 1,
    "model": "Linear",
    "keep": {"weight": {"0": [0, 1, 3, 1]}},
    "shapes": {"weight": [6, 4]},
    "attributes": {"": {"out_features": 3}},
    "rewrites": {},
}
_CUT_WEIGHT = safetensors_bytes({"weight": torch.zeros(3, 4)})


def _model() -> Path:
    folder = _FOLDER / "model"
    folder.mkdir()
    save_file({f"layers.{index}.weight": torch.zeros(6, 4) for index in (0, 1)}, folder / "model.safetensors")
    names = dict.fromkeys(("layers.0.weight", "layers.1.weight"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


_MODEL = _model()


def _make_cut(rng: random.Random) -> bytes:
    if rng.randrange(2):
        plan = trees.text_of(trees.mutate(_CUT_PLAN, rng), rng).encode("utf-8", "surrogatepass")
        return joined(plan, [_CUT_WEIGHT])
    return joined(json.dumps(_CUT_PLAN).encode(), [damaged_safetensors(_CUT_WEIGHT, rng)])


def _run_cut(data: bytes) -> str:
    plan, weight = parted(data)
    folder = _FOLDER / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with open_source(_MODEL) as checkpoint:
        cut = _Cut(checkpoint, cast(Any, _BLOCKS), ResumableJob(folder, "none", 2))
        for index, (text, tensors) in enumerate(
            ((plan, weight), (json.dumps(_CUT_PLAN).encode(), _CUT_WEIGHT))
        ):
            cut._file(index, "json").write_bytes(text)
            cut._file(index, "safetensors").write_bytes(tensors)
        return attempt(cut.assemble)


TARGETS = [
    Target("journal of packing", _PACKING.make, _PACKING.run),
    Target("journal of unpacking", _UNPACKING.make, _UNPACKING.run),
    Target("journal of pruning", _PRUNING.make, _PRUNING.run),
    Target("inputs of a block", lambda rng: damaged_safetensors(_HIDDEN, rng), _run_hidden),
    Target("cut blocks", _make_cut, _run_cut),
]
HONEST = {
    "journal of packing": _PACKING.honest(),
    "journal of unpacking": _UNPACKING.honest(),
    "journal of pruning": _PRUNING.honest(),
    "inputs of a block": _HIDDEN,
    "cut blocks": joined(json.dumps(_CUT_PLAN).encode(), [_CUT_WEIGHT]),
}
