"""docs/studies.md: it is what its generator makes now; every part of every recipe has a row or a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur import studies
from secateur.errors import DataError
from secateur.studies.page import into_page
from secateur.studies.section import Section, markdown_table, shortened
from secateur.studies.study import Part
from secateur.studies.tables import Tabulated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import studies as generator  # noqa: E402 - docs/site/studies.py

sys.path.pop(0)
KEPT = generator.kept()


def cells(section: Section) -> set[str]:
    return {cell for table in section.tables for row in (table.head, *table.rows) for cell in row}


def words(part: Part) -> list[str]:
    """What rows of a part hold: the texts of its context, and of the axes of its grid."""
    found = [str(value) for value in part.context.values() if isinstance(value, str)]
    for values in part.grid.values():
        found += [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    return found


def missing(name: str) -> list[str]:
    there = {cell for section in KEPT.values() if section.study == name for cell in cells(section)}
    ran = {part for section in KEPT.values() if section.study == name for part in section.parts}
    every = studies.read(name).part
    return [
        part.name for part in every if part.name not in ran or any(word not in there for word in words(part))
    ]


def test_every_part_of_every_recipe_has_its_row_or_a_reason() -> None:
    import tomllib

    asked = tomllib.loads((ROOT / "docs" / "studies" / "page.toml").read_text(encoding="utf-8"))
    told = {(one["study"], one["part"]) for one in asked["missing"]}
    assert {(name, part) for name in studies.names() for part in missing(name)} == told
    assert {section.study for section in KEPT.values() if not section.beside} == set(studies.names())


def test_the_page_is_what_its_generator_makes_now() -> None:
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page()


@pytest.mark.parametrize("name", KEPT)
def test_the_files_beside_the_page_are_those_of_the_section(name: str) -> None:
    folder = ROOT / "docs" / "studies" / name
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert files.pop("section.json") == KEPT[name].to_json()
    assert files == {key: text.replace("\r\n", "\n") for key, text in KEPT[name].files().items()}


def table_of(gap: str = "+0.50 points") -> Tabulated:
    table = Tabulated("t", head=("a", "top-1", "published", "difference"))
    table.rows = [("1", "95.00 %", "94.50 %", gap), ("2", "9.00 %", "", "")]
    return table


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ("0", "the same"),
        ("+0.50 points", "as published"),
        ("−0.51 points", "small"),
        ("−9 (−3.3 %)", "small"),
    ],
)
def test_the_first_table_reads_the_sections_and_judges_by_the_gap(gap: str, said: str) -> None:
    row = {"study": "s", "figure": "f", "table": "t", "of": {"a": "1"}, "column": "top-1", "within": 0.5}
    made = generator.glance(
        [{**row, "verdict": "small"}], {"s": Section("s", "S", "short", tables=(table_of(gap),))}
    )
    assert made.rows == [("s", "f", "94.50 %", "95.00 %", gap, said, "`short`")]


def test_a_row_that_no_section_has_is_an_error() -> None:
    section = Section("s", "S", "short", tables=(table_of(),))
    row = {"study": "s", "figure": "f", "table": "t", "of": {"a": "3"}, "column": "top-1"}
    with pytest.raises(KeyError, match=r"no row \{'a': '3'\}"):
        generator.cell(section, row)
    with pytest.raises(KeyError, match="s has no table 'u'"):
        generator.cell(section, {**row, "table": "u"})


def test_trainings_that_trials_share_cost_once() -> None:
    # 100 of the dense model, then 20 for each of three kinds by two sets of sparsities.
    assert generator.epochs("sensitivity", "full") == 100 + 2 * 3 * 20


@pytest.mark.parametrize(
    ("study", "scale", "missing", "expected"),
    [
        ("at-init", "full", {"part": "main", "only": "snip-shuffled"}, 6 * 20),  # six densities
        ("vae", "full", {"part": "narrow"}, 10 + 2 * 40),  # the dense model, and one for each coupling
        (
            "sensitivity",
            "compensated",
            {"part": "compensated"},
            12 * 6_000 / 50_000,
        ),  # fewer images, part of an epoch
        ("deep-compression", "compensated", {"part": "compensated"}, 0),  # the weights are given
    ],
)
def test_a_part_that_is_missing_costs_the_epochs_of_its_own_trials(study, scale, missing, expected) -> None:
    assert generator.epochs(study, scale, generator.lacks(missing)) == pytest.approx(expected)


def test_a_missing_part_costs_minutes_at_the_pace_of_what_the_section_ran() -> None:
    section = Section(
        "at-init", "S", "full", ran="seed 0; the steps took 1 h 10 min when they were computed."
    )
    missing = {"study": "at-init", "part": "main", "scale": "full", "only": "snip-shuffled"}
    ran = generator.epochs("at-init", "full") - 120
    assert generator.price(missing, [missing], {"at-init": section}) == ("120", f"{70 * 120 / ran:.0f}")
    assert (generator.took(section.ran), generator.took("the steps took 4 min 14 s when")) == (4200, 254)


def long_table() -> Tabulated:
    table = Tabulated("Cost", head=("a", "top-1", "published", "difference"))
    table.rows = [(str(k), "1", "2" if k < 3 else "", "−1" if k < 3 else "") for k in range(17)]
    return table


def test_long_tables_are_files_and_the_page_keeps_the_rows_with_a_published_figure() -> None:
    section = Section("s", "S", "short", tables=(long_table(),), printed=(("print(model)", "x\n" * 40),))
    text = section.markdown("studies")
    assert text.count("\n| ") == 1 + 3
    assert "All 17 rows: [CSV](studies/s/cost.csv)" in text
    assert "[Both printed side by side](studies/s/print-model.txt)" in text
    assert section.files()["cost.csv"].count("\n") == 18
    short = long_table()
    short.rows.pop()
    assert shortened(short) is short
    assert markdown_table(short).count("\n") == 17


def test_a_scale_of_some_parts_has_a_section_beside_the_studys(tmp_path: Path) -> None:
    study = studies.read("at-init-vgg16")
    assert {name for name, scale in study.scale.items() if scale.beside} == {"counts", "once"}
    page = tmp_path / "studies.md"
    for section in (Section("s", "S", "full", "About."), Section("s", "S", "counts", "About.", beside=True)):
        into_page(page, section)
    text = page.read_text(encoding="utf-8")
    assert text.count("About.") == 1
    assert (
        text.index("<!-- study: s -->")
        < text.index("## s-counts: S")
        < text.index("<!-- end of s-counts -->")
    )
    assert (tmp_path / "studies" / "s-counts" / "section.json").exists()


def test_a_section_is_kept_whole_and_old_files_go(tmp_path: Path) -> None:
    Section("s", "S", "full", tables=(long_table(),)).write(tmp_path)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["cost.csv", "section.json"]
    section = Section(
        "s", "S", "short", failures="one", tables=(table_of(),), printed=(("p", "a\nb"),), notes=("n",)
    )
    section.write(tmp_path)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["section.json"]
    assert Section.from_json((tmp_path / "s" / "section.json").read_text(encoding="utf-8")) == section


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"tables": [{}], "printed": [], "notes": []}'])
def test_a_file_that_is_no_section_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="a study's kept section: expected what secateur writes"):
        Section.from_json(text)
