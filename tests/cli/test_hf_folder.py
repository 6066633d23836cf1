"""A Hugging Face folder on the command line: named, calibrated on sentences, shrunk into a folder, exported."""

from __future__ import annotations

import pytest
import torch

from secateur.adapters import _fresh
from secateur.cli.given import InputFlags, ModelFlags
from secateur.errors import OptionError


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    """A folder `clf` of a small text classifier with its tokenizer, and sentences; the current folder holds them."""
    pytest.importorskip("transformers")
    _fresh._declare_torchvision()  # whose own may not fit torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        max_position_embeddings=24,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained("clf")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(30))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained("clf")
    lines = [" ".join(f"w{(line * 7 + i) % 30}" for i in range(4 + line % 5)) for line in range(24)]
    (tmp_path / "sentences.txt").write_text("\n\n".join(lines))
    return model


def test_a_folder_is_the_model_that_its_configuration_names(classifier):
    for name in ("clf", "hf/clf", "./clf"):
        flags = ModelFlags(name)
        made = flags.build()
        assert type(made) is type(classifier)
        assert flags.trained()
        assert str(flags.folder()) == "clf"
    assert not ModelFlags("hf/bert").trained()
    assert ModelFlags("hf/someone/model").trained()
    assert ModelFlags("mine:net").trained()  # nobody but its author knows
    assert not ModelFlags("clf", option=["pretrained=false"]).trained()
    assert ModelFlags("timm/x", option=["pretrained = true"]).trained()
    assert ModelFlags("resnet20").folder() is None


def test_a_shape_of_a_text_model_is_one_of_tokens(classifier):
    example = InputFlags("clf", input_="3,9").example(classifier)
    assert example["input_ids"].shape == (3, 9)
    assert example["input_ids"].dtype == torch.int64
    assert int(example["input_ids"].max()) < 40


def test_an_input_of_ones_own_is_a_function(secateur, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "twoinputs.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)\n"
        "    def forward(self, x, scale):\n"
        "        return {'out': self.b(self.a(x).relu() * scale)}\n"
        "def example():\n"
        "    return torch.ones(2, 4), torch.ones(2, 1)\n"
        "def wrong():\n"
        "    return torch.ones(2, 5), torch.ones(2, 1)\n"
    )
    code, out, err = secateur("explain", "twoinputs:Net", "--input", "twoinputs:example")
    assert code == 0, err
    assert "Net: 58 parameters" in out
    code, _, err = secateur("explain", "twoinputs:Net", "--input", "twoinputs:wrong")
    assert code != 0
    assert "fails on an input of twoinputs:wrong" in err
    code, _, err = secateur("explain", "twoinputs:Net")
    assert "--input module:function" in err


def test_a_classifier_is_refitted_on_sentences_and_written_as_a_folder(secateur, classifier):
    words = ["shrink", "clf", "--trials", "1", "--budget", "0.5"]
    code, out, err = secateur(*words, "--calibrate", "sentences.txt", "--out", "small")
    assert code == 0, err
    assert 'AutoModelForSequenceClassification.from_pretrained("small"' in out
    assert "random" not in err
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("small")
    assert len(tokenizer("w1 w2")["input_ids"]) == 2
    code, out, err = secateur(*words, "--out", "plain")
    assert code == 0, err
    loaded = [
        transformers.AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True).eval()
        for place in ("small", "plain")
    ]
    batch = torch.arange(24).reshape(3, 8)
    with torch.no_grad():
        dense, *found = (net(input_ids=batch).logits for net in (classifier, *loaded))
    off = [float((each - dense).square().mean()) for each in found]
    assert off[0] != off[1]
    code, _, err = secateur("measure", "small", "--what", "params")
    assert code != 0
    assert "brings the code of its model, which is not run unasked" in err
    code, out, err = secateur("measure", "small", "--option", "trust_remote_code=true", "--what", "params")
    assert code == 0, err


def test_int8_and_texts_where_they_do_not_fit(secateur, classifier):
    code, _, err = secateur("export", "clf", "--out", "a.onnx", "--int8", "sentences.txt")
    assert code != 0
    assert "give --int8 dynamic for a model of text" in err
    code, _, err = secateur("export", "clf", "--out", "a.pt2", "--int8", "dynamic")
    assert "--int8 goes with an .onnx file" in err
    code, _, err = secateur("shrink", "lenet-300-100", "--calibrate", "sentences.txt")
    assert "the model is none" in err
    code, _, err = secateur("shrink", "lenet-300-100", "--out", "folder")
    assert "a folder is written of a Hugging Face model" in err


def test_a_text_model_as_onnx_takes_any_length(secateur, classifier, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import secateur as sc

    code, out, err = secateur("export", "clf", "--out", "a.onnx", "--input", "2,9", "--int8", "dynamic")
    assert code == 0, err
    assert "the length" not in out
    model = sc.OnnxModel(tmp_path / "a.onnx")
    assert model(input_ids=torch.ones(5, 4, dtype=torch.int64)).shape == (5, 3)


def test_a_folder_called_like_an_architecture_is_the_folder(classifier, tmp_path):
    (tmp_path / "clf").rename("bert")
    for name in ("bert", "./bert", str(tmp_path / "bert")):
        assert ModelFlags(name).build().config.hidden_size == 16
        assert ModelFlags(name).trained()
    assert ModelFlags("hf/bert").folder() is None  # the architecture
    assert not ModelFlags("hf/bert").trained()


def test_what_cannot_be_written_is_said_before_the_work(secateur, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.pruning.prune.prune", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, err = secateur("shrink", "clf", "--out", "full")
    assert "full: expected a new or an empty folder, found a folder that is not empty" in err
    assert code == 2


def test_changed_files_of_a_folder_are_refused_in_a_sentence(secateur, classifier, tmp_path):
    (tmp_path / "clf" / "tokenizer_config.json").write_text("[]")
    (tmp_path / "clf" / "tokenizer.json").unlink()
    code, _, err = secateur("shrink", "clf", "--out", "small", "--repetitions", "1")
    assert code == 0, err
    assert "has no tokenizer that transformers can read" in err
    classifier.config.vocab_size = 0
    with pytest.raises(OptionError, match="vocab_size: expected a number from 1 on, got 0"):
        InputFlags("clf", input_="1,4").example(classifier)
