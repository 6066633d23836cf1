"""Names in ONNX files: outputs by the model's dictionary, free axes by what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class TwoAnswers(nn.Module):
    def __init__(self, first="stem"):
        super().__init__()
        self.first = first
        self.add_module(first, nn.Embedding(20, 8))
        self.kind, self.score = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, tokens, weights):
        x = (getattr(self, self.first)(tokens) * weights[:, None]).mean(1)
        return {"class": self.kind(x), "rest": (self.score(x), x)}


CHANCE = torch.Generator().manual_seed(0)
EXAMPLE = (torch.randint(20, (2, 7), generator=CHANCE), torch.rand(2, 8, generator=CHANCE))


def test_outputs_and_free_axes_have_names_that_can_be_asked_for(tmp_path):
    torch.manual_seed(0)
    model = TwoAnswers().eval()
    done = sc.export(model, tmp_path / "a.onnx", EXAMPLE)
    assert done.notes == ()
    session = sc.OnnxModel(tmp_path / "a.onnx").session
    assert [each.name for each in session.get_outputs()] == ["class", "rest.0", "rest.1"]
    assert [each.shape for each in session.get_inputs()] == [["batch", "length"], ["batch", 8]]
    assert session.get_outputs()[0].shape == ["batch", 4]
    found = session.run(
        ["rest.0"], {"tokens": EXAMPLE[0][:1, :3].numpy(), "weights": EXAMPLE[1][:1].numpy()}
    )[0]
    wanted = model(EXAMPLE[0][:1, :3], EXAMPLE[1][:1])["rest"][0]
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_a_fixed_length_is_said_and_another_one_refused_by_name(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(20, 2), nn.Linear(14, 3)

        def forward(self, tokens):
            return self.out(self.table(tokens).flatten(1))

    done = sc.export(Fixed().eval(), tmp_path / "a.onnx", EXAMPLE[0])
    assert done.notes == ("the length of sequences is fixed to 7: pad them to it",)
    model = sc.OnnxModel(tmp_path / "a.onnx")
    assert model(EXAMPLE[0].repeat(3, 1)).shape == (6, 3)
    with pytest.raises(
        DataError,
        match=r"takes 'tokens' in shape \['batch', 7\] \(names are free\), got \[2, 5\]",
    ):
        model(EXAMPLE[0][:, :5])


def test_a_name_that_breaks_the_exporter_is_said(tmp_path):
    with pytest.raises(
        DataError, match=r"cannot write a model with a module named 'meta'.*rename the module"
    ):
        sc.export(TwoAnswers("meta").eval(), tmp_path / "a.onnx", EXAMPLE)
    assert not list(tmp_path.iterdir())


def test_a_causal_model_is_written_without_its_cache(tmp_path):
    pytest.importorskip("transformers")
    from secateur.adapters import _fresh

    _fresh._declare_torchvision()  # whose own may not fit torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    done = sc.export(model, tmp_path / "a.onnx", {"input_ids": torch.randint(50, (2, 9))})
    assert done.notes == ()
    assert model.config.use_cache
    file = sc.OnnxModel(tmp_path / "a.onnx")
    assert [each.name for each in file.session.get_outputs()] == ["logits"]
    tokens = torch.randint(50, (1, 6))
    assert torch.allclose(file(tokens), model(tokens).logits, atol=1e-4)


def test_lengths_that_are_only_equal_in_the_example_are_told_apart(tmp_path):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Embedding(30, 8), nn.Embedding(30, 8)

        def forward(self, first, second):
            q, k = self.a(first), self.b(second)
            return (q @ k.transpose(1, 2)).softmax(-1) @ k

    torch.manual_seed(0)
    model, example = Cross().eval(), (torch.randint(30, (2, 10)), torch.randint(30, (2, 10)))
    sc.export(model, tmp_path / "a.onnx", example)
    file = sc.OnnxModel(tmp_path / "a.onnx")
    assert [each.shape[1] for each in file.session.get_inputs()] == ["length", "length_2"]
    for sizes in ((14, 3), (3, 20), (20, 12)):
        inputs = [torch.randint(30, (2, size)) for size in sizes]
        assert torch.allclose(file(*inputs), model(*inputs), atol=1e-5)


def test_a_branch_on_a_size_is_not_written_as_if_there_were_none(tmp_path):
    class Branch(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.axis, self.table, self.linear = axis, nn.Embedding(30, 8), nn.Linear(8, 8)

        def forward(self, tokens):
            y = self.table(tokens)
            return self.linear(y) if tokens.shape[self.axis] > 16 else y

    done = sc.export(Branch(1).eval(), tmp_path / "a.onnx", torch.randint(30, (2, 12)))
    assert done.notes == ("the length of sequences is fixed to 12: pad them to it",)
    done = sc.export(Branch(0).eval(), tmp_path / "b.onnx", torch.randint(30, (2, 12)))
    assert done.notes[0].startswith("the batch is fixed")


def test_a_state_that_comes_in_and_goes_out_has_two_names(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(4, 8)

        def forward(self, relu, state):
            new = self.cell(relu, state)
            return {"logits": new[:, :2].relu(), "state": new}

    torch.manual_seed(0)
    model, example = Recurrent().eval(), (torch.randn(2, 4), torch.randn(2, 8))
    sc.export(model, tmp_path / "a.onnx", example)
    file = sc.OnnxModel(tmp_path / "a.onnx")
    assert [each.name for each in file.session.get_inputs()] == ["relu", "state"]
    assert [each.name for each in file.session.get_outputs()] == ["logits", "state_out"]
    for found, wanted in zip(file(*example), model(*example).values(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["stride", "mask"])
def test_models_that_the_fast_forms_of_int8_do_not_fit_are_written_all_the_same(tmp_path, kind):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.out = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 4)

        def forward(self, x):
            assert x.shape[-1] % self.proj.stride[0] == 0
            return self.out(self.proj(x).flatten(2).mean(2))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x, padding):
            return self.inner(x, x, x, key_padding_mask=padding, need_weights=False)[0]

    torch.manual_seed(0)
    model = (Patches() if kind == "stride" else Masked()).eval()
    padded = torch.randn(2, 6, 16), torch.arange(6)[None].expand(2, -1) > 4
    example = torch.randn(2, 3, 8, 8) if kind == "stride" else padded
    options = sc.Int8Options(lost=0.5)
    done = sc.export(model, tmp_path / "a.onnx", example, int8="dynamic", int8_options=options)
    assert done.format == "onnx int8"
