"""The network before and after: one row a block, one box a layer, coupled groups in one colour.

>>> from secateur.core.measurement import Measurement
>>> layers = [{"name": "conv1", "kind": "Conv2d", "width": 16, "inputs": 1, "parameters": 160, "group": "g"}]
>>> small = [{**layers[0], "width": 6, "parameters": 60}]
>>> found = Measurements([
...     Measurement("architecture", 1, context={"variant": "dense", "text": "", "layers": layers}),
...     Measurement("architecture", 1, context={"variant": "shrunk", "text": "", "layers": small})])
>>> network(found)[0].table.rows
(('conv1', 'Conv2d', 16, 6, 'g'),)
"""

from __future__ import annotations

from secateur.core.measurement import Measurement, Measurements
from secateur.report.drawing import DrawnLayer, draw_network
from secateur.report.figure import Figure, FigureTable
from secateur.report.reading import before_and_after, trial_of
from secateur.report.variants import result_trials

__all__ = ["network", "two_architectures"]


def two_architectures(measurements: Measurements) -> tuple[Measurement, Measurement] | None:
    """The architecture before and after in one trial (see `before_and_after`), the headline's where it was drawn."""
    found = [item for item in measurements if item.name == "architecture"]
    return before_and_after(found, result_trials(measurements) if found else ())


def network(measurements: Measurements) -> list[Figure]:
    """The drawing."""
    pair = two_architectures(measurements)
    if pair is None or not pair[0].context.get("layers"):
        return []
    before, after = (list(item.context["layers"]) for item in pair)
    later = {layer["name"]: layer for layer in after}
    drawn = [
        DrawnLayer(
            name=str(layer["name"]),
            kind=str(layer["kind"]),
            before=int(layer["width"]),
            after=int(later.get(layer["name"], layer)["width"]),
            group=str(layer.get("group", "")),
        )
        for layer in before
    ]
    names = [str(item.context.get("variant", "model")) for item in pair]
    columns = (f"width, {names[0]}", f"width, {names[1]}")
    if names[0] == names[1]:  # one model, or two of one name: columns are told apart all the same
        columns = (f"width, {names[0]}", f"width, {names[1]}, after")
    groups = {layer.group for layer in drawn if layer.group}
    gone = sum(layer.before - layer.after for layer in drawn)
    total = sum(layer.before for layer in drawn)
    after_text = f"; {names[0]} → {names[1]}" if pair[0] is not pair[1] else ""
    return [
        Figure(
            "network",
            "network",
            "The network" + (" before and after" if gone else "") + trial_of(measurements, pair[1]),
            "One row a block, one box a layer, in the order they are built. The bar is as long as the layer is wide; "
            f"layers marked with the same colour lose the same channels{after_text}. Red is what was removed.",
            draw_network(drawn),
            f"{len(drawn)} layers, {len(groups)} coupled group{'s' * (len(groups) != 1)}; {gone:,} of {total:,} units "
            "were removed.",
            FigureTable(
                ("layer", "kind", *columns, "coupled group"),
                tuple((layer.name, layer.kind, layer.before, layer.after, layer.group) for layer in drawn),
            ),
            narrow=draw_network(drawn, narrow=True),
        )
    ]
