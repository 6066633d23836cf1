"""`with_flags`: a function of frozen option groups becomes a command with every option of its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from secateur.cli.flags import with_flags


@dataclass(frozen=True)
class Where:
    name: Annotated[str, typer.Argument(help="A name.")]
    times: Annotated[int, typer.Option("--times", min=1, help="Repetitions.")] = 2


@dataclass(frozen=True)
class Loud(Where):
    loud: Annotated[bool, typer.Option("--loud", help="In capitals.")] = False


@with_flags
def greet(where: Loud, end: Annotated[str, typer.Option("--end", help="The end.")] = "!") -> None:
    """Greet somebody."""
    text = " ".join([where.name] * where.times) + end
    print(text.upper() if where.loud else text)


def test_the_options_of_a_group_are_options_of_the_command():
    app = typer.Typer()
    app.command()(greet)
    assert list(inspect.signature(greet).parameters) == ["name", "times", "loud", "end"]
    found = CliRunner().invoke(app, ["ada", "--times", "3", "--loud", "--end", "?"])
    assert (found.exit_code, found.output) == (0, "ADA ADA ADA?\n")
    assert CliRunner().invoke(app, ["ada"]).output == "ada ada!\n"
    helped = CliRunner().invoke(app, ["--help"]).output
    assert "Greet somebody." in helped
    assert "Repetitions." in helped
    assert CliRunner().invoke(app, ["ada", "--times", "0"]).exit_code == 2
    assert CliRunner().invoke(app, []).exit_code == 2


def test_two_options_of_one_name_are_refused():
    def command(where: Where, times: Annotated[int, typer.Option("--times")] = 1) -> None: ...

    with pytest.raises(TypeError, match="command: two options are called 'times'; rename one of them"):
        with_flags(command)
