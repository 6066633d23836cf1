"""Tables on the terminal."""

from __future__ import annotations

import json

from secateur.cli.output import print_json, show_table


def test_names_from_files_send_the_terminal_no_commands(capsys):
    show_table(["name"], [["conv\x1b]0;title\x07"], ["\u202egnp"]])
    assert capsys.readouterr().out == "name\nconv\\x1b]0;title\\x07\n\\u202egnp\n"


def test_what_is_no_number_is_null_in_json(capsys):
    print_json({"p": float("nan"), "rows": [{"high": float("inf"), "values": (1.0, float("nan"))}]})
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: word)
    assert found == {"p": None, "rows": [{"high": None, "values": [1.0, None]}]}
