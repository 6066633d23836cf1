"""Tables on the terminal."""

from __future__ import annotations

from secateur.cli.output import show_table


def test_names_from_files_send_the_terminal_no_commands(capsys):
    show_table(["name"], [["conv\x1b]0;title\x07"], ["\u202egnp"]])
    assert capsys.readouterr().out == "name\nconv\\x1b]0;title\\x07\n\\u202egnp\n"
