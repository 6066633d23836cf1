"""Where a number came from: versions, hardware and the command, with nothing private in it.

>>> {"python", "torch"} <= set(versions())
True
>>> clean("--token=abc123 " + str(Path.home() / "data"))
'--token=*** ~/data'
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from secateur.execution.processors import cores

__all__ = ["clean", "clean_plain", "command", "fingerprint", "hardware", "versions", "visible"]

_PACKAGES = (
    "secateur",
    "torch",
    "numpy",
    "constriction",
    "safetensors",
    "accelerate",
    "datasets",
    "scikit-learn",
)
_NAMES = r"[\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key|credential)[\w-]*"
_SECRET = re.compile(rf"(?i)({_NAMES}[\"']?\s*[=: ]\s*[\"']?)([^\s\"',}}]+)")
_LOGIN = re.compile(r"(\w+://)[^/\s@]+@")


def clean(text: str) -> str:
    """A text without the home folder's path, without what looks like a secret, without logins in addresses.

    >>> clean("hub_token: hf_abc"), clean("https://me:pw@host/x")
    ('hub_token: ***', 'https://host/x')
    """
    text = _utf8(text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=$|[/\\\s\"':,;)\]}])", "~", text)
    return _LOGIN.sub(r"\1", _SECRET.sub(r"\1***", text))


def _utf8(text: str) -> str:
    """A text that can be stored: where the locale is not UTF-8, Python keeps bytes of paths as surrogates.

    >>> _utf8(b"gr\\xc3\\xbcn \\xff".decode("ascii", "surrogateescape"))
    'grün \\ufffd'
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")


def clean_plain(value: object, name: str = "") -> Any:
    """`clean` for plain data: every text in it, and the values of keys that name a secret.

    >>> clean_plain({"data": {"path": str(Path.home() / "d")}, "hub_token": "abc", "num_tokens": 4})
    {'data': {'path': '~/d'}, 'hub_token': '***', 'num_tokens': 4}
    """
    if isinstance(value, dict):
        return {key: clean_plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_plain(item, name) for item in value]
    if isinstance(value, str):
        return "***" if value and re.fullmatch(f"(?i){_NAMES}", name) else clean(value)
    return value


def command() -> str:
    """The command line as typed, cleaned; the program by its name alone."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    program = "secateur" if program == "__main__.py" else program
    return clean(" ".join([program, *sys.argv[1:]]))


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """The processor's name as its maker prints it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def hardware() -> dict[str, Any]:
    """Processor, cores, memory, graphics processors, operating system. Never the machine's name.

    >>> hardware()["cores"] >= 1
    True
    """
    import psutil
    import torch

    gpus: list[str] = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    elif getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        gpus = [f"Apple MPS ({platform.machine()})"]
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def visible() -> dict[str, str]:
    """Which GPUs this process was told to use, if it was told."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {} if told is None else {"visible_gpus": told}


def fingerprint() -> str:
    """A short hash of the hardware and of torch: what a measured time is bound to."""
    text = json.dumps([hardware(), versions().get("torch")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
