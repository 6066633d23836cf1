"""Exported decoders with padding: compared from the first token on, and free in their length whatever the mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.adapters.padding import padding_mask, with_tokens
from secateur.adapters.programs import program_error
from secateur.errors import ProofError


class Decoder(nn.Module):
    """Causal attention; as in transformers, a mask of ones is left out unless a program is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mask.shape[1] > ids.shape[1]:
            raise ValueError("the mask is longer than the tokens")
        x = self.table(ids)
        q, k, v = (each(x).unflatten(2, (2, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        seen = None
        if torch.compiler.is_compiling() or not mask.all():
            places = torch.arange(ids.shape[1])
            seen = (places[:, None] >= places) & mask[:, None, None].bool()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        return self.out(x + y.transpose(1, 2).flatten(2))


class Translator(nn.Module):
    """The mask is of the source, and outputs are of a target of the same length."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, source: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mean = (self.table(source) * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return self.out(mean + self.table(target).cumsum(1))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0, 0, 5, 7, 9], [3, 8, 2, 6, 4]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])


@pytest.mark.parametrize("all_tokens", [False, True])
def test_a_decoder_is_exported_whether_or_not_its_example_has_padding(
    tmp_path: Path, all_tokens: bool
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"NOT TESTED: ONNX export, as {name} is not installed")
    torch.manual_seed(0)
    model, (ids, mask) = Decoder().eval(), padded()
    done = sc.export(model, tmp_path / "decoder.onnx", (ids, torch.ones_like(mask) if all_tokens else mask))
    assert done.error < 1e-5
    assert [note for note in done.notes if "fixed" in note] == []
    assert any("at padding" in note for note in done.notes) is not all_tokens
    longer = torch.cat([ids, ids], 1), torch.cat([mask, torch.ones_like(mask)], 1)
    found = sc.OnnxModel(tmp_path / "decoder.onnx")(*longer)
    with torch.no_grad():
        away = (model(*longer) - found).abs().amax(-1)
    assert float(away[longer[1].bool()].max()) < 1e-5
    assert float(away[0, :2].min()) > 1e-3  # what the runtime gives there is another number


def test_padding_is_what_no_token_depends_on() -> None:
    torch.manual_seed(0)
    ids, mask = padded()
    with torch.no_grad():
        assert padding_mask(Decoder().eval(), (ids, mask)) == 1
        assert padding_mask(Decoder().eval(), (ids, torch.ones_like(mask))) is None
        assert padding_mask(Translator().eval(), (ids, mask, ids.flip(0) + 1)) is None
    short = with_tokens((ids[:, :2], mask[:, :2]), 1)
    assert short[1].tolist() == [[1, 1], [1, 1]]


def test_a_difference_at_a_token_counts() -> None:
    torch.manual_seed(0)
    model, example = Decoder().eval(), padded()
    for where, differs in (((0, 1), False), ((0, 2), True)):

        def program(ids: torch.Tensor, mask: torch.Tensor, where: tuple[int, int] = where) -> torch.Tensor:
            out = model(ids, mask).clone()
            out[where] += 1
            return out

        with torch.no_grad():
            assert program_error(model, program, example, ()) > 0.1
            assert (program_error(model, program, example, (), 1) > 0.1) is differs


class Summed(nn.Module):
    """Sums of the contents up to each position, which see the padding as well, with kinds of tokens."""

    def __init__(self, over: bool = True) -> None:
        super().__init__()
        self.table, self.kinds, self.over = nn.Embedding(20, 4), nn.Embedding(2, 4), over

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.kinds(kinds)
        return x.cumsum(1) if self.over else x


class Patches(nn.Module):
    """Patches of an image, some of them left out."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.other = nn.Conv2d(3, 4, 4, 4), nn.Parameter(torch.ones(4))

    def forward(self, pixels: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        x = self.cut(pixels).flatten(2).mT
        return torch.where(masked[..., None].bool(), self.other, x)


class Encoder(nn.Module):
    """Attention of every position to all tokens: those at padding see something."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return x + F.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, None].bool())


class Gated(Encoder):
    """Zeros at the padding, whatever is there: these are defined."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.table(ids) * mask[..., None]).cumsum(1)


def test_inputs_of_zeros_and_ones_that_are_no_padding() -> None:
    torch.manual_seed(0)
    ids, mask = padded()
    right, between = mask.flip(1), torch.tensor([[1, 0, 1, 1, 1], [1] * 5])
    with torch.no_grad():
        for bits in ([[0, 1, 1, 0]], [[1, 1, 0, 0]], [[0, 0, 1, 1]]):
            few = torch.tensor(bits)
            assert padding_mask(nn.Embedding(2, 4).eval(), few) is None  # nothing else to change
            assert padding_mask(Patches().eval(), (torch.randn(1, 3, 8, 8), few)) is None
            assert padding_mask(Summed().eval(), (ids[1:, :4], few)) is None
            assert padding_mask(Summed(over=False).eval(), (ids[1:, :4], few)) is None
        assert padding_mask(Decoder().eval(), (ids, right)) is None
        assert padding_mask(Decoder().eval(), (ids, between)) is None
        assert padding_mask(Decoder().eval(), (torch.full_like(ids, 3), mask)) is None  # the same everywhere
        assert padding_mask(Encoder().eval(), (ids, mask)) is None
        same = torch.tensor([[5, 3, 3, 3, 3]])  # no token can be another one
        assert padding_mask(Encoder().eval(), (same, mask[:1])) is None
        assert padding_mask(Gated().eval(), (ids, mask)) is None


def test_zeros_after_the_first_token_are_compared() -> None:
    torch.manual_seed(0)
    model, (ids, mask) = Decoder().eval(), padded()
    mask[0, 3] = 0

    def program(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out = model(ids, mask).clone()
        out[0, 3] += 1
        return out

    with torch.no_grad():
        assert padding_mask(model, (ids, mask)) == 1
        assert program_error(model, program, (ids, mask), (), 1) > 0.1


def other_at_padding(model: nn.Module) -> Callable[..., torch.Tensor]:
    return lambda ids, mask: model(ids, mask) + (mask.cumsum(1) == 0)[..., None]


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_only_runtimes_other_than_pytorch_may_differ_at_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(name, reason=f"NOT TESTED: ONNX export, as {name} is not installed")
    torch.manual_seed(0)
    model, target = Decoder().eval(), tmp_path / f"decoder.{kind}"
    monkeypatch.setattr("secateur.adapters.export.load_program", lambda path, onnx: other_at_padding(model))
    if kind == "onnx":
        assert any("at padding" in note for note in sc.export(model, target, padded()).notes)
        return
    with pytest.raises(ProofError, match="outputs differ"):
        sc.export(model, target, padded())
    assert not target.exists()


def test_an_int8_file_keeps_the_note_on_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"NOT TESTED: ONNX export, as {name} is not installed")
    torch.manual_seed(0)
    model = Decoder().eval()
    options = sc.Int8Options(lost=0.9)
    monkeypatch.setattr("secateur.adapters.export.load_program", lambda path, onnx: other_at_padding(model))
    done = sc.export(model, tmp_path / "decoder.onnx", padded(), int8="dynamic", int8_options=options)
    assert done.int8 is not None
    assert any("the file in floats was compared" in note and "at padding" in note for note in done.notes)


def test_a_file_that_differs_at_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"NOT TESTED: ONNX export, as {name} is not installed")
    torch.manual_seed(0)
    monkeypatch.setattr(
        "secateur.adapters.export.load_program", lambda path, onnx: lambda *given: model(*given) + 1
    )
    model = Decoder().eval()
    with pytest.raises(ProofError, match="outputs differ"):
        sc.export(model, tmp_path / "decoder.onnx", padded())
