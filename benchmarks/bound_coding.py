"""How small could a context model make weights at all? `python benchmarks/bound_coding.py --weights FILE`

Boosted trees (scikit-learn, a bench extra) foretell every decision that the strong coder takes, zero or not, which
sign, how large, from some fifty numbers that a decoder would have by then. They learn from three quarters of the same
tensors' weights, those that come later too, and are asked about the last quarter, four times over; what they learnt is
not counted. That is easier than any coder has it, so what they save is more than another model of the same
knowledge may hope for; in practice, not as a theorem.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_coding import Levels, levels_shared, levels_uniform, ours, peer
from safetensors.torch import load_file

from secateur.coding import mixed, planes

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

_TAPS = 12  # earlier taps of the same kernel
_LAYERS = 3  # earlier layers of as many filters, or channels
_FEW = 500  # magnitudes that are not worth a fit of their own


def strong(levels: Levels) -> dict[str, float]:
    """Bytes that the strong coder needs for zeros, signs and magnitudes, by its own probabilities."""
    spent = {"zero": 0.0, "sign": 0.0, "magnitude": 0.0}
    flip = mixed._Walk._flip

    def counted(walk: Any, mixer: Any, node: Any, contexts: Any, bits: Any) -> np.ndarray:
        kind = "zero" if mixer is walk._of_zero else "sign" if mixer is walk._of_sign else "magnitude"
        coin = walk._coin

        def note(flipped: np.ndarray, pairs: np.ndarray) -> np.ndarray:
            spent[kind] -= float(np.log2(np.where(flipped == 1, pairs[:, 1], pairs[:, 0])).sum()) / 8
            return coin(flipped, pairs)

        walk._coin = note
        try:
            return flip(walk, mixer, node, contexts, bits)
        finally:
            walk._coin = coin

    mixed._Walk._flip = counted  # type: ignore[method-assign]
    try:
        ours(levels, "strong")
    finally:
        mixed._Walk._flip = flip  # type: ignore[method-assign]
    return spent


def known(levels: Levels) -> tuple[np.ndarray, np.ndarray, int]:
    """All weights' ranks, what is known before each, and how many columns of that have the sign of a weight."""
    rows, ranks, before = [], [], []
    for number, (tensor, size, zero) in enumerate(levels.values()):
        signed = tensor - (zero if zero is not None else size // 2)
        if zero is None:
            signed = signed + (signed >= 0)
        plan = planes.layout(tensor.shape)
        whole = plan.planes(signed)
        value = whole / (np.abs(whole).mean() + 1e-9)
        large = np.abs(value)
        taps, filters, channels = value.shape
        none = np.zeros((filters, channels))
        near = planes._neighbours(taps, plan.width)
        earlier = [
            np.mean([d[axis] for d in before if len(d[axis]) == n][-_LAYERS:] or [np.zeros(n)], axis=0)
            for axis, n in ((0, filters), (1, channels))
        ]
        feeds = before[-1][0] if before and len(before[-1][0]) == channels else np.zeros(channels)
        for tap in range(taps):
            left, above = np.arange(channels)[None], np.arange(filters)[:, None]
            done, now = (x[:tap] for x in (value, large)), (value[tap], large[tap])
            of_value, of_size = done
            # Everything of this filter, and of this channel, that comes before: in this plane, and in all.
            rows_by = [np.cumsum(x, 1) - x for x in now]
            columns_by = [np.cumsum(x, 0) - x for x in now]
            along = [
                (of_value.sum((0, 2))[:, None] + rows_by[0]) / (tap * channels + left + 1),
                (of_value.sum((0, 1))[None] + columns_by[0]) / (tap * filters + above + 1),
                rows_by[0] / (left + 1),
                columns_by[0] / (above + 1),
            ]
            sizes = [
                (of_size.sum((0, 2))[:, None] + rows_by[1] + 1) / (tap * channels + left + 1),
                (of_size.sum((0, 1))[None] + columns_by[1] + 1) / (tap * filters + above + 1),
                (rows_by[1] + 1) / (left + 1),
                (columns_by[1] + 1) / (above + 1),
            ]
            spots = [spot if spot < tap else None for spot in near[tap]]
            four, eight = ([large[s] for s in spots[:n] if s is not None] or [none] for n in (4, 8))
            with_sign = [
                *(value[tap - 1 - k] if k < tap else none for k in range(_TAPS)),
                *(none if spot is None else value[spot] for spot in spots),
                sum((value[s] for s in spots[:4] if s is not None), none),
                of_value.sum(0) / max(tap, 1),
                *along,
                np.vstack([none[:1], now[0][:-1]]),
                np.hstack([none[:, :1], now[0][:, :-1]]),
            ]
            without = [
                sum(four), sum(eight), of_size.sum(0) / max(tap, 1), *sizes, sizes[0] * sizes[1],
                none + earlier[0][:, None], none + earlier[1], none + feeds,
                none + tap, none + number, none + channels, none + np.abs(whole).mean(),
                none + above / filters, none + left / channels,
            ]  # fmt: skip
            rows.append(
                np.stack([*with_sign, *without], -1).reshape(filters * channels, -1).astype(np.float32)
            )
        ranks.append(whole.reshape(-1))
        before.append((large.mean((0, 2)), large.mean((0, 1))))
    return np.concatenate(rows), np.concatenate(ranks), len(with_sign)


def boosted(features: np.ndarray, bits: np.ndarray) -> float:
    """Bytes of the bits, each foretold by trees that have not seen it."""
    trees, split = peer("sklearn.ensemble"), peer("sklearn.model_selection")
    total = 0.0
    for seen, asked in split.KFold(4, shuffle=True, random_state=0).split(features):
        model = trees.HistGradientBoostingClassifier(
            max_iter=300, learning_rate=0.06, max_leaf_nodes=24, min_samples_leaf=60, l2_regularization=5.0,
            early_stopping=True, n_iter_no_change=8, random_state=0,
        )  # fmt: skip
        ones = model.fit(features[seen], bits[seen]).predict_proba(features[asked])[:, 1].clip(1e-5, 1 - 1e-5)
        total -= float(np.log2(np.where(bits[asked], ones, 1 - ones)).sum()) / 8
    return total


def entropy(symbols: np.ndarray) -> float:
    """Bytes by the symbols' own shares."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def magnitudes(features: np.ndarray, size: np.ndarray) -> float:
    """Bytes of magnitudes from 1 on, one step after the other."""
    total, step = 0.0, 1
    while (size > step).sum() >= _FEW and (size == step).sum():
        total += boosted(features, size > step)
        features, size = features[size > step], size[size > step]
        step += 1
    return total + entropy(size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.64, 0.9])
    parser.add_argument("--qp", type=int, help="uniform steps, instead of 5 bits shared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = {k: v.float() for k, v in load_file(options.weights).items() if v.dim() > 1}
    print("bytes: strong, boosted trees, and the second over the first")
    for sparsity in options.sparsity:
        levels = (
            levels_shared(weights, sparsity)
            if options.qp is None
            else levels_uniform(weights, sparsity, options.qp)
        )
        spent = strong(levels)
        features, ranks, with_sign = known(levels)
        some = ranks != 0
        found = {"zero": boosted(features, some) if spent["zero"] else 0.0}
        features, ranks = features[some], ranks[some]
        found["sign"] = boosted(features, ranks < 0)
        towards = features[:, :with_sign] * np.sign(ranks)[:, None]
        found["magnitude"] = magnitudes(np.concatenate([features, towards], axis=1), np.abs(ranks))
        for kind in (*spent, "all"):
            one, two = (sum(x.values()) if kind == "all" else x[kind] for x in (spent, found))
            if one:
                print(
                    f"{sparsity:.0%} zero, {kind:<10} {one:10,.0f} {two:10,.0f} {two / one:8.4f}", flush=True
                )
                record(Figure(f"{sparsity:.0%} zero, {kind}", two / one, "ratio", None, "higher", 0.005))


if __name__ == "__main__":
    main()
