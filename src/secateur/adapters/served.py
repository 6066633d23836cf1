"""`serve`: load an artefact in a fresh process by its own runtime, without secateur, and return its outputs.

>>> Served({}, 0.0).loading
{}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from secateur.adapters import _fresh
from secateur.errors import ProofError

__all__ = ["ServeRequest", "Served", "difference", "serve"]


@dataclass(frozen=True)
class ServeRequest:
    """How an artefact is loaded.

    Attributes:
        path: The folder or file.
        runtime: "transformers" or "onnx".
        loader: The class of transformers whose `from_pretrained` reads the folder.
        code: Whether the folder brings a modelling file, which is run.
        attention: The implementation of attention; empty for the usual one.
        generate: How many tokens are generated as well; 0 for none.
        repeats: How often a call is timed; 0 for not at all.
    """

    path: Path
    runtime: str
    loader: str = ""
    code: bool = False
    attention: str = ""
    generate: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class Served:
    """The answer of an artefact.

    Attributes:
        outputs: The outputs by name.
        seconds: The median seconds of a call; 0.0 where it was not timed.
        loading: What transformers reports about missing, unexpected and mismatched tensors.
    """

    outputs: Mapping[str, torch.Tensor]
    seconds: float
    loading: Mapping[str, list[str]] = field(default_factory=dict)


def serve(request: ServeRequest, inputs: Mapping[str, torch.Tensor], threads: int | None = None) -> Served:
    """Load an artefact in a fresh process that cannot import secateur, and run it.

    Args:
        request: How it is loaded.
        inputs: The inputs by name.
        threads: Threads of the process; None for as many as torch uses here.

    Returns:
        Outputs, time, and what loading reported.

    Raises:
        ProofError: The process failed; the error has the last line of its output.
    """
    from safetensors.torch import load, save_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(
            {key: each.detach().cpu().contiguous() for key, each in inputs.items()}, folder / "in.safetensors"
        )
        asked = {
            **vars(request),
            "path": str(request.path.absolute()),
            "names": list(inputs),
            "inputs": str(folder / "in.safetensors"),
            "outputs": str(folder / "out.safetensors"),
            "answer": str(folder / "answer.json"),
            "threads": threads or torch.get_num_threads(),
        }
        (folder / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        here = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(folder / "modules"),
        }
        command = [sys.executable, "-P", str(Path(_fresh.__file__)), str(folder / "request.json")]
        done = subprocess.run(
            command,
            env=here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ProofError(
                f"{request.path}: {request.runtime} cannot load and run it in a process without secateur: {said}"
            )
        outputs = load((folder / "out.safetensors").read_bytes())
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return Served(outputs, answer["seconds"], answer.get("loading", {}))


def difference(wanted: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]) -> float:
    """The largest difference over the largest wanted value; infinite where a name or a shape differs.

    Args:
        wanted: The outputs that were promised.
        got: The outputs to compare.

    >>> difference({"a": torch.tensor([2.0])}, {"a": torch.tensor([1.0])})
    0.5
    """
    worst = 0.0
    if set(wanted) != set(got):
        return float("inf")
    for name, value in wanted.items():
        if value.shape != got[name].shape:
            return float("inf")
        if torch.equal(value, got[name]) or not value.numel():
            continue
        apart = (value.double() - got[name].double()).abs().max().item()
        worst = max(worst, apart / (value.double().abs().max().item() or 1.0))
        if apart != apart:
            return float("inf")
    return worst
