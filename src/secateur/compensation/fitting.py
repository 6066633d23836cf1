"""`fit`: the layers of a network one after another, each on the inputs that it gets in the present network.

Two models run through the data together: the dense one, whose outputs are the targets, and the one that is being
compressed, whose inputs are what each layer really gets. All batches wait at a layer until a `Solver` has found its new
weights from the layer's `LayerProblem`; then they continue to the next. So a layer also compensates for the errors of
those before it; where its output is added to what goes around it, for the errors of that, too (`sums`). Memory holds
the moments of one layer, and of the tensors with which passes wait at most `waiting.WAITING_BYTES`; the others are in
temporary files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from secateur.compensation.batches import leading_mask
from secateur.compensation.calls import Call, Geometry, Names, NormCall
from secateur.compensation.moments import Moments, Problem
from secateur.compensation.progress import Advance, Progress
from secateur.compensation.sums import Addend, Sources, SumFinder
from secateur.compensation.waiting import WaitingTensors
from secateur.compensation.walking import Walk
from secateur.errors import NonFiniteError
from secateur.execution.example import Batch

__all__ = [
    "FittedLayer",
    "LayerProblem",
    "Observed",
    "Setting",
    "Solution",
    "Solver",
    "fit",
    "layers_called",
    "observed",
]

ROWS_PER_FEATURE = 100
"""Rows of inputs that are used for each unknown of an output, where there are as many."""
ROWS_AT_LEAST = 20_000


@dataclass(frozen=True)
class FittedLayer:
    """The result for one layer.

    `before` and `after` are squared errors of its outputs on the calibration data, against the dense layer's, as shares
    of the variance of those (of their energy, where the layer has no intercept). Where the output is added to what goes
    around the layer, they are against what makes the sum the dense model's; `summed` says that this was another.
    """

    name: str
    kept: int
    numel: int
    rows: int
    before: float
    after: float
    note: str = ""
    summed: bool = False


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One layer's least squares: the normal equations, its present weight and that of the dense model, and its mask."""

    name: str
    geometry: Geometry
    problem: Problem
    weight: torch.Tensor
    dense: torch.Tensor
    mask: torch.Tensor
    rows: int

    @property
    def matrix(self) -> torch.Tensor:
        """The weight as [groups, features, outputs]."""
        return self.geometry.matrix(self.weight * self.mask)

    @property
    def keep(self) -> torch.Tensor:
        """The mask as [groups, features, outputs]."""
        return self.geometry.matrix(self.mask)


class Solver(Protocol):
    """The interface of solvers: an object that finds a layer's new weight."""

    always: ClassVar[bool]
    """Whether layers are solved that have no mask and whose inputs are the dense model's."""

    def __call__(self, layer: LayerProblem) -> Solution:
        """The layer's new weight."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """A layer's new weight, its new mask where that changed, and a note for the report."""

    weight: torch.Tensor
    mask: torch.Tensor | None = None
    note: str = ""


@dataclass
class Setting:
    """The constants of one `fit`."""

    dense: nn.Module
    student: nn.Module
    batches: Sequence[Batch]
    masks: dict[str, torch.Tensor]
    frozen: frozenset[str]
    """Names of weights that are not changed."""
    device: torch.device
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    student_batches: Sequence[Batch] | None = None
    """The student's inputs, if they differ: for a part of a model after parts that have changed."""
    outputs: tuple[list[Any], list[Any]] | None = None
    """After `fit`: the outputs of the dense model and of the student for every batch."""


@dataclass(frozen=True, eq=False)
class Observed:
    """A layer as the dense model runs it: a call of it, its moments, and whether it has an intercept.

    A bias is one, and so is the running mean of a batch norm right behind the layer.
    """

    call: Call
    moments: Moments
    intercept: bool


def fit(setting: Setting, solver: Solver, progress: Progress | None = None) -> list[FittedLayer]:
    """Solve every layer of `setting.student`, in the order in which they run; returns the result for each."""
    order, repeated, addends = _order(setting)
    if not getattr(solver, "sums", True):
        addends = [{} for _ in addends]
    pooled = _pooled(setting, repeated - setting.frozen)
    done: set[str] = set()
    report: list[FittedLayer] = []
    began = time.monotonic()
    with ExitStack() as stack:
        waiting = stack.enter_context(WaitingTensors())
        theirs = setting.batches if setting.student_batches is None else setting.student_batches
        dense, student = (
            [
                _walk(stack, model, batch, waiting, frozenset(addend.key for addend in found.values()))
                for batch, found in zip(batches, addends, strict=True)
            ]
            for model, batches in ((setting.dense, setting.batches), (setting.student, theirs))
        )
        for position, name in enumerate(order):
            here = [i for i, walk in enumerate(student) if walk.call is not None and walk.call.name == name]
            layer = _Layer(
                setting,
                name,
                dense,
                student,
                here,
                pooled.pop(name, None),
                [found.get(name) for found in addends],
            )
            found = layer.fitted(solver)
            done.add(name)
            for walks in (dense, student):
                for walk in walks:
                    while walk.call is not None and walk.call.name in done:
                        walk.advance()
            waiting.layer_done()
            if found is not None:
                report.append(found)
            if progress is not None:
                left = (time.monotonic() - began) / (position + 1) * (len(order) - position - 1)
                progress(Advance("layer", name, position + 1, len(order), left))
        if setting.student_batches is not None:
            setting.outputs = [walk.finish() for walk in dense], [walk.finish() for walk in student]
    return report


def _walk(
    stack: ExitStack,
    model: nn.Module,
    batch: Batch,
    waiting: WaitingTensors,
    keys: frozenset[tuple[str, int]] = frozenset(),
) -> Walk:
    watch = Sources(keys, [*batch.args, batch.kwargs]) if keys else None
    return stack.enter_context(Walk(model, Names(model), batch.args, batch.kwargs, waiting, watch))


def _order(setting: Setting) -> tuple[list[str], frozenset[str], list[dict[str, Addend]]]:
    """The names of all layers in the order in which they first run, of those that run more than once, and what the
    outputs of some are added to, in each batch: a forward may take another way for each.
    """
    behind: dict[str | None, str | None] = {None: None}  # a layer -> the one that comes next
    repeated: set[str] = set()
    names = Names(setting.dense)
    addends: list[dict[str, Addend]] = []
    for batch in setting.batches:
        seen: set[str] = set()
        last: str | None = None
        finder = SumFinder([*batch.args, batch.kwargs])
        with Walk(setting.dense, names, batch.args, batch.kwargs, watch=finder) as walk:
            while walk.call is not None:
                name = walk.call.name
                if name in seen:
                    repeated.add(name)
                elif name not in behind:
                    behind[name], behind[last] = behind[last], name
                if name not in seen:
                    last = name
                seen.add(name)
                walk.advance()
            addends.append(finder.addends(walk.output))
    order: list[str] = []
    at = behind[None]
    while at is not None:
        order.append(at)
        at = behind[at]
    once = [{n: a for n, a in found.items() if n not in repeated} for found in addends]
    return order, frozenset(repeated), once


def _pooled(setting: Setting, repeated: frozenset[str]) -> dict[str, Moments]:
    """Moments of layers that run several times in one pass, over all their runs in the dense model."""
    found: dict[str, Moments] = {}
    if not repeated:
        return found
    names = Names(setting.dense)
    for index, batch in enumerate(setting.batches):
        with Walk(setting.dense, names, batch.args, batch.kwargs) as walk:
            while walk.call is not None:
                call = walk.call
                if isinstance(call, Call) and call.name in repeated:
                    found[call.name] = _added(setting, call, walk.run(), index, found.get(call.name))
                walk.advance()
    return found


def observed(setting: Setting) -> Iterator[Observed]:
    """Every layer of the dense model with the moments of its inputs and of its own outputs, layer after layer."""
    order, repeated, _ = _order(setting)
    pooled = _pooled(setting, repeated - setting.frozen)
    done: set[str] = set()
    with ExitStack() as stack:
        waiting = stack.enter_context(WaitingTensors())
        walks = [_walk(stack, setting.dense, batch, waiting) for batch in setting.batches]
        for name in order:
            moments, first, followed = pooled.get(name), None, True
            for index, walk in enumerate(walks):
                call = walk.call
                if call is None or call.name != name:
                    continue
                outputs = walk.run()
                if isinstance(call, Call) and name not in setting.frozen:
                    first = first or call
                    if name not in pooled:
                        moments = _added(setting, call, outputs, index, moments)
                walk.advance()
                followed = followed and _norm_follows(walk, outputs)
            done.add(name)
            for walk in walks:
                while walk.call is not None and walk.call.name in done:
                    walk.advance()
            waiting.layer_done()
            if first is not None and moments is not None:
                yield Observed(first, moments, followed or first.bias is not None)


def layers_called(setting: Setting) -> frozenset[str]:
    """The weights of all linear layers and convolutions that the dense model calls on the batches.

    Args:
        setting: The models and the batches.
    """
    found: set[str] = set()
    names = Names(setting.dense)
    for batch in setting.batches:
        with Walk(setting.dense, names, batch.args, batch.kwargs) as walk:
            while walk.call is not None:
                if isinstance(walk.call, Call):
                    found.add(walk.call.name)
                walk.advance()
    return frozenset(found)


def _norm_follows(walk: Walk, outputs: torch.Tensor) -> bool:
    """Whether the pass has reached a batch norm of exactly these outputs."""
    return isinstance(walk.call, NormCall) and walk.call.inputs is outputs


def _added(
    setting: Setting, call: Call, outputs: torch.Tensor, index: int, moments: Moments | None
) -> Moments:
    """The moments with one batch's rows of a call counted in; new ones for None."""
    rows = chosen_rows(setting, call, outputs, index)
    x, y = call.geometry.features(call.inputs, rows), call.geometry.targets(outputs, rows)
    if moments is None:
        moments = Moments(x.shape[0], x.shape[2], y.shape[2], setting.device)
    moments.add(x, y)
    return moments


def chosen_rows(setting: Setting, call: Call, outputs: torch.Tensor, index: int) -> torch.Tensor | None:
    """Which rows of a batch count: padding does not, and of very many rows a random sample is enough; None for all."""
    batch = setting.batches[index]
    count = call.geometry.positions(outputs)
    valid = leading_mask(batch, outputs.shape)
    features = call.geometry.matrix(setting.dense.get_parameter(call.name)).shape[1]
    most = max(ROWS_AT_LEAST, ROWS_PER_FEATURE * features)
    share = max(1, -(-most * batch.size // max(1, sum(other.size for other in setting.batches))))
    rows = None if valid is None else valid.nonzero()[:, 0]
    total = count if rows is None else len(rows)
    if total <= share:
        return rows
    generator = torch.Generator().manual_seed(setting.seed * 1_000_003 + index)
    picked = torch.randperm(total, generator=generator)[:share].sort().values.to(outputs.device)
    return picked if rows is None else rows[picked]


@dataclass
class _Layer:
    """One stop of all walks: the moments collected there, and the solver's result."""

    setting: Setting
    name: str
    dense: list[Walk]
    student: list[Walk]
    here: list[int]
    moments: Moments | None
    addends: Sequence[Addend | None] = ()
    """What its output is added to in each batch: the target compensates for the error of that, too."""
    changed: bool = False
    unlike: bool = False
    summed: bool = False
    """Whether its target differed from the dense layer's own output for that reason."""

    def fitted(self, solver: Solver) -> FittedLayer | None:
        """Solve it and write the weights into the student; None if there was nothing to do."""
        calls = [self.student[index].call for index in self.here]
        if not calls:
            return None
        if isinstance(calls[0], NormCall):
            self._norm()
            return None
        call = calls[0]
        assert isinstance(call, Call)
        if self.name in self.setting.frozen:
            return None
        pooled = self.moments is not None
        intercept = self._gather(call)
        if self.moments is None or not self.moments.finite():
            raise NonFiniteError(
                f"{self.name}: its inputs or outputs on the calibration data hold NaN or infinity; check the data, "
                "and the layers before it"
            )
        weight = self.parameter
        mask = self.setting.masks.get(self.name)
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device)
        if bool(mask.all()) and not self.changed and not pooled and not solver.always:
            return None
        return self._solved(solver, call, weight, mask, intercept)

    @property
    def parameter(self) -> nn.Parameter:
        """The layer's weight in the model that is being compressed."""
        return self.setting.student.get_parameter(self.name)

    def _gather(self, first: Call) -> bool:
        """The moments over all batches; whether the layer has an intercept."""
        moments, followed = self.moments, True
        differing: list[
            torch.Tensor
        ] = []  # read once, after the loop: each reading would wait for the device
        for index in self.here:
            call, other = self.student[index].call, self.dense[index].call
            assert isinstance(call, Call)
            paired = (
                isinstance(other, Call)
                and other.name == self.name
                and other.inputs.shape == call.inputs.shape
            )
            if not paired:
                # routed elsewhere: the dense layer's outputs for other tokens are no targets for these
                self.unlike = self.changed = True
                outputs = self.student[index].run()
            else:
                assert isinstance(other, Call)
                outputs = self.dense[index].run()
                if not self.changed:
                    differing.append((other.inputs != call.inputs).any())
            if self.moments is None:
                rows = chosen_rows(self.setting, call, outputs, index)
                x = call.geometry.features(call.inputs, rows)
                shift = self._shift_of_sum(index, outputs.shape) if paired else None
                if shift is not None and not self.changed:
                    differing.append((shift != 0).any())
                goal = outputs if shift is None else outputs + shift
                y = call.geometry.targets(goal, rows) if paired else None
                if moments is None:
                    width = call.geometry.matrix(self.parameter).shape
                    moments = Moments(width[0], width[1], width[2], self.setting.device)
                moments.add(x, y)
            if paired:
                self.dense[index].advance()
                followed = followed and _norm_follows(self.dense[index], outputs)
            else:
                followed = False
        self.moments = moments
        self.changed = self.changed or bool(differing and torch.stack(differing).any())
        return followed or first.bias is not None

    def _shift_of_sum(self, index: int, shape: torch.Size) -> torch.Tensor | None:
        """By how much the output must change for its sum with what goes around it to be the dense model's."""
        addend = self.addends[index] if self.addends else None
        if addend is None:
            return None
        pair = []
        for walk in (self.dense[index], self.student[index]):
            source = walk.watch.get(addend.key) if isinstance(walk.watch, Sources) else None
            if source is None:
                return None
            pair.append(source)
        shift = addend.shift(pair[0], pair[1], shape)
        self.summed = self.summed or shift is not None
        return shift

    def _solved(
        self, solver: Solver, call: Call, weight: torch.Tensor, mask: torch.Tensor, intercept: bool
    ) -> FittedLayer:
        """The solver's weight, and its intercept, written where no error grows by it."""
        assert self.moments is not None
        problem = self.moments.problem(intercept)
        geometry = call.geometry
        reference = self.setting.dense.get_parameter(self.name).detach()
        if self.unlike:
            goal = problem.hessian @ geometry.matrix(reference).to(problem.hessian.dtype)
            energy = (geometry.matrix(reference).to(goal.dtype) * goal).sum(1)
            problem = Problem(problem.hessian, goal, energy, problem.mean_in, problem.mean_out, False)
        layer = LayerProblem(
            self.name, geometry, problem, weight.detach(), reference, mask, self.moments.rows
        )
        found = solver(layer)
        new, note = found.weight.to(weight.dtype), found.note
        if found.mask is not None:
            mask = self.setting.masks[self.name] = found.mask
        whole = float(problem.energy.sum()) or 1.0
        before = float(problem.error(layer.matrix).sum()) / whole
        after = float(problem.error(geometry.matrix(new)).sum()) / whole
        with torch.no_grad():
            weight.copy_(new)
        if intercept and call.bias is not None:
            self._shift(call.bias, problem, geometry.matrix(new))
        kept = int(mask.sum())
        if self.unlike:
            note = "; ".join(
                filter(None, [note, "got other inputs than in the dense model: fitted to its own"])
            )
        return FittedLayer(self.name, kept, mask.numel(), self.moments.rows, before, after, note, self.summed)

    def _shift(self, bias: str, problem: Problem, matrix: torch.Tensor) -> None:
        """The bias that makes the mean output the dense layer's; entries that are masked stay."""
        parameter = self.setting.student.get_parameter(bias)
        offset = problem.offset(matrix).reshape(parameter.shape).to(parameter.dtype)
        mask = self.setting.masks.get(bias)
        with torch.no_grad():
            parameter.copy_(offset if mask is None else offset * mask.to(parameter.device))

    def _norm(self) -> None:
        """Batch norm: running means moved by the difference of the mean input from the dense model's."""
        moved: torch.Tensor | None = None
        count = 0
        for index in self.here:
            call, other = self.student[index].call, self.dense[index].call
            assert call is not None
            if other is None or other.name != self.name or other.inputs.shape != call.inputs.shape:
                continue
            axes = [axis for axis in range(call.inputs.dim()) if axis != 1]
            wide = torch.float32 if call.inputs.device.type == "mps" else torch.float64
            size = call.inputs.numel() // max(1, call.inputs.shape[1])
            part = (call.inputs.to(wide) - other.inputs.to(wide)).sum(axes)
            shift = self._shift_of_sum(index, call.inputs.shape)
            part = part if shift is None else part - shift.to(wide).sum(axes)
            moved = part if moved is None else moved + part
            count += size
            self.dense[index].advance()
        if moved is not None and bool(moved.any()):
            with torch.no_grad():
                mean = self.setting.student.get_buffer(self.name)
                mean += (moved / count).to(mean.dtype)
