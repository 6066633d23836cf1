"""docs/format.md, sections 5 and 7, read aloud: one weight at a time, in Python's own whole numbers, sharing nothing.

Slow on purpose. What it decodes is what the specification says; the tests hold the fast code to it.
"""

from __future__ import annotations

from math import isqrt, prod

TOTAL, WORD, WIDE, LIMIT, ONE = 1 << 24, 1 << 32, (1 << 64) - 1, 2047, 65536


class RangeDecoder:
    """Section 5."""

    def __init__(self, data: bytes):
        data = data + bytes(-len(data) % 4)
        self.words = [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)]
        self.at, self.low, self.range = 0, 0, WIDE
        self.point = (self.word() << 32) | self.word()

    def word(self) -> int:
        self.at += 1
        return self.words[self.at - 1] if self.at <= len(self.words) else 0

    def symbol(self, lefts: list[int]) -> int:
        scale = self.range >> 24
        place = ((self.point - self.low) & WIDE) // scale
        assert place < TOTAL
        found = max(j for j, left in enumerate(lefts[:-1]) if left <= place)
        self.low = (self.low + scale * lefts[found]) & WIDE
        self.range = scale * (lefts[found + 1] - lefts[found])
        if self.range < WORD:
            self.low, self.range = (self.low << 32) & WIDE, self.range << 32
            self.point = ((self.point << 32) & WIDE) | self.word()
        return found

    def bit(self, ones: int) -> int:
        return self.symbol([0, ((65536 - ones) * (TOTAL - 2) >> 16) + 1, TOTAL])


def _squash_table() -> list[int]:
    one = 1 << 96
    step = term = one
    for k in range(1, 40):
        term //= 256 * k
        step += term
    power, up = one, []
    for _ in range(LIMIT + 1):
        up.append(65536 * power // (power + one))
        power = power * step // one
    return [65536 - x for x in reversed(up[1:])] + up


SQUASH = _squash_table()


def within(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def stretch(p: int) -> int:
    low, high = 0, 2 * LIMIT
    if SQUASH[0] > p:
        return -LIMIT
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if SQUASH[middle] <= p else (low, middle - 1)
    return low - LIMIT


class Mixer:
    def __init__(self, nodes: int, sizes: tuple[int, ...]):
        self.node = [[0, 0] for _ in range(nodes)]
        self.cell = [[[[0, 0] for _ in range(size)] for _ in range(nodes)] for size in sizes]
        self.weights = [14000] * len(sizes)
        self.energy = 1 << 29

    def shrink(self) -> None:
        for most, cells in ((4, self.node), (25, [c for j in self.cell for n in j for c in n])):
            for cell in cells:
                total = sum(cell)
                if total > most:
                    cell[:] = [most * t // total for t in cell]

    def batch(self, decoder: RangeDecoder, nodes: list[int], contexts: list[list[int]]) -> list[int]:
        seen = []
        for node, context in zip(nodes, contexts):
            n0, n1 = self.node[node]
            own = (2 * n1 + 1) * ONE // (2 * (n0 + n1) + 2)
            beyond = []
            for j, value in enumerate(context):
                t0, t1 = self.cell[j][node][value]
                beyond.append(stretch((ONE * t1 + 6 * own) // (t0 + t1 + 6)) - stretch(own))
            odds = stretch(own) * ONE + sum(w * d for w, d in zip(self.weights, beyond))
            p = within(SQUASH[within(odds // ONE, -LIMIT, LIMIT) + LIMIT], 24, 65512)
            seen.append((beyond, p))
        bits = [decoder.bit(p) for _, p in seen]
        for node, context, bit in zip(nodes, contexts, bits):
            self.node[node][bit] += 1
            for j, value in enumerate(context):
                self.cell[j][node][value][bit] += 1
        self.energy = max(self.energy - (self.energy >> 3), 1 << 29)
        for start in range(0, len(seen), 16384):
            part = seen[start : start + 16384]
            self.energy += sum(d * d * (p * (ONE - p) >> 20) for beyond, p in part for d in beyond) >> 4
        for j in range(len(self.weights)):
            slope = sum(beyond[j] * (ONE * bit - p) for (beyond, p), bit in zip(seen, bits))
            self.weights[j] = within(self.weights[j] + slope * ONE // self.energy, -(1 << 20), 1 << 20)
        return bits


FINE = (
    2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 27, 32, 38, 45, 54, 64, 77, 91, 109, 130, 154, 184, 219,
)  # fmt: skip


def eight(r: int) -> int:
    return sum(edge < r for edge in (3, 7, 11, 15, 20, 28, 45))


def twelve(r: int) -> int:
    return sum(edge < r for edge in (2, 5, 8, 11, 14, 18, 23, 30, 40, 60, 90))


STEPS = ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1), (0, -2), (-2, 0))


class Forecast:
    """Section 7, model 2."""

    def __init__(self, start: list[int]):
        self.start, self.weights = start, list(start)
        self.squares = [[0] * len(start) for _ in start]
        self.products = [0] * len(start)

    def fade(self, by: int) -> None:
        self.squares = [[v // by for v in row] for row in self.squares]
        self.products = [v // by for v in self.products]

    def predict(self, x: list[int]) -> int:
        return sum(w * v for w, v in zip(self.weights, x)) // ONE

    def learn(self, columns: list[list[int]], targets: list[int], trusts: list[int]) -> None:
        every = max(1, len(columns) // 512)
        for x, y, t in list(zip(columns, targets, trusts))[::every]:
            for j, v in enumerate(x):
                self.products[j] += v * t * y
                for k, u in enumerate(x):
                    self.squares[j][k] += v * t * u
        while max(abs(v) for row in (*self.squares, self.products) for v in row) >= 1 << 50:
            self.fade(2)
        shift = max(0, max(self.squares[j][j] for j in range(len(self.start))).bit_length() - 26)
        ridge = (1 << 28) >> shift
        for j, start in enumerate(self.start):
            row = [v >> shift for v in self.squares[j]]
            rest = (self.products[j] >> shift) * ONE + ridge * (start - self.weights[j])
            rest -= sum(v * w for v, w in zip(row, self.weights))
            self.weights[j] = within(self.weights[j] + rest // (row[j] + ridge + 1), -(1 << 20), 1 << 20)


class Outlook:
    """What the forecasts make of one block."""

    def __init__(self, block, tap, taps, width, rank, forecasts, largest):  # type: ignore[no-untyped-def]
        count, total = len(rank), sum(map(abs, rank.values()))
        unit = max(16, 256 * total // count if count else 256 * largest // 3)

        def related(r: int) -> int:
            size = min(16384 * abs(r) // unit, 2047)
            return size if r >= 0 else -size

        def line(which: int, at: int) -> tuple[int, int]:
            found = [r for key, r in rank.items() if key[which] == at]
            size = min((16384 * sum(map(abs, found)) + 64 * unit) // ((len(found) + 1) * unit), 2047)
            return size, within(16384 * sum(found) // (max(len(found), 1) * unit), -2047, 2047)

        self.related = related
        before = range(max(0, tap - 12), tap)
        n = len(before)
        start = [9830, 9830, 19661] + [26214 // n] * n if n else [16384, 16384, 32768]
        self.size = forecasts.setdefault(("size", taps, width, tap), Forecast(start))
        self.value = forecasts.setdefault(("value", taps, width, tap), Forecast([0] * (2 + n))) if n else None
        self.x, self.v, self.e, self.fine, self.standing = {}, {}, {}, {}, {}
        lines = {(k, w[k - 1]): line(k, w[k - 1]) for w in block for k in (1, 2)}
        for f, c in block:
            (fs, fl), (cs, cl) = lines[1, f], lines[2, c]
            known = [related(rank[t, f, c]) for t in before]
            self.x[f, c] = [fs, cs, min(fs * cs // 64, 2047), *map(abs, known)]
            e = self.e[f, c] = within(self.size.predict(self.x[f, c]), 3, 2047)
            self.fine[f, c] = sum(4 * edge < e for edge in FINE)
            self.standing[f, c] = 12
            if self.value:
                self.v[f, c] = [fl, cl, *known]
                v = within(self.value.predict(self.v[f, c]), -2047, 2047)
                self.standing[f, c] = within((16 * v + e) // (2 * e) + 12, 0, 24)

    def learn(self, block, found) -> None:  # type: ignore[no-untyped-def]
        told = [self.related(found[w]) for w in block]
        e = [max(self.e[w], 16) for w in block]
        trusts = [(1 << 20) // isqrt(v**3) for v in e]
        self.size.learn([self.x[w] for w in block], list(map(abs, told)), trusts)
        if self.value:
            self.value.learn([self.v[w] for w in block], told, [(1 << 23) // v**2 for v in e])


SIZES = {
    "old": ((256, 416, 144, 64, 128), (625, 289, 169, 81), (625, 64, 96, 96), (12, 12)),
    "plain": ((256, 416, 144, 208), (81, 650), (96, 650, 416), (12, 26)),
    "rich": (
        (256, 416, 144, 64, 128, 208), (625, 289, 169, 81, 650), (625, 64, 96, 96, 650, 416), (12, 12, 26),
    ),
}  # fmt: skip


def decode(
    data: bytes,
    shape: tuple[int, ...],
    size: int,
    zero: int | None,
    memory: dict[str, dict],  # type: ignore[type-arg]
) -> list[int]:
    """Section 7, models 1 and 2: the levels in order of the tensor. `memory` lives as long as the section."""
    if data[0] == 1:
        kind, unary, grain = "old", (data[1] - 1) % 8, (data[1] - 1) // 8 + 8
    else:
        place, unary = divmod(data[0] - 2, 7)
        kind, grain = ("plain", "rich")[place // 9], 6 + place % 9
    decoder = RangeDecoder(data[2 if kind == "old" else 1 :])
    below, above = (zero, size - 1 - zero) if zero is not None else (size // 2, size - size // 2)
    largest = max(below, above)
    filters, channels = (*shape, 1, 1)[:2]
    taps, width, cut = prod(shape[2:]), shape[-1] if len(shape) > 2 else 1, 1
    if taps > 64:
        filters, channels, taps = filters * channels, taps, 1
    if taps == 1:
        cut = next((s for s in (8, 7, 6, 5, 4, 3, 2) if channels >= 16 and channels % s == 0), 1)
        channels, taps, width = channels // cut, cut, cut
    share = 16 if kind == "old" else 64
    rows = max(1, min(max(filters * channels // share, 1 << grain), 16384) // channels)
    rank: dict[tuple[int, int, int], int] = {}
    mixers, forecasts = memory.setdefault("mixers", {}), memory.setdefault("forecasts", {})
    for mixer in mixers.values():
        mixer.shrink()
    for forecast in forecasts.values():
        forecast.fade(4)

    def mixer(name: str, nodes: int, sizes: tuple[int, ...]) -> Mixer:
        return mixers.setdefault((kind, name), Mixer(nodes, sizes))

    for tap in range(taps):
        for top in range(0, filters, rows):
            block = [(f, c) for f in range(top, min(top + rows, filters)) for c in range(channels)]
            look = None if kind == "old" else Outlook(block, tap, taps, width, rank, forecasts, largest)
            _block(
                block, tap, taps, width, rank, decoder, mixer, zero is not None, below, above, largest, unary,
                kind, look,
            )  # fmt: skip
    out = [0] * (filters * channels * taps)
    for (tap, f, c), r in rank.items():
        place = f * channels * taps + (tap * channels + c if cut > 1 else c * taps + tap)
        out[place] = r + below - (0 if zero is not None or r < 0 else 1)
    return out


def _block(
    block, tap, taps, width, rank, decoder, mixer, has_zero, below, above, largest, unary, kind, look
) -> None:  # type: ignore[no-untyped-def]
    count, total = len(rank), sum(map(abs, rank.values()))
    mean = max(4, 16 * total // count) if count else max(4, 16 * largest // 3)
    step = min(tap, 15)
    line: dict[tuple[str, int], list[int]] = {}
    for (_, f, c), r in rank.items():
        for key in (("f", f), ("c", c)):
            sums = line.setdefault(key, [0, 0, 0, 0])
            sums[:] = [sums[0] + (r != 0), sums[1] + abs(r), sums[2] + r, sums[3] + 1]

    def ratio(value: int, n: int) -> int:
        return min((256 * value + mean) // (n * mean), 255)

    y, x = divmod(tap, width)
    near = []
    for dy, dx in STEPS:
        v, u = y + dy, x + dx
        inside = 0 <= v < taps // width and 0 <= u < width
        near.append(v * width + u if inside and v * width + u < tap else None)
    four, corners = sum(t is not None for t in near[:4]), sum(t is not None for t in near[4:8])
    facts = {}
    for f, c in block:
        at = [rank[t, f, c] if t is not None else 0 for t in near]
        so_far = [rank[t, f, c] for t in range(tap)]
        lines = [line.get(key, [0, 0, 0, 0]) for key in (("f", f), ("c", c))]
        ratios = [ratio(s[1], s[3]) if s[3] else ratio(total, max(1, count)) for s in lines]
        level = [twelve(r) for r in ratios]
        lean = [within(s[2] * 12 // max(mean * s[3] // 16, 1) + 8, 0, 16) for s in lines]
        kernel = eight(ratio(sum(map(abs, so_far)), tap)) if tap else 0
        by_four = sum(map(abs, at[:4]))
        cross = eight(ratio(by_four, four)) if four else 0
        weight = 2 * four + corners
        around = eight(ratio(2 * by_four + sum(map(abs, at[4:8])), weight)) if weight else 0
        parts = [(8, 0, ratios[0] * ratios[1] >> 1)]
        if tap:
            parts.append((min(tap, 4), ratio(sum(map(abs, so_far)), tap), 0))
        if weight:
            parts.append((weight, ratio(2 * by_four + sum(map(abs, at[4:8])), weight), 0))
        expected = sum(n * r + more for n, r, more in parts) // sum(n for n, _, _ in parts)
        fine = sum(edge < min(expected, 255) for edge in FINE)
        signed = sum(at[:4])
        l, u, ll, uu = ((a > 0) - (a < 0) + 1 for a in (*at[:2], at[8], at[9]))
        by_cross = within((16 * signed + mean // 2) // mean * 2 // 3 + 6, 0, 12)
        by_plane = within((16 * (signed - at[4] - at[6]) + mean // 2) // mean * 2 // 3 + 12, 0, 24)
        by_near = within((16 * (2 * signed + sum(at[4:8])) + mean // 2) // mean * 2 // 3 + 12, 0, 24)
        by_kernel = within((16 * sum(so_far) + mean // 2) // mean // 3 + 6, 0, 12)
        pattern = sum((a != 0) << bit for bit, a in enumerate(at[:4]))
        facts[f, c] = {
            "zero": [pattern * 16 + step, fine * 16 + step, level[0] * 12 + level[1],
                     cross * 8 + kernel, around * 16 + step],
            "sign": [by_plane * 25 + by_near, lean[0] * 17 + lean[1], by_cross * 13 + by_kernel,
                     ll * 27 + l * 9 + uu * 3 + u],
            "near": by_plane * 25 + by_near,
            "size": [cross * 8 + kernel, around * 12 + level[0], around * 12 + level[1]],
            "plain": level,
        }  # fmt: skip
        if look:
            now, z, e = facts[f, c], look.standing[f, c], look.fine[f, c]
            surely = min(abs(z - 12), 7) * 26 + e
            now["zero"][1] = e * 16 + step
            if kind == "rich":
                now["zero"].append(surely)
                now["sign"].append(z * 26 + e)
                now["plain"] = [*level, e]
            else:
                now["zero"] = [*now["zero"][:3], surely]
                now["sign"] = [now["sign"][3], z * 26 + e]
                now["size"] = [now["size"][1]]
                now["plain"] = [level[0], e]
    zero_sizes, sign_sizes, rich_sizes, plain_sizes = SIZES[kind]
    chosen = block
    found = dict.fromkeys(block, 0)
    if has_zero:
        zero_mixer = mixer("zero", 1, zero_sizes)
        bits = zero_mixer.batch(decoder, [0] * len(block), [facts[w]["zero"] for w in block])
        chosen = [w for w, bit in zip(block, bits) if bit]
    if chosen:
        negative = dict.fromkeys(chosen, int(above == 0))
        if below and above:
            bits = mixer("sign", 1, sign_sizes).batch(
                decoder, [0] * len(chosen), [facts[w]["sign"] for w in chosen]
            )
            negative = dict(zip(chosen, bits))
        rich = {}
        for w in chosen:
            near = facts[w]["near"]
            rich[w] = [] if kind == "plain" else [624 - near if negative[w] else near]
            rich[w] += facts[w]["size"]
            if look:
                z, e = look.standing[w], look.fine[w]
                rich[w] += [(24 - z if negative[w] else z) * 26 + e, e * 16 + step]
        size = dict.fromkeys(chosen, 1)
        live = chosen if largest > 1 else []
        steps = min(unary, largest - 2)
        for u in range(1, steps + 1):
            if not live:
                break
            bits = mixer(f"more than {u}", 2, rich_sizes).batch(
                decoder, [negative[w] for w in live], [rich[w] for w in live]
            )
            live = [w for w, bit in zip(live, bits) if bit]
            for w in live:
                size[w] += 1
        digits = (largest - 1 - steps).bit_length()
        prefix = dict.fromkeys(live, 0)
        for d in range(digits if live else 0):
            nodes = min(1 << d, 64)
            one = mixer(
                f"digit {d} of {digits} after {steps}", 2 * nodes, rich_sizes if d < 2 else plain_sizes
            )
            bits = one.batch(
                decoder,
                [2 * min(prefix[w], nodes - 1) + negative[w] for w in live],
                [rich[w] if d < 2 else facts[w]["plain"] for w in live],
            )
            for w, bit in zip(live, bits):
                prefix[w] = 2 * prefix[w] + bit
        for w in live:
            size[w] += prefix[w]
        found.update({w: -size[w] if negative[w] else size[w] for w in chosen})
    if look:
        look.learn(block, found)
    for (f, c), r in found.items():
        rank[tap, f, c] = r
