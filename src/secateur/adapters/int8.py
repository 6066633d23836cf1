"""INT8: an ONNX file quantised by ONNX Runtime's quantiser and compared with the float model.

Static quantisation runs batches through the model to find the range of every activation (calibration), and stores
weights as 8-bit integers with a scale for each channel. Dynamic quantisation stores weights alone and takes the ranges
of activations in every call. Both give a file in the standard operators of ONNX, unless `own_operators` is asked for.

The quantised file is compared with the float model: by accuracy where `evaluate` is given, else by how often both name
the same class. Where it loses more than `lost`, layers are left in float, those first whose quantisation alone changes
the outputs most (`Int8Report.layers` lists what was measured), until the limit holds.

>>> Int8Options(calibration="percentile").percentile
99.99
>>> Int8Options(calibration="max")
Traceback (most recent call last):
secateur.errors.OptionError: calibration: expected 'minmax', 'percentile' or 'entropy', got 'max'
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from secateur.adapters.int8_quantisers import (
    CALIBRATIONS,
    OTHERS,
    DynamicQuantiser,
    Quantiser,
    calibrated,
    units_of,
)
from secateur.adapters.onnx_few import fewer
from secateur.adapters.onnx_heads import beside
from secateur.adapters.onnx_model import OnnxModel, extra_module
from secateur.adapters.onnx_norms import apart
from secateur.adapters.onnx_settled import settled
from secateur.adapters.onnx_weights import store_weights
from secateur.adapters.padding import at_tokens, said_tokens
from secateur.adapters.programs import largest_difference, quiet
from secateur.core.nested import tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import (
    BudgetNotMetError,
    DataError,
    NothingToDoError,
    OptionError,
    SecateurError,
    UnknownNameError,
    near,
)
from secateur.execution.calling import call, moved
from secateur.execution.example import Example, read_batch
from secateur.metrics.accuracy import Evaluate, accuracy

__all__ = ["Int8Layer", "Int8Options", "Int8Report", "write_int8"]

_PROBES = 4  # batches that layers are ranked on


@dataclass(frozen=True, eq=False)
class Int8Options:
    """How a model is quantised to INT8, and what it may cost.

    Attributes:
        calibration: How the range of an activation is found from batches: "minmax" takes all values, "percentile"
            leaves out outliers, "entropy" minimises the divergence of the distributions.
        percentile: The share of values that "percentile" keeps, in percent.
        evaluate: Measures accuracy: batches (inputs, targets), or a function of the model whose first number counts
            (larger is better). Without it the file is judged by how often its largest output is that of the float
            model, on `compare`.
        lost: How much accuracy, or agreement, may be lost.
        compare: Batches to compare outputs on; the calibration batches unless given. For "dynamic", the example.
        keep_float: Layers that stay in float in any case, by name or pattern; "all other operators" are all that
            have no weights.
        reduce_range: Whether weights have 7 bits, so that the file gives the same outputs on every processor. With 8
            bits (False) sums of two products are cut off on x86 processors without VNNI, and outputs are wrong there.
        batches: The most calibration batches that are used.
        own_operators: Whether a "dynamic" file may have operators of ONNX Runtime's own (QAttention: attention with its
            products in one), which no other runtime reads. The outputs are the same.
    """

    calibration: str = "minmax"
    percentile: float = 99.99
    evaluate: Evaluate | None = None
    lost: float = 0.01
    compare: Iterable[object] | None = None
    keep_float: str | Sequence[str] = ()
    reduce_range: bool = True
    batches: int = 32
    own_operators: bool = False

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise OptionError(
                f"calibration: expected 'minmax', 'percentile' or 'entropy', got {self.calibration!r}"
            )
        if not 50.0 < self.percentile <= 100.0:
            raise OptionError(f"percentile: expected above 50 and at most 100, got {self.percentile!r}")
        if not 0.0 <= self.lost < 1.0:
            raise OptionError(
                f"lost is a share: expected 0 <= lost < 1, got {self.lost!r}; for 1 % write 0.01"
            )
        if self.batches < 1:
            raise OptionError(f"batches: expected at least 1 calibration batch, got {self.batches}")


@dataclass(frozen=True)
class Int8Layer:
    """What quantising one layer alone changes.

    Attributes:
        name: The layer, or all operators that are no layer with weights, together.
        noise: The size of the change of the outputs, over the size of the outputs (both as root mean squares).
    """

    name: str
    noise: float


@dataclass(frozen=True)
class Int8Report:
    """What INT8 changed.

    Attributes:
        method: "static, minmax" and its like, or "dynamic".
        judged_by: What was compared: "accuracy", the name of the number `evaluate` returned, "agreement" or "fidelity".
        before: Its value for the float model.
        after: Its value for the file.
        limit: The least value that holds.
        error: The largest difference of the outputs from the float model's, over the largest output; padding, where the
            batches' `attention_mask` is 0, is left out, as in all numbers here.
        noise: The size of the change of the outputs over their size, as root mean squares.
        quantised: How many layers with weights are in INT8.
        float_layers: The layers that were left in float.
        layers: What each layer alone changes, the most sensitive first; empty where all could be quantised.
        weight_bits: Bits of a weight: 7, or 8 with `reduce_range=False`.
        notes: Remarks for the user, such as that ONNX Runtime failed with all in INT8.
    """

    method: str
    judged_by: str
    before: float
    after: float
    limit: float
    error: float
    noise: float
    quantised: int
    float_layers: tuple[str, ...] = ()
    layers: tuple[Int8Layer, ...] = ()
    weight_bits: int = 7
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"INT8 ({self.method}, weights of {self.weight_bits} bits): {self.judged_by} {self.before:.4f} -> "
            f"{self.after:.4f}, at least {self.limit:.4f} must hold; noise {self.noise:.2e} of the outputs",
            f"{self.quantised} layers in INT8, {len(self.float_layers)} in float"
            + (f": {', '.join(self.float_layers)}" if self.float_layers else ""),
        ]
        return "\n".join(lines)


def write_int8(
    model: nn.Module, path: Path, example: Example, int8: Iterable[object] | str, options: Int8Options
) -> Int8Report:
    """Replace a float ONNX file by its INT8 version.

    Args:
        model: The model that the file was written from, in evaluation mode.
        path: The float ONNX file; it holds the INT8 version afterwards.
        example: What the model is called with.
        int8: Calibration batches, or "dynamic".
        options: How to quantise.

    Returns:
        What changed.

    Raises:
        DataError: A batch does not fit the file.
        UnknownNameError: A pattern of `keep_float` matches no layer.
        NothingToDoError: The model has no layer that could be quantised.
        BudgetNotMetError: The limit does not hold while any layer is quantised.
        DataError: ONNX Runtime fails, also with all operators that are no layer in float.
    """
    batches = [example] if isinstance(int8, str) else _inputs_of(model, int8, options.batches, "int8")
    compared = (
        batches if options.compare is None else _inputs_of(model, options.compare, options.batches, "compare")
    )
    judge = _Judge(model, compared, options)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        folder = Path(scratch)
        _prepare(path, options.own_operators, isinstance(int8, str))
        quantise: Quantiser
        if isinstance(int8, str):
            quantise, method = DynamicQuantiser(path, options.reduce_range, options.own_operators), "dynamic"
        else:
            quantise = calibrated(
                path, batches, folder, options.calibration, options.percentile, options.reduce_range
            )
            method = f"static, {options.calibration}"
        units = units_of(quantise.graph, quantise.kinds)
        kept = _kept_float(units, options.keep_float)
        kept += [name for name in units if name not in kept and not set(units[name]) - set(quantise.floats)]
        found, notes = _found(quantise, judge, units, kept, folder)
        path.write_bytes(found.path.read_bytes())
    in_float = tuple(name for name in units if name in found.in_float and name != OTHERS)
    return Int8Report(
        method,
        judge.name,
        judge.before,
        found.value,
        judge.limit,
        found.error,
        found.noise,
        sum(name != OTHERS for name in units) - len(in_float),
        in_float,
        found.layers,
        weight_bits=7 if options.reduce_range else 8,
        notes=notes,
    )


def _prepare(path: Path, own: bool, dynamic: bool) -> None:
    """Store the weights that the graph would compute in every call, so that the quantiser finds them; leave out what is
    the same for every input; keep additions and norms apart; take heads beside each other, unless an operator of the
    runtime's own will do that; and where activations stay in INT8 between layers, write what is between them in fewer
    operators.
    """
    tools = extra_module("onnx")
    graph = tools.load(str(path))
    done = store_weights(graph) + settled(graph) + apart(graph) + (0 if own else beside(graph))
    if done + (0 if dynamic else fewer(graph)):
        tools.save(graph, str(path))


def _inputs_of(model: nn.Module, batches: Iterable[object], most: int, what: str) -> list[Example]:
    """The model's inputs in each of the first batches, on the CPU, where the file runs; targets are left out."""
    if isinstance(batches, torch.Tensor):
        raise DataError(f"{what}: expected an iterable of batches, got a tensor; put it in a list")
    found: list[Example] = []
    for index, batch in enumerate(batches):
        if index == most:
            break
        single = isinstance(batch, torch.Tensor)
        inputs = batch if single else read_batch(batch, index, labels_apart=True, model=model).example
        found.append(moved(inputs, torch.device("cpu")))
    if not found:
        raise DataError(
            f"{what}: the data holds no batch; an iterator that was used before is empty, give a list"
        )
    return found


class _Judge:
    """Compares a quantised file with the float model."""

    def __init__(self, model: nn.Module, batches: Sequence[Example], options: Int8Options):
        self.batches = batches
        self.expected = self.outputs(model)
        evaluate = options.evaluate
        if evaluate is not None and not callable(evaluate):
            evaluate = list(evaluate)  # read more than once
        self._evaluate = evaluate
        if evaluate is not None:
            first = accuracy(model, evaluate)[0]
            self.name, self.before = first.name, float(first.value)
        else:
            classes = all(_names_classes(outputs[0]) for outputs in self.expected)
            self.name, self.before = ("agreement" if classes else "fidelity"), 1.0
        self.limit = self.before - options.lost

    def outputs(self, peer: nn.Module, most: int | None = None) -> list[list[torch.Tensor]]:
        """The outputs of a model or file on the batches; those of [examples, tokens, size] without padding."""
        found = []
        for batch in self.batches[:most]:
            outputs, tokens = tensors_in(call(peer, batch)), said_tokens(batch)
            if tokens is not None:
                outputs = [at_tokens(each, tokens) if each.dim() == 3 else each for each in outputs]
            found.append(outputs)
        return found

    def noise(self, found: Sequence[Sequence[torch.Tensor]]) -> float:
        """The change of the outputs over their size."""
        change = size = 0.0
        for wanted, got in zip(self.expected, found):
            for a, b in zip(wanted, got, strict=True):
                change += float((a.double() - b.double()).square().sum())
                size += float(a.double().square().sum())
        return float((change / max(size, 1e-300)) ** 0.5)

    def error(self, found: Sequence[list[torch.Tensor]]) -> float:
        """The largest difference over the largest output."""
        return max(largest_difference(wanted, got) for wanted, got in zip(self.expected, found))

    def value(self, peer: nn.Module, found: Sequence[Sequence[torch.Tensor]]) -> float:
        """Accuracy, or agreement, or 1 less the noise."""
        if self._evaluate is not None:
            return float(accuracy(peer, self._evaluate)[0].value)
        if self.name == "fidelity":
            return 1.0 - self.noise(found)
        same = count = 0
        for wanted, got in zip(self.expected, found):
            axis = -1 if wanted[0].dim() < 4 else 1
            equal = wanted[0].argmax(axis) == got[0].argmax(axis)
            same, count = same + int(equal.sum()), count + equal.numel()
        return same / max(count, 1)


def _names_classes(outputs: torch.Tensor) -> bool:
    axis = -1 if outputs.dim() < 4 else 1
    return outputs.dim() >= 2 and outputs.is_floating_point() and outputs.shape[axis] > 1


def _kept_float(units: dict[str, list[str]], patterns: str | Sequence[str]) -> list[str]:
    """The layers that the patterns name; where only layers are in INT8, as in dynamic, nothing else needs keeping.

    >>> _kept_float({"fc": ["/fc/Gemm"]}, ["f*", "all other operators"])
    ['fc']
    """
    kept: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern == OTHERS and OTHERS not in units:
            continue
        hits = [name for name in units if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise UnknownNameError(f"keep_float: no layer {pattern!r}: {near(pattern, list(units))}")
        kept += hits
    return kept


@dataclass(frozen=True)
class _Candidate:
    """A quantised file and how it compares."""

    path: Path
    in_float: tuple[str, ...]
    value: float
    noise: float
    error: float
    layers: tuple[Int8Layer, ...] = ()


def _found(
    quantise: Quantiser, judge: _Judge, units: dict[str, list[str]], kept: Sequence[str], folder: Path
) -> tuple[_Candidate, tuple[str, ...]]:
    """What `_search` finds, and notes: where ONNX Runtime fails, with all operators that are no layer in float."""
    try:
        return _search(quantise, judge, units, kept, folder), ()
    except _RuntimeFailure as failure:
        cause = failure.cause
        if OTHERS not in units or OTHERS in kept:
            raise DataError(_failed(str(cause), units, kept)) from cause
    kept = [*kept, OTHERS]
    try:
        found = _search(quantise, judge, units, kept, folder)
    except _RuntimeFailure as failure:
        raise DataError(_failed(str(failure.cause), units, kept)) from failure.cause
    at = (where := _where(str(cause), units)[0]) and f" {where}"
    return found, (
        f"all operators that are no layer with weights are in float, as ONNX Runtime fails with them in INT8{at}; "
        f"Int8Options(keep_float=[{OTHERS!r}]) asks for that at once",
    )


def _search(
    quantise: Quantiser, judge: _Judge, units: dict[str, list[str]], kept: Sequence[str], folder: Path
) -> _Candidate:
    """The file with the fewest sensitive layers in float that holds the limit."""
    if all(name in kept or name == OTHERS for name in units):
        raise NothingToDoError(
            "int8: keep_float names every layer that could be in INT8, so that none would be quantised; products with "
            "more than one stored matrix stay in float in any case"
        )

    seen: dict[tuple[str, ...], _Candidate] = {}

    def candidate(in_float: tuple[str, ...]) -> _Candidate:
        if in_float not in seen:
            path = folder / f"{len(in_float)}.onnx"
            with _told():
                quantise(path, exclude=[node for name in in_float for node in units[name]])
                peer = OnnxModel(path)
                found = judge.outputs(peer)
            value, noise, error = judge.value(peer, found), judge.noise(found), judge.error(found)
            seen[in_float] = _Candidate(path, in_float, value, noise, error)
        return seen[in_float]

    whole = candidate(tuple(kept))
    if whole.value >= judge.limit:
        return whole
    layers = _ranked(quantise, judge, {name: units[name] for name in units if name not in kept}, folder)

    def with_float(count: int) -> _Candidate:
        return candidate((*kept, *(layer.name for layer in layers[:count])))

    def holds(count: int) -> bool:
        one = with_float(count)
        return one.value >= judge.limit and any(name not in one.in_float for name in units if name != OTHERS)

    best = _fewest(holds, len(layers) - 1)
    if best is None:
        nearest = max(one.value for one in seen.values())
        raise BudgetNotMetError(
            f"int8: {judge.name} {whole.value:.4f} with all layers in INT8, {nearest:.4f} with the most sensitive "
            f"ones in float; expected at least {judge.limit:.4f} (float {judge.before:.4f}). No file was kept. Allow "
            "more with Int8Options(lost=...), calibrate with more batches or calibration='percentile', or retrain"
        )
    return replace(with_float(best), layers=layers)


class _RuntimeFailure(Exception):
    """ONNX Runtime failed; inside this module only."""

    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what ONNX Runtime raises while a file is quantised or run from other errors."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:  # the runtime's errors have no class of their own
        raise_if_out_of_memory(error)
        raise _RuntimeFailure(error) from error


def _failed(message: str, units: dict[str, list[str]], kept: Sequence[str] = ()) -> str:
    """What to say of an error of ONNX Runtime: the operator and the layer that it names, and what to do.

    >>> _failed("Non-zero status code. Name:'product_quant' Status Message: wrong", {"head": ["product"]})[:62]
    "int8: ONNX Runtime fails at the operator 'product' of 'head': "
    """
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    where, unit = _where(message, units)
    said = f"int8: ONNX Runtime fails{where and ' ' + where}: {first[-300:]}; "
    if unit and unit not in kept:
        return f"{said}leave it in float: Int8Options(keep_float=[{unit!r}])"
    if OTHERS in units and OTHERS not in kept:
        return f"{said}leave all that is no layer in float: Int8Options(keep_float=[{OTHERS!r}])"
    return f"{said}leave layers in float: Int8Options(keep_float=[{', '.join([*map(repr, kept), '...'])}])"


def _where(message: str, units: dict[str, list[str]]) -> tuple[str, str]:
    """Where an error of ONNX Runtime says that it fails, in words, and the layer of that operator; "" if unknown.

    >>> _where("Name:'sum'", {"all other operators": ["sum"]}), _where("wrong", {})
    (("at the operator 'sum' of 'all other operators'", 'all other operators'), ('', ''))
    """
    named = re.search(r"[Nn]ame:\s*'?([^'\s]+)", message)
    word = named[1] if named else ""
    fits = [(node, unit) for unit, nodes in units.items() for node in nodes if node and word.startswith(node)]
    if not fits:
        return (f"at the operator {word!r}" if word else ""), ""
    node, unit = max(fits, key=lambda each: len(each[0]))
    return f"at the operator {node!r} of {unit!r}", unit


def _ranked(
    quantise: Quantiser, judge: _Judge, units: dict[str, list[str]], folder: Path
) -> tuple[Int8Layer, ...]:
    """What quantising each unit alone changes, the most sensitive first; of equals the earlier."""
    layers = []
    for name, nodes in units.items():
        path = folder / "alone.onnx"
        with _told():
            quantise(path, only=nodes)
            found = judge.outputs(OnnxModel(path), _PROBES)
        layers.append(Int8Layer(name, judge.noise(found)))
    return tuple(sorted(layers, key=lambda layer: -layer.noise))


def _fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """The least count that holds, where more hold the better: doubled until one holds, then bisected.

    >>> _fewest(lambda count: count >= 5, 20), _fewest(lambda count: False, 20)
    (5, None)
    """
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, min(2 * high, most)
    if most < 1 or not holds(high := min(high, most)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
