"""`auto_class`: the AutoModel class of transformers that builds the very class which a configuration names.

A folder written by `save_pretrained` says in `architectures` which class it is of. The AutoModel class of another task
would build another model: without the head, or with a new one.

>>> task_of("AutoModelForCausalLM"), task_of("AutoModelForSeq2SeqLM"), task_of("AutoModel")
('MODEL_FOR_CAUSAL_LM', 'MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM', 'MODEL')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.errors import OptionError

__all__ = ["auto_class", "classifying", "task_of"]

_SPELT = {
    "SEQ2_SEQ_LM": "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ2_SEQ": "SPEECH_SEQ_2_SEQ",
    "PRE_TRAINING": "PRETRAINING",
}
_CLASSIFY = (
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForAudioClassification",
)
# A configuration alone does not say the task; the first of these that knows its kind of model is taken.
_TASKS = (
    "AutoModelForImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModel",
)


def task_of(word: str) -> str:
    """The name by which transformers keeps the models of an AutoModel class.

    Args:
        word: The name of the class.
    """
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word.removeprefix("Auto")).upper()
    head, split, task = parts.partition("MODEL_FOR_")
    return f"{head}{split}{_SPELT.get(task, task)}"


def auto_class(config: Any, where: str, default: str | None = None) -> str:
    """The name of the AutoModel class for a configuration.

    Args:
        config: A configuration of transformers.
        where: Whose it is, for the error.
        default: For a configuration without `architectures`; None for one that fits its kind of model.

    Returns:
        Such as "AutoModelForSequenceClassification".

    Raises:
        OptionError: No AutoModel class builds the class that the configuration names.
    """
    import transformers

    given = getattr(config, "architectures", None)
    named = [name for name in given if isinstance(name, str)] if isinstance(given, (list, tuple)) else []
    kind = str(getattr(config, "model_type", ""))
    if not named:
        return default or next((word for word in _TASKS if _suits(word, kind)), _TASKS[0])
    words = sorted(word for word in dir(transformers) if word.startswith("AutoModel"))
    for word in words:
        made = _models(word).get(kind, ())
        if set(named) & {*([made] if isinstance(made, str) else made)}:
            return word
    raise OptionError(
        f"{where}: its config.json is of the class {named[0][:80]!r}, which no AutoModel class of transformers "
        f"{transformers.__version__} builds for {kind[:40]!r}; name one that fits: auto_class=AutoModelFor..., or "
        "build the model in Python"
    )


def classifying(config: Any, where: str) -> str:
    """The name of the AutoModel class that builds a classifier of a configuration's kind of model.

    Args:
        config: A configuration of transformers.
        where: Whose it is, for the error.

    Raises:
        OptionError: No AutoModel class does.
    """
    word = auto_class(config, where)
    if "Classification" in word:
        return word
    kind = str(getattr(config, "model_type", ""))
    found = next((each for each in _CLASSIFY if kind in _models(each)), None)
    if found is None:
        raise OptionError(
            f"{where}: num_classes: {kind[:40]!r} has no classifier in transformers; leave it out"
        )
    return found


def _models(word: str) -> Mapping[str, str | tuple[str, ...]]:
    """The classes that an AutoModel class builds, by kind of model."""
    from transformers.models.auto import modeling_auto

    found: Mapping[str, str | tuple[str, ...]] = getattr(modeling_auto, f"{task_of(word)}_MAPPING_NAMES", {})
    return found


def _suits(word: str, kind: str) -> bool:
    """Whether an AutoModel class is the usual one for a kind of model: BERT can be a causal model, but is none."""
    masked = word == "AutoModelForCausalLM" and kind in _models("AutoModelForMaskedLM")
    return kind in _models(word) and not masked
