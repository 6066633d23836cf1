"""`Report`: the page, its figures and its tables, made from runs.

>>> from secateur.core.measurement import Measurement, Measurements
>>> from secateur.report.run import Run
>>> found = [Measurement("accuracy", 0.9, context={"variant": name}) for name in ("dense", "file")]
>>> report = Report([Run("demo", Measurements(found))])
>>> html = report.html()
>>> html.startswith("<!DOCTYPE html>"), "http-equiv=\\"Content-Security-Policy\\"" in html
(True, True)
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError
from secateur.report import charts, files, published, summary
from secateur.report.charts.network import two_architectures
from secateur.report.figure import Figure
from secateur.report.forms import is_plain
from secateur.report.printout import Pair, folded, side_by_side
from secateur.report.reading import trial_of
from secateur.report.repeats import joined
from secateur.report.run import Run, without_home
from secateur.report.theme import FONT, THEMES, vega_config
from secateur.report.trials import trials_table

__all__ = ["Report"]

_TABLE_ROWS = 120


class Report:
    """A page about one run, or about several side by side; runs that differ in the seed alone are judged as one."""

    def __init__(self, runs: Sequence[Run], title: str | None = None):
        self.runs = _distinct(runs)
        self.measurements = joined(self.runs)
        if not self.measurements:
            raise NothingToDoError(
                "nothing was measured, so there is nothing to report: expected at least one Measurement, got none; add "
                "a `measure` step to the recipe"
            )
        self.title = without_home(title) if title else " and ".join(run.name for run in self.runs)

    @property
    def headline(self) -> str:
        """The result in one line."""
        return summary.headline(self.measurements)

    @functools.cached_property
    def figures(self) -> list[Figure]:
        """Every figure that the data allows."""
        return charts.draw(self.measurements)

    @property
    def printout(self) -> tuple[tuple[str, str], list[Pair]] | None:
        """((name before, name after), matched lines) of print(model)."""
        pair = two_architectures(self.measurements)
        if pair is None or not pair[0].context.get("text"):
            return None
        one, two = (str(item.context["text"]) for item in pair)
        names = tuple(str(item.context.get("variant", "model")) for item in pair)
        return (names[0], names[1]), folded(side_by_side(one, two))

    def _printout_of(self) -> str:
        """Of which trial the models are whose print(model) is shown."""
        pair = two_architectures(self.measurements)
        return "" if pair is None else trial_of(self.measurements, pair[1])

    def html(self, following: str | None = None) -> str:
        """The page: one file, with everything in it.

        Args:
            following: For a page that follows a run while it is computed: how far the run is, in a sentence. The page
                then asks the server that it came from every two seconds whether there is more.

        Returns:
            HTML.
        """
        import jinja2

        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        parts = {name: _part(name) for name in ("page.css", "page.js")}
        specs = self._specs()
        # Scripts that the page allows are named by their hash: it evaluates no text and runs no other script.
        scripts = {"VEGA": _bundle() if specs else "", "SCRIPT": parts["page.js"]}
        page = environment.from_string(_part("page.html.j2")).render(
            **self._content(),
            css=parts["page.css"] + _colours(),
            following=following,
            script_hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in scripts.values()),
        )
        # Inserted after the template was rendered, so that they are not escaped: they are our own text. Names from
        # outside are escaped by now, so none of them can be a script element.
        data = {"figures": specs, "themes": {name: vega_config(name) for name in THEMES}}
        for mark, text in (("DATA", _json(data)), *scripts.items()):
            page = page.replace(f">@@{mark}@@</script>", f">{text}</script>", 1)
        return page

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write index.html, figures/*.svg, figures/*.png and tables/*.csv; returns what was written.

        Each file is written atomically: to a temporary name, then renamed.
        """
        out = Path(folder)
        written = [files.atomic_write(out / "index.html", self.html().encode("utf-8"))]
        written += files.write_figures(self.figures, out / "figures")
        return written + files.write_tables(self.tables(), out / "tables")

    def tables(self) -> dict[str, tuple[list[str], list[list[object]]]]:
        """Every table by name, as (head, rows) of plain values: what the CSV files hold."""
        compared = summary.comparison(self.measurements)
        main: list[list[object]] = []
        for line in compared.lines:
            name = line.name.strip()
            main.append([name, *(value for _, value in line.cells), line.definition])
            for at, end in enumerate(("low", "high") if line.ends else ()):
                ends = ("" if pair is None else pair[at] for pair in line.ends)
                main.append([f"{name}, 95 % {end}", *ends, f"the {end} end of the interval of {name}"])
        found: dict[str, tuple[list[str], list[list[object]]]] = {
            "summary": (["measure", *compared.head, "definition"], main)
        }
        found["measurements"] = files.flat(self.measurements)
        rows = published.beside(self.measurements)
        if rows:
            head = ["measure", "variant", "published", "ours", "difference", "verdict", "source", "note"]
            found["published"] = (
                head,
                [
                    [r.name, r.variant, r.published, r.ours, r.difference, r.verdict, r.source, r.note]
                    for r in rows
                ],
            )
        for figure in self.figures:
            found[figure.name] = (list(figure.table.head), [list(row) for row in figure.table.rows])
        return found

    def _specs(self) -> dict[str, dict[str, object]]:
        return {
            figure.name: {"spec": figure.spec(), "each": figure.each}
            for figure in self.figures
            if not figure.is_drawing
        }

    def _content(self) -> dict[str, object]:
        """The values the template is rendered with."""
        front = _front(self.figures)
        sections = [
            {
                "id": key,
                "title": title,
                "figures": [
                    figure for figure in self.figures if figure.section == key and figure is not front
                ],
            }
            for key, title in charts.SECTIONS.items()
        ]
        trials = {(m.context.get("run"), m.context.get("trial", 0)) for m in self.measurements if is_plain(m)}
        several = len(trials) > len({run for run, _ in trials})
        printout = self.printout
        more = {"network": printout is not None, "trials": several}
        return {
            "title": self.title,
            "headline": self.headline,
            "runs": self.runs,
            "tiles": summary.tiles(self.measurements),
            "comparison": summary.comparison(self.measurements),
            "front": front,
            "drawing": next((figure for figure in self.figures if figure.narrow), None),
            "sections": [one for one in sections if one["figures"] or more.get(str(one["id"]))],
            "printout": printout,
            "printout_of": self._printout_of(),
            "published": published.beside(self.measurements),
            "trials": trials_table(self.measurements) if several else None,
            "definitions": _definitions(self.measurements),
            "failures": [(run.name, text) for run in self.runs for text in run.failures],
            "provenance": [
                (run.name, list(_provenance_lines(run.provenance))) for run in self.runs if run.provenance
            ],
            "table_rows": _TABLE_ROWS,
            "cell": _cell,
        }


def _front(figures: Sequence[Figure]) -> Figure | None:
    """The figure of the first screen: accuracy against cost."""
    own = [figure for figure in figures if figure.section == "tradeoff"]
    return next((figure for figure in own if figure.name.startswith("pareto")), own[0] if own else None)


def _sha256(text: str) -> str:
    """The hash of a script, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get numbers, so that no two are mixed up."""
    names = [run.name for run in runs]
    found = []
    for index, run in enumerate(runs):
        again = names[:index].count(run.name)
        name = f"{run.name} ({again + 1})" if names.count(run.name) > 1 else run.name
        found.append(
            run if name == run.name else Run(name, run.measurements, run.about, run.provenance, run.failures)
        )
    return found


def _definitions(measurements: Measurements) -> list[tuple[str, str, str, list[str]]]:
    """(name, unit, definition, notes) of everything measured, each once."""
    found: dict[str, tuple[Measurement, dict[str, None]]] = {}
    for item in measurements:
        if "published" in item.context:
            continue
        _, notes = found.setdefault(item.name, (item, {}))
        notes.update(dict.fromkeys(item.notes))
    return [(name, item.unit, item.definition, list(notes)[:6]) for name, (item, notes) in found.items()]


def _provenance_lines(provenance: Mapping[str, object]) -> list[tuple[str, str]]:
    """Provenance as lines; a table within becomes one line, a longer one a block of its own."""
    lines = []
    for key, value in provenance.items():
        if isinstance(value, dict) and not any(
            isinstance(item, (dict, list)) and item for item in value.values()
        ):
            shown = ", ".join(f"{k} {_cell(v)}" for k, v in value.items() if v not in (None, "", []))
        elif isinstance(value, (dict, list)):
            shown = json.dumps(value, indent=1, ensure_ascii=False)
        else:
            shown = _cell(value)
        lines.append((key, shown))
    return lines


def _cell(value: object) -> str:
    """A value of a table as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _colours() -> str:
    """The themes as CSS variables."""

    def block(name: str) -> str:
        keys = ("page", "text", "quiet", "rule", "grid", "accent", "gone")
        return "".join(f"--{key}:{THEMES[name][key]};" for key in keys) + f"color-scheme:{name};"

    dark = block("dark")
    return (
        f":root{{{block('light')}--font:{FONT}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}"
        f"@media print{{:root:root{{{block('light')}}}}}"
    )


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return resources.files("secateur.report").joinpath("template").joinpath(name).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return script.replace("</script", "<\\/script")
