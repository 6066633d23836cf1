"""Sequences to calibrate on, and the verb of the command line that takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.streaming.tiny_llama import llama, state_of, transformers

from secateur import cli
from secateur.errors import DataError, OptionError
from secateur.streaming.blocks import meta_model
from secateur.streaming.compensated import BlockOptions, compensate_checkpoint
from secateur.streaming.sequences import sentences_of, sequences_of
from secateur.streaming.shrunk import shrink_checkpoint


def tokenizer(folder: Path) -> None:
    """Words a to d as tokens 1 to 4, anything else as 0."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2, "c": 3, "d": 4}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)


def test_a_text_becomes_rows_of_tokens(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text("a b c d d e\na b")
    found = sequences_of(tmp_path / "text.txt", tmp_path, 5, 3)
    assert [batch["input_ids"].tolist() for batch in found] == [[[1, 2, 3]], [[4, 4, 0]]]
    assert len(sequences_of(tmp_path / "text.txt", tmp_path, 1, 3)) == 1


def test_what_gives_no_sequences_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    with pytest.raises(DataError, match="no such file"):
        sequences_of(text, tmp_path, 1, 3)
    text.write_text("a b")
    with pytest.raises(OptionError, match="has no tokenizer that transformers can read"):
        sequences_of(text, tmp_path, 1, 3)
    tokenizer(tmp_path)
    with pytest.raises(DataError, match="2 tokens, less than one sequence of 3"):
        sequences_of(text, tmp_path, 1, 3)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected a text in UTF-8"):
        sequences_of(text, tmp_path, 1, 3)
    numbers = tmp_path / "n.safetensors"
    save_file({"tokens": torch.zeros(2, 2)}, numbers)
    with pytest.raises(DataError, match="expected a tensor 'input_ids', found tokens"):
        sequences_of(numbers, tmp_path, 1, 3)
    save_file({"input_ids": torch.zeros(2, 2)}, numbers)
    with pytest.raises(
        DataError, match=r"whole numbers in rows \(I64, two axes\), got F32 of shape \[2, 2\]"
    ):
        sequences_of(numbers, tmp_path, 1, 3)
    (tmp_path / "config.json").write_text('{"vocab_size": 4}')
    for wrong in (4, -1):
        save_file({"input_ids": torch.tensor([[0, wrong]])}, numbers)
        with pytest.raises(DataError, match="the model has 0 to 3"):
            sequences_of(numbers, tmp_path, 1, 3)


def test_the_command_line_writes_what_python_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secateur.cli.options._debug", False)
    llama(tmp_path / "in", layers=2)
    rows = torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": rows}, "tokens.safetensors")
    data = [{"input_ids": row[None, :8]} for row in rows]

    def run(*words: str) -> tuple[int, str]:
        call = ["secateur", "compensate", "in", *words, "--calibrate", "tokens.safetensors", "--tokens", "8"]
        monkeypatch.setattr(sys, "argv", call)
        try:
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, capsys.readouterr().out

    assert run("half", "--json")[0] == 0
    compensate_checkpoint("in", "half-py", data)
    assert run("small", "--granularity", "head")[1].startswith("small: ")
    shrink_checkpoint("in", "small-py", data, "wanda", options=BlockOptions(granularity="head"))
    for one, other in (("half", "half-py"), ("small", "small-py")):
        found, wanted = state_of(Path(one)), state_of(Path(other))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    code, out = run("pruned", "--rounds", "0", "--json")
    assert code == 0
    assert "after" not in json.loads(out)["tensors"][0]
    assert run("other", "--engine", "ray")[0] == 2
    assert run("other", "--address", "auto")[0] == 2


def test_sentences_are_lines_padded_to_the_longest_of_their_batch(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text("a b c\n\n  \nd\na a a a a a\n")
    found = sentences_of(tmp_path / "text.txt", tmp_path, 2, 5)
    assert [batch["input_ids"].tolist() for batch in found] == [
        [[1, 2, 3]],
        [[4]],
    ]  # it has no padding: one each
    padded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    padded.pad_token = "?"
    padded.save_pretrained(tmp_path)
    (batch,) = sentences_of(tmp_path / "text.txt", tmp_path, 9, 5)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [1] * 5]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1, 5]
    (tmp_path / "text.txt").write_text("\n \n")
    with pytest.raises(DataError, match="expected a sentence in each line, found no text"):
        sentences_of(tmp_path / "text.txt", tmp_path, 9, 5)
    with pytest.raises(DataError, match=r"no such file.*; expected a text with a sentence in each line"):
        sentences_of(tmp_path / "none.txt", tmp_path, 9, 5)
    (tmp_path / "config.json").write_text('{"vocab_size": 2}')
    (tmp_path / "text.txt").write_text("d")
    with pytest.raises(DataError, match="token numbers from 4 to 4, the model has 0 to 1"):
        sentences_of(tmp_path / "text.txt", tmp_path, 9, 5)


def test_sentences_are_no_longer_than_the_model_takes(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 9, "max_position_embeddings": 2}')
    (tmp_path / "text.txt").write_text("a b c d\n")
    assert [batch["input_ids"].tolist() for batch in sentences_of(tmp_path / "text.txt", tmp_path, 3)] == [
        [[1, 2]]
    ]


def test_a_class_that_transformers_does_not_have_is_built_as_a_language_model(tmp_path: Path) -> None:
    llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MyLlama"]}))
    assert type(meta_model(tmp_path)).__name__ == "LlamaForCausalLM"
