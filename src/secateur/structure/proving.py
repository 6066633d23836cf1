"""Make a proof: run masked and shrunk model on the same inputs, in float64, and compare every output.

By default the example is run as it is, and fresh values of another batch size and of another image size or length,
where the dense model accepts them; each with gradients recorded and without, the large ones in one of the two. An input
that the dense model accepts and the shrunk one does not fails the proof.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> x = torch.randn(4, 4)
>>> small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
>>> [(case.what, case.shapes, case.mode) for case in small.proof.cases][:3]
[('example', ((4, 4),), 'eager'), ('example', ((4, 4),), 'no_grad'), ('batch', ((1, 4),), 'eager')]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from secateur.errors import ProofError
from secateur.execution.example import Example, own_call
from secateur.structure.cut.branches import (
    Branch,
    LargerInputs,
    larger_inputs,
    refused_larger,
    refused_training,
    training_branch,
)
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.depth.bypass import bypass_
from secateur.structure.proof import Proof, ProofCase, ProofOptions, Shapes
from secateur.structure.proof_inputs import ProofInput, proof_inputs
from secateur.structure.proof_runs import ModelRun, disturb_, double_copy, random_fills, run
from secateur.structure.selections import Selections, differences, relative
from secateur.structure.trace.in_training import reads_training, training_run, used_tensors
from secateur.structure.trace.refused import Refused
from secateur.structure.trace.trace import Trace

__all__ = ["DenseProofError", "DenseRun", "ShapeProofError", "prove"]


class DenseProofError(ProofError):
    """The masked model itself does not run as the proof asks for: no cut is to blame."""


class ShapeProofError(ProofError):
    """The proof holds for the example, and fails for another shape of input, with a flag turned round, or in training.

    Attributes:
        example: That input.
        what: A description of the failure.
        case: What the input differs in, as `ProofInput.what`.
    """

    def __init__(self, text: str, example: Example, what: str, case: str):
        super().__init__(text)
        self.example, self.what, self.case = example, what, case


def _unsupported(error: Exception | None) -> bool:
    """Whether an error says that an operator has no float64 form."""
    return isinstance(error, (RuntimeError, NotImplementedError, TypeError)) and (
        "ouble" in str(error) or "loat64" in str(error)
    )


class _WideTypeError(Exception):
    """An operator of the model has no float64 form."""


@dataclass
class _Prover:
    """One proof in the making.

    Attributes:
        model: The dense model.
        small: The shrunk model.
        masks: The masks of the dense model.
        dtype: The precision in which both are run.
        tolerance: The largest error that counts as equal.
        equality: Whether a larger error is a failure.
        fills: Values to use for parameters that are 0, of the dense model and of the shrunk one.
        bypassed: The blocks whose output is their input in the dense model.
        plan: How the shrunk model was cut; None where that is not known.
        refused: The inputs of other shapes and flags that the dense model did not accept in any mode.
        failure: The error of the last run that the dense model failed, if any.
        untrained: Why nothing is proved of training, where that was asked for; empty where it is proved.
    """

    model: nn.Module
    small: nn.Module
    masks: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    tolerance: float
    equality: bool
    fills: tuple[Mapping[str, torch.Tensor] | None, Mapping[str, torch.Tensor] | None] = (None, None)
    bypassed: tuple[str, ...] = ()
    plan: ShrinkPlan | None = None
    refused: dict[tuple[Shapes, int], Refused] = field(default_factory=dict)
    failure: Exception | None = None
    untrained: str = ""

    def dense(self) -> nn.Module:
        """The masked dense model in the precision of the proof."""
        made = double_copy(self.model, self.masks, self.dtype, self.fills[0])
        bypass_(made, self.bypassed)
        return made

    def compare(self, inputs: Sequence[ProofInput]) -> list[tuple[ProofInput, str, ModelRun, float, float]]:
        """Run the dense model on all inputs, then the shrunk one: only one copy in float64 exists at a time. Yields
        (input, mode, the dense model's result, largest difference, largest output).
        """
        dense = self.dense()
        wanted = [self._accepted(dense, each, mode) for each in inputs for mode in each.modes]
        modes = [mode for each in inputs for mode in each.modes]
        trained = [one is not None for mode, one in zip(modes, wanted) if mode == "train"]
        self.untrained = _NOT_RUN if trained and not any(trained) else ""
        for one in wanted:
            if one is not None:
                self.refused.pop(_kind(one[0]), None)
        del dense
        small = double_copy(self.small, None, self.dtype, self.fills[1])
        found = []
        for each, mode, want in (one for one in wanted if one is not None):
            got = run(small, each.example, mode, self.dtype)
            if (
                got.error is not None
                and (mode != "train" or each.own_call)
                and _unsupported(got.error)
                and self.dtype == torch.float64
            ):
                raise _WideTypeError from got.error
            found.append((each, mode, want, *self._checked(each, mode, want, got)))
        return found

    def _accepted(
        self, dense: nn.Module, each: ProofInput, mode: str
    ) -> tuple[ProofInput, str, ModelRun] | None:
        """The dense model's result for an input, or None if it does not accept it in this mode."""
        want = run(dense, each.example, mode, self.dtype)
        if want.error is not None and each.spare is not None:
            each = ProofInput(each.what, each.spare, each.modes)
            want = run(dense, each.example, mode, self.dtype)
        if want.error is None:
            return each, mode, want
        self.failure = want.error
        if mode == "train" and not each.own_call:
            return None
        if _unsupported(want.error) and self.dtype == torch.float64:
            raise _WideTypeError from want.error
        if each.own_call:
            raise DenseProofError(
                f"the masked {_name(self.model)} does not run in training on proof=sc.ProofOptions(training=...) "
                f"({_said(want.error)}); the model is unchanged"
            ) from want.error
        if each.what == "example" and mode in ("eager", "no_grad"):
            raise DenseProofError(
                f"the masked {_name(self.model)} does not run on the example "
                f"({_said(want.error)}); the model is unchanged"
            ) from want.error
        if each.what != "fresh":
            refused = Refused.by(each.shapes, want.error, flag=each.flag)
            self.refused.setdefault(_kind(each), refused)
        return None

    def _checked(self, each: ProofInput, mode: str, want: ModelRun, got: ModelRun) -> tuple[float, float]:
        """The largest difference and the largest output, or an error that says where the two models differ."""
        flag = f" with {each.flag}" if each.flag else ""
        where = f"on {' and '.join(map(str, each.shapes)) or 'the example'}{flag} [{mode}]"
        if want.shapes_only:
            want, got = self._by_chance(each, want, got)
        if got.error is not None:
            self._fail(
                each, f"does not run {where}, which the dense one does ({_said(got.error)})", got.error
            )
        if got.graphs > want.graphs:
            self._fail(each, f"compiles into {got.graphs} graphs {where}, the dense one into {want.graphs}")
        shapes = [_shapes(got), _shapes(want)]
        lost = self._lost(want, got)
        if lost:
            self._fail(
                each, f"gets no gradient at {', '.join(map(repr, lost[:3]))} {where}, the dense one does"
            )
        if want.shapes_only and shapes[0] == shapes[1]:
            absolute, scale = differences(want.outputs, got.outputs)
            if not scale or relative(absolute, scale) > self.tolerance or want.outputs is got.outputs:
                return 0.0, 1.0
            want.shapes_only = False  # both drew the same numbers
            return absolute, scale
        if mode == "train" and shapes[0] != shapes[1] and self._gives_more(each, shapes[0], shapes[1]):
            want.shapes_only = True
            return 0.0, 1.0
        absolute, scale = (
            differences(want.outputs, got.outputs) if shapes[0] == shapes[1] else (math.inf, 0.0)
        )
        if mode in ("eager", "no_grad", "train") and (
            relative(absolute, scale) > self.tolerance or not scale
        ):
            chosen = self._with_one_choice(each, mode, want)
            if chosen is not None and relative(*chosen) <= self.tolerance:
                return chosen
            if chosen is not None and not scale and self.equality:
                self._fail(
                    each,
                    f"does not select from what the masked one does {where} ({', '.join(want.selected)}): largest "
                    f"difference {relative(*chosen):.3e} of the largest value, expected at most {self.tolerance:.0e}",
                )
        if mode == "train" and self.tolerance < relative(absolute, scale) <= self._disturbed(each, want):
            want.shapes_only = True
            return 0.0, 1.0
        if shapes[0] != shapes[1]:
            self._fail(each, f"gives outputs of shapes {shapes[0]}, the masked one {shapes[1]}, {where}")
        if mode == "no_grad" and relative(absolute, scale) > self.tolerance:
            absolute, scale = min((absolute, scale), self._without_fast_path(each, mode, got))
        if self.equality and relative(absolute, scale) > self.tolerance:
            self._fail(
                each,
                f"does not compute what the masked one does {where}: largest difference "
                f"{relative(absolute, scale):.3e} of the largest output, expected at most {self.tolerance:.0e}",
            )
        return absolute, scale

    def _gives_more(
        self, each: ProofInput, here: Sequence[tuple[int, ...]], dense: Sequence[tuple[int, ...]]
    ) -> bool:
        """Whether the model gives more in training than otherwise, such as the means and variances that a loss takes,
        and the small model the same in fewer channels.
        """
        usual = run(self.dense(), each.example, "no_grad", self.dtype)
        narrower = len(here) == len(dense) and all(
            len(a) == len(b) and all(x <= y for x, y in zip(a, b, strict=True))
            for a, b in zip(here, dense, strict=True)
        )
        return narrower and usual.error is None and len(usual.outputs) < len(dense)

    def _disturbed(self, each: ProofInput, want: ModelRun) -> float:
        """How far rounding errors alone may move the outputs in training."""
        moved = run(disturb_(self.dense()), each.example, "train", self.dtype)
        if [t.shape for t in moved.outputs] != [t.shape for t in want.outputs]:
            return 0.0
        return relative(*differences(want.outputs, moved.outputs))

    def _by_chance(self, each: ProofInput, want: ModelRun, got: ModelRun) -> tuple[ModelRun, ModelRun]:
        """The results of a forward that draws random numbers, without the differences that chance makes.

        The smaller model draws fewer numbers, so what is drawn after them, such as which layers are skipped, is not
        what the dense one draws. Where the two differ, more seeds are run: only what the dense model does with each
        seed, and the shrunk one with none, is a difference. An error counts unless the dense model has errors too.
        """
        if got.error is None and _shapes(want) == _shapes(got) and not self._lost(want, got):
            return want, got
        dense, small = self.dense(), double_copy(self.small, None, self.dtype, self.fills[1])
        both = [
            [first, *(run(made, each.example, "train", self.dtype, seed=seed) for seed in range(1, _SEEDS))]
            for first, made in ((want, dense), (got, small))
        ]
        wants, gots = ([one for one in runs if one.error is None] for runs in both)
        if not gots or (got.error is not None and len(wants) == _SEEDS):
            return want, got
        wanted, had = ({str(_shapes(one)) for one in runs} for runs in (wants, gots))
        if len(wanted) == 1 and not wanted & had:
            return want, got
        always = frozenset.intersection(*(one.reached for one in wants))
        ever = frozenset.union(*(one.reached for one in gots))
        return replace(want, reached=always), replace(got, error=None, outputs=want.outputs, reached=ever)

    def _lost(self, want: ModelRun, got: ModelRun) -> list[str]:
        """The parameters of the shrunk model that gradients reach in the dense one alone."""
        if want.reached == got.reached:
            return []
        names = {self.plan.name_after(name) if self.plan else name for name in want.reached} - {None}
        here = {name for name, _ in self.small.named_parameters()}
        return sorted(name for name in names if name in here and name not in got.reached)

    def _without_fast_path(self, each: ProofInput, mode: str, got: ModelRun) -> tuple[float, float]:
        """The difference from the dense model run without torch's fast path; infinity where that cannot be compared.

        The fast path of torch's encoder layers gives zeros where a padding mask says so, the other one does not. A
        model with bypassed blocks takes it nowhere: there the shrunk one is run without it too, and with it must agree
        wherever it gives no row of zeros.
        """
        dense = self.dense()
        plain = run(dense, each.example, mode, self.dtype, False)
        if self.bypassed and plain.error is None and _shapes(plain) == _shapes(got):
            small = double_copy(self.small, None, self.dtype, self.fills[1])
            slow = run(small, each.example, mode, self.dtype, False)
            if slow.error is not None or _shapes(slow) != _shapes(plain):
                return math.inf, 0.0
            rows = [
                torch.where((mine == 0).all(-1, keepdim=True), 0, want) if want.dim() else want
                for mine, want in zip(got.outputs, plain.outputs, strict=True)
            ]
            return max(differences(plain.outputs, slow.outputs), differences(rows, got.outputs))
        shapes = [[tuple(t.shape) for t in run.outputs] for run in (plain, got)]
        if plain.error is not None or shapes[0] != shapes[1]:
            return math.inf, 0.0
        return differences(plain.outputs, got.outputs)

    def _with_one_choice(self, each: ProofInput, mode: str, want: ModelRun) -> tuple[float, float] | None:
        """The largest difference and output where both models are given the selections that the dense one makes.

        The tensors that they select from are compared as well; infinity where they do not select alike. None where the
        forward selects nothing.
        """
        chosen = Selections()
        dense = self.dense()
        with chosen:
            first = run(dense, each.example, mode, self.dtype)
        if first.error is not None or not chosen.names:
            return None
        del dense
        chosen.replay = True
        small = double_copy(self.small, None, self.dtype, self.fills[1])
        with chosen:
            second = run(small, each.example, mode, self.dtype)
        shapes = [[t.shape for t in run.outputs] for run in (first, second)]
        want.selected = chosen.names
        if second.error is not None or shapes[0] != shapes[1] or not chosen.complete:
            return math.inf, 1.0
        absolute, scale = differences(first.outputs, second.outputs)
        if not scale:
            return max(absolute, chosen.error) * max(chosen.largest, 1.0), max(chosen.largest, 1.0)
        return max(absolute, chosen.error * scale), scale

    def check_recorded(
        self, example: Example, options: ProofOptions, how: DenseRun, larger: LargerInputs
    ) -> None:
        """What is checked by recordings on meta tensors: much larger inputs, and the training of a large model."""
        if options.other_shapes and how.traced == "meta":
            self.check_larger(example, larger)
        recorded = not own_call(options.training) and options.training and not options.every
        if recorded and how.recording is not None:
            branch = training_branch(how.recording, self.model, example)
            if branch is not None:
                self.check_training(branch)
            elif reads_training(self.model) and training_run(how.recording, self.model, example) is None:
                self.untrained = _NOT_RECORDED if how.recording.mode == "meta" else _NOT_RUN

    def check_larger(self, example: Example, larger: LargerInputs) -> None:
        """Raise an error if the dense model accepts a much larger input, and the shrunk one does not."""
        refused = refused_larger(self.model, self.small, example, larger)
        if refused is not None:
            rejected, error = refused
            each = ProofInput("size", rejected, ())
            why = f" ({_said(error)})" if error is not None else ": its outputs have other shapes"
            where = " and ".join(map(str, each.shapes))
            self._fail(each, f"does not run on {where} as the dense one does{why}", error)

    def check_training(self, branch: Branch) -> None:
        """Raise an error if the dense model runs in training, recorded on meta tensors, and the shrunk one does not."""
        got, refused = refused_training(self.small, branch)
        if refused:
            each = ProofInput("training", branch.example, ("train",))
            error = got.error if isinstance(got.error, Exception) else None
            why = f" ({_said(error)})" if error is not None else ": its outputs have other shapes"
            where = f" in {got.error_path!r}" if got.error_path else ""
            self._fail(each, f"does not run in training as the dense one does{where}{why}", error)

    def _fail(self, each: ProofInput, what: str, error: Exception | None = None) -> None:
        text = f"the shrunk {_name(self.model)} {what}; the model is unchanged."
        if each.what in ("example", "fresh"):
            raise ProofError(
                f"{text} Run sc.explain(model, example) and leave out the layers it names with skip=, or raise the "
                "tolerance of proof=sc.ProofOptions(...)."
            ) from error
        never = {
            "training": "it is never trained, leave that out with proof=sc.ProofOptions(training=False)",
            "flag": f"it is never called with {each.flag}, leave that out with "
            "proof=sc.ProofOptions(other_shapes=False)",
        }
        other = (
            "inputs of this shape never occur, leave them out with proof=sc.ProofOptions(other_shapes=False)"
        )
        raise ShapeProofError(
            f"{text} If {never.get(each.what, other)}.",
            each.example,
            f"the shrunk {_name(self.model)} {what}",
            each.what,
        ) from error


_NOT_RUN = (
    "the dense model does not run there on these inputs; give targets by proof=sc.ProofOptions(training=(inputs, "
    "targets))"
)
_NOT_RECORDED = (
    "the dense model cannot be recorded there without values; sc.ProofOptions(every=True) tries to run it"
)
_SEEDS = 16
"""How many seeds are tried where random numbers decide what a forward does in training."""


def _shapes(found: ModelRun) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in found.outputs]


def _kind(each: ProofInput) -> tuple[Shapes, int]:
    """What inputs have in common that the dense model accepts or refuses together: their shapes; a flag is alone."""
    return each.shapes, id(each) if each.what == "flag" else 0


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _said(error: Exception | None) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


@dataclass(frozen=True)
class DenseRun:
    """How the dense model is run for a proof.

    Attributes:
        traced: How it can be recorded: "meta", or "real" where its forward looks at values.
        bypassed: The blocks whose output is their input, as the shrunk model does not have them and zeros do not stand
            for that.
        recording: Its recording on the example, by which its recordings on larger inputs are known; None where there is
            none.
    """

    traced: str = "meta"
    bypassed: tuple[str, ...] = ()
    recording: Trace | None = None


def _in_no_mode(model: nn.Module, options: ProofOptions, failure: Exception | None) -> DenseProofError:
    return DenseProofError(
        f"the masked {_name(model)} runs in none of the modes {', '.join(map(repr, options.modes))} of the proof "
        f"({_said(failure)}); the model is unchanged. Give 'no_grad' or 'eager' as well"
    )


def _any_output(found: Sequence[tuple[ProofInput, str, ModelRun, float, float]]) -> bool:
    """Whether the dense model gives anything but zeros."""
    return any(bool(tensor.any()) for _, _, want, *_ in found for tensor in want.outputs)


def prove(
    model: nn.Module,
    small: nn.Module,
    masks: Mapping[str, torch.Tensor],
    example: Example,
    options: ProofOptions | None = None,
    equality: bool = True,
    plan: ShrinkPlan | None = None,
    how: DenseRun | None = None,
) -> Proof:
    """Run both models on the same inputs, with the same random state, and compare every output.

    Where a forward selects (top-k, boxes that do not overlap, thresholds) and the two outputs cannot be compared, both
    get the dense model's selections, the tensors selected from are compared, and the proof says so. Where an operator
    of the model has no float64 form, float32 is used, and the proof says so. Where the output is 0 everywhere (a head
    that starts as zeros), parameters that are all 0 get the same random values in both.

    Args:
        model: The dense model; it is not changed.
        small: The shrunk model; it is not changed.
        masks: The masks of the dense model.
        example: What both are called with.
        options: The inputs and modes; None for the usual.
        equality: False where no equality can hold; then the error is only measured.
        plan: How the shrunk model was cut, to fill parameters that are 0.
        how: How the dense model is run; None for the usual.

    Returns:
        The proof.

    Raises:
        ProofError: The shrunk model does not compute what the masked one does, or does not run.
        DenseProofError: The masked model does not run on the example, or in none of the modes.
        ShapeProofError: Likewise, for an input of another shape than the example's only.
    """
    options, how = options or ProofOptions(), how or DenseRun()
    larger = larger_inputs(how.recording)
    refused: list[Refused] = []
    inputs = proof_inputs(model, example, options, how.traced, larger, refused, how.recording)
    prover = _Prover(
        model, small, masks, torch.float64, options.tolerance, equality, bypassed=how.bypassed, plan=plan
    )
    try:
        found = prover.compare(inputs)
    except _WideTypeError:
        prover.dtype, prover.tolerance = torch.float32, max(options.tolerance, 1e-4)
        found = prover.compare(inputs)
    if not found:
        raise _in_no_mode(model, options, prover.failure) from prover.failure
    prover.check_recorded(example, options, how, larger)
    fills = (None, None) if plan is None or _any_output(found) else random_fills(model, masks, plan)
    if fills[0]:
        prover.fills = fills
        found = prover.compare(inputs)
    return replace(
        _proof_of(prover, found, tuple(fills[0] or ())),
        untrained=prover.untrained,
        unreached=_unreached(prover, found, example, options, how.recording),
        refused=(*refused, *prover.refused.values()),
    )


def _unreached(
    prover: _Prover,
    found: Sequence[tuple[ProofInput, str, ModelRun, float, float]],
    example: Example,
    options: ProofOptions,
    recorded: Trace | None,
) -> tuple[str, ...]:
    """The parameters that no case of the proof uses: only flags and trainings that became cases, or were checked."""
    if recorded is None:
        return ()
    names = {name for name, ref in recorded.parameters.items() if ref.role == "parameter"}
    idle = names - used_tensors(recorded)
    if not idle:
        return ()
    more = [each.recorded for each, *_ in found if each.recorded is not None]
    trained = options.training is not False or any(mode == "train" for _, mode, *_ in found)
    if trained and not prover.untrained:
        training = options.training if own_call(options.training) else True
        second = training_run(recorded, prover.model, example, training)
        more += [] if second is None else [second.trace]
    return tuple(sorted(idle.difference(*map(used_tensors, more))))


def _proof_of(
    prover: _Prover, found: Sequence[tuple[ProofInput, str, ModelRun, float, float]], filled: tuple[str, ...]
) -> Proof:
    """The proof that the comparisons of all inputs add up to: the largest difference, and every case."""
    cases = tuple(
        ProofCase(each.what, each.shapes, mode, math.nan if want.shapes_only else relative(absolute, scale))
        for each, mode, want, absolute, scale in found
    )
    _, _, want, absolute, scale = max(found, key=lambda one: relative(*one[3:]))
    dtype = str(prover.dtype).removeprefix("torch.")
    error = relative(absolute, scale)
    selected = tuple(dict.fromkeys(name for _, _, run, *_ in found for name in run.selected))
    outputs = len(want.outputs)
    return Proof(
        error,
        absolute,
        scale,
        prover.tolerance,
        outputs,
        prover.equality,
        dtype,
        filled,
        cases,
        selected=selected,
        bypassed=prover.bypassed,
        shapes_only=any(run.shapes_only for _, _, run, *_ in found),
    )
