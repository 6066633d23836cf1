"""What verbs print with --json: one object, with the same words for the same things."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def test_a_file_that_a_verb_writes_is_named_with_its_bytes_on_disk(secateur):
    torch.manual_seed(0)
    save_file({"w": torch.randn(64, 64)}, "in.safetensors")

    def told(*words: str) -> dict[str, object]:
        code, out, err = secateur(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    packed = told("pack", "in.safetensors", "small.sct", "--bits", "4")
    found = [
        packed,
        told("pack", "in.safetensors", "whole.sct", "--lossless"),
        told("unpack", "small.sct", "out.safetensors"),
        told("inspect", "small.sct"),
        told("shrink", "lenet-300-100", "--repetitions", "1", "--out", "cut.sct"),
        told("factorise", "lenet-300-100", "--out", "low.sct"),
    ]
    for one in found:
        assert one["file_bytes"] == Path(str(one["file"])).stat().st_size, one
        assert not {"bytes", "size", "path"} & set(one), one
    listed = told("inspect", "in.safetensors")
    assert (listed["file"], listed["tensor_bytes"]) == ("in.safetensors", 4 * 64 * 64)
    assert packed["source_bytes"] == Path("in.safetensors").stat().st_size


def test_lists_have_a_name(secateur):
    secateur("demo", "--no-report")
    for words, name in (
        (("runs",), "runs"),
        (("measure", "lenet5", "--what", "params"), "measurements"),
        (("study", "--list"), "studies"),
        (("list", "criteria"), "criteria"),
    ):
        code, out, err = secateur(*words, "--json")
        assert code == 0, err
        assert isinstance(json.loads(out)[name], list), words
