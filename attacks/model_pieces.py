"""Pieces of random models: layers, norms, additions, and channels taken apart, put together and reduced."""

from __future__ import annotations

from attacks.model_writer import TAIL, Feature, Writer, piece


# -- layers and activations
@piece()
def _plain(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, w.width())
    return w.new(y, w.act(y.name))


@piece()
def _activation(w: Writer, x: Feature) -> Feature:
    return w.new(x, w.act(x.name, 0.5))


@piece()
def _in_place(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, w.width())
    how = w.rng.choice(
        ("{}.relu_()", "{}.add_(1)", "{}.mul_(0.5)", "F.relu({}, inplace=True)", "{}.sigmoid_()")
    )
    return w.new(y, how.format(y.name))


@piece()
def _prelu(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, w.width())
    if y.axis == 1:
        return w.new(y, f"{w.part(f'nn.PReLU({y.width})')}({y.name})")
    return w.new(y, f"F.relu({y.name}) - {w.own(y.width)} * F.relu(-{y.name})")


@piece()
def _dropout(w: Writer, x: Feature) -> Feature:
    return w.new(x, f"{w.part('nn.Dropout(0.1)')}({x.name})")


@piece()
def _norm(w: Writer, x: Feature) -> Feature:
    kinds: dict[str, tuple[str, ...]] = {
        "image": ("nn.BatchNorm2d({c})", "nn.GroupNorm({g}, {c})", "nn.InstanceNorm2d({c}, affine=True)"),
        "line": ("nn.BatchNorm1d({c})", "nn.GroupNorm({g}, {c})"),
        "tokens": ("nn.LayerNorm({c})", "nn.RMSNorm({c})"),
        "vector": ("nn.LayerNorm({c})", "nn.BatchNorm1d({c})", "nn.RMSNorm({c})"),
    }
    made = w.rng.choice(kinds[x.kind]).format(c=x.width, g=2)
    return w.new(x, f"{w.part(made)}({x.name})")


@piece("image")
def _norm_last(w: Writer, x: Feature) -> Feature:
    y = w.value(f"{w.part(f'nn.LayerNorm({x.width})')}({x.name}.permute(0, 2, 3, 1))")
    return w.new(x, f"{y}.permute(0, 3, 1, 2)")


@piece()
def _own_norm(w: Writer, x: Feature) -> Feature:
    a = x.axis
    y = w.mapped(x, w.width())
    how = (
        "{0} * torch.rsqrt({0}.pow(2).mean({1}, keepdim=True) + 1e-3)",
        "F.normalize({0}, dim={1}, eps=1e-3)",
        "({0} - {0}.mean({1}, keepdim=True)) / ({0}.std({1}, keepdim=True) + 1e-2)",
        "{0} / (1 + {0}.norm(dim={1}, keepdim=True))",
        "{0} / (1e-2 + {0}.abs().sum({1}, keepdim=True))",
        "{0} / (1e-2 + {0}.abs().amax({1}, keepdim=True))",
    )
    return w.new(y, w.rng.choice(how).format(y.name, a))


@piece("image", "line")
def _depthwise(w: Writer, x: Feature) -> Feature:
    many = x.width * w.rng.choice((1, 1, 2))
    y = w.mapped(x, many, x.width)
    return w.mapped(w.new(y, w.act(y.name)), w.width())


@piece("image", "line")
def _grouped(w: Writer, x: Feature) -> Feature:
    groups = w.rng.choice((2, x.width // 2))
    if x.width % groups:
        groups = 2
    return w.mapped(x, groups * w.rng.choice((1, 2, 4)), groups)


@piece("image", "line")
def _transposed(w: Writer, x: Feature) -> Feature:
    rank, out = (2 if x.kind == "image" else 1), w.rng.choice((4, 8, 12))
    groups = w.rng.choice((1, 1, 2))
    made = f"nn.ConvTranspose{rank}d({x.width}, {out}, 3, padding=1, groups={groups})"
    return w.new(x, f"{w.part(made)}({x.name})", out)


@piece()
def _twice(w: Writer, x: Feature) -> Feature:
    layer = w.part(w.layer(x, x.width))
    y = w.new(x, w.act(f"{layer}({x.name})"))
    return w.new(x, f"{layer}({y.name})" + (f" + {x.name}" if w.chance(0.5) else ""))


# -- additions
@piece()
def _residual(w: Writer, x: Feature) -> Feature:
    y = w.mapped(x, w.width())
    z = w.mapped(w.new(y, w.act(y.name)), x.width)
    return w.new(
        x,
        w.rng.choice(("{0} + {1}", "{0}.add({1})", "{1} + 0.5 * {0}", "torch.lerp({0}, {1}, 0.3)")).format(
            x.name, z.name
        ),
    )


@piece()
def _added(w: Writer, x: Feature) -> Feature:
    how = ("{0} + {1}", "{0} - {1}", "torch.maximum({0}, {1})", "torch.where({0} > 0, {0}, {1})", "torch.stack([{0}, {1}]).sum(0)",
           "torch.stack([{0}, {1}], 1).mean(1)", "torch.logaddexp({0}, {1})", "torch.addcmul({0}, {1}, {0})", "torch.hypot({0}, {1})",
           "torch.stack([{0}, {1}], -1).amax(-1)", "sum([{0}, {1}, {0}])")  # fmt: skip
    return w.new(x, w.rng.choice(how).format(x.name, w.mate(x).name))


@piece()
def _added_to_part(w: Writer, x: Feature) -> Feature:
    k = w.rng.choice((x.width // 2, x.width // 2 - 1, 2))
    y = w.mapped(x, k)
    if w.chance(0.5):
        z = w.new(x, f"{x.name}.clone()")
        w.lines.append(f"{w.cut(z, '', k)} {w.rng.choice(('+=', '=', '*='))} {y.name}")
        return z
    first = w.new(x, f"{w.cut(x, '', k)} + {y.name}", k)
    return w.new(x, f"torch.cat([{first.name}, {w.cut(x, k, '')}], {x.axis})")


@piece()
def _padded_added(w: Writer, x: Feature) -> Feature:
    more = w.rng.choice((2, 4))
    y = w.mapped(x, x.width + more)
    ends = "0, 0, " * {"image": 2, "line": 1, "tokens": 0, "vector": 0}[x.kind]
    before = w.rng.choice((0, 1))
    return w.new(y, f"{y.name} + F.pad({x.name}, ({ends}{before}, {more - before}))")


@piece()
def _broadcast_added(w: Writer, x: Feature) -> Feature:
    one = w.mapped(x, 1)
    sign = w.rng.choice(("+", "*", "-"))
    return w.new(x, f"{x.name} {sign} {w.act(one.name, 0.5)}")


@piece("image", "line", "tokens")
def _pooled_added(w: Writer, x: Feature) -> Feature:
    axes = {"image": "(2, 3)", "line": "2", "tokens": "1"}[x.kind]
    sign = w.rng.choice(("+", "*", "-"))
    return w.new(x, f"{x.name} {sign} {x.name}.{w.rng.choice(('mean', 'amax'))}({axes}, keepdim=True)")


# -- apart and together
@piece()
def _cat(w: Writer, x: Feature) -> Feature:
    y = w.mate(x, same_width=False)
    width = x.width + y.width
    if width > 32:
        return x
    made = w.new(x, f"torch.cat([{x.name}, {y.name}], {x.axis})", width)
    return w.mapped(made, w.width()) if w.chance(0.5) else made


@piece()
def _cat_with_constant(w: Writer, x: Feature) -> Feature:
    k = 2
    part = w.cut(x, "", k)
    what = w.rng.choice(("torch.zeros_like({})", "torch.ones_like({})", "{}.detach()"))
    return w.new(x, f"torch.cat([{what.format(part)}, {x.name}], {x.axis})", x.width + k)


@piece()
def _glu(w: Writer, x: Feature) -> Feature:
    h = w.width()
    y = w.mapped(x, 2 * h)
    how = w.rng.randrange(5)
    if how == 0:
        return w.new(y, f"F.glu({y.name}, {y.axis})", h)
    a, b = f"a{w.count}", f"b{w.count}"
    half = w.number(h, f"{y.name}.shape[{y.axis}] // 2")
    if how == 1:
        w.lines.append(f"{a}, {b} = {y.name}.chunk(2, {y.axis})")
    elif how == 2:
        w.lines.append(f"{a}, {b} = {y.name}.split({half}, {y.axis})")
    elif how == 3:
        w.lines.append(f"{a}, {b} = {w.cut(y, '', half)}, {w.cut(y, half, '')}")
    else:
        w.lines.append(f"{a}, {b} = {w.cut(y, 0, '', 2)}, {w.cut(y, 1, '', 2)}")
    return w.new(y, f"{w.act(a, 0.5)} * {b}" if w.chance(0.7) else f"{w.act(a, 0.5)} + {b}", h)


@piece()
def _swiglu(w: Writer, x: Feature) -> Feature:
    h = w.width()
    a, b = w.mapped(x, h), w.mapped(x, h)
    return w.mapped(w.new(a, f"{w.act(a.name)} * {b.name}"), x.width)


@piece()
def _uneven_split(w: Writer, x: Feature) -> Feature:
    k = w.rng.choice((1, 2, x.width // 2))
    a, b = f"a{w.count}", f"b{w.count}"
    rest = w.number(x.width - k, f"{x.name}.shape[{x.axis}] - {k}")
    how = w.rng.choice(
        (f"{x.name}.split([{k}, {rest}], {x.axis})", f"torch.tensor_split({x.name}, ({k},), {x.axis})")
    )
    w.lines.append(f"{a}, {b} = {how}")
    y = w.mapped(Feature(a, x.kind, k, x.place), k)
    ends = [w.act(y.name), b]
    if w.chance(0.5):
        ends.reverse()
    return w.new(x, f"torch.cat([{', '.join(ends)}], {x.axis})")


@piece()
def _narrowed(w: Writer, x: Feature) -> Feature:
    k = w.rng.choice((x.width // 2, x.width - 1, 3))
    start = w.rng.randrange(x.width - k + 1)
    how = (f"{x.name}.narrow({x.axis}, {start}, {k})", w.cut(x, start, start + k), f"{w.cut(x, f'-{k}', '')}")
    made = w.new(x, w.rng.choice(how), k)
    return w.mapped(made, w.width())


@piece()
def _stepped(w: Writer, x: Feature) -> Feature:
    start = w.rng.choice((0, 1))
    made = w.new(x, w.cut(x, start, "", 2), (x.width - start + 1) // 2)
    return w.mapped(made, w.width())


@piece()
def _moved(w: Writer, x: Feature) -> Feature:
    order = list(range(x.width))
    w.rng.shuffle(order)
    how = w.rng.randrange(5)
    if how == 0:
        return w.new(x, f"{x.name}.flip({x.axis})" + (f" + {x.name}" if w.chance(0.5) else ""))
    if how == 1:
        return w.new(
            x,
            f"{x.name}.roll({w.rng.choice((1, 2, -1))}, {x.axis})"
            + (f" + {x.name}" if w.chance(0.5) else ""),
        )
    w.parts.append(f"self.register_buffer('order{w.count}', torch.tensor({order}))")
    index = f"self.order{w.count}"
    if how == 2:
        return w.new(x, f"{x.name}.index_select({x.axis}, {index})")
    if how == 3:
        return w.new(
            x, w.cut(x, "", "").replace("[..., :]", f"[..., {index}]").replace("[:, :]", f"[:, {index}]")
        )
    return w.new(x, f"torch.take_along_dim({x.name}, {index}.argsort().view(-1{', 1' * (1 + (x.kind == 'image')) if x.axis == 1 else ''})"
                 f".expand_as({x.name}[0])[None].expand_as({x.name}), {x.axis})")  # fmt: skip


@piece()
def _shuffled(w: Writer, x: Feature) -> Feature:
    g = 2
    if x.axis == -1:
        inner = w.number(x.width // g, f"{x.name}.shape[-1] // {g}")
        y = w.value(f"{x.name}.unflatten(-1, ({g}, {inner})).transpose(-1, -2)")
        return w.new(x, f"{y}.flatten(-2)" if w.chance(0.5) else f"{y}.reshape({x.name}.shape)")
    sizes = f"*{x.name}.shape[2:]"
    y = w.value(
        f"{x.name}.view({x.name}.size(0), {g}, {w.number(x.width // g, f'{x.name}.size(1) // {g}')}, {sizes})"
    )
    return w.new(
        x, f"{y}.transpose(1, 2).reshape({x.name}.size(0), {w.rng.choice(('-1', w.size(x)))}, {sizes})"
    )


@piece()
def _folded(w: Writer, x: Feature) -> Feature:
    """Channels as groups, which are joined by something."""
    g = 2
    axis = x.axis if x.axis == 1 else -2
    first = w.chance(0.5)
    shape = f"({g}, {x.width // g})" if first else f"({x.width // g}, {g})"
    if w.chance(0.4):
        shape = f"({g}, -1)" if first else f"(-1, {g})"
    y = w.value(f"{x.name}.unflatten({x.axis}, {shape})")
    over = axis if first else (axis + 1 if axis == 1 else -1)
    how = w.rng.randrange(5)
    if how == 0:
        a, b = f"a{w.count}", f"b{w.count}"
        w.lines.append(f"{a}, {b} = {y}.unbind({over})")
        if w.chance(0.3):
            return w.new(x, f"torch.cat([{b}, {a}], {x.axis})")
        return w.new(x, w.rng.choice(("{0} * {1}.sigmoid()", "{0} + {1}")).format(a, b), x.width // g)
    if how < 3:
        return w.new(x, f"{y}.{w.rng.choice(('mean', 'sum', 'amax', 'prod'))}({over})", x.width // g)
    stays = w.value(f"{y}.softmax({over})" if how == 3 else f"F.normalize({y}, dim={over}, eps=1e-2)")
    return w.new(x, f"{stays}.flatten({axis}, {axis + 1})")


@piece()
def _repeated(w: Writer, x: Feature) -> Feature:
    if x.width > 12:
        return x
    tail = {"image": "1, 2, 1, 1", "line": "1, 2, 1", "tokens": "1, 1, 2", "vector": "1, 2"}[x.kind]
    how = (f"{x.name}.repeat({tail})", f"{x.name}.repeat_interleave(2, {x.axis})", f"torch.cat([{x.name}] * 2, {x.axis})",
           f"torch.cat([{x.name}, -{x.name}], {x.axis})")  # fmt: skip
    made = w.new(x, w.rng.choice(how), 2 * x.width)
    return w.mapped(made, w.width()) if w.chance(0.6) else made


# -- over the channels
@piece()
def _over_channels(w: Writer, x: Feature) -> Feature:
    a, y = x.axis, w.mapped(x, w.width())
    how = ("{0} * {0}.mean({1}, keepdim=True).sigmoid()", "{0}.softmax({1})", "{0} - {0}.amax({1}, keepdim=True)", "{0}.cumsum({1})",
           "{0} * {0}.softmax({1})", "{0} + {0}.norm(dim={1}, keepdim=True)", "{0}.log_softmax({1})", "{0}.sort({1}).values",
           "{0} * ({0} >= {0}.topk(2, {1}).values.amin({1}, keepdim=True))", "{0} + {0}.logsumexp({1}, keepdim=True)",
           "{0} - {0}.sum({1}, keepdim=True)", "{0} + {0}.var({1}, keepdim=True)", "{0} + {0}.argmax({1}, keepdim=True)",
           "{0} / {0}.shape[{1}]", "{0} + {0}.median({1}, keepdim=True).values", "{0} * {0}.shape[{1}] ** -0.5")  # fmt: skip
    return w.new(y, w.rng.choice(how).format(y.name, a))


@piece("image", "line")
def _channel_convolution(w: Writer, x: Feature) -> Feature:
    """Efficient channel attention: a convolution along the channels."""
    axes = "(2, 3)" if x.kind == "image" else "2"
    conv = w.part("nn.Conv1d(1, 1, 3, padding=1, bias=False)")
    gate = w.value(f"{conv}({x.name}.mean({axes})[:, None]).sigmoid().squeeze(1)")
    return w.new(x, f"{x.name} * {gate}[..., None{', None' if x.kind == 'image' else ''}]")


@piece("image", "line", "tokens")
def _squeeze(w: Writer, x: Feature) -> Feature:
    r = w.rng.choice((2, 4))
    axes = {"image": "(2, 3)", "line": "2", "tokens": "1"}[x.kind]
    a, b = w.part(f"nn.Linear({x.width}, {r})"), w.part(f"nn.Linear({r}, {x.width})")
    gate = w.value(f"{b}(F.relu({a}({x.name}.mean({axes})))).{w.rng.choice(('sigmoid', 'tanh', 'exp'))}()")
    back = {"image": "[:, :, None, None]", "line": "[..., None]", "tokens": "[:, None]"}[x.kind]
    return w.new(x, f"{x.name} * {gate}{back}")


@piece()
def _scaled(w: Writer, x: Feature) -> Feature:
    tail = TAIL[x.kind]
    own = w.part(f"nn.Parameter(torch.randn({x.width}{tail.rstrip(',')}))")
    how = ("{0} * {1}", "{0} + {1}", "{0} * F.softplus({1})", "{0} * (1 + {1})", "{0} * {1}.sigmoid() + {1}", "torch.sin({1} * {0})",
           "{0} + {1} * {0}.square()", "{0} * {1}.softmax(0)", "{0} * {1} / {1}.norm()")  # fmt: skip
    return w.new(x, w.rng.choice(how).format(x.name, own))


@piece()
def _mixed_by_own(w: Writer, x: Feature) -> Feature:
    """A product with a parameter of the model's own, by several functions."""
    h = w.width()
    first = {"image": "bchw", "line": "bcl", "tokens": "btc", "vector": "bc"}[x.kind]
    how = w.rng.randrange(4)
    if how == 0 or x.axis == 1:
        own = w.own(x.width, h)
        made = (
            own
            if w.chance(0.6)
            else f"{w.rng.choice(('F.softmax({}, 0)', 'F.normalize({}, dim=0)', 'torch.tanh({})', '{}.softmax(1)')).format(own)}"
        )
        return w.new(x, f"torch.einsum('{first},cd->{first.replace('c', 'd')}', {x.name}, {made})", h)
    if how == 1:
        return w.new(x, f"{x.name} @ {w.own(x.width, h)}", h)
    own = w.own(h, x.width)
    bias = w.own(h)
    return w.new(x, f"F.linear({x.name}, {w.act(own)}, {bias})", h)


@piece("image")
def _standardised(w: Writer, x: Feature) -> Feature:
    h = w.width()
    own = w.own(h, x.width, 3, 3)
    how = ("({0} - {0}.mean((1, 2, 3), keepdim=True)) / ({0}.std((1, 2, 3), keepdim=True) + 1e-2)", "F.normalize({0}.flatten(1), dim=1).view_as({0})",
           "{0} * 0.1", "torch.tanh({0})")  # fmt: skip
    weight = w.value(w.rng.choice(how).format(own))
    return w.new(x, f"F.conv2d({x.name}, {weight}, padding=1)", h)


@piece()
def _bilinear(w: Writer, x: Feature) -> Feature:
    """Two features multiplied: by channels, or by everything with everything."""
    a, b = w.mapped(x, 4), w.mapped(x, w.rng.choice((2, 4)))
    if x.axis == 1:
        rest = ", {0}.shape[2], {0}.shape[3]" if x.kind == "image" else ", {0}.shape[2]"
        y = f"({a.name}[:, :, None] * {b.name}[:, None]).flatten(1, 2)"
        return w.new(
            x,
            y
            if w.chance(0.5)
            else f"({a.name}.unsqueeze(2) * {b.name}.unsqueeze(1)).reshape({a.name}.shape[0], -1{rest.format(a.name)})",
            4 * b.width,
        )
    if w.chance(0.4):
        layer = w.part(f"nn.Bilinear(4, {b.width}, {x.width})")
        return w.new(x, f"{layer}({a.name}.contiguous(), {b.name}.contiguous())")
    return w.new(x, f"({a.name}[..., :, None] * {b.name}[..., None, :]).flatten(-2)", 4 * b.width)


@piece("image", "line", "tokens")
def _channel_attention(w: Writer, x: Feature) -> Feature:
    h = w.rng.choice((4, 8))
    q, k, v = (w.mapped(x, h) for _ in range(3))
    if x.kind == "tokens":
        gate = w.value(f"({q.name}.transpose(1, 2) @ {k.name}).softmax(-1)")
        return w.new(v, f"({gate} @ {v.name}.transpose(1, 2)).transpose(1, 2)")
    flat = ".flatten(2)"
    gate = w.value(f"({q.name}{flat} @ {k.name}{flat}.transpose(1, 2)).softmax({w.rng.choice((-1, 1))})")
    return w.new(v, f"({gate} @ {v.name}{flat}).view_as({v.name})")


@piece()
def _made_weights(w: Writer, x: Feature) -> Feature:
    """A weight that a layer makes of the input's mean: dynamic filters."""
    h = 4
    pooled = {"image": ".mean((2, 3))", "line": ".mean(2)", "tokens": ".mean(1)", "vector": ""}[x.kind]
    layer = w.part(f"nn.Linear({x.width}, {h} * {x.width})")
    made = w.value(
        f"{layer}({x.name}{pooled}).view(-1, {h}, {w.rng.choice((str(x.width), f'{x.name}.shape[{x.axis}]'))})"
    )
    first = {"image": "bchw", "line": "bcl", "tokens": "btc", "vector": "bc"}[x.kind]
    return w.new(x, f"torch.einsum('{first},bdc->{first.replace('c', 'd')}', {x.name}, {made})", h)


@piece()
def _experts(w: Writer, x: Feature) -> Feature:
    a, b = w.mapped(x, x.width), w.mapped(x, x.width)
    gate = w.mapped(x, 2)
    share = w.value(f"{gate.name}.softmax({x.axis})")
    one = Feature(share, x.kind, 2, x.place)
    return w.new(x, f"{w.cut(one, 0, 1)} * {a.name} + {w.cut(one, 1, 2)} * {b.name}")
