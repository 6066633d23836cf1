"""`fewer`: what convolutional networks do besides convolving, in fewer operators, which the runtime has in INT8.

In a small network an operator costs mostly by being there. Two forms that exporters write are several operators, some
of which stay in float between integers, and a third keeps the runtime's fast kernel away:

- a shortcut without weights, as in ResNets for CIFAR: every second row and column, then channels of zeros. It is one
  convolution of one pixel, whose weight copies each channel: Slice, Slice, Pad become Conv, with the same numbers.
- a mean over rows and columns: ReduceMean becomes GlobalAveragePool.
- a convolution of colour images, with three channels: the kernel for INT8 takes four at a time, and others go through a
  copy of every window. Where its step is 2, each square of four pixels becomes twelve channels of one (SpaceToDepth),
  and the weight accordingly; else a fourth channel of zeros is added to the images and to the weight.

>>> fewer.__name__
'fewer'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from secateur.adapters.onnx_attention import drop_unread
from secateur.adapters.onnx_model import extra_module

if TYPE_CHECKING:
    import onnx

__all__ = ["IMAGES", "fewer"]

IMAGES = ".images"
"""How the name of an operator ends that rearranges images; it is best left in float."""

_FLOAT = 1  # the number of float32 in ONNX
_WIDEST = 512  # output channels of a shortcut that is still cheap as a convolution


def fewer(model: onnx.ModelProto) -> int:
    """Write shortcuts as convolutions, means over rows and columns as pooling, and images with more channels.

    Args:
        model: The graph in floats; it is changed.

    Returns:
        How many operators were rewritten.
    """
    graph = _Graph(model.graph)
    images = {item.name for item in model.graph.input}
    convolutions = [each for each in model.graph.node if each.op_type == "Conv" and each.input[0] in images]
    done = sum(_of_images(graph, node) for node in convolutions)
    done += sum(_pooled(graph, node) for node in model.graph.node)
    for node in [each for each in model.graph.node if each.op_type == "Pad"]:
        done += _copied(graph, node)
    if done:
        drop_unread(model.graph)
    return done


class _Graph:
    """A graph by the names of its tensors."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {item.name: item for item in graph.initializer}
        self.kinds = {
            item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input)
        }
        self.shapes = {item.name: item.type.tensor_type.shape for item in (*graph.value_info, *graph.input)}

    def numbers(self, name: str) -> npt.NDArray[Any] | None:
        """A stored tensor; None where it is computed."""
        if name not in self.stored:
            return None
        values: npt.NDArray[Any] = extra_module("onnx").numpy_helper.to_array(self.stored[name])
        return values

    def sizes(self, name: str) -> list[int | None] | None:
        """The shape of a tensor, None for an axis that is free; None in all where the shape is not known."""
        if name not in self.shapes:
            return None
        return [each.dim_value if each.HasField("dim_value") else None for each in self.shapes[name].dim]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    helper = extra_module("onnx").helper
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _pooled(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Write a mean over rows and columns that keeps its axes as GlobalAveragePool; whether it was one."""
    if node.op_type != "ReduceMean" or len(node.input) < 2 or _attributes(node).get("keepdims", 1) != 1:
        return False
    axes, sizes = graph.numbers(node.input[1]), graph.sizes(node.input[0])
    if axes is None or sizes is None or len(sizes) != 4 or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        return False
    node.op_type = "GlobalAveragePool"
    del node.input[1:]
    node.ClearField("attribute")
    return True


def _of_images(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Give a convolution of images with three channels more of them; whether it had three."""
    sizes, weight = graph.sizes(node.input[0]), graph.numbers(node.input[1])
    readers = sum(node.input[1] in each.input for each in graph.graph.node)
    if (
        sizes is None
        or len(sizes) != 4
        or weight is None
        or weight.shape[1] != 3
        or sizes[1] != 3
        or readers > 1
    ):
        return False
    tools, name = extra_module("onnx"), f"{node.name}{IMAGES}"
    squares = _in_squares(node, weight, (sizes[2], sizes[3]))
    if squares is None:
        weight = np.pad(weight, ((0, 0), (0, 1), (0, 0), (0, 0)))
        pads = np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64)
        graph.graph.initializer.append(tools.numpy_helper.from_array(pads, f"{name}.pads"))
        made = tools.helper.make_node("Pad", [node.input[0], f"{name}.pads"], [name], name=name)
    else:
        weight, around = squares
        made = tools.helper.make_node("SpaceToDepth", [node.input[0]], [name], name=name, blocksize=2)
        node.ClearField("attribute")
        given = {"kernel_shape": weight.shape[2:], "pads": around}
        node.attribute.extend(tools.helper.make_attribute(key, value) for key, value in given.items())
    graph.stored[node.input[1]].CopyFrom(tools.numpy_helper.from_array(weight, node.input[1]))
    for noted in [each for each in graph.graph.value_info if each.name == node.input[1]]:
        graph.graph.value_info.remove(noted)  # its shape was that of three channels
    graph.graph.node.insert(list(graph.graph.node).index(node), made)
    node.input[0] = name
    return True


def _in_squares(
    node: onnx.NodeProto, weight: npt.NDArray[Any], sizes: tuple[int | None, int | None]
) -> tuple[npt.NDArray[Any], list[int]] | None:
    """The weight and the pads of a convolution of step 2 for images in squares of 2 x 2; None where it is another."""
    given = _attributes(node)
    pads = given.get("pads", [0, 0, 0, 0])
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or list(given.get("strides", [])) != [2, 2]:
        return None
    if any(each != 1 for each in given.get("dilations", [])):
        return None
    grown, before, after = [(0, 0), (0, 0)], [], []
    for axis, size in enumerate(sizes):
        if not size or size % 2:
            return None
        kernel, front, back = weight.shape[2 + axis], pads[axis], pads[2 + axis]
        first = -(-front // 2)  # squares of zeros in front
        shift = 2 * first - front  # the weight begins within the first square
        length = -(-(shift + kernel) // 2)
        last = (size + front + back - kernel) // 2 + length - size // 2 - first
        if last < 0:
            return None
        grown.append((shift, 2 * length - shift - kernel))
        before.append(first)
        after.append(last)
    more = np.pad(weight, grown)
    out, channels, rows, columns = more.shape
    squares = more.reshape(out, channels, rows // 2, 2, columns // 2, 2).transpose(0, 3, 5, 1, 2, 4)
    found = np.ascontiguousarray(squares.reshape(out, 4 * channels, rows // 2, columns // 2))
    return found, [*before, *after]


def _copied(graph: _Graph, pad: onnx.NodeProto) -> bool:
    """Write a Pad of channels after Slices of rows and columns as a convolution of one pixel; whether it was that."""
    around = _channels_around(graph, pad)
    source, steps = _before_slices(graph, pad.input[0])
    sizes = graph.sizes(source)
    if around is None or max(steps) < 2 or sizes is None or sizes[1] is None:
        return False
    channels = sizes[1]
    if channels + sum(around) > _WIDEST or graph.kinds.get(source) != _FLOAT:
        return False
    weight = np.zeros((channels + sum(around), channels, 1, 1), np.float32)
    weight[around[0] : around[0] + channels, :, 0, 0] = np.eye(channels, dtype=np.float32)
    name = f"{pad.output[0]}.copies"
    tools = extra_module("onnx")
    graph.graph.initializer.append(tools.numpy_helper.from_array(weight, name))
    made = tools.helper.make_node(
        "Conv", [source, name], list(pad.output), name=pad.name, kernel_shape=[1, 1], strides=list(steps)
    )
    made.metadata_props.extend(pad.metadata_props)
    graph.graph.node.insert(list(graph.graph.node).index(pad), made)
    graph.graph.node.remove(pad)
    return True


def _channels_around(graph: _Graph, pad: onnx.NodeProto) -> tuple[int, int] | None:
    """How many channels of zeros a Pad adds in front and behind; None where it adds anything else."""
    mode = _attributes(pad).get("mode", b"constant")
    filled = graph.numbers(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    given = graph.numbers(pad.input[1]) if len(pad.input) > 1 else None
    whole = len(pad.input) < 4 or not pad.input[3]
    if mode != b"constant" or filled is None or filled.any() or given is None or len(given) != 8 or not whole:
        return None
    found = [int(each) for each in given]
    others = [found[index] for index in (0, 2, 3, 4, 6, 7)]
    return (found[1], found[5]) if not any(others) and found[1] >= 0 and found[5] >= 0 else None


def _before_slices(graph: _Graph, name: str) -> tuple[str, tuple[int, int]]:
    """What Slices of every so many rows and columns read, and the steps of both."""
    steps = [1, 1]
    while (node := graph.made.get(name)) is not None and node.op_type == "Slice":
        found = [graph.numbers(each) for each in node.input[1:]]
        sizes = graph.sizes(node.input[0])
        if len(found) != 4 or sizes is None or len(sizes) != 4:
            break
        first, last, axes, by = found
        if first is None or last is None or axes is None or by is None:
            break
        ways = [(int(axis) % 4, int(a), int(b), int(step)) for axis, a, b, step in zip(axes, first, last, by)]
        if not all(
            axis > 1 and a == 0 and step > 0 and b >= (sizes[axis] or 2**31 - 1) for axis, a, b, step in ways
        ):
            break
        for axis, _, _, step in ways:
            steps[axis - 2] *= step
        name = node.input[0]
    return name, (steps[0], steps[1])
