"""A saved artefact, loaded and run in a process of its own that cannot import secateur.

This file is run by its path, with a request as JSON: `python -P _fresh.py request.json`. It needs torch, safetensors
and the runtime that the artefact is for, transformers or ONNX Runtime. It writes the outputs as safetensors and the
rest of its answer as JSON.

>>> import torch
>>> list(flat({"a": (torch.zeros(1), None), "b": torch.ones(2)}))
['a.0', 'b']
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["flat"]


def flat(value: object, name: str = "") -> dict[str, Any]:
    """The tensors of a nested output by dotted name; values that are not tensors, such as a cache, are left out.

    Args:
        value: A tensor, or mappings and sequences of them.
        name: The name of the value itself.
    """
    if hasattr(value, "detach"):
        return {name or "output": value.detach().clone().contiguous()}
    if isinstance(value, Mapping):
        pairs = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, (tuple, list)):
        pairs = [(str(index), each) for index, each in enumerate(value)]
    else:
        return {}
    found: dict[str, Any] = {}
    for key, each in pairs:
        found.update(flat(each, f"{name}.{key}" if name else key))
    return found


def _timed(call: Callable[[], object], repeats: int) -> float:
    """The median seconds of a call; 0.0 if it is not timed."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) if times else 0.0


def _transformers(request: dict[str, Any], inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    _declare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, request["loader"])
    if not (request["loader"].startswith("AutoModel") or issubclass(kind, transformers.PreTrainedModel)):
        raise TypeError(f"expected a class of models of transformers, got {request['loader']!r}")
    # Never left open: transformers would ask on the terminal whether to run the code that a folder brings.
    options = {"trust_remote_code": bool(request["code"])}
    if request.get("attention"):
        options["attn_implementation"] = request["attention"]
    model, loading = kind.from_pretrained(request["path"], output_loading_info=True, **options)
    model.eval()
    wrong = {key: sorted(map(str, names)) for key, names in loading.items() if names}
    with torch.no_grad():
        outputs = flat(model(**inputs))
        seconds = _timed(lambda: model(**inputs), request["repeats"])
        if request.get("generate"):
            outputs["generated"] = model.generate(
                inputs["input_ids"], max_new_tokens=request["generate"], do_sample=False
            )
    return outputs, {"seconds": seconds, "loading": wrong}


def _declare_torchvision() -> None:
    """Let torchvision be imported where its compiled operators are of another build than torch.

    transformers imports it for its image processors, and the import asks for the schemas of two operators only.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the schemas live as long as it does


_KEPT: list[object] = []


def _onnx(request: dict[str, Any], inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    session = onnxruntime.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = dict(zip(names, (each.numpy() for each in inputs.values())))
    found = session.run(None, given)
    seconds = _timed(lambda: session.run(None, given), request["repeats"])
    return {f"output.{index}": torch.from_numpy(each) for index, each in enumerate(found)}, {
        "seconds": seconds
    }


def _main(path: str) -> None:
    sys.modules["secateur"] = None  # type: ignore[assignment]  # importing it fails from now on
    import torch
    from safetensors.torch import load_file, save_file

    request = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    inputs = load_file(request["inputs"])
    inputs = {name: inputs[name] for name in request["names"]}
    run = {"transformers": _transformers, "onnx": _onnx}[request["runtime"]]
    outputs, answer = run(request, inputs)
    save_file({name: each.contiguous() for name, each in outputs.items()}, request["outputs"])
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1])
