"""`shrink`: remove pruned channels from a model and prove the result equal; `explain`: list what it can remove.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)).eval()
>>> x = torch.randn(2, 3, 4, 4)
>>> masks = sc.prune(model, granularity="channel", budget=0.5, example=x)
>>> small = sc.shrink(model, masks, x)
>>> small.model[0], small.proof.holds
(Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), True)
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.errors import NothingToDoError, OptionError, ProofError
from secateur.execution.example import Training, check_training
from secateur.execution.sound_weights import check_sound
from secateur.execution.verb import verb
from secateur.structure.beyond_inputs import warn_of_unreached
from secateur.structure.beyond_masks import warn_of_constants
from secateur.structure.carried import carry_optimizer
from secateur.structure.cut.plan import ShrinkPlan, mark_model
from secateur.structure.cut.trial import without_locked
from secateur.structure.cutting import Cut, CutOptions, cut
from secateur.structure.depth.leaving import FewerLayers, without_blocks
from secateur.structure.explain import cut_by_default, default_names, explained, layer_rows
from secateur.structure.explanation import Explanation
from secateur.structure.groups.couplings import analyse
from secateur.structure.groups.labels import Lock
from secateur.structure.proof import Proof, ProofLike, ProofOptions, as_proof_options
from secateur.structure.proving import DenseProofError, DenseRun, ShapeProofError, prove
from secateur.structure.shrunk_files import load_shrunk, reestimate_batch_norm, save_shrunk
from secateur.structure.trace.trace import trace

__all__ = ["Shrunk", "explain", "load_shrunk", "reestimate_batch_norm", "shrink"]


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller model, the proof that it computes what the masked one did, and the plan that made it.

    Attributes:
        model: The smaller model, of the same class.
        proof: How far its outputs are from those of the masked model.
        plan: The cut as plain data; it cuts any freshly built model of the same class. masks: The masks of the smaller
            tensors: zeros within the remaining channels. locked: Channels that the masks drop and the structure keeps,
            and why.
        unsaid: Why the configuration of a Hugging Face model cannot describe the new widths; empty where it can. Such
            a model is loaded with its plan, not with `from_pretrained`.
    """

    model: nn.Module
    proof: Proof
    plan: ShrinkPlan
    masks: Masks
    locked: tuple[Lock, ...] = ()
    unsaid: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights and the plan as one safetensors file; `load_shrunk(path, into=fresh_model)` reads it.

        Args:
            path: The file to write.
        """
        save_shrunk(self.model, self.plan, path)

    def carry(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer for the smaller model, with the state of the previous one, cut like the weights.

        Args:
            optimizer: The optimizer of the model before.
            model: That model.

        Returns:
            A new optimizer of the same class and options.

        Raises:
            PlanError: The optimizer holds a parameter that the model does not have.
            OptionError: It has state that cannot be cut like the weights, as LBFGS has, or its class cannot be called
                with its options.
        """
        return carry_optimizer(optimizer, model, self.model, self.plan)

    def __str__(self) -> str:
        before = sum(math.prod(shape) for shape in self.plan.shapes.values())
        after = sum(math.prod(self.plan.shape_after(name)) for name in self.plan.shapes)
        lines = [
            f"{type(self.model).__name__}: {self.proof}",
            f"{len(self.plan.keep)} tensors cut: {before:,} elements before, {after:,} after",
        ]
        lines += [f"refused by the dense model: {each}" for each in self.proof.refused[:3]]
        lines += [
            f"layers kept of {container or 'the model'}: {', '.join(keys) or 'none'}"
            for container, keys in self.plan.layers.items()
        ]
        lines += [f"kept whole at {lock.text()}" for lock in self.locked]
        if self.unsaid:
            lines.append(
                f"from_pretrained alone cannot load it: {self.unsaid}; write it with sc.save_pretrained, which adds a "
                "modelling file where one is needed (loaded with trust_remote_code=True), or with small.save() for "
                "sc.load_shrunk()"
            )
        return "\n".join(lines)


@verb
def explain(
    model: nn.Module,
    example: object,
    budget: float | None = None,
    *,
    across_norm: bool = False,
    head_size: bool = False,
    training: Training = True,
) -> Explanation:
    """Report what can be cut: groups and whole blocks, what is locked and why, and what a budget would remove.

    It counts the units that `prune` with granularity "channel" would choose from and `shrink` would cut: a trial cut of
    half of every group finds the locks that only `shrink` meets. It does not raise if there is nothing to remove.

    Args:
        model: The model; it is not changed.
        example: What the model is called with: one value, a tuple of arguments, or a dict of keywords.
        budget: The share of each group to remove, 0 <= budget < 1; None leaves this part out.
        across_norm: Cut through normalisations as well, as the same option of `shrink` does.
        head_size: Attention heads become smaller instead of fewer, as granularity "head_size" cuts them.
        training: What the model is called with in training, where it has to run too, as `ProofOptions` says: True for
            the example itself, False where it is never trained, or another example, such as (images, targets).

    Returns:
        Groups, locks and totals; it prints as a table.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = explain(model, torch.zeros(1, 4), budget=0.5)
    >>> [(row.name, row.count) for row in found.groups]
    [('0', 8)]
    """
    model = plain_model(model)
    check_training(training)
    structure = analyse(model, example, across_norm=across_norm, training=training, sizes=head_size)
    names = default_names(structure, model)
    wanted, which = (lambda group: cut_by_default(group, names)), "by default"
    tried = without_locked(structure, model, example, wanted, which, training)
    found = explained(tried, model, budget, names)
    return replace(found, layers=layer_rows(model, example))


@verb
def shrink(
    model: nn.Module,
    masks: Masks,
    example: object,
    *,
    coupling: str = "union",
    round_to: int | None = None,
    at_least: int = 1,
    across_norm: bool = False,
    proof: ProofLike = None,
) -> Shrunk:
    """Remove the channels and whole blocks that the masks drop from a copy of the model, and prove the result.

    Args:
        model: The model; it is never changed.
        masks: The masks, as `prune` gives them.
        example: What the model is called with: one value, a tuple of arguments, or a dict of keywords.
        coupling: "union" takes masks chosen in any way: a channel is removed if all layers that compute it dropped it,
            or all that read it; other zeros stay in place. "coupled" expects masks that agree on every member of a
            group, as granularity "channel" makes them.
        round_to: Widths stay at a multiple of this number.
        at_least: The least number of units of a group that remain.
        across_norm: Cut through normalisations as well; then no equality can hold, and none is claimed.
        proof: The inputs and modes of the proof: None for the usual (the example and inputs of other shapes, with
            gradients and without), modes such as ["eager", "no_grad", "compile", "export"], or `ProofOptions`.

    Returns:
        The smaller model, its proof, its plan and the masks that remain.

    Raises:
        ProofError: The smaller model does not compute what the masked one does.
        NothingToDoError: No channel is dropped by all the layers that share it.
        MaskMismatchError: With coupling="coupled", masks of one group disagree.
        NonFiniteError: A weight is NaN.
    """
    model = plain_model(model)
    _check_options(coupling, round_to, at_least)
    masks.check(model)
    check_sound(model, "NaN on both sides proves nothing")
    options = CutOptions(coupling, round_to, at_least, across_norm)
    work = _ProvenCut(model, masks, example, options, as_proof_options(proof))
    done, found = work.run()
    if found.equality:
        found = replace(found, besides=warn_of_constants(model, masks, done, example, found))
    warn_of_unreached(model, done.plan, found)
    plan = replace(done.plan, proof=found.domain)
    mark_model(done.model, plan, model)
    return Shrunk(done.model, found, plan, done.left, (*done.locked, *work.locks.values()), done.unsaid)


_MOST_LEFT_OUT = 8
_SHAPED = "the meaning of its positions depends on the shape of the input"
_ONE_SHAPE = (
    "proof=sc.ProofOptions(other_shapes=False) cuts and proves for the shape and flags of the example alone"
)
_TRAINED = "its positions mean something else in training"
_WHY = {"training": _TRAINED, "flag": "its positions mean something else where a flag is turned round"}
_UNTRAINED = "proof=sc.ProofOptions(training=False) cuts and proves for evaluation mode alone"
_CHEAP_MACS = 500_000_000
"""Up to this number of multiply-accumulates of the dense model, every input is proved in every mode."""


@dataclass
class _ProvenCut:
    """A cut and its proof; groups that break it for other shapes of the input are left out, and a lock says so."""

    model: nn.Module
    masks: Masks
    example: object
    options: CutOptions
    proof: ProofOptions
    locks: dict[str, Lock] = field(default_factory=dict)

    @cached_property
    def fewer(self) -> FewerLayers | None:
        """The model without the blocks that the masks drop whole; None where they drop none."""
        return without_blocks(self.model, self.masks, self.example)

    def run(self) -> tuple[Cut, Proof]:
        """Cut and prove, again for every group that has to be left out."""
        if self.fewer is not None:
            _check_runs(self.model, self.fewer, self.example)
        while True:
            names = None if not self.locks else self.names() - self.locks.keys()
            try:
                return self.proven(self.example, self.proof, names)
            except ShapeProofError as failure:
                found = self.breaking(self.example if failure.case == "training" else failure.example, names)
                if len(found) != 1 or len(self.locks) == _MOST_LEFT_OUT:
                    raise
                name = found[0]
                reason = f"{_WHY.get(failure.case, _SHAPED)}: {failure.what}"
                self.locks[name] = Lock(np.zeros(0, int), reason, "proof", name)
            except DenseProofError:
                raise
            except ProofError as failure:
                raise ProofError(f"{failure}{self.said(names)}") from failure
            except NothingToDoError as failure:
                if not self.locks:
                    raise
                reasons = "; ".join(f"{name}: {lock.reason}" for name, lock in list(self.locks.items())[:3])
                trained = all(lock.reason.startswith(_TRAINED) for lock in self.locks.values())
                raise NothingToDoError(
                    f"no channel of {type(self.model).__name__} can be removed: {reasons}; "
                    + (_UNTRAINED if trained else _ONE_SHAPE)
                ) from failure

    def names(self) -> set[str]:
        """The names of all groups."""
        model = self.model if self.fewer is None else self.fewer.model
        structure = analyse(
            model, self.example, across_norm=self.options.across_norm, training=self.proof.training
        )
        return {group.name for group in structure.groups}

    def proven(
        self, example: object, proof: ProofOptions, names: Collection[str] | None, careful: bool = False
    ) -> tuple[Cut, Proof]:
        """Cut the groups of these names and prove it on this example."""
        options = replace(self.options, careful=careful, only=names, training=self.proof.training)
        done = cut(self.model, self.masks, self.example, options, self.fewer)
        proof = replace(proof, every=proof.every or done.macs <= _CHEAP_MACS)
        try:
            how = DenseRun(done.traced, done.bypassed, done.recording)
            return done, prove(
                self.model, done.model, done.masks, example, proof, not done.crossed, done.plan, how
            )
        except ProofError:
            if done.tried:
                raise
        return self.proven(example, proof, names, True)  # a call was given a size

    def breaking(self, example: object, names: Collection[str] | None) -> list[str]:
        """The group that breaks the proof on an example when it is cut alone, or several that only do so together."""
        proof = replace(self.proof, other_shapes=False)
        suspects = sorted(self.names() if names is None else names)

        def breaks(part: Sequence[str]) -> bool:
            try:
                self.proven(example, proof, frozenset(part))
            except ProofError:
                return True
            except NothingToDoError:
                pass
            return False

        while len(suspects) > 1:
            half = len(suspects) // 2
            part = next((part for part in (suspects[:half], suspects[half:]) if breaks(part)), None)
            if part is None:
                break
            suspects = part
        return suspects

    def said(self, names: Collection[str] | None) -> str:
        """The group that breaks the proof of the example, as the end of an error's text."""
        found = self.breaking(self.example, names)
        if not found:
            return ""
        if len(found) != 1:
            return f" No half of the groups {', '.join(map(repr, found[:8]))} breaks it by itself"
        name = found[0]
        structure = analyse(
            self.model, self.example, across_norm=self.options.across_norm, training=self.proof.training
        )
        slots = [slot for group in structure.groups if group.name == name for slot in group.slots]
        layers = dict.fromkeys(slot.name.rpartition(".")[0] or slot.name for slot in slots)
        return f" Cut alone, group {name!r} breaks it: its channels are shared by {', '.join(layers)}"


def _check_options(coupling: str, round_to: int | None, at_least: int) -> None:
    if coupling not in ("union", "coupled"):
        raise OptionError(f"coupling: expected 'union' or 'coupled', got {coupling!r}")
    if round_to is not None and round_to < 1:
        raise OptionError(f"round_to: expected a positive multiple such as 8, got {round_to!r}")
    if at_least < 1:
        raise OptionError(f"at_least: expected at least 1 unit a group, got {at_least!r}")


def _check_runs(model: nn.Module, fewer: FewerLayers, example: object) -> None:
    """Raise a `ProofError` if the forward needs the removed blocks."""
    found = trace(fewer.model, example, partial=True, mode="real")
    if found.error is not None:
        paths = ", ".join(repr(block.path) for block in fewer.blocks)
        raise ProofError(
            f"without {paths} the forward of {type(model).__name__} does not run ({type(found.error).__name__}: "
            f"{str(found.error)[:200]}): it needs all of its layers; leave these out with skip=, the model is unchanged"
        ) from found.error
