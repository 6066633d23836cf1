"""What an artefact promises: its bytes, an example with the outputs for it, and the time of a call.

The promise lies beside the artefact: in the subfolder `secateur/` of a Hugging Face folder, or in the folder
`NAME.check/` beside a file. `kept` loads the artefact in a process without secateur and compares.

>>> promise_folder(Path("m.onnx"))
PosixPath('m.onnx.check')
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.adapters._fresh import flat
from secateur.adapters.served import ServeRequest, difference, serve
from secateur.core.json_text import parse
from secateur.errors import FormatError, OptionError
from secateur.execution.undisturbed import undisturbed

__all__ = ["Promise", "ServeCheck", "promise", "promise_folder", "promise_onnx", "serve_check"]

_FILE, _EXAMPLE = "promise.json", "example.safetensors"
_LARGEST = 256 << 20
# What values of other kinds and sizes lead to.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError)


@dataclass(frozen=True)
class Promise:
    """The table that is stored beside an artefact.

    Attributes:
        request: How it is loaded.
        names: The names of its inputs, in order.
        files: For each file its bytes and the SHA-256 of its content.
        tolerance: The largest difference allowed from the stored outputs, over the largest of them.
        seconds: The median seconds of a call when it was written; 0.0 where it was not timed.
        threads: The threads of that call.
    """

    request: ServeRequest
    names: tuple[str, ...]
    files: Mapping[str, tuple[int, str]]
    tolerance: float
    seconds: float
    threads: int


@dataclass(frozen=True)
class ServeCheck:
    """A served artefact compared with its promise.

    Attributes:
        path: The artefact.
        problems: Every promise that is not kept; empty where all are.
        error: The largest difference of the outputs over the largest of them.
        tolerance: The difference that was promised.
        size: The bytes of its files.
        seconds: The median seconds of a call now.
        promised_seconds: The median seconds when it was written; 0.0 where it was not timed.
    """

    path: Path
    problems: tuple[str, ...]
    error: float
    tolerance: float
    size: int
    seconds: float
    promised_seconds: float

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.path}: "
            + ("outputs and bytes are as promised" if self.holds else "DOES NOT keep its promises"),
            f"  {self.size:,} bytes; outputs differ by {self.error:.1e} (promised: at most {self.tolerance:.1e})",
            f"  {self.seconds * 1e3:.3g} ms a call"
            + (
                f" (promised: {self.promised_seconds * 1e3:.3g} ms; this is {self.seconds / self.promised_seconds:.2g} "
                "times that)"
                if self.promised_seconds
                else ""
            ),
        ]
        return "\n".join(lines + [f"  problem: {each}" for each in self.problems])


def promise_folder(path: Path) -> Path:
    """The folder that holds the promise of an artefact.

    Args:
        path: The artefact.
    """
    return path / "secateur" if path.is_dir() else path.with_name(path.name + ".check")


def promise(
    path: Path,
    request: ServeRequest,
    example: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    *,
    tolerance: float = 0.0,
    seconds: float = 0.0,
) -> None:
    """Write the promise of an artefact.

    Args:
        path: The artefact.
        request: How it is loaded.
        example: The inputs by name.
        outputs: The outputs for them by name.
        tolerance: The largest difference allowed from these outputs, over the largest of them.
        seconds: The median seconds of a call; 0.0 where it was not timed.
    """
    from safetensors.torch import save_file

    files = _files(path)
    folder = promise_folder(path)
    folder.mkdir(exist_ok=True)
    tensors = {f"input {name}": each for name, each in example.items()}
    tensors |= {f"output {name}": each for name, each in outputs.items()}
    held = {name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}
    save_file(held, folder / _EXAMPLE)
    data = {
        "version": 1,
        "request": {key: value for key, value in vars(request).items() if key not in ("path", "repeats")},
        "names": list(example),
        "files": files,
        "tolerance": tolerance,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }
    (folder / _FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def promise_onnx(model: nn.Module, path: Path, example: object, tolerance: float) -> None:
    """Write the promise of an ONNX file: the outputs that PyTorch computes for the example.

    Args:
        model: The model that was exported.
        path: The file.
        example: What the model is called with: a tensor, or several.
        tolerance: The largest difference allowed from PyTorch's outputs, over the largest of them.
    """
    from secateur.execution.calling import call

    inputs = flat(example)
    with undisturbed(model, mode="eval"), torch.no_grad():
        outputs = flat(call(model, example))
    named = {f"output.{index}": each for index, each in enumerate(outputs.values())}
    request = ServeRequest(path, "onnx", repeats=5)
    seconds = serve(request, inputs).seconds
    promise(path, request, inputs, named, tolerance=tolerance, seconds=seconds)


def _files(path: Path) -> dict[str, tuple[int, str]]:
    """Bytes and digest of every file of an artefact, without its promise."""
    if path.is_file():
        return {path.name: (path.stat().st_size, _digest(path))}
    inside = promise_folder(path)
    return {
        str(each.relative_to(path).as_posix()): (each.stat().st_size, _digest(each))
        for each in sorted(path.rglob("*"))
        if each.is_file() and inside not in each.parents and "__pycache__" not in each.parts
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def serve_check(
    path: str | os.PathLike[str], *, allow_code: bool = False, repeats: int = 5, slowest: float | None = None
) -> ServeCheck:
    """Load an artefact in a process with its runtime and without secateur, and compare it with its promise.

    Args:
        path: A folder that `save_pretrained` wrote, or an ONNX file that was exported with its promise.
        allow_code: Whether the modelling file that the folder brings may be run.
        repeats: How often a call is timed.
        slowest: Report a problem if a call takes more than this many times the promised time; None to report the time
            only, because times differ between machines.

    Returns:
        The comparison, with the promises that are not kept.

    Raises:
        FormatError: There is no promise beside it, or the promise cannot be read.
        OptionError: It brings code and `allow_code` is False.
        ProofError: The runtime cannot load it.
    """
    place = Path(path)
    made, inputs, wanted = _read(place)
    if made.request.code and not allow_code:
        raise OptionError(
            f"{place}: brings its own modelling file, which is run when it is loaded; read it, then allow it with "
            "--allow-code (allow_code=True)"
        )
    have = _files(place)
    problems = [
        f"{name}: promised {made.files.get(name, ('no file',))[0]}, found {have.get(name, ('no file',))[0]} bytes"
        if made.files.get(name, (None,))[0] != have.get(name, (None,))[0]
        else f"{name}: its content differs from the promised one"
        for name in sorted({*made.files, *have})
        if tuple(made.files.get(name, ())) != tuple(have.get(name, ()))
    ]
    request = ServeRequest(
        **{**vars(made.request), "path": place, "repeats": repeats},
    )
    served = serve(request, inputs, made.threads)
    error = difference(wanted, served.outputs)
    problems += [
        f"loading reports {what}: {', '.join(names)[:200]}" for what, names in served.loading.items()
    ]
    if not error <= made.tolerance:
        problems.append(
            f"outputs differ by {error:.3g} of the largest; promised at most {made.tolerance:.3g}"
        )
    if slowest is not None and made.seconds and served.seconds > slowest * made.seconds:
        problems.append(
            f"a call takes {served.seconds / made.seconds:.2f} times as long as promised; allowed: {slowest:g}"
        )
    size = sum(count for count, _ in have.values())
    return ServeCheck(place, tuple(problems), error, made.tolerance, size, served.seconds, made.seconds)


def _read(path: Path) -> tuple[Promise, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A promise, its inputs and its outputs; every value is checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = promise_folder(path)
    if not path.exists() or not (folder / _FILE).is_file():
        raise FormatError(
            f"{path}: expected an artefact with {folder.name}/{_FILE} beside it; write it with sc.save_pretrained, or "
            "secateur export --promise"
        ).as_usage()
    try:
        if not (folder / _EXAMPLE).is_file():
            raise ValueError(f"no file {_EXAMPLE}")
        if max((folder / name).stat().st_size for name in (_FILE, _EXAMPLE)) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        made = _parsed(parse((folder / _FILE).read_bytes(), str(folder / _FILE), constants=True), path)
        tensors = load((folder / _EXAMPLE).read_bytes())
        inputs = {name: tensors[f"input {name}"] for name in made.names}
    except (SafetensorError, *_UNREADABLE) as error:
        raise FormatError(
            f"{folder}: expected a promise that secateur wrote, got something else ({error})"
        ) from error
    outputs = {name[7:]: each for name, each in tensors.items() if name.startswith("output ")}
    return made, inputs, outputs


def _parsed(data: Any, path: Path) -> Promise:
    """A promise from plain data; a `ValueError` if a value is not allowed."""
    asked = data["request"]
    runtime, loader = asked["runtime"], asked["loader"]
    if data["version"] != 1 or runtime not in ("transformers", "onnx"):
        raise ValueError(f"version {data['version']!r}, runtime {runtime!r}")
    if runtime == "transformers" and not (isinstance(loader, str) and loader.isidentifier()):
        raise ValueError(f"loader {str(loader)[:80]!r}")
    attention = asked["attention"]
    if not isinstance(attention, str) or attention not in ("", "eager", "sdpa"):
        raise ValueError(f"attention {str(attention)[:80]!r}")
    generate, threads = int(asked["generate"]), int(data["threads"])
    if not 0 <= generate <= 1024 or not 1 <= threads <= 4096:
        raise ValueError(f"generate {generate}, threads {threads}")
    files = {str(name): (int(size), str(digest)) for name, (size, digest) in data["files"].items()}
    request = ServeRequest(path, runtime, loader, asked["code"] is not False, attention, generate)
    seconds, tolerance = float(data["seconds"]), float(data["tolerance"])
    return Promise(request, tuple(map(str, data["names"])), files, tolerance, seconds, threads)
