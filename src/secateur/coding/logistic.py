"""The logistic function in integers: tables of `stretch` and `squash`, made by integer arithmetic.

Probabilities are in 65536ths, log-odds in 256ths. The tables come from integer powers of e, so that they are the same
on every machine; tests pin their digest.

>>> int(squash(0)), int(squash(256)), int(squash(-256))
(32768, 47910, 17626)
>>> int(STRETCH[47911])
256
"""

from __future__ import annotations

import numpy as np

__all__ = ["LIMIT", "SQUASH", "STRETCH", "squash"]

LIMIT = 2047  # log-odds are kept within +-LIMIT / 256, about 8 nats


def _tables() -> tuple[np.ndarray, np.ndarray]:
    one = 1 << 96
    step = term = one
    for k in range(1, 40):  # e ** (1 / 256) by its series
        term = term // (256 * k)
        step += term
    power, powers = one, []
    for _ in range(LIMIT + 1):
        powers.append(power)
        power = power * step // one
    up = [65536 * p // (p + one) for p in powers]
    squashed = np.array([65536 - x for x in reversed(up[1:])] + up, dtype=np.int32)
    stretched = np.searchsorted(squashed, np.arange(65537), side="right") - 1 - LIMIT
    return squashed, np.clip(stretched, -LIMIT, LIMIT).astype(np.int32)


SQUASH, STRETCH = _tables()


def squash(odds: np.ndarray | int) -> np.ndarray:
    """The probability, in 65536ths, of log-odds in 256ths; log-odds are clamped to the limit."""
    return SQUASH[np.clip(odds, -LIMIT, LIMIT) + LIMIT]
