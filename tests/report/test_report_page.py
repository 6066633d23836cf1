"""The page, its files, its size; what is said, and what must never be.

What must not be there is counted: a failed `not in` has pytest compare a megabyte line by line, for minutes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.errors import NothingToDoError
from secateur.report import Report, Run
from secateur.report.printout import Pair, folded, side_by_side
from secateur.report.published import beside
from secateur.report.summary import Tile, comparison, headline, number, shown_rows, tiles
from secateur.report.trials import trials_table

spec = importlib.util.spec_from_file_location("report_samples", Path(__file__).with_name("report_samples.py"))
assert spec is not None
assert spec.loader is not None
samples = sys.modules.setdefault("report_samples", importlib.util.module_from_spec(spec))
if not hasattr(samples, "sweep"):
    spec.loader.exec_module(samples)

HOSTILE = ">@@DATA@@</script></script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page() -> str:
    return Report(
        [Run("demo", samples.everything(), "What was done.", {"command": "secateur demo", "seed": 0})]
    ).html()


def _outside_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.S)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(
        NothingToDoError, match="nothing to report: expected at least one Measurement, got none; add"
    ):
        Report([Run("demo", Measurements())])


def test_the_page_asks_for_nothing(page: str) -> None:
    text = _outside_scripts(page)
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", text)
    assert text.count("@import") == 0
    assert text.count("url(") == 0
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)  # type: ignore[union-attr]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    hashes = {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert len(hashes) == 2
    assert text.count("@@") == 0


def test_the_page_is_under_three_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_landmarks_headings_and_text_alternatives(page: str) -> None:
    text = _outside_scripts(page)
    for landmark in ("<header", "<nav aria-label", "<main", "<footer", 'lang="en"', 'class="skip"'):
        assert landmark in text
    assert text.count("<h1") == 1
    assert (
        len(re.findall(r'class="chart"[^>]*role="img"[^>]*aria-label="[^"]{20,}"', text))
        == text.count('class="chart"')
        >= 12
    )
    for target in re.findall(r'<a href="#([\w-]+)"', text):
        assert f'id="{target}"' in text


def test_first_screen_has_the_result_and_the_variants(page: str) -> None:
    text = _outside_scripts(page)
    assert "What was done." in text
    assert text.index('class="headline"') < text.index("<table")
    assert all(f">{name}</button>" in text for name in ("dense", "shrunk", "file"))


def test_first_screen_is_four_figures_and_the_table_is_folded_below() -> None:
    def measured(variant: str, accuracy: float, size: int, macs: int) -> list[M]:
        context = {"variant": variant}
        return [
            M("accuracy", accuracy, context=context),
            M("macs", macs, "MAC", context=context),
            M("size", size, "bytes", context=context),
        ]

    fast = M("speedup", 2.0, "x", context={"variant": "small"}, spread={"low": 1.9, "high": 2.1})
    found = Measurements([*measured("dense", 0.9, 1000, 4000), *measured("small", 0.88, 250, 1000), fast])
    assert tiles(found) == [
        Tile("accuracy", "88.00 %", "−2.00 points, from 90.00 %"),
        Tile("times as fast", "2.00×", "95 % between 1.90 and 2.10"),
        Tile("bytes on disk", "250", "4.0 times smaller, from 1,000"),
        Tile("multiply-accumulates", "1,000", "4.0 times fewer, from 4,000"),
    ]
    text = _outside_scripts(Report([Run("one", found)]).html())
    assert text.count("<li><span>") == 4
    assert text.index('class="tiles"') < text.index('<details class="all"><summary>')
    assert text.index('<details class="all"><summary>') < text.index('<table class="main')
    assert tiles(Measurements(measured("dense", 0.9, 1000, 4000))) == []  # nothing to compare with


def test_names_from_outside_cannot_become_markup() -> None:
    report = Report(
        [Run(f"run {HOSTILE}", samples.everything(HOSTILE), HOSTILE, {"command": HOSTILE}, (HOSTILE,))]
    )
    html = report.html()
    assert html.count("<img src=x") == 0
    assert html.count("<script>document.title") == 0


class _Read(HTMLParser):
    """The elements of a page and its text, as a browser has them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["ü✓𝔴", "</script><b>", "{{ 7 * 7 }}", "@@DATA@@", "&lt;i&gt;", "=1+2"])
def test_a_name_is_read_back_from_the_page_as_text(name: str) -> None:
    pages = []
    for each in ("plain", name):
        rows = Measurements([M("macs", 7, "MAC", context={"variant": each})])
        pages.append(_Read())
        pages[-1].feed(_outside_scripts(Report([Run(each, rows)]).html()))
    assert pages[1].elements == pages[0].elements
    assert pages[1].text.count(name) >= pages[0].text.count("plain") > 0


def test_home_folder_and_its_name_are_in_no_file(tmp_path: Path) -> None:
    home = str(Path.home())
    secret = f"{home}/data/set.parquet"
    found = Measurements(
        M(
            "accuracy",
            value,
            "",
            f"read from {secret}",
            notes=(secret,),
            context={"variant": name, "file": secret},
        )
        for name, value in (("dense", 0.9), ("file", 0.8))
    )
    report = Report(
        [Run("demo", found, f"from {secret}", {"command": f"secateur run {secret}", "r": {"p": [secret]}})]
    )
    for path in report.write(tmp_path):
        assert path.read_bytes().count(home.encode() + b"/data") == 0, path.name
    assert "~/data/set.parquet" in (tmp_path / "index.html").read_text()


def test_files_beside_the_page(tmp_path: Path) -> None:
    found = Measurements(
        M(name, value, context={"variant": variant})
        for variant, accuracy, size in (("dense", 0.9, 1000), ("file", 0.8, 100))
        for name, value in (("accuracy", accuracy), ("size", size))
    )
    written = {path.relative_to(tmp_path).as_posix() for path in Report([Run("demo", found)]).write(tmp_path)}
    assert written == {
        "index.html",
        "figures/pareto-bytes.svg",
        "figures/pareto-bytes.png",
        "tables/summary.csv",
        "tables/measurements.csv",
        "tables/pareto-bytes.csv",
    }
    assert (tmp_path / "figures/pareto-bytes.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "tables/summary.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["measure", "dense", "file", "definition"],
        ["accuracy", "0.9", "0.8", ""],
        ["bytes as torch.save writes it", "1000.0", "100.0", ""],
    ]
    assert not list(tmp_path.rglob(".*"))


def test_published_figures_beside_ours() -> None:
    rows = {(row.name, row.variant): row for row in beside(samples.everything())}
    assert rows["accuracy", "dense"].difference == "−1.00 points"
    assert rows["params", "dense"].verdict == "the same"
    assert rows["macs", "shrunk"].verdict == "reference inconsistent"
    assert rows["macs", "shrunk"].note == "4,500 follows"


def test_published_mean_over_seeds_and_settings_that_must_agree() -> None:
    ours = [
        M("accuracy", v, context={"variant": "pruned", "sparsity": s, "seed": k})
        for k, (s, v) in enumerate([(0.5, 0.8), (0.5, 0.9), (0.9, 0.1)])
    ]
    (row,) = beside(
        Measurements(
            [*ours, M("accuracy", 0.86, context={"variant": "pruned", "sparsity": 0.5, "published": "p"})]
        )
    )
    assert (row.ours, row.difference) == ("85.00 % (mean of 2)", "−1.00 points")
    assert row.relative == pytest.approx(-0.01 / 0.86)
    (row,) = beside(
        Measurements(
            [*ours, M("accuracy", 0.86, context={"variant": "pruned", "sparsity": 0.7, "published": "p"})]
        )
    )
    assert row.verdict == "not measured here"


def test_two_runs_side_by_side_and_two_of_one_name() -> None:
    one, two = (
        Run("demo", Measurements([M("accuracy", v, context={"variant": "file"})])) for v in (0.9, 0.8)
    )
    report = Report([one, two])
    assert comparison(report.measurements).head == ("demo (1) · file", "demo (2) · file")
    assert report.title == "demo (1) and demo (2)"
    assert (
        report.headline
        == "demo (1): only file was measured: accuracy 90.00 % — demo (2): only file was measured: accuracy 80.00 %"
    )


def test_no_difference_in_time_is_said_so() -> None:
    found = [
        M("latency", 2.0, "ms", context={"variant": "dense"}),
        M("latency", 1.9, "ms", context={"variant": "small"}),
        M("speedup", 1.05, "x", context={"variant": "small"}, spread={"low": 0.98, "high": 1.1}),
    ]
    assert headline(Measurements(found)) == "no difference in time shown (1.05× [0.98, 1.10])"


def test_printout_lines_are_matched_and_folded() -> None:
    pairs = side_by_side("a\nx\nb", "a\nb\nc")
    assert [pair.kind for pair in pairs] == ["same", "changed", "changed"]
    pairs = side_by_side("a\nx\nb", "a\nb")
    assert [pair.kind for pair in pairs] == ["same", "removed", "same"]
    long = side_by_side("\n".join(map(str, range(40))), "\n".join(["0", "one", *map(str, range(2, 40))]))
    assert [pair.kind for pair in folded(long)] == ["same", "changed", "same", "same", "folded"]


def test_two_hundred_trials_are_aggregated() -> None:
    run = samples.sweep(200)
    start = time.process_time()
    report = Report([run])
    html = report.html()
    assert time.process_time() - start < 20  # of processor time; ten is usual: see benchmarks/bench_report.py
    assert len(html) < 2_000_000
    assert len(comparison(report.measurements).head) <= 8
    assert html.count("<tr") < 1500
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))  # type: ignore[union-attr]
    assert set(data["figures"]) == {f.name for f in report.figures if not f.is_drawing}


def test_trials_that_were_packed_and_not_measured_name_their_settings():
    """A sweep without a measure step: rows are told apart by what was swept, and the headline says what is missing."""
    found = Measurements(
        M(name, value, context={"trial": trial, "variant": step, "step": step, "share.bits": bits})
        for trial, (bits, size) in enumerate(((3, 800), (4, 950)))
        for step, name, value in (("prune", "mask_sparsity", 0.5), ("pack", "file_bytes", size))
    )
    table = trials_table(found)
    assert table.head[:3] == ("trial", "variant", "bits")
    assert [tuple(cell.text for cell in row[:3]) for row in table.rows] == [
        ("1", "pack", "3"),
        ("2", "pack", "4"),
    ]
    assert comparison(found).head == ("3 · pack", "4 · pack")
    assert headline(found) == "2 trials, files of 800 to 950 bytes; no accuracy was measured"


def test_short_stretches_are_shown_and_each_long_one_counts_its_own_lines() -> None:
    same = [Pair("same", str(k), str(k)) for k in range(30)]
    change = Pair("changed", "a", "b")
    shown = folded(
        [change, *same[:7], change, *same[7:17]]
    )  # two lines around a change stay: 3 and 8 are left
    assert shown == [
        change,
        *same[:7],
        change,
        *same[7:9],
        Pair("folded", *["8 lines that are the same"] * 2),
    ]


def test_numbers_from_a_thousand_have_commas() -> None:
    assert (number(1000.0), number(999.0), number(999.5), number(12345.6)) == (
        "1,000",
        "999",
        "999.5",
        "12,346",
    )


def test_sizes_alike_to_two_digits_are_no_difference() -> None:
    rows = [
        M("size", size, "bytes", context={"variant": variant, "trial": 0})
        for variant, size in (("dense", 100_400), ("small", 100_000))
    ]
    assert "on disk" not in headline(Measurements(rows))
    rows[0] = M("size", 150_000, "bytes", context={"variant": "dense", "trial": 0})
    assert "1.5 times smaller on disk (150,000 → 100,000 bytes)" in headline(Measurements(rows))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((500, 500), "2 trials; no accuracy was measured"),
        ((500, 900), "2 trials, files of 500 to 900 bytes; no"),
    ],
)
def test_trials_without_accuracy_have_their_range_of_sizes(sizes: tuple[int, int], said: str) -> None:
    rows = [
        M("file_bytes", size, "bytes", context={"variant": "packed", "trial": k})
        for k, size in enumerate(sizes)
    ]
    assert headline(Measurements(rows)).startswith(said)


def test_a_front_of_many_is_shown_from_end_to_end() -> None:
    rows = [M("accuracy", 0.99, context={"variant": "dense", "trial": 0})]
    rows += [M("size", 9000, "bytes", context={"variant": "dense", "trial": 0})]
    for k in range(1, 13):
        where = {"variant": "pruned", "trial": k, "sparsity": k / 20}
        rows += [
            M("accuracy", 0.98 - k / 100, context=where),
            M("size", 9000 - 500 * k, "bytes", context=where),
        ]
    shown = shown_rows(Measurements(rows))
    assert [row.bytes for row in shown] == [9000, 8500, 7500, 6500, 5000, 4000, 3000]
