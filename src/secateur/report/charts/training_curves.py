"""Training, epoch by epoch: losses and accuracies of every training, one after the other.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("epoch_loss", 1 / e, context={"variant": "train", "epoch": e}) for e in (1, 2)])
>>> training_curves(found)[0].table.rows
(('train', 1, 'loss', 1.0), ('train', 2, 'loss', 0.5))
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import fitting_legend, legend_selection, whole_ticks
from secateur.report.reading import finite

__all__ = ["training_curves"]

_MOST = 12


def training_curves(measurements: Measurements) -> list[Figure]:
    """A figure for the losses and one for everything that is a share."""
    found = [
        item for item in measurements if item.name.startswith("epoch_") and finite(item.value) is not None
    ]
    by_training: dict[tuple[str, int, str], list[Measurement]] = {}
    for item in found:
        key = (
            str(item.context.get("run", "")),
            int(item.context.get("trial", 0)),
            str(item.context.get("variant", "training")),
        )
        by_training.setdefault(key, []).append(item)
    unique: dict[tuple[str, int, str], list[Measurement]] = {}
    seen = set()
    for key, items in by_training.items():  # trials that share a baseline share its curve
        mark = (key[0], key[2], tuple((item.name, item.value) for item in items))
        if mark not in seen:
            seen.add(mark)
            unique[key] = items
    chosen = dict(list(unique.items())[:_MOST])
    runs, trials = {key[0] for key in chosen}, {key[1] for key in chosen}
    rows = []
    for (run, trial, variant), items in chosen.items():
        parts = [run] * (len(runs) > 1) + [variant] + [f"trial {trial + 1}"] * (len(trials) > 1)
        rows += [
            (
                " · ".join(parts),
                int(item.context["epoch"]),
                item.name.removeprefix("epoch_").replace("_", " "),
                item.value,
            )
            for item in items
        ]
    note = "" if len(unique) <= _MOST else f" The first {_MOST} of {len(unique)} trainings are drawn."
    figures = []
    for name, title, words, scale in (
        ("loss", "Loss, epoch by epoch", lambda what: "loss" in what, "log"),
        ("accuracy", "Accuracy, epoch by epoch", lambda what: "loss" not in what, "linear"),
    ):
        own = tuple(row for row in rows if words(row[2]))
        if own:
            figures.append(_curves(name, title, own, scale, note))
    return figures


def _curves(
    name: str, title: str, rows: tuple[tuple[str, int, str, float], ...], scale: str, note: str
) -> Figure:
    data = [dict(zip(("training", "epoch", "what", "value"), row)) for row in rows]
    logarithmic = scale == "log" and all(row[3] > 0 for row in rows)
    choose = legend_selection("training", "training")
    domain = list(dict.fromkeys(row[0] for row in rows))
    epochs = whole_ticks(min(row[1] for row in rows), max(row[1] for row in rows))
    chart = (
        alt.Chart(alt.Data(values=data))
        .mark_line(point=alt.OverlayMarkDef(size=22))
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(values=epochs, format="d", grid=False, title="epoch")),
            y=alt.Y(
                "value:Q",
                scale=alt.Scale(type="log") if logarithmic else alt.Scale(zero=False, nice=True),
                axis=alt.Axis(
                    format="%" if name == "accuracy" else ".3~g",
                    title=f"{name}, log scale" if logarithmic else name,
                    tickCount=5,
                ),
            ),
            color=alt.Color(
                "training:N", sort=None, scale=alt.Scale(domain=domain), legend=fitting_legend(domain)
            ),
            strokeDash=alt.StrokeDash("what:N", sort=None),
            opacity=alt.condition(choose, alt.value(1.0), alt.value(0.1)),
            tooltip=["training:N", "what:N", "epoch:Q", alt.Tooltip("value:Q", format=".4~g")],
        )
        .add_params(choose)
        .properties(width="container", height=280)
    )
    last = rows[-1]
    return Figure(
        f"training-{name}",
        "training",
        title,
        "Training values are means over the epoch as it ran; validation values are of the images held back, after "
        f"the epoch.{note}",
        chart,
        f"{len({row[0] for row in rows})} trainings; the last point is {last[2]} {last[3]:.4g} after epoch {last[1]} "
        f"of {last[0]}.",
        FigureTable(("training", "epoch", "what", "value"), rows),
    )
