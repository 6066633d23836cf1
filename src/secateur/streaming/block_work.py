"""`BlockWork`: prune one block of a model on its inputs, refit it, and cut it where channels or heads are removed.

It holds only options, so it can be sent to another process, and the result does not depend on the process.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import nn

from secateur.budget import Budget, Candidates, Selection
from secateur.compensation.fitting import FittedLayer, Setting, fit
from secateur.compensation.solver import LeastSquares
from secateur.core.context import Context
from secateur.core.masks import Masks
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.errors import SecateurError
from secateur.execution.example import Batch
from secateur.granularity import Granularity
from secateur.pruning.prune import PruneOptions, prune
from secateur.pruning.scoring import unit_scores
from secateur.pruning.unit_masks import masks_of
from secateur.streaming.rewriting import Row
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.proof import ProofLike
from secateur.structure.shrink import shrink

__all__ = ["COUNTS", "BlockDone", "BlockWork", "Hidden", "keywords_of"]

COUNTS = ("weights", "kept")
"""The columns of a block's rows that are whole numbers."""

Hidden: TypeAlias = list[torch.Tensor]
"""The hidden states of every batch."""


@dataclass(frozen=True, eq=False)
class BlockDone:
    """The result for one block.

    Attributes:
        state: Its tensors, by the names within it.
        rows: Its rows of the report.
        dense: The outputs of the dense block, for every batch.
        student: The outputs of the changed block, for every batch.
        plan: The shrink plan of a block that was cut.
    """

    state: Mapping[str, torch.Tensor]
    rows: list[Row]
    dense: Hidden
    student: Hidden
    plan: ShrinkPlan | None = None


@dataclass(frozen=True, eq=False)
class BlockWork:
    """The options that determine the result for a block.

    Attributes:
        rule: How weights are scored.
        grain: What is removed as one unit.
        targets: The weights of all blocks that take part.
        budgets: The budget of every tensor; of groups of channels, the one named "".
        solver: How layers are solved; None leaves the remaining weights as they are.
        cuts: Whether removed channels or heads are cut out of the block.
        proof: The options of the proof of a block that was cut.
        seed: For criteria that draw, and for which rows of very many are used.
    """

    rule: Criterion
    grain: Granularity
    targets: Mapping[str, Target]
    budgets: Mapping[str, Budget]
    solver: LeastSquares | None = None
    cuts: bool = False
    proof: ProofLike = None
    seed: int = 0

    @torch.no_grad()
    def run(self, prefix: str, block: nn.Module, at: Sequence[Batch], now: Sequence[Batch]) -> BlockDone:
        """Prune, refit and cut a block.

        Args:
            prefix: Its name in the model, with a dot.
            block: The dense block.
            at: The calls of the dense model, for every batch.
            now: The calls of the changed model.
        """
        masks = self._masks(prefix, block, at)
        student = copy.deepcopy(block)
        if masks:
            Masks(masks).apply_(student)
        rows: list[Row] = []
        if self.solver is None:
            outputs = [block(*b.args, **b.kwargs) for b in at], [student(*b.args, **b.kwargs) for b in now]
        else:
            device = torch.device("cpu")
            setting = Setting(
                block, student, at, dict(masks), frozenset(), device, self.seed, student_batches=now
            )
            rows = [_row(prefix, layer) for layer in fit(setting, self.solver)]
            assert setting.outputs is not None
            outputs = setting.outputs
        dense, changed = ([each[0] if isinstance(each, tuple) else each for each in part] for part in outputs)
        if self.cuts:
            return self._cut(prefix, student, masks, now[0], dense, changed)
        if self.solver is None:
            rows = [
                {"name": f"{prefix}{name}", "weights": mask.numel(), "kept": int(mask.sum())}
                for name, mask in masks.items()
            ]
        return BlockDone(student.state_dict(), rows, dense, changed)

    def _cut(
        self,
        prefix: str,
        student: nn.Module,
        masks: Mapping[str, torch.Tensor],
        batch: Batch,
        dense: Hidden,
        changed: Hidden,
    ) -> BlockDone:
        """Cut the masked channels out of the block and prove the result."""
        name = prefix.rstrip(".")
        try:
            small = shrink(student, Masks(masks), keywords_of(student, batch), proof=self.proof)
        except SecateurError as error:
            raise type(error)(f"block {name!r}: {error}") from error
        energy = sum(float(one.double().square().sum()) for one in dense) or 1.0
        error_of = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(dense, changed))
        row: Row = {
            "name": name,
            "weights": sum(each.numel() for each in student.parameters()),
            "kept": sum(each.numel() for each in small.model.parameters()),
            "error": error_of / energy,
            "proof": small.proof.error,
        }
        return BlockDone(small.model.state_dict(), [row], dense, changed, small.plan)

    # -- masks -----------------------------------------------------------------------------------------
    def _masks(self, prefix: str, block: nn.Module, batches: Sequence[Batch]) -> Mapping[str, torch.Tensor]:
        """The masks of a block by the names within it."""
        local = {
            name.removeprefix(prefix): _renamed(target, prefix)
            for name, target in self.targets.items()
            if name.startswith(prefix)
        }
        if not local:
            return {}
        if self.cuts:
            return prune(
                block,
                self.rule,
                self.grain,
                self.budgets[""],
                example=keywords_of(block, batches[0]),
                data=[keywords_of(block, batch) for batch in batches],
                options=PruneOptions(only=[target.layer for target in local.values()], seed=self.seed),
            )
        context = Context(data=list(batches), seed=self.seed)
        targets = list(local.values())
        units = [unit for target in targets for unit in self.grain.units(block, [target], context)]
        scores = unit_scores(self.rule, block, targets, units, context)
        chosen = {}
        for unit in units:
            budget = self.budgets.get(f"{prefix}{unit.name}")
            here = Candidates(unit, scores[unit.name], shapes={unit.name: local[unit.name].shape})
            selection = Selection((here,), block, (local[unit.name],), context)
            chosen[unit.name] = (
                torch.ones(unit.count, dtype=torch.bool)
                if budget is None
                else budget.choose(selection)[unit.name]
            )
        return dict(masks_of(block, units, chosen, None))


def keywords_of(block: nn.Module, batch: Batch) -> dict[str, object]:
    """A call of a block with keywords only: an example is either arguments or keywords.

    Args:
        block: The block.
        batch: The call.

    >>> from torch import nn
    >>> sorted(keywords_of(nn.Linear(2, 2), Batch((torch.zeros(1, 2),))))
    ['input']
    """
    bound = inspect.signature(block.forward).bind(*batch.args, **batch.kwargs)
    found: dict[str, object] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def _renamed(target: Target, prefix: str) -> Target:
    """A target under the names within its block."""
    return replace(target, name=target.name.removeprefix(prefix), layer=target.layer.removeprefix(prefix))


def _row(prefix: str, layer: FittedLayer) -> Row:
    return {
        "name": f"{prefix}{layer.name}",
        "weights": layer.numel,
        "kept": layer.kept,
        "before": layer.before,
        "after": layer.after,
    }
