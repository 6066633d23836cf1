"""`Proof`: the inputs on which masked and shrunk model were compared, their largest difference, and its domain.

A proof is a list of cases: an input of certain shapes, run in a certain mode, by both models. It says nothing about
shapes and modes that are not among its cases. `proving` makes proofs; here are only the values.

>>> case = ProofCase("example", ((2, 3, 8, 8),), "eager", 3e-16)
>>> proof = Proof(error=3e-16, absolute=1e-15, scale=4.0, tolerance=1e-9, outputs=1, cases=(case,))
>>> proof.holds
True
>>> print(proof)  # doctest: +NORMALIZE_WHITESPACE
equal to the masked model: largest difference 3.00e-16 of the largest output (float64, tolerance 1e-09)
on (2, 3, 8, 8) [eager]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from secateur.core.html_table import html_table
from secateur.errors import OptionError
from secateur.execution.example import ComparedByCall, Training, check_training
from secateur.structure.trace.refused import Refused

__all__ = ["MODES", "Proof", "ProofCase", "ProofDomain", "ProofLike", "ProofOptions", "as_proof_options"]

MODES = ("eager", "no_grad", "compile", "export", "train")
"""How a model can be run: with gradients recorded, without, by torch.compile, as exported by torch.export, or in
training, with a backward pass.
"""

Shapes = tuple[tuple[int, ...], ...]

_NAMED = 4
"""How many of the refused shapes a proof's text names."""


@dataclass(frozen=True, eq=False)
class ProofOptions(ComparedByCall):
    """What is proved.

    Attributes:
        modes: How both models are run: any of `MODES`.
        training: What the model is called with in training, which is checked too: True for the example itself, where a
            module that is not torch's own may do something else there; False where it is never trained; or another
            example, such as (images, targets) for a detector, whose losses are compared then. It must run, give outputs
            of the same shapes, and let gradients reach the same parameters; its values must be equal too (torch's
            dropout layers are at 0) unless random numbers or rounding errors decide them. Where such numbers decide
            what runs (layers skipped at random), several seeds are compared together. Large models are only recorded
            there, without values, unless `every` is set or a call of its own is given.
        other_shapes: Whether other batch sizes, image sizes and lengths are proved too, where the model accepts them,
            and the other way of every flag that decides which parameters are used: a boolean, or a text that names a
            branch of an `nn.ModuleDict`, also where the example leaves it to the forward's default. Without it,
            what a flag alone runs is cut with the rest all the same, and not proved.
        every: Whether every input is run in every mode. Otherwise large inputs are run in one mode each, so that every
            mode and every input occurs.
        tolerance: The largest difference that counts as equal, as a share of the largest output.

    Raises:
        OptionError: A mode is not known, there is none, the tolerance is not positive, or `training` is None.
    """

    modes: tuple[str, ...] = ("eager", "no_grad")
    other_shapes: bool = True
    every: bool = False
    tolerance: float = 1e-9
    training: Training = True

    def __post_init__(self) -> None:
        check_training(self.training)
        object.__setattr__(self, "modes", tuple(dict.fromkeys(self.modes)))
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise OptionError(
                f"proof: expected modes among {', '.join(map(repr, MODES))}, got {list(self.modes)!r}"
            )
        if not self.tolerance > 0:
            raise OptionError(f"tolerance: expected a positive number, got {self.tolerance!r}")


ProofLike: TypeAlias = ProofOptions | Sequence[str] | None
"""Every form in which a proof is asked for: options, or the modes in which every input is run, or None for the
usual.
"""


def as_proof_options(proof: ProofLike) -> ProofOptions:
    """The options that are meant.

    Args:
        proof: Options; or modes, in all of which every input is run; or None for the usual.

    >>> as_proof_options(["eager", "compile"])
    ProofOptions(modes=('eager', 'compile'), other_shapes=True, every=True, tolerance=1e-09, training=True)
    """
    if proof is None:
        return ProofOptions()
    if isinstance(proof, ProofOptions):
        return proof
    return ProofOptions((proof,) if isinstance(proof, str) else tuple(proof), every=True)


def listed_layers(parameters: Iterable[str]) -> str:
    """The layers of some parameters for a sentence: the first ones by name, and how many more there are.

    Args:
        parameters: Their names.

    >>> listed_layers(["a.weight", "a.bias", "scale", "b.weight", "c.weight", "d.weight"])
    'a, scale, b, c and 1 more'
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f"{', '.join(layers[:_NAMED])}{more}"


@dataclass(frozen=True)
class ProofCase:
    """One input, run in one mode by both models.

    Attributes:
        what: "example" (the values given), or "fresh", "batch" or "size": fresh values of the example's shape, of
            another batch size, or of another image size or length; "flag" where a boolean or the name of a branch is
            another, by which the model chooses what it runs; "training" for the check of the forward in training.
        shapes: The shapes of the input's tensors.
        mode: How both models were run: one of `MODES`.
        error: The largest difference over the largest output; NaN where shapes alone were compared.
    """

    what: str
    shapes: Shapes
    mode: str
    error: float


@dataclass(frozen=True)
class ProofDomain:
    """Where a proof holds, as a plan carries it: without the measured error, which differs between machines.

    Attributes:
        dtype: The precision in which both models were run.
        tolerance: The largest difference that counted as equal.
        cases: (shapes of the input's tensors, modes).
    """

    dtype: str
    tolerance: float
    cases: tuple[tuple[Shapes, tuple[str, ...]], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        cases = [[[list(shape) for shape in shapes], list(modes)] for shapes, modes in self.cases]
        return {"dtype": self.dtype, "tolerance": self.tolerance, "cases": cases}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProofDomain:
        """The inverse of `to_dict`, checked.

        Args:
            data: Plain data.

        Raises:
            ValueError: It is not a result of `to_dict`.
        """
        cases = []
        for shapes, modes in data["cases"]:
            read = tuple(tuple(int(size) for size in shape) for shape in shapes)
            if any(size < 0 for shape in read for size in shape) or any(mode not in MODES for mode in modes):
                raise ValueError(f"a case of the proof: expected shapes and modes, got {shapes!r}, {modes!r}")
            cases.append((read, tuple(str(mode) for mode in modes)))
        tolerance, dtype = float(data["tolerance"]), str(data["dtype"])
        if not (math.isfinite(tolerance) and tolerance > 0) or dtype not in ("float64", "float32"):
            raise ValueError(f"the proof: expected a tolerance and a dtype, got {tolerance!r}, {dtype!r}")
        return cls(dtype, tolerance, tuple(cases))

    def __str__(self) -> str:
        return ", ".join(
            f"{' and '.join(map(str, shapes)) or 'no tensor'} [{', '.join(modes)}]"
            for shapes, modes in self.cases
        )


@dataclass(frozen=True)
class Proof:
    """The largest difference of the shrunk model's outputs from the masked model's, and the cases.

    Attributes:
        error: The largest absolute difference over the largest output (`absolute` over `scale`), of the worst case.
        absolute: The largest absolute difference of that case.
        scale: The largest absolute output of that case.
        tolerance: The largest error that counts as equal.
        outputs: The number of output tensors.
        equality: False where axes were cut across a normalisation on request: no equality can hold then, and the error
            is only reported.
        dtype: The precision in which both models were run.
        filled: Parameters of zeros that were given random values in both, because the output was 0 with them.
        cases: The inputs and modes that were run.
        selected: Operators that select (such as "topk" and "nms") whose choice, made by the masked model, was given to
            both, because their own outputs could not be compared; what they select from was compared as well. "float32"
            among them says that conversions to float32 inside the forward were left out: they hid the difference.
        shapes_only: Whether the outputs in training were compared by shape alone, as random numbers are drawn there, or
            rounding errors decide the values (batch norm over few positions).
        bypassed: Blocks of the dense model whose output was their input: the shrunk model does not have them, and a
            norm after the addition keeps zeros from standing for that.
        refused: Other shapes and flags that were tried and that the dense model does not accept, each with the reason.
        besides: What leaves with removed channels although the masks keep it, as biases behind masks of granularity
            "filter" do, and by how much that changes the outputs; empty where it changes none.
        untrained: Why nothing is proved of training, such as that the dense model does not run there on these inputs
            (it needs targets); empty where it is proved, or left out on request.
        unreached: Parameters that none of the proved forwards use: nothing is proved of what they compute.
    """

    error: float
    absolute: float
    scale: float
    tolerance: float
    outputs: int
    equality: bool = True
    dtype: str = "float64"
    filled: tuple[str, ...] = ()
    cases: tuple[ProofCase, ...] = ()
    selected: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()
    shapes_only: bool = False
    refused: tuple[Refused, ...] = ()
    besides: str = ""
    untrained: str = ""
    unreached: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def domain(self) -> ProofDomain:
        """The shapes and modes for which the proof holds."""
        modes: dict[Shapes, list[str]] = {}
        for case in self.cases:
            known = modes.setdefault(case.shapes, [])
            if case.mode not in known:
                known.append(case.mode)
        return ProofDomain(
            self.dtype, self.tolerance, tuple((shapes, tuple(each)) for shapes, each in modes.items())
        )

    def _repr_html_(self) -> str:
        """The cases in a notebook."""
        rows = (
            (case.what, " and ".join(map(str, case.shapes)), case.mode, f"{case.error:.1e}")
            for case in self.cases
        )
        verdict = f"{'holds' if self.holds else 'does not hold'}: {self}"
        return html_table(("input", "shapes", "mode", "error"), rows, [verdict])

    def __str__(self) -> str:
        where = f" on {self.domain}" if self.cases else ""
        choosing = [name for name in self.selected if name != "float32"]
        if choosing:
            where += f", with one choice for both at {', '.join(choosing)} and all they choose from compared"
        if "float32" in self.selected:
            where += ", without the conversions to float32 that the forward makes"
        if self.shapes_only:
            where += ", in training by shapes and gradients alone (random numbers or rounding errors decide the values)"
        if self.bypassed:
            where += f", with {', '.join(self.bypassed)} of the dense model bypassed"
        if self.refused:
            tried = list(dict.fromkeys(each.what for each in self.refused))
            more = f" and {len(tried) - _NAMED} more" if len(tried) > _NAMED else ""
            where += f"; not on {', '.join(tried[:_NAMED])}{more}, which the dense model refuses"
        if self.unreached:
            where += f"; not of {listed_layers(self.unreached)}, which these inputs do not reach"
        if self.untrained:
            where += f"; not in training: {self.untrained}"
        if not self.equality:
            return (
                "no equality: axes were cut across a normalisation; "
                f"outputs differ by {self.error:.2e} of the largest output{where}"
            )
        word = "equal to the masked model" if self.holds else "NOT equal to the masked model"
        if self.besides:
            word += f" {self.besides}"
        return (
            f"{word}: largest difference {self.error:.2e} of the largest output "
            f"({self.dtype}, tolerance {self.tolerance:.0e}){where}"
        )
