"""Random models through `explain`, `prune`, `shrink` and files: `python -m attacks.models --seconds 600`.

`attacks.random_models` writes a network from a seed; here each is explained, pruned by one granularity after another,
cut, saved and loaded, and cut again. What is held to it: no exception but our own; a refusal leaves the model as it
was; and the cut model gives what the masked one does, in float64, on other inputs, batches and sizes, which is compared
here and not by the proof. What breaks the promise is printed with its seed, and `--one SEED` shows that network.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import secateur as sc
from attacks.random_models import RandomModel, built, source_of
from secateur.errors import SecateurError

_TOLERANCE = 1e-8
_LONGEST = 120  # seconds of processor time for one network
_SHARES = (0.25, 0.5, 0.75)


class TooLong(BaseException):
    """A network that takes too long; nothing may catch it."""


@dataclass
class Found:
    """What came of networks.

    Attributes:
        counts: How often each thing happened.
        broken: What broke the promise: (seed, what).
        doubtful: What only the proof, or the plan, has stopped: nothing wrong comes of it, and it is worth a look.
        refused: The texts of refusals, by seed and way.
    """

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[int, str]] = field(default_factory=list)
    doubtful: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for each in value for tensor in _tensors(each)]


def _run(net: nn.Module, x: torch.Tensor, grad: bool = False) -> list[torch.Tensor]:
    with torch.set_grad_enabled(grad):
        return [each.detach().clone() for each in _tensors(net(x.clone()))]


def _double(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).double()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _off(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference over the largest value; infinite where shapes differ, or what is no finite number."""
    if [each.shape for each in left] != [each.shape for each in right]:
        return float("inf")
    if not all(torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(left, right)):
        return float("inf")
    finite = [each.nan_to_num(0, 0, 0) for each in left]
    scale = max([float(each.abs().max()) for each in finite if each.numel()] + [1e-12])
    gaps = [
        float((a.double() - b.double()).abs().nan_to_num(0, 0, 0).max())
        for a, b in zip(left, right)
        if a.numel()
    ]
    return max([*gaps, 0.0]) / scale


def _same(net: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = net.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def _masked(net: nn.Module, keep: dict[str, torch.Tensor]) -> nn.Module:
    made = _double(net)
    with torch.no_grad():
        for name, value in made.named_parameters(remove_duplicate=False):
            if name in keep:
                value.mul_(keep[name].to(value.dtype))
    return made


def _rest(plan: sc.ShrinkPlan, net: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters' elements that a plan keeps, as masks."""
    found = {}
    for name, value in net.named_parameters(remove_duplicate=False):
        mask = torch.ones_like(value, dtype=torch.bool)
        for axis, indices in dict(plan.keep.get(name, {})).items():
            line = torch.zeros(value.shape[axis], dtype=torch.bool)
            line[list(indices)] = True
            mask &= line.view([-1 if each == axis else 1 for each in range(value.dim())])
        found[name] = mask
    return found


class Judge:
    """Holds one network to the promise.

    Args:
        seed: Its seed.
        found: Where to write what came of it.
    """

    def __init__(self, seed: int, found: Found):
        self.seed, self.found = seed, found
        self.made: RandomModel = source_of(seed)
        self.net = built(self.made, seed)
        self.x, *self.others = self.made.inputs(seed)
        self.rng = random.Random(seed)

    def broke(self, what: str) -> None:
        self.found.broken.append((self.seed, what))

    def run(self) -> None:
        """Everything, with every granularity."""
        try:
            before = _run(self.net, self.x)
        except Exception:
            self.found.counts["not a network"] += 1
            return
        if not all(bool(each.isfinite().all()) and float(each.abs().max()) < 1e6 for each in before):
            self.found.counts["not finite"] += 1
            return
        self.found.counts["networks"] += 1
        self.state = {name: each.clone() for name, each in self.net.state_dict().items()}
        self._guarded("explain", lambda: sc.explain(self.net, self.x, budget=0.5))
        attends = any("attention" in each or "queries" in each for each in self.made.pieces)
        ways = ["channel", self.rng.choice(("element", "filter"))]
        ways += ["head", "head_size"] if attends else []
        ways += ["layer"] if "stack" in self.made.pieces or "torch_attention" in self.made.pieces else []
        for way in ways:
            share = self.rng.choice(_SHARES)
            self._guarded(f"{way} {share}", lambda way=way, share=share: self._way(way, share))
            if not _same(self.net, self.state) or _off(before, _run(self.net, self.x)) != 0:
                self.broke(f"{way} {share}: the model was changed")
                return

    def _guarded(self, what: str, act: Any) -> None:
        """Run something: a refusal of ours is noted, any other exception and one by `explain` break the promise."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                act()
            self.found.counts[f"{what.split()[0]}: done"] += 1
        except SecateurError as error:
            name = type(error).__name__
            self.found.refused.append((self.seed, what, f"{name}: {error}"))
            self.found.counts[f"{what.split()[0]}: {name}"] += 1
            if what == "explain":
                self.broke(f"{what}: {name}: {error}")
            elif name in ("PlanError", "ProofError", "TraceError"):
                self.found.doubtful.append((self.seed, f"{what}: {name}: {error}"))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.broke(
                f"{what}: {type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
            )

    def _way(self, way: str, share: float) -> None:
        options = None
        criterion = self.rng.choice(("l2", "random")) if way not in ("element",) else "magnitude"
        if way == "element":
            share = 0.9
        budget: Any = sc.budget.Overall(0.3) if way == "layer" else share
        options = sc.PruneOptions(allow_collapse=way in ("element", "filter"), seed=self.seed)
        masks = sc.prune(self.net, criterion, way, budget, example=self.x, options=options)
        small = sc.shrink(self.net, masks, self.x)
        self._equal(way, masks, small)
        self._gone(way, masks, small)
        self._files(small)
        if way == "channel":
            again = sc.prune(small.model, "l2", "channel", 0.3, example=self.x, options=options)
            second = sc.shrink(small.model, again, self.x)
            self._compare("second cut", _masked(small.model, dict(again)), second)

    def _equal(self, way: str, masks: sc.Masks, small: sc.Shrunk) -> None:
        keep = dict(masks)
        if way == "layer":
            self._compare(way, sc.bypassed(self.net, masks, self.x).double(), small)
            return
        if way in ("element", "filter") or small.proof.besides:
            if way not in ("element", "filter"):
                self.broke(f"{way}: the proof speaks of constants that masks keep: {small.proof.besides}")
            rest = _rest(small.plan, self.net)
            keep = {name: each & keep[name] if name in keep else each for name, each in rest.items()}
        self._compare(way, _masked(self.net, keep), small)

    def _compare(self, what: str, masked: nn.Module, small: sc.Shrunk) -> None:
        cut = _double(small.model)
        fresh = torch.randn(self.x.shape) if self.x.is_floating_point() else torch.randint(11, self.x.shape)
        for x in (self.x, fresh, *self.others):
            x = _wide(x)
            for grad in (False, True):
                try:
                    wanted = _run(masked, x, grad)
                except Exception:
                    continue
                try:
                    got = _run(cut, x, grad)
                except Exception as error:
                    self.broke(f"{what}: the cut model does not take {tuple(x.shape)}: {str(error)[:200]}")
                    return
                off = _off(wanted, got)
                if off > _TOLERANCE:
                    self.broke(
                        f"{what}: outputs differ by {off:.2g} on {tuple(x.shape)}, gradients {grad}; {small.proof}"
                    )
                    return

    def _gone(self, way: str, masks: sc.Masks, small: sc.Shrunk) -> None:
        """Masks that drop whole channels, of which the cut keeps some without a word."""
        if way not in ("channel", "head", "head_size"):
            return
        left = sum(value.numel() for value in small.model.parameters())
        zeros = sum(int((~mask).sum()) for mask in small.masks.values())
        if small.locked:
            self.found.counts[f"{way}: locked by shrink"] += 1
        elif zeros:
            self.found.counts[f"{way}: zeros stay without a lock"] += 1
            self.found.refused.append((self.seed, way, f"STAY {zeros} of {left}"))

    def _files(self, small: sc.Shrunk) -> None:
        wanted = _run(small.model, self.x)
        with tempfile.TemporaryDirectory() as folder:
            own, packed = Path(folder) / "own.safetensors", Path(folder) / "packed.sct"
            small.save(own)
            sc.save(small, packed)
            made = {
                "load_shrunk": sc.load_shrunk(own, into=built(self.made, 1)),
                "load": sc.load(packed, into=built(self.made, 1)),
                "deepcopy": copy.deepcopy(small.model),
            }
        if not any(nn.utils.parametrize.is_parametrized(each) for each in small.model.modules()):
            made["pickle"] = pickle.loads(pickle.dumps(small.model))  # torch refuses to pickle the others
        for name, net in made.items():
            got = _run(net.eval(), self.x)
            if not all(
                torch.equal(a, b) or (bool((a.isnan() == b.isnan()).all()) and _off([a], [b]) == 0)
                for a, b in zip(wanted, got, strict=True)
            ):
                self.broke(f"{name}: other outputs, by {_off(wanted, got):.2g}")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not ended after {_LONGEST} s of processor time")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def judge(seed: int, found: Found) -> None:
    """Make the network of a seed and hold it to the promise.

    Args:
        seed: The seed.
        found: Where to write what came of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _limited():
                Judge(seed, found).run()
        except TooLong as error:
            found.broken.append((seed, str(error)))


def attack(seeds: Iterable[int], seconds: float, found: Found) -> int:
    """Judge the networks of seeds, and print what is found at once.

    Args:
        seeds: The seeds.
        seconds: The time after which no other network is begun.
        found: Where to write what came of them.

    Returns:
        How many networks were made.
    """
    end, many = time.monotonic() + seconds, 0
    for seed in seeds:
        if time.monotonic() > end:
            break
        broken, doubtful = len(found.broken), len(found.doubtful)
        judge(seed, found)
        many += 1
        for each in found.broken[broken:]:
            print("broken:", *each, flush=True)
        for each in found.doubtful[doubtful:]:
            print("to look at:", *each, flush=True)
    return many


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0, help="the first; one network for each from there on")
    parser.add_argument("--one", type=int, help="the network of this seed alone, which is printed")
    parser.add_argument("--refusals", action="store_true", help="print what was refused, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = Found()
    if options.one is not None:
        print(source_of(options.one).text)
        many = attack([options.one], options.seconds, found)
    else:
        many = attack(itertools.count(options.seed), options.seconds, found)
    for name, count in sorted(found.counts.items()):
        print(f"{count:>7} {name}")
    for refusal in found.refused if options.refusals else ():
        print("refused:", *refusal)
    print(f"{many} networks: {len(found.broken)} times the promise was broken")
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())
