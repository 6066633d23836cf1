"""Benchmarks write their figures as rows, and `benchmarks/check.py` says what got worse."""

from __future__ import annotations

import ast
import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import _common
    import _results
    import check
finally:
    sys.path.remove(str(BENCHMARKS))


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """A file of results; what a row does not say is filled in."""
    common = {
        "commit": "abc1234", "machine": "m", "software": "s", "load": "1.0", "command": "python benchmarks/bench_x.py",
        "name": "time", "unit": "s", "better": "lower", "tolerance": "0.1", "goal": "", "met": "", "detail": "",
    }  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _results.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**common, **row} for row in rows)


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make bench-check` does, on another folder."""
    command = [sys.executable, str(BENCHMARKS / "check.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_figure_is_written_as_a_row_and_read_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench_x.py", "--data", str(tmp_path), "--only=l1"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _results.record(
        _results.Figure("held, step", 1.03, "ratio", 1.02, detail='a "quoted" word'), folder=tmp_path
    )
    _results.record(
        _results.Figure("speed", 6.25, "x", 5, "higher", 0.2), _results.Figure("free", 2), folder=tmp_path
    )
    first, second, third = _results.read(tmp_path / "bench_x.csv")
    assert first.command == "OMP_NUM_THREADS=1 python benchmarks/bench_x.py --data PATH --only=l1"
    assert (first.name, first.figure, first.goal, first.met) == ("held, step", 1.03, 1.02, False)
    assert first.detail == 'a "quoted" word'
    assert (second.figure, second.better, second.tolerance, second.met) == (6.25, "higher", 0.2, True)
    assert (third.goal, third.met) == (None, None)
    assert first.date == third.date
    assert "torch" in first.software


def test_a_figure_that_is_no_number_is_refused_and_nothing_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="speed: expected a finite number, got nan"):
        _results.record(_results.Figure("time", 1.0), _results.Figure("speed", float("nan")), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_recorded_where_the_folder_is_empty(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_nowhere.py"])
    monkeypatch.setattr(_results, "FOLDER", tmp_path)
    monkeypatch.setenv("SECATEUR_RESULTS", "")
    _results.record(_results.Figure("time", 1.0))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("SECATEUR_RESULTS", str(tmp_path))
    _results.record(_results.Figure("time", 1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["bench_nowhere.csv"]


def test_the_table_of_a_benchmark_is_recorded(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_x.py"])
    monkeypatch.setenv("SECATEUR_RESULTS", str(tmp_path))
    rows = [_common.Row("fast", 2.0, 8.0, 0.5), _common.Row("slow", 9.0, 10.0, 0.5, "s")]
    assert _common.report(rows, "title") == 1
    assert "MISSED" in capsys.readouterr().out
    found = _results.read(tmp_path / "bench_x.csv")
    assert [(row.name, row.figure, row.met) for row in found] == [("fast", 0.25, True), ("slow", 0.9, False)]
    assert found[1].detail == "ours 9 s, peer 10 s"


def test_what_got_worse_is_said_and_is_an_exit_code(tmp_path) -> None:
    old, new = {"date": "2026-01-01T00:00:00Z"}, {"date": "2026-01-02T00:00:00Z"}
    up = {"name": "speed", "better": "higher"}
    path = tmp_path / "bench_x.csv"
    write(
        path,
        [
            {**old, "figure": 10},
            {**old, **up, "figure": 10},
            {**new, "figure": 10.9},
            {**new, **up, "figure": 9.1},
        ],
    )
    done = checked(tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(
        "2 figures compared with the run before of the same command and machine: 0 worse"
    )
    write(
        path,
        [
            {**old, "figure": 10},
            {**old, **up, "figure": 10},
            {**new, "figure": 11.1},
            {**new, **up, "figure": 9.1},
        ],
    )
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "bench_x: time: 10 (abc1234) to 11.1 s (abc1234), 11.0% worse, tolerance 10.0%" in done.stdout
    assert "speed" not in done.stdout


def test_a_goal_that_is_lost_is_worse_whatever_the_tolerance(tmp_path) -> None:
    rows = [
        {"date": "1", "figure": 0.99, "goal": 1, "met": "yes"},
        {"date": "2", "figure": 1.01, "goal": 1, "met": "no"},
    ]
    write(tmp_path / "bench_x.csv", rows)
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "goal 1 MISSED" in done.stdout


def test_only_the_same_command_and_machine_are_compared(tmp_path) -> None:
    rows = [
        {"date": "1", "figure": 1},
        {"date": "2", "figure": 9, "machine": "another"},
        {"date": "3", "figure": 9, "command": "python benchmarks/bench_x.py --quick"},
        {"date": "3", "figure": 9, "name": "other"},
    ]
    write(tmp_path / "bench_x.csv", rows)
    done = checked(tmp_path)
    assert done.returncode == 4
    assert "no figure was measured twice" in done.stderr


def test_the_newest_two_runs_count_and_of_one_run_the_last_row() -> None:
    def result(date: str, figure: float) -> _results.Result:
        return _results.Result(
            date, "c", "m", "s", "", "x", "time", figure, "s", "lower", 0.1, None, None, ""
        )

    rows = [result("1", 1.0), result("2", 5.0), result("2", 2.0), result("3", 2.1)]
    (change,) = check.changes({"x": rows})
    assert (change.before.figure, change.now.figure, change.worse) == (2.0, 2.1, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "bench_x.csv: expected the header date,commit"),
        (",".join(_results.COLUMNS) + "\n1,2\n", "bench_x.csv, line 2: expected 14 cells, got 2"),
        (
            ",".join(_results.COLUMNS) + "\n" + "d,c,m,s,,x,n,1,s,down,0.1,,,\n",
            "line 2: better is lower or higher",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, text, message) -> None:
    path = tmp_path / "bench_x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        _results.read(path)


def test_the_files_of_this_repository_can_be_read_and_are_of_benchmarks() -> None:
    results = _results.read_all()
    assert len(results) >= 20
    for name, rows in results.items():
        assert (BENCHMARKS / f"{name}.py").is_file(), name
        for row in rows:
            figure = _results.Figure(row.name, row.figure, row.unit, row.goal, row.better)  # type: ignore[arg-type]
            assert row.met == figure.met, row
            assert f"benchmarks/{name}.py" in row.command
            assert "PATH" in row.command or "/" not in row.command.replace("benchmarks/", "").replace(
                "torchvision/", ""
            )


def test_every_benchmark_records_its_figures() -> None:
    for path in sorted(BENCHMARKS.glob("bench_*.py")):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called & {"record", "report"}, (
            f"{path.name} prints figures and records none: call record(Figure(...))"
        )


def test_the_page_has_a_table_and_a_plot_over_time(tmp_path) -> None:
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        import results as site_results
    finally:
        sys.path.remove(str(ROOT / "docs" / "site"))
    rows = [
        {"date": "2026-01-01T00:00:00Z", "figure": 10, "goal": 8, "met": "no"},
        {"date": "2026-01-02T00:00:00Z", "figure": 6, "goal": 8, "met": "yes"},
        {"date": "2026-01-02T00:00:00Z", "figure": 1, "name": "a | b <c>"},
    ]
    write(tmp_path / "bench_x.csv", rows)
    page = site_results.results_page(tmp_path)
    assert (
        "2 figures of 1 benchmarks, the newest of each command. 1 have a goal: 1 meet it, 0 miss it." in page
    )
    assert "| time | 6 s | ≤ 8 | met | 10 | abc1234, 2026-01-02 | 1.0 |  |" in page
    assert "a \\| b <c>" in page
    assert page.count("<svg") == 1
    assert 'points="18.0,36.0 242.0,78.0"' in page  # 10 at the top, 6 at the bottom
    assert "<title>time: 10 on 2026-01-01, 6 on 2026-01-02</title>" in page
