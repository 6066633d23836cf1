"""The AutoModel class by which a checkpoint is built as what it is."""

from __future__ import annotations

import pytest

from secateur.adapters import _fresh
from secateur.errors import OptionError
from secateur.structure.hf.auto_classes import auto_class, task_of


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("transformers")
    _fresh._declare_torchvision()  # whose own may not fit torch
    import transformers

    return transformers


@pytest.mark.parametrize(
    ("kind", "named", "wanted"),
    [
        ("bert", "BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("bert", "BertForTokenClassification", "AutoModelForTokenClassification"),
        ("bert", "BertModel", "AutoModel|AutoModelForTextEncoding"),
        ("llama", "LlamaForCausalLM", "AutoModelForCausalLM"),
        ("t5", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM|AutoModelForPreTraining"),
        ("bert", "BertForPreTraining", "AutoModelForPreTraining"),
        ("vit", "ViTForImageClassification", "AutoModelForImageClassification"),
        ("whisper", "WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
    ],
)
def test_a_checkpoint_is_built_as_the_class_that_it_names(transformers, kind, named, wanted):
    config = transformers.AutoConfig.for_model(kind)
    config.architectures = [named]
    word = auto_class(config, "it")
    mapping = getattr(transformers.models.auto.modeling_auto, f"{task_of(word)}_MAPPING_NAMES")
    assert named == mapping[kind]
    assert word in wanted.split("|")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("vit", "AutoModelForImageClassification"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("llama", "AutoModelForCausalLM"),
        ("bert", "AutoModelForSequenceClassification"),  # which could write text, and is not made for it
    ],
)
def test_an_architecture_alone_gets_its_usual_task(transformers, kind, wanted):
    config = transformers.AutoConfig.for_model(kind)
    assert auto_class(config, "it") == wanted
    assert auto_class(config, "it", default="AutoModelForCausalLM") == "AutoModelForCausalLM"


def test_a_class_that_nothing_builds_is_named(transformers):
    config = transformers.AutoConfig.for_model("bert")
    config.architectures = ["BertForDreaming"]
    with pytest.raises(OptionError, match=r"folder: its config.json is of the class 'BertForDreaming'"):
        auto_class(config, "folder")
