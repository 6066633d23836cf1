"""Pieces of random models that are met less often, and those of images and of tokens: attention, scans, prompts."""

from __future__ import annotations

from attacks.model_writer import TAIL, Feature, Writer, chain, piece


# -- what is met less often
@piece()
def _tied_layers(w: Writer, x: Feature) -> Feature:
    """Two layers of one weight, or one weight used forwards and backwards."""
    if x.axis == 1:
        a, b = w.part(w.layer(x, x.width)), w.part(w.layer(x, x.width))
        if (
            a[6:]
            and w.parts[-1].split("=", 1)[1] == w.parts[-2].split("=", 1)[1]
            and "parametrizations" not in w.parts[-1]
        ):
            w.parts.append(f"{b}.weight = {a}.weight")
        return w.new(x, f"{b}({w.act(f'{a}({x.name})')})")
    h = w.width()
    layer = w.part(f"nn.Linear({x.width}, {h})")
    y = w.new(x, w.act(f"{layer}({x.name})"), h)
    return w.new(
        x,
        w.rng.choice(
            ("{0} @ {1}.weight", "F.linear({0}, {1}.weight.t())", "({0} - {1}.bias) @ {1}.weight")
        ).format(y.name, layer),
    )


@piece()
def _buffers(w: Writer, x: Feature) -> Feature:
    """Statistics of each channel, kept in buffers."""
    tail = TAIL[x.kind].rstrip(",")
    names = [f"self.kept{len(w.parts)}_{k}" for k in range(2)]
    for name in names:
        value = w.rng.choice(
            (
                f"torch.rand({x.width}{tail}) + 0.5",
                f"torch.linspace(0.5, 1.5, {x.width}).view({x.width}{tail}), persistent=False",
            )
        )
        w.parts.append(f"self.register_buffer('{name[5:]}', {value})")
    return w.new(
        x,
        w.rng.choice(
            (
                "({0} - {1}) / {2}",
                "{0} * {1} + {2}",
                "torch.lerp({0}, {1} * {0}, {2})",
                "{0} + {1}.square() * {2}",
            )
        ).format(x.name, *names),
    )


@piece()
def _odd_functions(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, w.width())
    how = ("torch.where({0} == 0, 1.0, {0})", "{0}.masked_fill({0} <= 0, 0.3)", "{0}.masked_fill({0} < 0, 0.0)", "{0}.sign() * {0}.abs().sqrt()",
           "F.threshold({0}, 0.1, 0.2)", "F.hardtanh({0}, 0.1, 1.0)", "F.hardtanh({0}, -1.0, 1.0)", "torch.sinc({0})", "F.logsigmoid({0})",
           "torch.special.expit({0}) - 0.5", "{0}.eq(0).to({0}.dtype) + {0}", "{0}.abs() ** 0.5", "2 ** {0}", "{0}.heaviside({0})",
           "torch.copysign({0}, {0} + 1)", "{0}.clamp(-1, 1)", "{0}.clamp(max=-0.1)", "{0}.abs().log1p()", "{0} * ({0} > 0)", "({0} >= 0) * 1.5 + {0}",
           "torch.atan2({0}, {0}.square() + 1)", "torch.logaddexp({0}, -{0})", "{0} - {0}.detach().round()", "F.softshrink({0})", "F.tanhshrink({0})",
           "torch.xlogy({0}, {0}.abs() + 1)", "{0}.remainder(0.7)", "{0}.fmod(0.7)", "0.7 - {0}", "1 / (1 + {0}.square())", "{0} / (1 + {0}.abs())",
           "torch.polygamma(1, {0}.square() + 1)", "F.selu({0})", "F.celu({0}, 0.5)", "F.mish({0})", "{0}.erf()", "{0}.expm1()", "F.softsign({0})")  # fmt: skip
    return w.new(y, w.rng.choice(how).format(y.name))


@piece("image", "line", "tokens")
def _over_places(w: Writer, x: Feature) -> Feature:
    """Something along the sizes that are no channels."""
    axes = {"image": (2, 3), "line": (2,), "tokens": (1,)}[x.kind]
    axis = w.rng.choice(axes)
    how = ("{0}.cumsum({1})", "{0}.softmax({1})", "{0}.flip({1})", "{0} - {0}.amax({1}, keepdim=True)", "{0}.roll(1, {1})", "{0}.sort({1}).values",
           "F.normalize({0}, dim={1}, eps=1e-2)", "{0} / {0}.shape[{1}]", "{0} * torch.arange({0}.shape[{1}], device={0}.device).view([-1 if k == {1} else 1 for k in range({0}.dim())])",
           "{0} / (1e-1 + {0}.std({1}, keepdim=True))", "{0}.cummax({1}).values", "torch.fft.rfft({0}, dim={1}).abs().sum({1}, keepdim=True) + {0}",
           "torch.fft.ifft(torch.fft.fft({0}, dim={1}) * 0.5, dim={1}).real", "{0}.argsort({1}) * 0.1 + {0}")  # fmt: skip
    return w.new(x, w.rng.choice(how).format(x.name, axis))


@piece()
def _quantised(w: Writer, x: Feature) -> Feature:
    """The nearest of a few rows takes a position's place, with a straight-through gradient."""
    if x.axis == 1:
        return w.new(x, f"{x.name} + ({x.name}.round() - {x.name}).detach()")
    rows = w.own(5, x.width)
    near = w.value(f"({x.name}.unsqueeze(-2) - {rows}).square().sum(-1).argmin(-1)")
    return w.new(x, f"{x.name} + (F.embedding({near}, {rows}) - {x.name}).detach()")


@piece()
def _routed(w: Writer, x: Feature) -> Feature:
    """Experts in one parameter, mixed by shares that depend on the input."""
    h = w.width()
    gate = w.mapped(x, 3)
    table = w.own(3, x.width, h)
    first = {"image": "bchw", "line": "bcl", "tokens": "btc", "vector": "bc"}[x.kind]
    last = first.replace("c", "d")
    share = w.value(f"{gate.name}.softmax({x.axis})")
    return w.new(
        x, f"torch.einsum('{first},{first.replace('c', 'e')},ecd->{last}', {x.name}, {share}, {table})", h
    )


@piece()
def _own_class(w: Writer, x: Feature) -> Feature:
    """A module of a class of its own, which keeps its widths as numbers."""
    h = w.rng.choice((4, 8))
    name = f"Part{len(w.classes)}"
    inner = Writer(w.rng, w.classes, 1)
    inner.parts.append(f"self.inner, self.outer = {h}, {x.width}")
    start = Feature("x", x.kind, x.width, x.place)
    layer = inner.part(inner.layer(start, 2 * h))
    y = Feature(inner.value(f"{layer}(x)"), x.kind, 2 * h, x.place)
    axis = y.axis
    how = (f"{y.name}.split(self.inner, {axis})", f"{y.name}.split([self.inner, self.inner], {axis})", f"{y.name}.unflatten({axis}, (2, self.inner)).unbind({axis if axis == 1 else -2})",
           f"({inner.cut(y, '', 'self.inner')}, {inner.cut(y, 'self.inner', '')})")  # fmt: skip
    inner.lines.append(f"a, b = {w.rng.choice(how)}")
    made = inner.mapped(inner.new(y, f"{inner.act('a', 0.5)} * b", h), x.width)
    w.classes.append(inner.text(name, made.name))
    part = w.part(f"{name}()")
    z = w.new(x, f"{part}({x.name})")
    return w.new(x, f"{part}({z.name}) + {x.name}") if w.chance(0.3) else z


@piece("image", "tokens", "line")
def _branch(w: Writer, x: Feature) -> Feature:
    """What runs depends on the size of the input."""
    axis = 1 if x.kind == "tokens" else 2
    a, b = w.part(w.layer(x, x.width)), w.part(w.layer(x, x.width))
    return w.new(
        x,
        f"{a}({x.name}) if {x.name}.shape[{axis}] > {w.rng.choice((5, 8))} else {w.rng.choice((f'{b}({x.name})', x.name, f'{a}({b}({x.name}))'))}",
    )


@piece("image")
def _padded_modes(w: Writer, x: Feature) -> Feature:
    h = w.width()
    made = w.rng.choice(("nn.Conv2d({0}, {1}, 3, padding=1, padding_mode='reflect')", "nn.Conv2d({0}, {1}, 3, padding=2, dilation=2)",
                         "nn.Conv2d({0}, {1}, (1, 3), padding=(0, 1))", "nn.Sequential(nn.Conv2d({0}, {1}, 1), nn.LocalResponseNorm(3))",
                         "nn.Sequential(nn.Conv2d({0}, 4 * {1}, 1), nn.PixelShuffle(2), nn.AvgPool2d(2))", "nn.Sequential(nn.Conv2d({0}, {1}, 1), nn.ChannelShuffle(2))",
                         "nn.Sequential(nn.Conv2d({0}, {1}, 1), nn.Softmax2d())", "nn.Sequential(nn.Conv2d({0}, {1}, 1), nn.ReflectionPad2d(1), nn.Conv2d({1}, {1}, 3, groups={1}))"))  # fmt: skip
    return w.new(x, f"{w.part(made.format(x.width, h))}({x.name})", h)


@piece("image")
def _deep(w: Writer, x: Feature) -> Feature:
    """Channels, or their groups, as the depth of a convolution in three dimensions."""
    if w.chance(0.5):
        h = w.width()
        return w.new(
            x,
            f"{w.part(f'nn.Conv3d({x.width}, {h}, (1, 3, 3), padding=(0, 1, 1))')}({x.name}.unsqueeze(2)).squeeze(2)",
            h,
        )
    conv = w.part(f"nn.Conv3d({x.width // 2}, {x.width // 2}, (3, 1, 1), padding=(1, 0, 0))")
    return w.new(x, f"{conv}({x.name}.unflatten(1, (-1, 2))).flatten(1, 2)")


@piece("tokens")
def _cells(w: Writer, x: Feature) -> Feature:
    h = w.rng.choice((4, 6))
    cell = w.part(f"nn.GRUCell({x.width}, {h})")
    w.lines.append(
        f"state, states = {x.name}.new_zeros({x.name}.shape[0], {w.number(h, f'{cell}.hidden_size')}), []"
    )
    w.lines.append(
        f"for step in {x.name}.unbind(1):\n            state = {cell}(step, state)\n            states.append(state)"
    )
    return w.new(x, "torch.stack(states, 1)", h)


@piece("tokens")
def _scan(w: Writer, x: Feature) -> Feature:
    """A state that decays, as state space models have it."""
    h, n = w.rng.choice((4, 8)), 2
    u, gate = w.mapped(x, h), w.mapped(x, h)
    b = w.mapped(x, 2 * n)
    decay = w.own(h, n)
    w.lines.append(f"bb, cc = {b.name}.split({n}, -1)")
    w.lines.append(
        f"state, states = {x.name}.new_zeros({x.name}.shape[0], {w.number(h, f'{u.name}.shape[-1]')}, {n}), []"
    )
    w.lines.append(
        f"for t in range({x.name}.shape[1]):\n            state = state * torch.sigmoid({decay}) + {u.name}[:, t, :, None] * bb[:, t, None]\n            states.append((state * cc[:, t, None]).sum(-1))"
    )
    y = w.new(u, "torch.stack(states, 1)")
    return w.mapped(w.new(y, f"({y.name} + {w.own(h)} * {u.name}) * {w.act(gate.name)}"), x.width)


@piece("tokens")
def _grouped_queries(w: Writer, x: Feature) -> Feature:
    q, k, v = w.mapped(x, 16), w.mapped(x, 8), w.mapped(x, 8)
    shape = w.rng.choice(("-1, 4", "{}, 4", "{}, -1"))
    names = [
        w.value(f"{each.name}.view(*{x.name}.shape[:2], {shape.format(each.width // 4)}).transpose(1, 2)")
        for each in (q, k, v)
    ]
    if w.chance(0.5):
        y = w.value(f"F.scaled_dot_product_attention({', '.join(names)}, enable_gqa=True)")
    else:
        score = w.value(
            f"torch.einsum('bgrqd,bgkd->bgrqk', {names[0]}.unflatten(1, (2, -1)), {names[1]}).softmax(-1)"
        )
        y = w.value(f"torch.einsum('bgrqk,bgkd->bgrqd', {score}, {names[2]}).flatten(1, 2)")
    return w.mapped(w.new(x, f"{y}.transpose(1, 2).flatten(2)", 16), x.width)


@piece("vector", "tokens")
def _prototypes(w: Writer, x: Feature) -> Feature:
    """Nearness to a few rows of the model's own."""
    h = w.rng.choice((4, 6))
    own = w.own(h, x.width)
    how = ("F.normalize({0}, dim=-1) @ F.normalize({1}, dim=-1).t()", "-torch.cdist({0}, {1}{2})", "F.cosine_similarity({0}.unsqueeze(-2), {1}, dim=-1)",
           "-({0}.unsqueeze(-2) - {1}).square().sum(-1)", "-({0}.unsqueeze(-2) - {1}).abs().mean(-1)", "torch.tensordot({0}, {1}, dims=([-1], [1]))")  # fmt: skip
    batch = f".expand({x.name}.shape[0], -1, -1)" if x.kind == "tokens" else ""
    return w.mapped(w.new(x, w.rng.choice(how).format(x.name, own, batch), h), w.width())


# -- images
@piece("image")
def _pixels(w: Writer, x: Feature) -> Feature:
    if w.chance(0.5):
        y = w.mapped(x, 16)
        place = f"{x.place}u{len(w.lines)}"
        z = w.new(y, f"F.pixel_shuffle({y.name}, 2)", 4, place=place)
        return (
            w.new(z, f"F.avg_pool2d({z.name}, 2)", place=f"{place}d")
            if w.chance(0.5)
            else w.mapped(z, w.width())
        )
    if x.width > 8 or x.place.count("d") >= 1:
        return x
    return w.mapped(w.new(x, f"F.pixel_unshuffle({x.name}, 2)", 4 * x.width, place=f"{x.place}d"), w.width())


@piece("image")
def _pooled(w: Writer, x: Feature) -> Feature:
    if x.place.count("d") >= 1:
        return x
    how = (
        "F.max_pool2d({}, 2)",
        "F.avg_pool2d({}, 2)",
        "{}[:, :, ::2, ::2]",
        "F.interpolate({}, scale_factor=0.5, mode='nearest')",
    )
    return w.new(x, w.rng.choice(how).format(x.name), place=f"{x.place}d")


@piece("image")
def _unfolded(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, 4)
    z = w.value(f"F.unfold({y.name}, 3, padding=1).transpose(1, 2)")
    h = w.width()
    layer = w.part(f"nn.Linear(36, {h})")
    return w.new(x, f"{layer}({z}).transpose(1, 2).unflatten(2, {x.name}.shape[2:])", h)


@piece("image")
def _axial(w: Writer, x: Feature) -> Feature:
    h = w.rng.choice((4, 8))
    q, k, v = w.mapped(x, h), w.mapped(x, h), w.mapped(x, x.width)
    f = "{}.flatten(2)"
    gate = w.value(f"({f.format(q.name)}.transpose(1, 2) @ {f.format(k.name)} * {h} ** -0.5).softmax(-1)")
    return w.new(x, f"{x.name} + ({f.format(v.name)} @ {gate}.transpose(1, 2)).view_as({x.name})")


@piece("image")
def _to_tokens(w: Writer, x: Feature) -> Feature:
    return w.new(x, f"{x.name}.flatten(2).transpose(1, 2)", kind="tokens", place=f"{x.place}t")


@piece("line", "tokens")
def _turned(w: Writer, x: Feature) -> Feature:
    return w.new(x, f"{x.name}.transpose(1, 2)", kind="line" if x.kind == "tokens" else "tokens")


# -- tokens
def _qkv(w: Writer, x: Feature, heads: int, size: int, groups: int) -> tuple[str, str, str]:
    """Queries, keys and values as (batch, heads, length, size), made in one of several ways."""
    rest = f"*{x.name}.shape[:2]"
    names = [f"{each}{w.count}" for each in ("query", "key", "value")]
    how = w.rng.randrange(4)
    if groups == heads and how < 3:
        all_ = w.mapped(x, 3 * heads * size)
        if how == 0:
            w.lines.append(
                f"{', '.join(names)} = {all_.name}.view({rest}, 3, {heads}, {size}).permute(2, 0, 3, 1, 4)"
            )
        elif how == 1:
            w.lines.append(
                f"{', '.join(names)} = {all_.name}.reshape({rest}, {heads}, 3 * {size}).transpose(1, 2).chunk(3, -1)"
            )
        else:
            each = f"each.view({rest}, {heads}, -1).transpose(1, 2)"
            w.lines.append(f"{', '.join(names)} = [{each} for each in {all_.name}.chunk(3, -1)]")
        return names[0], names[1], names[2]
    for name, many in zip(names, (heads, groups, groups)):
        made = w.mapped(x, many * size)
        shape = w.rng.choice((f"{many}, {size}", f"-1, {size}", f"{many}, -1"))
        w.lines.append(f"{name} = {made.name}.view({rest}, {shape}).transpose(1, 2)")
    return names[0], names[1], names[2]


@piece("tokens")
def _attention(w: Writer, x: Feature) -> Feature:
    heads, size = w.rng.choice((2, 4)), w.rng.choice((2, 4))
    groups = w.rng.choice((heads, heads, 2, 1))
    q, k, v = _qkv(w, x, heads, size, groups)
    if groups < heads:
        times = heads // groups
        way = w.rng.choice(
            ("{0}.repeat_interleave({1}, 1)", "{0}[:, :, None].expand(-1, -1, {1}, -1, -1).flatten(1, 2)")
        )
        k, v = w.value(way.format(k, times)), w.value(way.format(v, times))
    if w.chance(0.25):
        q, k = (
            w.value(f"{w.rng.choice(('F.normalize({}, dim=-1, eps=1e-3)', 'F.softplus({})'))}".format(each))
            for each in (q, k)
        )
    how = w.rng.randrange(5)
    if how == 0:
        y = w.value(
            f"F.scaled_dot_product_attention({q}, {k}, {v}{', is_causal=True' if w.chance(0.3) else ''})"
        )
    elif how == 1:  # linear attention
        y = w.value(f"{q}.softmax(-1) @ ({k}.softmax(-2).transpose(-1, -2) @ {v})")
    else:
        scale = w.rng.choice((f"{size} ** -0.5", f"{q}.shape[-1] ** -0.5", f"{w.own(heads, 1, 1)}", "0.3"))
        score = w.value(f"{q} @ {k}.transpose(-1, -2) * {scale}")
        if w.chance(0.4):
            score = w.value(f"{score} + {w.own(heads, 1, 1)}")
        if w.chance(0.2):
            mixer = w.part(f"nn.Conv2d({heads}, {heads}, 1)")
            score = w.value(f"{mixer}({score})")
        gate = w.value(w.rng.choice(("{}.softmax(-1)", "{}.relu() / 5", "{}.sigmoid()")).format(score))
        y = w.value(f"{gate} @ {v}")
    if w.chance(0.15):
        y = w.value(f"{y} * {w.own(heads, 1, 1)}.exp()")
    width = heads * size
    flat = w.new(
        x,
        f"{y}.transpose(1, 2).{w.rng.choice(('flatten(2)', f'reshape({x.name}.shape[0], -1, {width})'))}",
        width,
    )
    out = w.mapped(flat, x.width)
    return w.new(x, f"{x.name} + {out.name}") if w.chance(0.6) else out


@piece("tokens")
def _torch_attention(w: Writer, x: Feature) -> Feature:
    if x.width % 4:
        return x
    if w.chance(0.4):
        layer = w.part(
            f"nn.TransformerEncoderLayer({x.width}, {w.rng.choice((2, 4))}, 16, batch_first=True, norm_first={w.chance(0.5)})"
        )
        return w.new(x, f"{layer}({x.name})")
    y = w.mate(x)
    layer = w.part(
        f"nn.MultiheadAttention({x.width}, {w.rng.choice((2, 4))}, batch_first=True{w.rng.choice(('', ', add_bias_kv=True'))})"
    )
    other = w.rng.choice((x.name, y.name))
    return w.new(
        x,
        f"{layer}({x.name}, {other}, {other}{w.rng.choice(('', ', need_weights=False'))})[0]"
        + (f" + {x.name}" if w.chance(0.5) else ""),
    )


@piece("tokens")
def _learned_queries(w: Writer, x: Feature) -> Feature:
    """A few queries of the model's own look at the tokens."""
    q = w.own(3, x.width)
    k, v = w.mapped(x, x.width), w.mapped(x, w.width())
    made = w.new(
        v,
        f"F.scaled_dot_product_attention({q}.expand({x.name}.shape[0], -1, -1), {k.name}, {v.name})",
        place=f"{x.place}q",
    )
    return w.mapped(made, w.width())


@piece("tokens")
def _prompted(w: Writer, x: Feature) -> Feature:
    own = w.own(2, x.width)
    return w.new(x, f"torch.cat([{own}.expand({x.name}.shape[0], -1, -1), {x.name}], 1)", place=f"{x.place}p")


@piece("tokens")
def _recurrent(w: Writer, x: Feature) -> Feature:
    h = w.rng.choice((4, 6))
    both = w.chance(0.3)
    more = (", bidirectional=True" if both else "") + w.rng.choice(("", ", num_layers=2", ", bias=False"))
    layer = w.part(f"nn.{w.rng.choice(('LSTM', 'GRU'))}({x.width}, {h}, batch_first=True{more})")
    return w.new(x, f"{layer}({x.name})[0]", h * (2 if both else 1))


@piece("tokens")
def _shifted(w: Writer, x: Feature) -> Feature:
    """Token shift: part of the channels comes from the token before."""
    half = x.width // 2
    moved = w.value(f"F.pad({x.name}, (0, 0, 1, -1))")
    if w.chance(0.5):
        mix = w.own(x.width)
        return w.new(x, f"{x.name} * {mix} + {moved} * (1 - {mix})")
    return w.new(x, f"torch.cat([{moved}[..., :{half}], {x.name}[..., {half}:]], -1)")


@piece("tokens", "vector")
def _rotated(w: Writer, x: Feature) -> Feature:
    """Rotary pairs."""
    y = w.mapped(x, w.rng.choice((4, 8)))
    a, b = f"a{w.count}", f"b{w.count}"
    w.lines.append(
        f"{a}, {b} = "
        + w.rng.choice((f"{y.name}.chunk(2, -1)", f"({y.name}[..., ::2], {y.name}[..., 1::2])"))
    )
    how = (f"torch.cat([{a} * 0.6 - {b} * 0.8, {b} * 0.6 + {a} * 0.8], -1)", f"torch.cat([-{b}, {a}], -1)",
           f"torch.stack([-{b}, {a}], -1).flatten(-2)", f"{y.name} * 0.6 + torch.cat([-{b}, {a}], -1) * 0.8")  # fmt: skip
    return w.new(y, w.rng.choice(how))


@piece("image", "tokens", "line")
def _stack(w: Writer, x: Feature) -> Feature:
    """Several blocks of one class in a list, added to their inputs."""
    if w.depth or x.width > 16:
        return x
    inner = Writer(w.rng, w.classes, 1)
    start = Feature("x", x.kind, x.width, x.place)
    last = chain(inner, start, w.rng.randrange(1, 3))
    if (last.kind, last.place) != (x.kind, x.place):
        return x
    last = inner.mapped(last, x.width)
    name = f"Block{len(w.classes)}"
    w.classes.append(inner.text(name, f"x + {last.name}"))
    blocks = w.part(f"nn.ModuleList({name}() for _ in range({w.rng.choice((2, 3))}))")
    w.drawn += inner.drawn
    y = w.new(x, x.name)
    w.lines.append(f"for block in {blocks}:\n            {y.name} = block({y.name})")
    return y
