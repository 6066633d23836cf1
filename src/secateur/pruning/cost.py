"""`CostModel`: the cost of a choice of units, counted or measured on the shrunk model; for budgets on a remaining cost.
`dense_costs`: what each list of units costs before any of them is removed.

>>> import torch
>>> from torch import nn
>>> from secateur import granularity
>>> from secateur.core.context import Context
>>> from secateur.core.targets import select
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> context = Context(example=torch.zeros(1, 4))
>>> units = granularity.registry.make("channel").units(model, select(model), context)
>>> costs = CostModel(model, units, context)
>>> costs.dense("macs"), costs.remaining("macs", {"0": torch.arange(8) < 2})
(48.0, 12.0)
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from secateur.budget import Compare, FileOptions
from secateur.compensation.batches import without_padding
from secateur.container.archive import save
from secateur.container.save_options import SaveOptions
from secateur.core.context import Context
from secateur.core.masks import Masks, count_true
from secateur.core.measurement import Measurement
from secateur.core.nested import tensors_in
from secateur.core.units import Units
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.execution.calling import describe
from secateur.execution.devices import device_of
from secateur.execution.example import Batch, Example, call_arguments, first_example, read_batch
from secateur.execution.gradients import move
from secateur.execution.undisturbed import kept_random_state, undisturbed
from secateur.metrics.latency import by_own_time, compare, latency
from secateur.metrics.macs import macs, uses
from secateur.pruning.unit_masks import masks_of
from secateur.quantize.share import share
from secateur.structure.cut.choose import dropped
from secateur.structure.groups.couplings import Structure, analyse
from secateur.structure.proof import ProofOptions
from secateur.structure.shrink import Shrunk, shrink

__all__ = ["CostModel", "dense_costs"]

_BATCHES = 8
"""The most batches of data on which outputs are compared."""

_EXAMPLE_ONLY = ProofOptions(("no_grad",), other_shapes=False, training=False)
"""The proof of a model that is cut only to be measured."""


@dataclass
class _Times:
    """Readings of one small model: ms by the clock, and shares of the dense model's time, read in the same turns."""

    ms: list[float] = field(default_factory=list)
    by_clock: list[float] = field(default_factory=list)
    # of its own times, where other work interrupted both
    by_processor: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The median share by the clock; by the processor's own times where the clock was never to be relied on."""
        return statistics.median(self.by_clock or self.by_processor)


# by a digest of device, threads, example and the widths of both models
_TIMES: dict[str, _Times] = {}


class CostModel:
    """The costs of one model under choices among its units.

    Args:
        model: The dense model; it is not changed.
        units: The lists of units that are chosen from.
        context: Holds the example that the model is run on.
        start: Masks already in force.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Units], context: Context, start: Masks | None = None
    ):
        self.model = model
        self.units = units
        self.context = context
        self.start = start
        self._parameters = dict(model.named_parameters())

    # -- counted costs -------------------------------------------------------------------------------------
    def dense(self, of: str) -> float:
        """The cost of the whole model: "macs", "params", or the "bytes" of its tensors."""
        if of == "macs":
            per, rest = self._uses
            return sum(per[name] * self._parameters[name].numel() for name in per) + float(rest)
        if of == "bytes":
            tensors = (t for t in self.model.state_dict().values() if isinstance(t, torch.Tensor))
            return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return float(sum(parameter.numel() for parameter in self._parameters.values()))

    def remaining(self, of: str, chosen: Mapping[str, torch.Tensor]) -> float:
        """The remaining "macs" or "params" under a choice: those of the kept weights."""
        masks = masks_of(self.model, self.units, chosen, self.start)
        if of == "params":
            return self.dense(of) - sum(mask.numel() - count_true(mask) for mask in masks.values())
        per, rest = self._uses
        if rest and self.structural:
            # a product of two activations shrinks with both; the structure gives the factor
            alive = self._structure.alive(
                {i: ~b for i, b in dropped(self._structure, masks, self.model, "union").items() if b.any()}
            )
            return self.dense(of) - (self._structure_macs - self._structure.macs(np.asarray(alive)))
        gone = sum(per.get(name, 0.0) * (mask.numel() - count_true(mask)) for name, mask in masks.items())
        return self.dense(of) - gone

    @property
    def structural(self) -> bool:
        """Whether `shrink` removes the units: they cut several tensors at once."""
        return any(len({member.name for member in units.members}) > 1 for units in self.units)

    @cached_property
    def _uses(self) -> tuple[dict[str, float], int]:
        return uses(self.model, self._example)

    @cached_property
    def _structure(self) -> Structure:
        return analyse(self.model, self._example)

    @cached_property
    def _structure_macs(self) -> int:
        return self._structure.macs()

    @cached_property
    def _example(self) -> Example:
        example = self.context.example
        if example is None:
            example = first_example(self.context.data, model=self.model)
        if example is None:
            raise DataError(
                "a budget on multiply-accumulates or time runs the model: pass example= (one input, as the model is "
                "called with)"
            )
        return example

    # -- what a choice does to the outputs ------------------------------------------------------------------
    def change(self, chosen: Mapping[str, torch.Tensor], compare: Compare | None = None) -> float:
        """How far the outputs of the shrunk model are from the dense model's: the error's share of their squares.

        Both run in eval mode, on the first batches of the call's data or on its example.

        Args:
            chosen: Which units remain, by the list's name.
            compare: What of an output is compared; all of it unless given.
        """
        masks = masks_of(self.model, self.units, chosen, self.start)
        small = self._shrunk(masks)
        model = masks.apply(self.model) if small is None else small.model
        error = whole = 0.0
        for batch, outputs in zip(self._inputs, self._outputs, strict=True):
            found = outputs_of(model, batch.example)
            for got, wanted in _pairs(found, outputs, batch, compare):
                error += float((got.double() - wanted.double()).square().sum())
                whole += float(wanted.double().square().sum())
        return error / whole if whole > 0 else error

    @cached_property
    def _inputs(self) -> list[Batch]:
        data = self.context.data
        if data is None or isinstance(data, Iterator):
            batches = [Batch(*call_arguments(self._example))]
        else:
            apart = self.context.loss is not None
            with kept_random_state():
                first = list(itertools.islice(data, _BATCHES))
            batches = [
                read_batch(batch, i, labels_apart=apart, model=self.model) for i, batch in enumerate(first)
            ]
        if not batches:
            raise DataError(
                "data holds no batch: pass one or more batches of inputs, as the model is called with"
            )
        reference = next(self.model.parameters())
        return [
            replace(
                batch,
                args=move(batch.args, reference.device, reference.dtype),
                kwargs=move(batch.kwargs, reference.device, reference.dtype),
            )
            for batch in batches
        ]

    @cached_property
    def _outputs(self) -> list[object]:
        return [outputs_of(self.model, batch.example) for batch in self._inputs]

    # -- measured costs ------------------------------------------------------------------
    def coded_bytes(self, chosen: Mapping[str, torch.Tensor], options: FileOptions) -> int:
        """Bytes of the file that `sc.save` writes for the model under a choice, shrunk if its units are cut out."""
        masks = masks_of(self.model, self.units, chosen, self.start)
        small = self._shrunk(masks) if self.structural else None
        model = masks.apply(self.model) if small is None else small.model
        left = masks if small is None else small.masks
        bits = options.get("bits")
        shared = share(model, bits=bits, masks="zeros") if bits is not None else None
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            saved = save(
                shared.model if shared is not None else model,
                Path(folder) / "model.sct",
                shared,
                masks=left,
                plan=None if small is None else small.plan,
                options=SaveOptions(batch_norm=options.get("batch_norm"), precision=options.get("precision")),
            )
        return saved.size

    def time(
        self, chosen: Mapping[str, torch.Tensor], repetitions: int, threads: int | None, again: bool = False
    ) -> tuple[float, float]:
        """(milliseconds, share of the dense model's time) of the shrunk model, both measured in turns on this machine.

        Args:
            chosen: Which units remain, by the list's name.
            repetitions: How many times each model is timed.
            threads: The threads of the processor; None for torch's own setting.
            again: Whether to measure although these widths were measured before. Medians are over all measurements.

        Raises:
            OptionError: `shrink` does not remove the units, so no time is saved.
        """
        if not self.structural:
            raise OptionError(
                "a budget on time needs units that shrink removes, because zeros in place take as long as other "
                "weights: "
                "pass granularity='channel' (or 'head')"
            )
        masks = masks_of(self.model, self.units, chosen, self.start)
        small = self._shrunk(masks)
        model = self.model if small is None else small.model
        key = self._key(model, threads)
        times = _TIMES.setdefault(key, _Times())
        if not times.ms or again:
            if small is None:
                # the dense model compared with itself would show noise alone; its own time is enough
                found = latency(model, self._example, repetitions=repetitions, threads=threads)
                times.ms += _readings(found[0])
                times.by_clock.append(1.0)
            else:
                found = compare(self.model, model, self._example, repetitions=repetitions, threads=threads)
                times.ms += _readings(found[1])
                shares = times.by_processor if by_own_time(found["speedup"]) else times.by_clock
                shares += [1.0 / ratio for ratio in _readings(found["speedup"])]
        return statistics.median(times.ms), times.share

    def _shrunk(self, masks: Masks) -> Shrunk | None:
        """The smaller model, or None if nothing is removed."""
        try:
            return shrink(self.model, masks, self._example, proof=_EXAMPLE_ONLY)
        except NothingToDoError:
            return None

    def _key(self, model: nn.Module, threads: int | None) -> str:
        """A digest of the widths of both models, the device, the threads and the example."""
        where = device_of(self.model)
        device = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
        parts = [
            device,
            str(threads or torch.get_num_threads()),
            describe(self._example),
            type(self.model).__qualname__,
        ]
        for one in (self.model, model):
            parts += [
                repr(one),
                *(f"{name}{tuple(t.shape)}{t.dtype}" for name, t in one.state_dict().items()),
            ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def outputs_of(model: nn.Module, example: Example) -> object:
    """The output of a model in eval mode; the model is left as it was found.

    Args:
        model: The model.
        example: What it is called with.
    """
    args, kwargs = call_arguments(example)
    with undisturbed(model, mode="eval"), torch.no_grad():
        return model(*args, **kwargs)


def _pairs(
    found: object, dense: object, batch: Batch, compare: Compare | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The floating-point tensors of two outputs side by side, without padding."""
    sides = [
        [
            each
            for each in tensors_in(output if compare is None else compare(output, batch.example))
            if each.is_floating_point()
        ]
        for output in (found, dense)
    ]
    shapes = [[tuple(each.shape) for each in side] for side in sides]
    if not sides[1] or shapes[0] != shapes[1]:
        raise OptionError(
            f"the outputs of the shrunk model cannot be compared with the dense model's: floating-point tensors of "
            f"shapes {shapes[0]} and {shapes[1]}; give sc.budget.LeastChange(compare=...), or let the model return "
            "its last output alone"
        )
    return [
        (without_padding(got, batch), without_padding(wanted, batch))
        for got, wanted in zip(*sides, strict=True)
    ]


def dense_costs(model: nn.Module, example: Example, lists: Sequence[Units]) -> dict[str, dict[str, float]]:
    """The cost of each list when dense: the parameters it cuts, their bytes, and the MACs of their layers.

    Args:
        model: The dense model; it is not changed.
        example: One input; None counts no MACs.
        lists: The lists of units.

    Returns:
        Cost by list, under "params", "size" and, with an example, "macs".
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    members = {units.name: {member.name for member in units.members} for units in lists}
    costs = {
        "params": {name: float(sum(tensors[n].numel() for n in held)) for name, held in members.items()},
        "size": {
            name: float(sum(tensors[n].numel() * tensors[n].element_size() for n in held))
            for name, held in members.items()
        },
    }
    if example is not None:
        per_layer = macs(model, example)["macs"].per_layer
        costs["macs"] = {
            name: float(sum(per_layer.get(layer, 0) for layer in {n.rpartition(".")[0] for n in held}))
            for name, held in members.items()
        }
    return costs


def _readings(row: Measurement) -> list[float]:
    """Every reading of a measurement, or the one there is."""
    return [float(one) for one in row.trials] or [float(row.value)]
