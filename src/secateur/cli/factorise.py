"""The verb `factorise`: layers of a model given by name as two smaller ones each, in one file.

>>> [verb.__name__ for verb in VERBS]
['factorise']
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.calibrating import CalibrationFlags
from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags
from secateur.cli.options import OutputFlags
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["VERBS"]


@with_flags
def factorise(
    model: InputFlags,
    keep: Annotated[float, typer.Option("--keep", help="Share of the model's cost that remains.")] = 0.5,
    of: Annotated[str, typer.Option("--of", help="The cost: macs or params.")] = "macs",
    out: Annotated[
        Path, typer.Option("--out", help="The small model: a .sct file that holds ranks and weights.")
    ] = Path("low-rank.sct"),
    spatial: Annotated[
        bool, typer.Option("--spatial", help="A 3x3 convolution becomes one of 3x1 and one of 1x3.")
    ] = False,
    *,
    calibration: CalibrationFlags,
    output: OutputFlags,
) -> None:
    """Replace layers by two smaller ones each, with the ranks of least error at a cost, and write one file."""
    from secateur.budget.macs import Macs
    from secateur.budget.params import Params
    from secateur.container.archive import save
    from secateur.metrics import measure as take
    from secateur.pruning.low_rank import factorise as factorised

    if of not in ("macs", "params"):
        raise OptionError(f"--of: expected macs or params, got {of!r}")
    if calibration.calibrate_passes:
        raise OptionError("factorise: --calibrate-passes is for shrink and pack; leave it out")
    net, earlier = _not_cut(model)
    example = model.example(net)
    data = calibration.inputs(net, model.folder()) if calibration.wanted else None
    budget = Macs(keep) if of == "macs" else Params(keep)
    found = factorised(net, budget, example, data=data, spatial=spatial)
    saved = save(found.model, out, plan=found.plan if earlier is None else earlier.then(found.plan))
    before, after = (take(one, example, what=["params", "macs", "size"]) for one in (net, found.model))
    if output.json:
        print_json(
            {
                "file": str(out),
                "file_bytes": saved.size,
                "ranks": found.ranks,
                "errors": found.errors,
                "proof_error": found.proof_error,
                "params": [before["params"].value, after["params"].value],
                "macs": [before["macs"].value, after["macs"].value],
            }
        )
        return
    show_table(
        ["layer", "rank", "error"],
        [[name, str(rank), f"{found.errors[name]:.2%}"] for name, rank in found.ranks.items()],
        right=(1, 2),
    )
    rows = [[name, before[name].text(), after[name].text()] for name in ("params", "macs", "size")]
    say()
    show_table(["", "before", "after"], rows, right=(1, 2))
    what = "outputs on the images" if calibration.wanted else "weights"
    say(
        f"\nerror: the share of a layer's squared {what} that is lost; {found.proof_error:.1e} from truncated dense "
        f"weights, in float64; {out}: {saved.size:,} bytes"
    )
    if not model.trained():
        say("warning: no weights were given, so those of the file are random", error=True)


def _not_cut(model: InputFlags) -> tuple[nn.Module, ShrinkPlan | None]:
    """The model, and the plan of layers that were factorised before; a cut model is refused before any work."""
    net, earlier = model.build_cut()
    if earlier is not None and not earlier.factors:
        raise OptionError(
            f"factorise: expected a model that was not cut, and {model.weights} holds a cut one; factorise first, then "
            "prune and shrink"
        )
    return net, earlier


VERBS = (factorise,)
