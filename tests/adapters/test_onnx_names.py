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


EXAMPLE = (torch.randint(20, (2, 7)), torch.rand(2, 8))


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
