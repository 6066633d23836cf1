"""Accuracy without retraining: `python benchmarks/bench_compensate.py --data FOLDER --weights FILE [--minilm FOLDER]`.

FOLDER holds `cifar10` as the data package reads it, FILE the weights of `sc.models.build("resnet20")`; both may also be
named by SECATEUR_SHARED, a folder with data/cifar10 and models/resnet20-cifar10.safetensors. `--minilm` names a folder
with sentence-transformers' all-MiniLM-L6-v2 (config.json, tokenizer.json, model.safetensors; the extra `transformers`),
`--lite0` the ImageNet weights of EfficientNet-Lite0 as lukemelas's package has them (.pth; the extra `timm`).
What is not at hand is said and left out.

CIFAR-10: 2,000 training images without labels, all 10,000 test images; points of top-1 lost against the dense model.
`--rows TEXT` measures only the rows whose name holds TEXT.
`--only choose` compares settings on 2,000 training images that are held out, so that test images choose nothing.
MiniLM: docstrings of the standard library, 200 to calibrate and 200 others; mean cosine to the dense embeddings. The
text is those 200 alone, in part recombined and with tokens of the vocabulary in place of some. Pruned are the linear
layers of the encoder, shared all tensors, layers with the bits named in the mean over their weights
(`sc.error_bits`), tables of embeddings with bits of their own. `--only peers` compares with
SparseGPT and Wanda, which take the 200 sentences as they are; `--only choose-minilm` compares settings on sentences
that are neither calibrated nor tested on.
EfficientNet-Lite0: CIFAR-10's images enlarged to 160 pixels, 300 training images to calibrate, 500 test images; the
share of images whose top-1 is the dense model's. `--only lite0-borders` says how near these images are to the border
of two classes: the agreement with itself under noise in the logits, and with rounded weights. `--only memory` prints
the most memory that is not a file's while 250 and while 1,000 images wait, on Linux. `--keep FOLDER` keeps what the
stages of MiniLM's rows gave, so that a row can be measured in several turns.
`prototype` is plain least squares, layer by layer on magnitude masks, measured before this was written. Seconds are
those of the processor, over all threads, from the dense model to the finished one.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import secateur as sc
from secateur import data as datasets
from secateur.compensation.batches import read_all
from secateur.compensation.least_squares import conjugate_gradients
from secateur.compensation.tuning import tune as tuned
from secateur.lab.calibration import CalibrationImages
from secateur.structure.shrunk_files import reestimate_batch_norm

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record
from input_order import reordered
from one_shot_peers import Prune, block_by_block, llmcompressor_sparse_gpt, sparse_gpt, wanda

COUNT = 2000


@dataclass(frozen=True)
class Line:
    """One line of the table; below the goal is good, or above it where `higher`."""

    what: str
    ours: float
    prototype: str
    goal: float
    seconds: float
    higher: bool = False

    @property
    def met(self) -> bool:
        return self.ours >= self.goal if self.higher else self.ours <= self.goal

    def __str__(self) -> str:
        sign = ">=" if self.higher else "<="
        return (
            f"{self.what:<46} {self.ours:>9.3f} {self.prototype:>10} {sign} {self.goal:<7.3f} {self.seconds:>6.0f} s"
            + ("" if self.met else "  MISSED")
        )


@dataclass(frozen=True)
class Task:
    """What one row or several come from: `what` names them before they are measured."""

    what: str
    measure: Callable[[], list[Line]]


def shown(line: Line) -> Line:
    """The line, printed and recorded at once: a run that is stopped keeps what it has found."""
    print(line, flush=True)
    goal = line.goal if math.isfinite(line.goal) else None
    better: Literal["lower", "higher"] = "higher" if line.higher else "lower"
    detail = f"{line.seconds:.0f} s" + (f"; prototype {line.prototype}" if line.prototype else "")
    record(Figure(line.what.strip(), line.ours, "", goal, better, detail=detail))
    return line


class Cifar:
    """ResNet-20 on CIFAR-10: every part gives lines, and prints them as it goes."""

    def __init__(self, folder: str, weights: str, choosing: bool):
        from safetensors.torch import load_file

        dense = sc.models.build("resnet20")
        dense.load_state_dict(load_file(weights))
        self.dense = dense.eval().to(memory_format=torch.channels_last)
        self.data = datasets.load_for(dense, "cifar10", path=folder, validation=0.04, normalise="imagenet")
        self.batches = [b.contiguous(memory_format=torch.channels_last) for b in self.images(None)]
        self.judged_on = self.data.validation if choosing else self.data.test
        self.accuracy = self.test(self.dense)
        which = "training images held out" if choosing else "test images"
        print(f"dense {self.accuracy:.2f} % on {len(self.judged_on):,} {which}", flush=True)

    def images(self, augment: str | None) -> CalibrationImages:
        return CalibrationImages(self.data.train, COUNT, 100, augment=augment)

    @torch.no_grad()
    def test(self, model: nn.Module) -> float:
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in self.judged_on.batches(250))
        return 100 * right / len(self.judged_on)

    def lost(self, what: str, prototype: str, goal: float, make: Callable[[], nn.Module]) -> Line:
        start = time.process_time()
        model = make()
        seconds = time.process_time() - start
        return shown(Line(f"{what}: points lost", self.accuracy - self.test(model), prototype, goal, seconds))

    def task(self, what: str, prototype: str, goal: float, make: Callable[[], nn.Module]) -> Task:
        return Task(what, lambda: [self.lost(what, prototype, goal, make)])

    def sparse(self, sparsity: float, passes: int, damping: float = 1e-3) -> tuple[nn.Module, sc.Masks]:
        masks = sc.prune(self.dense, "obs", budget=sc.budget.Overall(sparsity), data=self.batches)
        tune = sc.Tuning(passes=passes, lr=0.05, precision="bf16") if passes else None
        solver = sc.LeastSquares(damping=damping, reselect=True)
        images = Innermost(self.images("standard")) if passes else self.batches
        found = sc.compensate(self.dense, masks, images, solver=solver, tune=tune)
        return found.model, found.masks

    def choose(self) -> Iterator[Task]:
        """What the damping is chosen by: points lost on training images that no layer was solved on."""
        for damping in (1e-4, 1e-3, 1e-2):

            def make(damping: float = damping) -> nn.Module:
                return self.sparse(0.75, 0, damping)[0]

            yield self.task(f"75%, damping {damping:g}", "", float("inf"), make)

    def pruning(self) -> Iterator[Task]:
        for sparsity, passes, prototype, goal in (
            (0.5, 0, "1.0", 0.6),
            (0.75, 0, "4.6", 2.5),
            (0.9, 10, "42", 15),
        ):

            def make(sparsity: float = sparsity, passes: int = passes) -> nn.Module:
                return self.sparse(sparsity, passes)[0]

            yield self.task(f"{sparsity:.0%} of weights removed", prototype, goal, make)

    def sharing(self) -> Iterator[Task]:
        for bits, lr, prototype, goal in ((3, 0.02, "0.6", 0.3), (2, 0.05, "2.8", 1.5)):

            def make(bits: int = bits, lr: float = lr) -> nn.Module:
                options = sc.ShareOptions(tune=sc.Tuning(passes=8, lr=lr, precision="bf16"))
                images = Innermost(self.images("standard"))
                return sc.share(self.dense, bits=bits, data=images, options=options).model

            yield self.task(f"{bits} bits", prototype, goal, make)

    def both(self) -> Iterator[Task]:
        yield Task("64 % removed and 3 bits", self._both)

    def _both(self) -> list[Line]:
        """The model as it is read back from its file, in which names are left out and batch norm is folded to fp16."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.sct"

            def make() -> nn.Module:
                model, masks = self.sparse(0.64, 8)
                tune = sc.Tuning(passes=24, lr=0.05, precision="bf16")
                options = sc.ShareOptions(dense=self.dense, tune=tune, assignments="learnt")
                images = Innermost(self.images("standard"))
                shared = sc.share(model, 3, masks, data=images, rate=0.036, options=options)
                small = sc.SaveOptions(batch_norm="fp16", coder="strong")
                sc.save(shared.model, path, names="model", options=small)
                again = sc.load(path, into=sc.models.build("resnet20"))
                return again.to(memory_format=torch.channels_last)

            lost = self.lost("64 % removed and 3 bits", "", 1.5, make)
            dense = sum(t.numel() * t.element_size() for t in self.dense.state_dict().values())
            ratio = dense / path.stat().st_size
        return [lost, shown(Line("64 % and 3 bits: dense bytes / .sct", ratio, "", 20, 0, higher=True))]

    def channels(self) -> Iterator[Task]:
        yield Task("half the MACs by channels", self._channels)

    def _channels(self) -> list[Line]:
        example = self.data.example
        masks = sc.prune(self.dense, "l2", "channel", sc.budget.Macs(keep=0.5), example=example)
        plain = reestimate_batch_norm(masks.apply(self.dense), self.batches, batches=len(self.batches))
        lost = self.accuracy - self.test(plain)

        def make() -> nn.Module:
            tune = sc.Tuning(passes=6, lr=0.05, precision="bf16")
            return sc.compensate(self.dense, masks, Innermost(self.images("standard")), tune=tune).model

        return [self.lost(f"half the MACs by channels (norms alone: {lost:.1f})", "", lost / 2, make)]


class Innermost:
    """Batches with the channels innermost, in which convolutions are faster on a processor."""

    def __init__(self, images: CalibrationImages):
        self.images = images

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.images:
            yield batch.contiguous(memory_format=torch.channels_last)


VERSIONS, PASSES = 8, 32
"""How often the sentences of MiniLM are recombined for least squares, and the passes of gradient steps after it."""

BESIDES = 0.15
"""What biases and norms, and weights that move for each other, take besides, in bits of a weight."""


class Stages:
    """What the stages of a row gave, in the folder of `--keep`, or nowhere: a run that was stopped goes on from there.

    `earlier` is the processor time of the stages that were read.
    """

    def __init__(self, folder: str | None):
        self._folder = Path(folder) if folder else None
        self.earlier = 0.0

    def result(self, name: str, make: Callable[[], Any]) -> Any:
        """What a stage gives, made or read."""
        path = None if self._folder is None else self._folder / f"{name}.pt"
        if path is not None and path.exists():
            value, seconds = torch.load(path, weights_only=False)
            self.earlier += seconds
            return value
        start = time.process_time()
        value = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save((value, time.process_time() - start), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return value


class MiniLM:
    """Sentence embeddings: mean of the last hidden states over the tokens, normalised."""

    def __init__(self, folder: str, choosing: bool = False, stages: Stages | None = None):
        self.stages = stages or Stages(None)
        declare_torchvision()
        from transformers import AutoModel, PreTrainedTokenizerFast

        self.dense = AutoModel.from_pretrained(folder).eval()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))
        tokenizer.pad_token = "[PAD]"
        texts = docstrings()
        keys = ("input_ids", "attention_mask")

        def batches(part: list[str]) -> list[dict[str, torch.Tensor]]:
            found = []
            part = sorted(part, key=len)  # like lengths together: half of the padding
            for at in range(0, len(part), 20):
                made = tokenizer(
                    part[at : at + 20], padding=True, truncation=True, max_length=128, return_tensors="pt"
                )
                found.append({key: made[key] for key in keys})
            return found

        chosen = texts[:: max(1, len(texts) // 400)][:400]
        rest = [text for text in texts if text not in set(chosen)]
        held_out = rest[:: max(1, len(rest) // 120)][:120]
        self.calibration = batches(chosen[:200])
        self.others = batches(held_out if choosing else chosen[200:])
        self.wanted = self.embeddings(self.dense)
        self._solved: dict[str, nn.Module] = {}
        self._equal: sc.Compensated | None = None

    @torch.no_grad()
    def embeddings(self, model: nn.Module) -> torch.Tensor:
        found = []
        for batch in self.others:
            states = model(**batch).last_hidden_state
            weight = batch["attention_mask"][:, :, None].float()
            found.append(nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1))
        return torch.cat(found)

    def cosine(self, what: str, prototype: str, goal: float, make: Callable[[], nn.Module]) -> Line:
        start, self.stages.earlier = time.process_time(), 0.0
        model = make()
        seconds = time.process_time() - start + self.stages.earlier
        cosine = float((self.embeddings(model) * self.wanted).sum(1).mean())
        return shown(Line(f"MiniLM, {what}: mean cosine", cosine, prototype, goal, seconds, higher=True))

    def task(self, what: str, prototype: str, goal: float, make: Callable[[], nn.Module]) -> Task:
        return Task(f"MiniLM, {what}", lambda: [self.cosine(what, prototype, goal, make)])

    def choose(self) -> Iterator[Task]:
        """What the recombined versions are chosen by, on sentences that are neither calibrated nor tested on."""
        for versions in (0, 3, VERSIONS):

            def make(versions: int = versions) -> nn.Module:
                return self._solved_anew(0.5, versions)[0]

            yield self.task(f"50 %, {versions} versions, held-out sentences", "", -math.inf, make)

    def texts(self, versions: int = VERSIONS) -> sc.RecombinedTokens:
        """The 200 sentences, and eight times their spans in another order, a fifth of the tokens any of the vocabulary:
        all text there is.
        """
        words = (1000, self.dense.config.vocab_size - 1)
        return sc.RecombinedTokens(
            self.calibration, length=(12, 128), tokens=1000, replace=0.2, vocabulary=words, versions=versions
        )

    def sparse(self, what: str, budget: object) -> nn.Module:
        """Masks by Wanda, weights solved anew; once for the goal and for the comparison with peers."""
        if what not in self._solved:
            self._solved[what] = self._made_sparse(what, budget)
        return self._solved[what]

    def _made_sparse(self, what: str, budget: object) -> nn.Module:
        """Layers lose weights by the error that half of each caused in a first, short round, or two of every four
        inputs, whose order is chosen first where it is free; then gradient steps.
        """
        if isinstance(budget, float):
            share = self.stages.result(f"{what}, shares", partial(self._shares, budget))
            budget = sc.budget.PerLayer(share)
        else:  # from here on the channels have another order, and the outputs are the same
            self.dense = self.stages.result(f"{what}, order", lambda: reordered(self.dense, self.calibration))
        solved = self.stages.result(f"{what}, least squares", lambda: self._solved_anew(budget, VERSIONS))
        return self.stages.result(f"{what}, tuned", lambda: self._tuned(*solved))

    def _shares(self, budget: float) -> dict[str, float]:
        """What each layer loses, by a first round in which every layer loses half and answers for itself."""
        if self._equal is None:
            alone = sc.LeastSquares(sums=False)
            masks = self._masks(0.5)
            self._equal = sc.compensate(self.dense, masks, self.calibration, skip="pooler", solver=alone)
        return sc.error_shares(self.dense, self._equal, self.probes(), budget, compare=embedding)

    def _tuned(self, model: nn.Module, masks: sc.Masks) -> nn.Module:
        """Gradient steps on the encoder: what `tune=` of `sc.compensate` does after least squares. In fp32, as a
        processor without instructions for bf16 emulates it many times slower.
        """
        options = sc.Tuning(passes=PASSES, lr=0.001, blocks=0.5, precision="fp32", compare=mostly_embedding)
        texts = self.texts()
        batches = read_all("tune", texts, self.dense)
        student = copy.deepcopy(model).eval()
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name.startswith("encoder"))
        print(tuned(self.dense, student, texts, batches, masks, options), flush=True)
        return student

    def _masks(self, budget: object) -> sc.Masks:
        layers = sc.PruneOptions(only=["encoder"])
        return sc.prune(self.dense, "wanda", budget=budget, data=self.calibration, options=layers)

    def _solved_anew(self, budget: object, versions: int) -> tuple[nn.Module, sc.Masks]:
        """The model by least squares alone, and which weights are left."""
        solver, masks = sc.LeastSquares(damping=0.01, reselect=True), self._masks(budget)
        skip = ["pooler", "embeddings"]
        found = sc.compensate(self.dense, masks, self.texts(versions), solver=solver, skip=skip)
        return found.model, found.masks

    def probes(self) -> list[dict[str, torch.Tensor]]:
        """Some recombined sentences, on which layers are compared."""
        texts = list(self.texts(1))[len(self.calibration) :]
        return texts[: max(1, len(texts) // 2)]

    def shared(self, bits: int, table: int, per: str) -> nn.Module:
        """The embedding tables with `table` bits, all other weights with `bits` in the mean over them: each layer has
        its own number, by the error that it causes in a first, short round.
        """
        if per == "file":
            return self._coded(bits, table)
        name = f"{bits} bits a {per}"
        own = self.stages.result(f"{name}, bits by error", partial(self._own_bits, bits, per))
        model = self.stages.result(f"tables of {table} bits", partial(self._with_tables, table))
        options = sc.ShareOptions(skip="embeddings", dense=self.dense)

        def make() -> nn.Module:
            return sc.share(model, bits=bits, bits_of=own, per=per, data=self.texts(), options=options).model

        return self.stages.result(f"{name}, tables of {table}", make)

    def _coded(self, bits: int, table: int) -> nn.Module:
        """By uniform steps: so many bits a weight after coding, with what biases and norms take; tables likewise."""
        steps = partial(sc.share, method="uniform")

        def tables() -> nn.Module:
            only = sc.ShareOptions(only="embeddings")
            return steps(self.dense, coded_bits=table, data=self.calibration, options=only).model

        def layers() -> nn.Module:
            options = sc.ShareOptions(skip="embeddings", dense=self.dense)
            return steps(model, coded_bits=bits - BESIDES, data=self.texts(), options=options).model

        model = self.stages.result(f"tables of {table} coded bits", tables)
        return self.stages.result(f"{bits} coded bits, tables of {table}", layers)

    def _own_bits(self, bits: int, per: str) -> dict[str, int]:
        """The bits of each layer, by a first round in which all have the same and answer for themselves."""
        alone = sc.ShareOptions(skip=["embeddings", "pooler"], sums=False)
        first = sc.share(self.dense, bits=bits, per=per, data=self.calibration, options=alone)
        return sc.error_bits(self.dense, first, self.probes(), bits, compare=embedding)

    def _with_tables(self, bits: int) -> nn.Module:
        """The dense model with its tables of embeddings shared."""
        tables = sc.ShareOptions(only="embeddings")
        return sc.share(self.dense, bits=bits, data=self.calibration, options=tables).model

    def packed(self, bits: int, table: int, per: str, goal: float) -> list[Line]:
        """The cosine, and the file's bytes."""
        kept: list[nn.Module] = []

        def make() -> nn.Module:
            kept.append(self.shared(bits, table, per))
            return kept[0]

        prototype = {4: "0.952", 3: "0.823"}[bits]
        what = f"{bits} bits in the mean, a {per}, tables {table}"
        what = f"{bits} bits a weight in the file, tables {table}" if per == "file" else what
        lines = [self.cosine(what, prototype, goal, make)]
        with tempfile.TemporaryDirectory() as folder:
            size = sc.save(kept[0], Path(folder) / "small.sct").size
            layers = 8 * sc.save(kept[0].encoder, Path(folder) / "encoder.sct").size
        dense = sum(t.numel() * t.element_size() for t in self.dense.state_dict().values())
        ratio = Line(f"MiniLM, {what}: dense bytes / .sct", dense / size, "", -math.inf, 0, higher=True)
        weights = sum(p.numel() for p in self.dense.encoder.parameters() if p.dim() > 1)
        most = bits if per == "file" else math.inf
        taken = Line(f"MiniLM, {what}: bits a weight of all layers", layers / weights, "", most, 0)
        return [*lines, shown(ratio), shown(taken)]

    def tasks(self) -> Iterator[Task]:
        yield self.task("50 %", "0.928", 0.975, lambda: self.sparse("50 %", 0.5))
        yield self.task("70 %", "0.77", 0.90, lambda: self.sparse("70 %", 0.7))
        yield self.task("2:4", "", 0.95, lambda: self.sparse("2:4", sc.budget.NOfM(2, 4)))
        for bits, table, goal in ((4, 6, 0.995), (3, 5, 0.98)):
            name = f"MiniLM, {bits} bits a weight in the file"
            yield Task(name, partial(self.packed, bits, table, "file", goal))
        for bits, table, goal in ((4, 7, 0.995), (3, 6, 0.98)):
            for per in ("channel", "tensor"):
                yield Task(f"MiniLM, {bits} bits a {per}", partial(self.packed, bits, table, per, goal))

    def peers(self) -> Iterator[Task]:
        """The same layers at the same sparsity by SparseGPT and Wanda; the goal of ours is the better of the two."""
        choices = (
            ("50 %", 0.5, None, 0.5),
            ("70 %", 0.7, None, 0.7),
            ("2:4", 0.5, (2, 4), sc.budget.NOfM(2, 4)),
        )
        for what, sparsity, pattern, budget in choices:
            yield Task(f"MiniLM, {what} beside peers", partial(self._beside, what, sparsity, pattern, budget))

    def _beside(
        self, what: str, sparsity: float, pattern: tuple[int, int] | None, budget: object
    ) -> list[Line]:
        """SparseGPT, Wanda and least squares at one sparsity."""
        foreign = llmcompressor_sparse_gpt()
        whose = "llmcompressor's own function" if foreign else "by its published definition"
        found = []
        for name, method in ((f"SparseGPT, {whose}", foreign or sparse_gpt), ("Wanda", wanda)):
            prune = partial(method, sparsity=sparsity, pattern=pattern)

            def make(prune: Prune = prune) -> nn.Module:
                return block_by_block(self.dense, "encoder.layer", self.calibration, prune)

            found.append(self.cosine(f"{what} by {name}", "", -math.inf, make))
        best = max(line.ours for line in found)
        ours = self.cosine(f"{what}, ours", f"{best:.3f}", best, lambda: self.sparse(what, budget))
        return [*found, ours]


def states_and_embedding(output: Any, inputs: Any) -> list[torch.Tensor]:
    """What a sentence embedding is compared by: the states of its tokens, and their mean."""
    states = output.last_hidden_state
    weight = inputs["attention_mask"][:, :, None].to(states.dtype)
    return [states, (states * weight).sum(1) / weight.sum(1)]


def mostly_embedding(output: Any, inputs: Any) -> list[torch.Tensor]:
    """States once, and the embedding, which is what the model is for, four times."""
    return [output.last_hidden_state, *[embedding(output, inputs)] * 4]


def embedding(output: Any, inputs: Any) -> torch.Tensor:
    """The embedding alone, normalised."""
    return nn.functional.normalize(states_and_embedding(output, inputs)[1], dim=1)


class Lite0:
    """EfficientNet-Lite0 with ImageNet weights, on CIFAR-10's images; how often the top-1 is the dense model's."""

    SIZE, CALIBRATE, TEST = 160, 300, 500

    def __init__(self, weights: str, folder: str):
        declare_torchvision()
        import timm

        dense = timm.create_model("tf_efficientnet_lite0")
        theirs = torch.load(weights, weights_only=True)
        ours = dense.state_dict()  # the same tensors in the same order, by other names
        dense.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
        self.dense = dense.eval()
        data = datasets.load("cifar10", path=folder, normalise=((0.0,) * 3, (1.0,) * 3))
        self.calibration = [self.enlarged(x) for x, _ in data.train.leading(self.CALIBRATE).batches(20)]
        self.others = [self.enlarged(x) for x, _ in data.test.leading(self.TEST).batches(50)]
        self.wanted = self.top1(self.dense)

    def enlarged(self, images: torch.Tensor) -> torch.Tensor:
        """Images of values from 0 to 1 as the network takes them."""
        large = nn.functional.interpolate(images, (self.SIZE, self.SIZE), mode="bicubic", antialias=True)
        return (large.clamp(0, 1) - 127 / 255) / (128 / 255)

    @torch.no_grad()
    def top1(self, model: nn.Module) -> torch.Tensor:
        return torch.cat([model(batch).argmax(1) for batch in self.others])

    def agreement(self, what: str, goal: float, make: Callable[[], nn.Module]) -> Line:
        start = time.process_time()
        model = make().eval()
        seconds = time.process_time() - start
        share = float((self.top1(model) == self.wanted).float().mean())
        return shown(Line(f"EfficientNet-Lite0, {what}: agreement", share, "", goal, seconds, higher=True))

    def tasks(self) -> Iterator[Task]:
        tune = sc.Tuning(passes=6, lr=0.02, precision="bf16")

        def sparse() -> nn.Module:
            criterion, budget = sc.criteria.Obs(one_by_one=False), sc.budget.Overall(0.5)
            # 300 images cannot tell what the classifier's 1,280 inputs are for: it keeps half of its weights.
            half = sc.PruneOptions(at_least={"classifier": self.dense.classifier.weight.numel() // 2})
            masks = sc.prune(self.dense, criterion, budget=budget, data=self.calibration, options=half)
            solver = sc.LeastSquares(damping=1e-3, reselect=True)
            return sc.compensate(self.dense, masks, self.calibration, solver=solver, tune=tune).model

        def shared() -> nn.Module:
            options = sc.ShareOptions(tune=tune)
            return sc.share(self.dense, bits=4, data=self.calibration, options=options).model

        yield Task("EfficientNet-Lite0, 50 %", lambda: [self.agreement("50 %", 0.95, sparse)])
        yield Task("EfficientNet-Lite0, 4 bits", lambda: [self.agreement("4 bits", 0.95, shared)])

    def borders(self) -> Iterator[Task]:
        """How near the images are to the border of two classes: what noise in the logits, and rounding, change."""
        for share in (0.001, 0.004, 0.01, 0.03, 0.1):
            yield Task(f"EfficientNet-Lite0, noise {share:g}", partial(self._noisy, share))
        for what, rounded in (("weights in bf16", in_bf16), ("8 bits a channel, rounded", in_eight_bits)):
            make = partial(self._rounded, rounded)
            yield Task(
                f"EfficientNet-Lite0, {what}",
                lambda what=what, make=make: [self.agreement(what, -math.inf, make)],
            )

    @torch.no_grad()
    def _noisy(self, share: float) -> list[Line]:
        """The agreement of the logits with themselves and noise of a share of their variance, over ten draws."""
        logits = torch.cat([self.dense(batch) for batch in self.others])
        size = (share * logits.var()).sqrt()
        generator = torch.Generator().manual_seed(0)
        noisy = [logits + size * torch.randn(logits.shape, generator=generator) for _ in range(10)]
        same = torch.stack([(one.argmax(1) == self.wanted).float().mean() for one in noisy])
        what = f"EfficientNet-Lite0, noise of {share:g} of the logits' variance: agreement"
        return [shown(Line(what, float(same.mean()), "", -math.inf, 0, higher=True))]

    @torch.no_grad()
    def _rounded(self, rounded: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        """The model with the weights of its layers rounded, and nothing made up for."""
        model = copy.deepcopy(self.dense)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(rounded(parameter))
        return model


def in_bf16(weight: torch.Tensor) -> torch.Tensor:
    """The nearest numbers that bf16 has."""
    return weight.bfloat16().float()


def in_eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """The nearest of 255 equal steps for each output channel."""
    size = weight.flatten(1).abs().amax(1).clamp_min(1e-12).reshape(-1, *[1] * (weight.dim() - 1)) / 127
    return (weight / size).round() * size


def waiting_memory() -> list[Line]:
    """The most memory that is no file's while batches of EfficientNet-Lite0, with any weights, wait at its layers."""
    declare_torchvision()
    import timm

    dense = timm.create_model("tf_efficientnet_lite0").eval()
    masks, lines = sc.prune(dense, budget=0.5), []
    for count in (250, 1000):

        def images(count: int = count) -> Iterator[torch.Tensor]:
            for seed in range(count // 25):
                yield torch.randn(
                    25, 3, Lite0.SIZE, Lite0.SIZE, generator=torch.Generator().manual_seed(seed)
                )

        start = time.process_time()
        with AnonymousMemory() as memory:
            sc.compensate(dense, masks, images())
        seconds = time.process_time() - start
        goal = lines[0].ours * 1.15 if lines else math.inf
        lines.append(
            shown(Line(f"EfficientNet-Lite0, {count} images wait: GiB", memory.most, "", goal, seconds))
        )
    return lines


class AnonymousMemory:
    """Looks four times a second how much memory the process holds that is not a file's, in GiB; a context manager."""

    def __init__(self) -> None:
        self.most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            kilobytes = next(
                int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")
            )
            self.most = max(self.most, kilobytes / 2**20)

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def declare_torchvision() -> None:
    """Let transformers import torchvision where its compiled operators are of another build than torch."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.ops.torchvision._kept = library  # its schemas live as long as it does


def docstrings() -> list[str]:
    """First sentences of the standard library's docstrings, each once, in the order of the modules' names."""
    import ast
    import sysconfig

    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) > 40:
                    found.setdefault(text[:400])
    return list(found)


def large() -> list[Line]:
    """The largest linear layer of a model of seven thousand million weights: 11008 inputs, 4096 outputs."""
    features, outputs = 11008, 4096
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(2 * features, 512, generator=generator)
        @ torch.randn(512, features, generator=generator)
        / 22
    )
    x += 0.3 * torch.randn(2 * features, features, generator=generator)
    hessian = x.T @ x
    del x
    weight = torch.randn(features, outputs, generator=generator) / features**0.5
    keep = weight.abs() > weight.abs().median()
    goal = hessian @ weight
    energy = float((weight * goal).sum())

    def error(w: torch.Tensor) -> float:
        away = w - weight
        return float((away * (hessian @ away)).sum()) / energy

    before = error(weight * keep)
    began = time.perf_counter()
    found = conjugate_gradients(
        hessian, goal, weight * keep, keep, 0.01 * float(hessian.diagonal().mean()), 8
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = [
        Line("11008 x 4096, half removed: seconds", seconds, "", 300, seconds),
        Line("  GiB at most, with the data", peak, "", 4, seconds),
        Line("  error after, of that before", error(found) / before, "", 1, seconds),
    ]
    return [shown(line) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = os.environ.get("SECATEUR_SHARED")
    parser.add_argument("--data", default=shared and os.path.join(shared, "data", "cifar10"))
    parser.add_argument(
        "--weights", default=shared and os.path.join(shared, "models", "resnet20-cifar10.safetensors")
    )
    parser.add_argument("--minilm")
    parser.add_argument("--lite0")
    parser.add_argument(
        "--only",
        help="parts, by comma: choose, pruning, sharing, both, channels, choose-minilm, minilm, peers, lite0, "
        "lite0-borders, memory, large",
    )
    parser.add_argument(
        "--keep",
        help="a folder for what the stages of MiniLM's rows give; a run that was stopped goes on",
    )
    parser.add_argument("--rows", default="", help="only the rows whose name holds this text")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else None
    print(f"{'':<46} {'ours':>9} {'prototype':>10}    {'goal':<7} {'CPU':>6}")
    lines = [line for task in tasks(options, wanted) if options.rows in task.what for line in task.measure()]
    return 0 if all(line.met for line in lines) else 1


def tasks(options: argparse.Namespace, wanted: list[str] | None) -> Iterator[Task]:
    """What is asked for and at hand; what is not at hand is said."""
    parts = [part for part in ("pruning", "sharing", "both", "channels") if wanted is None or part in wanted]
    choosing = wanted is not None and "choose" in wanted
    parts = ["choose"] if choosing else parts
    if parts and options.data and options.weights:
        cifar = Cifar(options.data, options.weights, choosing)
        for part in parts:
            yield from getattr(cifar, part)()
    elif parts:
        print("CIFAR-10: no data; name it with --data and --weights, or SECATEUR_SHARED")
    texts = [
        part
        for part in ("minilm", "peers", "choose-minilm")
        if (wanted is None and "choose" not in part) or (wanted is not None and part in wanted)
    ]
    if texts and options.minilm:
        sentences = MiniLM(options.minilm, "choose-minilm" in texts, Stages(options.keep))
        made = {"minilm": sentences.tasks, "peers": sentences.peers, "choose-minilm": sentences.choose}
        for part in texts:
            yield from made[part]()
    elif texts:
        print("MiniLM: no weights; name their folder with --minilm")
    lite0 = [part for part in ("lite0", "lite0-borders") if wanted is None or part in wanted]
    if lite0:
        if options.lite0 and options.data:
            images = Lite0(options.lite0, options.data)
            for part in lite0:
                yield from images.tasks() if part == "lite0" else images.borders()
        else:
            print("EfficientNet-Lite0: no weights; name their file with --lite0, and --data")
    if wanted is not None and "memory" in wanted:
        yield Task("EfficientNet-Lite0, images that wait", waiting_memory)
    if wanted is not None and "large" in wanted:
        yield Task("11008 x 4096", large)


if __name__ == "__main__":
    sys.exit(main())
