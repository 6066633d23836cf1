"""ONNX Runtime's quantisers, static and dynamic, and the layers of a graph that they can leave in float.

>>> sorted(CALIBRATIONS)
['entropy', 'minmax', 'percentile']
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from secateur.adapters.onnx_attention import join_attention
from secateur.adapters.onnx_few import IMAGES
from secateur.adapters.onnx_model import OnnxModel, extra_module
from secateur.adapters.onnx_weights import TRANSPOSED, gemm_as_matmul
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import (
    DataError,
    NothingToDoError,
)
from secateur.execution.example import Example, call_arguments

if TYPE_CHECKING:
    import onnx

__all__ = [
    "CALIBRATIONS",
    "OTHERS",
    "DynamicQuantiser",
    "Quantiser",
    "StaticQuantiser",
    "calibrated",
    "units_of",
]

CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""ONNX Runtime's name of each way to calibrate."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OTHERS = "all other operators"


class Quantiser(Protocol):
    """Writes a quantised file."""

    graph: onnx.ModelProto
    kinds: tuple[str, ...]
    floats: list[str]

    def __call__(self, path: Path, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Quantise the nodes named by `only` (all where it is empty), without those of `exclude`."""


class StaticQuantiser:
    """Static quantisation: QDQ, weights by channel, activations by the ranges that calibration found."""

    def __init__(self, path: Path, ranges: object, kinds: tuple[str, ...], reduce_range: bool):
        self.graph: onnx.ModelProto = extra_module("onnx").load(str(path))
        self.kinds = kinds
        self._ranges, self._reduce_range = ranges, reduce_range
        self.floats = _batched_products(self.graph)
        self._images = [node.name for node in self.graph.graph.node if node.name.endswith(IMAGES)]

    def __call__(self, path: Path, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Quantise the nodes named by `only` (all where it is empty), without those of `exclude`."""
        tools = extra_module("onnxruntime.quantization")
        copied = type(self.graph)()
        copied.CopyFrom(self.graph)
        quantiser = tools.QDQQuantizer(
            copied,
            True,
            self._reduce_range,
            tools.QuantType.QInt8,
            tools.QuantType.QUInt8,
            self._ranges,
            list(only),
            [*exclude, *self.floats, *self._images],
            list(self.kinds),
            {"MatMulConstBOnly": True},
        )
        quantiser.quantize_model()
        quantiser.model.save_model_to_file(str(path), False)


class DynamicQuantiser:
    """Dynamic quantisation: weights by channel, activations in every call."""

    kinds: tuple[str, ...] = ("MatMul",)

    def __init__(self, path: Path, reduce_range: bool, own_operators: bool = False):
        tools = extra_module("onnx")
        self.graph: onnx.ModelProto = tools.load(str(path))
        gemm_as_matmul(self.graph)
        self.floats = _batched_products(self.graph)
        # The quantiser transposes weights, and then refuses the shapes that the exporter noted for them.
        self._noted = [copy.deepcopy(each) for each in self.graph.graph.value_info]
        self.graph.graph.ClearField("value_info")
        tools.save(self.graph, str(path))
        self._path, self._reduce_range, self._own_operators = path, reduce_range, own_operators

    def __call__(self, path: Path, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Quantise the nodes named by `only` (all where it is empty), without those of `exclude`."""
        tools = extra_module("onnxruntime.quantization")
        tools.quantize_dynamic(
            str(self._path),
            str(path),
            per_channel=True,
            reduce_range=self._reduce_range,
            weight_type=tools.QuantType.QInt8,
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*exclude, *self.floats],
            op_types_to_quantize=["MatMul"],
        )
        if self._own_operators:
            graph = extra_module("onnx").load(str(path))
            if join_attention(graph, self._noted):
                extra_module("onnx").save(graph, str(path))


def calibrated(
    path: Path, batches: Sequence[Example], folder: Path, way: str, percentile: float, reduce_range: bool
) -> StaticQuantiser:
    """Static quantisation with the ranges that the batches give.

    Args:
        path: The ONNX file.
        batches: The inputs that it is run on.
        folder: Where a file for calibration is written.
        way: How a range is found: a key of `CALIBRATIONS`.
        percentile: The share of values that "percentile" keeps, in percent.
        reduce_range: Whether to use 7 bits for weights.
    """
    calibrate = extra_module("onnxruntime.quantization.calibrate")
    graph = extra_module("onnx").load(str(path))
    kinds = _kinds_to_quantise(graph)
    method = getattr(calibrate.CalibrationMethod, CALIBRATIONS[way])
    calibrator = calibrate.create_calibrator(
        path,
        list(kinds),
        augmented_model_path=str(folder / "calibration.onnx"),
        calibrate_method=method,
        extra_options={"symmetric": False, "percentile": percentile},
    )
    peer = OnnxModel(path)
    for index, batch in enumerate(batches):
        args, kwargs = call_arguments(batch)
        try:
            calibrator.collect_data(_reader(peer.feed(*args, **kwargs)))  # a batch at a time: little memory
        except DataError as error:
            raise DataError(f"int8: batch {index}: {error}") from error
        except Exception as error:  # the runtime's own errors
            raise_if_out_of_memory(error)
            raise DataError(
                f"int8: batch {index} does not run in the exported file ({str(error).splitlines()[0]}); expected "
                "inputs like the example, of its sizes but for the axes that are free"
            ) from error
    return StaticQuantiser(path, calibrator.compute_data(), kinds, reduce_range)


def _batched_products(model: onnx.ModelProto) -> list[str]:
    """The products with a stored tensor of more than two axes: one matrix for each head, or for each example. The
    runtime has no INT8 operator for those with a scale for each channel, so they stay in float.
    """
    axes = {item.name: len(item.dims) for item in model.graph.initializer}
    return [
        node.name for node in model.graph.node if node.op_type == "MatMul" and axes.get(node.input[1], 0) > 2
    ]


def _reader(feed: object) -> object:
    """One batch as ONNX Runtime's calibrators read it."""
    base = extra_module("onnxruntime.quantization").CalibrationDataReader
    left = [feed]

    class Reader(base):  # type: ignore[misc,valid-type]
        """Gives the batch once."""

        def get_next(self) -> object:
            """The batch, then None."""
            return left.pop() if left else None

    return Reader()


def _kinds_to_quantise(graph: onnx.ModelProto) -> tuple[str, ...]:
    """The operators to quantise: those with weights, and between convolutions all the quantiser knows.

    Convolutions gain where activations stay in INT8 from one to the next. In transformers they do not stay: norms and
    softmax run in float, so that only products with weights gain.
    """
    present = {node.op_type for node in graph.graph.node}
    if present & {"LayerNormalization", "Softmax", "Attention"}:
        return _WEIGHTED
    registry = extra_module("onnxruntime.quantization.registry")
    return tuple(sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry}))


def units_of(graph: onnx.ModelProto, kinds: Sequence[str]) -> dict[str, list[str]]:
    """What can be left in float: layer -> its nodes; operators without weights together."""
    weights = {item.name for item in graph.graph.initializer}
    units: dict[str, list[str]] = {}
    others: list[str] = []
    for node in graph.graph.node:
        if node.op_type not in kinds or node.name.endswith(IMAGES):
            continue
        weight = next((name for name in node.input[1:2] if name in weights), None)
        if node.op_type in _WEIGHTED and weight is not None:
            units.setdefault(_layer_of(node, weight), []).append(node.name)
        else:
            others.append(node.name)
    if not units:
        if "Conv" not in kinds and any(node.op_type == "Conv" for node in graph.graph.node):
            raise NothingToDoError(
                "int8='dynamic' quantises linear layers and products alone, and the exported file has convolutions "
                "only; give batches to calibrate with in place of 'dynamic'"
            )
        raise NothingToDoError(
            "int8: the exported file has no convolution, linear layer or product with weights to quantise; export it "
            "in floats, without int8"
        )
    return {**units, OTHERS: others} if others else units


def _layer_of(node: onnx.NodeProto, weight: str) -> str:
    """The layer a node belongs to: by its weight's name, else by the scopes that the exporter noted."""
    weight = weight.removesuffix(TRANSPOSED)
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = {item.key: item.value for item in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return str(node.name)
    inside = [name for name in names[:-1] if name] if isinstance(names, list) else []
    return str(inside[-1]) if inside else str(node.name)
