"""What a pruning method changes in a recipe: criteria of the steps that cut, and `sparsify` of the training before.

The first step that cuts (`prune`, `gradual` or `allocate`) says which criterion is compared. Every step that cuts by
the same criterion, with whatever options, takes the method's, and so does a `scan` that such a step takes its budget
from: iterative pruning is compared as a whole. A step that cuts by another criterion stays as the recipe says. `notes`
names both.

>>> sorted(METHODS)[:4], METHODS["group_lasso"].prune
(['activation', 'bn_l1', 'bn_scale', 'fisher'], {'criterion': 'l2'})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur import criteria
from secateur.errors import OptionError, RecipeError, near
from secateur.lab.outcomes import Table
from secateur.lab.recipe import Recipe
from secateur.lab.steps import Step

__all__ = ["METHODS", "Method", "first_cut", "method_of", "notes", "settings_of"]

CUTS = ("prune", "gradual", "allocate")
"""The kinds of step that choose by a criterion what is cut."""


@dataclass(frozen=True)
class Method:
    """What a method changes in a recipe.

    Args:
        prune: Options of the `prune` step.
        sparsify: The sparse training method of the training step before it, or None.
        ranking: With "isomorphic": units compete with those of equal structure alone.
    """

    prune: Mapping[str, object] = field(default_factory=dict)
    sparsify: Mapping[str, object] | None = None
    ranking: str | None = None


def _criterion(name: str, **options: object) -> Method:
    return Method({"criterion": {"name": name, **options} if options else name})


METHODS: dict[str, Method] = {
    "l2": _criterion("l2"),
    "magnitude": _criterion("magnitude"),
    "l1": _criterion("l1"),
    "random": _criterion("random"),
    "lamp": _criterion("lamp"),
    "fpgm": _criterion("fpgm"),
    "bn_scale": _criterion("bn_scale"),
    "activation": _criterion("activation"),
    "taylor": _criterion("taylor"),
    "fisher": _criterion("fisher"),
    "hessian": _criterion("hessian"),
    "wanda": _criterion("wanda"),
    "obs": _criterion("obs"),
    "snip": _criterion("snip"),
    "grasp": _criterion("grasp"),
    "synflow": _criterion("synflow"),
    "isomorphic": Method({"criterion": "l2"}, ranking="isomorphic"),
    "group_lasso": Method({"criterion": "l2"}, {"name": "group_lasso", "strength": 1e-4}),
    "group_sparse": Method({"criterion": "l2"}, {"name": "group_sparse", "strength": 1e-4}),
    "growing": Method({"criterion": "l2"}, {"name": "growing", "which": "all"}),
    "bn_l1": Method({"criterion": "bn_scale"}, {"name": "bn_l1", "strength": 1e-4}),
}
"""The methods by name. A criterion is called what it is called in recipes: `l2` is the norm of a unit (with granularity
`channel` that of a coupled group), `magnitude` the sum of its absolute weights, as `l1` is."""


def method_of(name: str) -> Method:
    """The method of a name.

    Args:
        name: Of `METHODS`, of any criterion, or one of your own as `module:Class`.

    Raises:
        OptionError: There is none of this name.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name or name in criteria.registry.names():
        return _criterion(name)
    known = [*METHODS, *criteria.registry.names()]
    raise OptionError(f"methods: unknown method {name!r}: {near(name, known, shown=len(known))}")


def first_cut(recipe: Recipe) -> int:
    """The position of the first step that cuts, whose criterion is the one compared.

    Args:
        recipe: The recipe.

    Raises:
        RecipeError: No step cuts.
    """
    for at, step in enumerate(recipe.steps):
        if step.kind() in CUTS:
            return at
    raise RecipeError(
        f"{recipe.name}: expected a step of kind {', '.join(map(repr, CUTS[:-1]))} or {CUTS[-1]!r}, whose criterion is "
        "varied, got none"
    )


def settings_of(recipe: Recipe, name: str) -> Table:
    """What a method sets in a recipe, by key.

    Args:
        recipe: The recipe.
        name: The method.

    Raises:
        RecipeError: No step cuts, none measures after it, or the method does not fit a step, which is named.
    """
    method = method_of(name)
    at = first_cut(recipe)
    measured = {name for step in recipe.steps[at:] for name in getattr(step, "what", ())}
    if not {"accuracy", "macs"} <= measured:
        raise RecipeError(
            f"{recipe.name}: expected a step of kind 'measure' after {recipe.steps[at].label!r}, with what = "
            f"['accuracy', 'macs'], got {sorted(measured) or 'none'}"
        )
    found: Table = {}
    for step in _varied(recipe):
        own = getattr(step, "criterion", None)
        for key, value in method.prune.items():
            if not (isinstance(own, Mapping) and own.get("name") == value):  # the recipe's options of it stay
                found[f"{step.label}.{key}"] = value
        if method.ranking is not None and step.kind() != "scan":
            found[f"{step.label}.budget"] = _ranked(recipe, step, method.ranking)
    if method.sparsify is not None:
        takes, _ = _trained(recipe)
        if not takes:
            raise RecipeError(
                f"{recipe.name}: method {name!r} works while the model is trained: expected a training step before "
                f"{recipe.steps[at].label!r} that does not rewind, got none"
            )
        found |= {f"{step.label}.sparsify": dict(method.sparsify) for step in takes}
    return found


def notes(recipe: Recipe, methods: Sequence[str]) -> tuple[str, ...]:
    """Sentences that say which steps the methods change, and which cuts they leave as the recipe says.

    Args:
        recipe: The recipe.
        methods: The methods compared.
    """
    varied = _varied(recipe)
    line = f"varied: the criterion of {_labels(varied)}"
    if others := [step for step in recipe.steps if step.kind() in CUTS and step not in varied]:
        line += "; as the recipe says, with every method: " + ", ".join(
            f"{step.label} ({_word(getattr(step, 'criterion', ''))})" for step in others
        )
    found = [line]
    if ranking := [name for name in methods if method_of(name).ranking is not None]:
        ranked = [step for step in varied if step.kind() != "scan"]
        found.append(f"varied with {', '.join(ranking)}: also the budget of {_labels(ranked)}")
    if sparse := [name for name in methods if method_of(name).sparsify is not None]:
        takes, rewinds = _trained(recipe)
        line = f"varied with {', '.join(sparse)}: also sparsify of {_labels(takes)}"
        if rewinds:
            line += f"; not of {_labels(rewinds)}: a training that rewinds takes none"
        found.append(line)
    return tuple(found)


def _labels(steps: Sequence[Step]) -> str:
    return ", ".join(step.label for step in steps)


def _varied(recipe: Recipe) -> list[Step]:
    """The steps whose criterion a method replaces: cuts by the first one's criterion, and the scans they go by."""
    same = _kind_of(getattr(recipe.steps[first_cut(recipe)], "criterion", None))
    cuts = [
        step
        for step in recipe.steps
        if step.kind() in CUTS and _kind_of(getattr(step, "criterion", None)) == same
    ]
    scans = {label for step in cuts if step.kind() == "prune" for label in step.refers()}
    return [step for step in recipe.steps if step in cuts or step.label in scans]


def _word(criterion: object) -> str:
    """A criterion as a recipe names it, without its options."""
    if isinstance(criterion, list | tuple):
        return " and ".join(map(_word, criterion))
    return str(criterion.get("name")) if isinstance(criterion, Mapping) else str(criterion)


def _kind_of(criterion: object) -> object:
    """What two ways of naming one criterion have in common: its class, or the name of one of your own."""
    if isinstance(criterion, list | tuple):
        return tuple(map(_kind_of, criterion))
    word = _word(criterion)
    return word if ":" in word else criteria.registry.get(word)


def _trained(recipe: Recipe) -> tuple[list[Step], list[Step]]:
    """The training steps that come last before the varied cuts: those that may take `sparsify`, those that rewind."""
    takes: list[Step] = []
    rewinds: list[Step] = []
    last: Step | None = None
    varied = _varied(recipe)
    for step in recipe.steps:
        if last is not None and step in varied and step.kind() != "scan":
            rewound = getattr(last, "rewind", None) or getattr(last, "rewind_rate", None)
            (rewinds if rewound else takes).append(last)
            last = None
        if step.kind() in ("train", "retrain"):
            last = step
    return takes, rewinds


def _ranked(recipe: Recipe, step: Step, ranking: str) -> object:
    """The step's budget with another ranking: equal structure competes."""
    budget: Any = getattr(step, "budget", None)
    if step.kind() == "gradual":
        return ranking
    if isinstance(budget, (int, float)):
        return {"name": ranking, "sparsity": budget}
    if isinstance(budget, dict) and budget.get("name") in ("macs", "params", "size", "latency"):
        return {**budget, "spread": ranking}
    if isinstance(budget, dict) and budget.get("name") in ("per_tensor", "overall", "isomorphic"):
        return {"name": ranking, "sparsity": budget["sparsity"]}
    got = f"got {budget!r}" if budget is not None else f"but {step.kind()!r} has no budget"
    raise RecipeError(
        f"{recipe.name}: step {step.label!r}: method {ranking!r} ranks units by kind: expected a budget that is a "
        f"share, macs, params, size or latency, {got}; leave the method out"
    )
