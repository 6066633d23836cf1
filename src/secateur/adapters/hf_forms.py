"""`described`: the simplest form in which a folder of Hugging Face can say the widths of a model.

An even cut is said by the configuration alone; else by `per_layer_config` where the installed transformers reads it for
the family; else by a modelling file. What a form would build is computed and compared with the model's outputs.

>>> Answer({}, {"logits": torch.ones(2)}).error(Answer({}, {"logits": torch.ones(2)}))
0.0
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.adapters import hf_modelling
from secateur.adapters._fresh import flat
from secateur.adapters.hf_layers import built, following_widths, per_layer, with_fewer_layers
from secateur.adapters.served import difference
from secateur.core.out_of_memory import is_out_of_memory, raise_if_out_of_memory
from secateur.core.rounding import rounding_allowed
from secateur.errors import OptionError
from secateur.execution.undisturbed import undisturbed
from secateur.structure.hf.rotary import rebuilt

__all__ = ["Answer", "described", "outputs_of", "wraps_forward"]


@dataclass(frozen=True)
class Answer:
    """What a model is called with, and what it gives.

    Attributes:
        example: The keywords of the call.
        outputs: The outputs by name.
        tokens: How many tokens are generated as well, where the model can.
    """

    example: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]
    tokens: int = 0

    def error(self, other: Answer) -> float:
        """How far the outputs of another are from these, generated tokens left out."""
        mine, theirs = (
            {name: each for name, each in one.outputs.items() if name != "generated"} for one in (self, other)
        )
        return difference(mine, theirs)


def described(
    model: nn.Module, kind: type[nn.Module], form: str, answer: Answer
) -> tuple[str, Any, str, Answer]:
    """The form, the configuration, the source of a modelling file where one is needed, and what will be answered.

    Args:
        model: The model, cut or not.
        kind: The class of transformers that it is of.
        form: "auto", or the form that was asked for.
        answer: What the model gives for an example.

    Raises:
        OptionError: The form that was asked for cannot say the widths.
    """
    config = with_fewer_layers(model, model.config)
    changes = hf_modelling.differences(model, built(kind, config))
    unsaid = _widths(changes, model) or _unsaid(kind, config, changes)
    plain = form in ("auto", "config") and bool(changes) and not unsaid
    served = _computed(built(kind, config), model, config, answer) if plain else None
    if served is not None:
        return "config", config, "", served
    if not changes:
        if form not in ("auto", "config"):
            raise OptionError(
                f"form: the configuration alone holds all widths; expected 'config', got {form!r}"
            )
        return "config", config, "", answer
    first = next(iter(unsaid or changes))
    if form == "config":
        raise OptionError(
            f"form 'config': the configuration has no field for what {first!r} differs in; use form='auto'"
        )
    layered = per_layer(kind, model, config) if form != "code" else None
    if layered is not None and not hf_modelling.differences(model, built(kind, layered)):
        return "per_layer_config", layered, "", answer
    if form == "per_layer_config":
        raise OptionError(
            f"form 'per_layer_config': the installed transformers cannot express with it how {first!r} differs; use "
            "form='auto'"
        )
    source = hf_modelling.modelling_source(model, changes)
    config = copy.deepcopy(config)
    setattr(config, hf_modelling.KEY, changes)
    return "code", config, source, answer


def _widths(changes: hf_modelling.Changes, model: nn.Module) -> list[str]:
    """The modules that have stored tensors of other shapes, not only other numbers or another class."""
    stored = model.state_dict()
    return [
        path
        for path, entry in changes.items()
        if any(f"{path}.{name}".lstrip(".") in stored for name in entry.get("tensors") or ())  # type: ignore[attr-defined]
    ]


def _unsaid(kind: type[nn.Module], config: Any, changes: hf_modelling.Changes) -> list[str]:
    """The modules with a number that the configuration must state, whether or not an example shows what it does.

    It need not state what a width of it decides where the module is built, if that is larger in the model: the cut left
    there what the dense model had. Where it states rotary frequencies it states the scale of attention with them.
    """
    base = dict(built(kind, config).named_modules())
    numbers: list[tuple[str, str, object]] = [
        (path, name, value)
        for path, entry in changes.items()
        for name, value in (entry.get("attributes") or {}).items()  # type: ignore[attr-defined]
        if not (_states_frequencies(config) and name in _SCALES)
    ]
    left = {
        (path, name)
        for path, name, value in numbers
        if isinstance(value, int) and isinstance(was := getattr(base[path], name, None), int) and value > was
    }
    if len(left) == len(numbers):
        left = following_widths(kind, config, left)
    return [path for path, name, _ in numbers if (path, name) not in left]


_SCALES = ("scaling", "attention_scaling")
"""What a rotary family calls the scales of attention, which every call uses: the comparison sees them."""


def _states_frequencies(config: Any) -> bool:
    """Whether a configuration states rotary frequencies one by one."""
    rope = getattr(config, "rope_parameters", None)
    return isinstance(rope, dict) and rope.get("rope_type") == "longrope"


def _computed(base: nn.Module, model: nn.Module, config: Any, answer: Answer) -> Answer | None:
    """The outputs of what the configuration builds, with the model's tensors; None where it computes something else.

    Rotary frequencies that were kept are said as factors, which gives the same up to rounding: the outputs must agree
    within what rounding may be (`rounding_allowed`),
    and in float64 within `_ROUNDING` where the memory is enough for that.
    """
    try:
        _fill_(base, model, config)
        found = Answer(answer.example, outputs_of(base, answer.example, answer.tokens), answer.tokens)
        if not difference(answer.outputs, found.outputs):
            return answer
        allowed = rounding_allowed(each.dtype for each in model.parameters())
        if _states_frequencies(config) and answer.error(found) <= allowed:
            apart = _apart_in_float64(base, model, answer.example)
            return found if apart is None or apart < _ROUNDING else None
    except Exception as error:
        # the class fails in its own way where its configuration does not describe the model
        raise_if_out_of_memory(error)
    return None


_ROUNDING = 1e-5  # norms and rotary angles are computed in float32 also in a model in float64
_LARGE = 2 << 30
"""Bytes of weights from which no copy in float64 is made; it would take up to four times as many."""


def _apart_in_float64(base: nn.Module, model: nn.Module, example: Mapping[str, torch.Tensor]) -> float | None:
    """How far the outputs of copies in float64 are apart; None where the memory is not enough for a copy."""
    if sum(each.nbytes for each in model.parameters()) > _LARGE:
        return None
    example = {name: each.double() if each.is_floating_point() else each for name, each in example.items()}
    try:
        exact = [
            Answer(example, outputs_of(copy.deepcopy(one).double(), example, 0)) for one in (model, base)
        ]
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    return exact[0].error(exact[1])


def _fill_(base: nn.Module, model: nn.Module, config: Any) -> None:
    """Give a model without values the tensors of another; what no file holds is built from the configuration."""
    base.load_state_dict(model.state_dict(), assign=True)
    if hasattr(model, "generation_config"):
        base.generation_config = model.generation_config
    for path, module in base.named_modules():
        empty = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        again = rebuilt(module, config) if empty and not list(module.parameters()) else None
        for name in empty:
            theirs = model.get_submodule(path).get_buffer(name)
            mine = theirs if again is None else again.get_buffer(name).to(theirs.device)
            module.register_buffer(name, mine, persistent=False)


def wraps_forward(model: nn.Module) -> bool | None:
    """Whether a model's own `forward` is a wrapper of its class's; None where it has none of its own.

    Args:
        model: The model.
    """
    own = vars(model).get("forward")
    if own is None:
        return None
    inner = inspect.unwrap(getattr(own, "__func__", own))
    return getattr(inner, "__func__", inner) is inspect.unwrap(type(model).forward)


def outputs_of(model: Any, example: Mapping[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    """The model's outputs for the example, and the tokens that it generates if it can.

    They are those of the class's forward: a wrapper of it on the model itself, such as the autocast that a training in
    bf16 leaves there, is not part of what a folder holds.

    Args:
        model: A model of transformers.
        example: The keywords of the call.
        tokens: How many tokens are generated; 0 for none.
    """
    with undisturbed(model, mode="eval"), torch.no_grad():
        if wraps_forward(model):
            del model.forward  # for this block: `undisturbed` puts it back
        outputs = flat(model(**example))
        if tokens and "input_ids" in example and getattr(model, "can_generate", lambda: False)():
            outputs["generated"] = model.generate(
                example["input_ids"], max_new_tokens=tokens, do_sample=False
            )
    return outputs
