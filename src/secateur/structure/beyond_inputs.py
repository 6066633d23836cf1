"""`warn_of_unreached`: layers that the inputs of a proof do not reach, and that a cut may have left with other widths.

A layer that no input reaches is not cut: what it would read is not known. Where it reads what was cut, a call that does
reach it fails. That is likely where it is as wide as the dense model was at one of the axes that were cut.
"""

from __future__ import annotations

from torch import nn

from secateur.core.user_warnings import warn
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.proof import Proof, listed_layers

__all__ = ["warn_of_unreached"]


def warn_of_unreached(model: nn.Module, plan: ShrinkPlan, proof: Proof) -> None:
    """Warn of layers that were not reached and have a width that was cut elsewhere.

    Args:
        model: The dense model.
        plan: What was cut.
        proof: The proof, which names what no input reached.
    """
    widths = {plan.shapes[name][axis] for name, axes in plan.keep.items() for axis in axes}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    likely = [
        name
        for name in proof.unreached
        if name in parameters
        and widths & set(parameters[name].shape)
        and (after := plan.name_after(name)) is not None  # it did not leave with its block
        and after not in plan.keep
    ]
    if likely:
        warn(
            f"{listed_layers(likely)}: not reached by the example, and so neither cut nor proved, but as wide as "
            "layers that were cut. If a call does reach them it may fail now: keep what they read whole with skip= in "
            "prune, or give an example that reaches them"
        )
