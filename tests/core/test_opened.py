"""Fused calls of attention, opened into nodes: the map is that of the same function by hand."""

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

from lrp import LRP, InputError, UnsupportedOperation, composites, rules

RULES = {
    "AttnLRP": composites.AttnLRP(),
    "CP-LRP": composites.CPLRP(),
    "epsilon, plus": composites.EpsilonPlus(),
    "LRP-0": composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12)),
}
HEADS, WIDTH, LENGTH, OTHER = 2, 8, 5, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, KV = drawn(2, LENGTH, WIDTH), drawn(2, OTHER, WIDTH, seed=1)


class Two(Net):
    """A network of two inputs."""

    def forward(self, x, kv):
        return self.call(self, x, kv)


def sound(model):
    """In float64 and eval mode, with biases that count."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if p.dim() == 1 and "norm" not in name:
            nn.init.normal_(p, 0, 0.3)
    return model.double().eval()


def same(found, expected, rtol=1e-9):
    return torch.allclose(found, expected, rtol=0, atol=rtol * float(expected.detach().abs().max()))


def maps(model, xs, rule):
    e = LRP(model, rule).explain(xs, 1)
    assert e.imbalance < 1e-9
    return e.relevance if isinstance(xs, tuple) else (e.relevance,)


def assert_same_maps(one, other, xs, names=tuple(RULES)):
    for name in names:
        for found, expected in zip(maps(one, xs, RULES[name]), maps(other, xs, RULES[name]), strict=True):
            assert expected.abs().max() > 0 and same(found, expected), name


def split(x, heads=HEADS):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attention(q, k, v, mask=None, scale=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scores if mask is None else scores + mask, -1)


def multihead(a, q, k, v, mask=None):
    """nn.MultiheadAttention with the samples first, by matrix products and a softmax; `mask` is added to scores."""
    ws = a.in_proj_weight.chunk(3) if a._qkv_same_embed_dim else (a.q_proj_weight, a.k_proj_weight, a.v_proj_weight)
    bs = [None] * 3 if a.in_proj_bias is None else a.in_proj_bias.chunk(3)
    q, k, v = (split(F.linear(x, w, b)) for x, w, b in zip((q, k, v), ws, bs, strict=True))
    weights = attention(q, k, v, mask)
    o = torch.matmul(weights, v).transpose(-3, -2).flatten(-2)
    return F.linear(o, a.out_proj.weight, a.out_proj.bias), weights


def pooled(m, tokens):
    return m.head(F.relu(m.last(tokens)).mean(1))


def networks(fused, hand, kind=Net, **parts):
    """Two networks of the same parts."""
    torch.manual_seed(0)
    parts = {"last": nn.Linear(WIDTH, 6), "head": nn.Linear(6, 3)} | parts
    return sound(kind(fused, **parts)), sound(kind(hand, **parts))


# ---------------------------------------------------------------- nn.MultiheadAttention


def hidden(*shape):
    """A boolean mask, True where a key is not seen, by which each query sees some key."""
    mask = drawn(*shape, seed=2) > 0.4
    mask[..., 0] = False
    return mask


def added(hides):
    return torch.zeros(hides.shape, dtype=torch.float64).masked_fill(hides, -torch.inf)


SQUARE, CUBE, PADDED = hidden(LENGTH, LENGTH), hidden(2 * HEADS, LENGTH, LENGTH), hidden(2, LENGTH)
SOFT = drawn(LENGTH, LENGTH, seed=3)
MASKS = {  # the arguments of the call, and what is added to the scores (N, heads, L, S)
    "none": ({}, None),
    "no weights": ({"need_weights": False}, None),
    "weights of each head": ({"average_attn_weights": False}, None),
    "boolean": ({"attn_mask": SQUARE}, added(SQUARE)),
    "float": ({"attn_mask": SOFT}, SOFT),
    "infinite": ({"attn_mask": added(SQUARE), "need_weights": False}, added(SQUARE)),
    "boolean, of each head": ({"attn_mask": CUBE}, added(CUBE).view(2, HEADS, LENGTH, LENGTH)),
    "float, of each head": ({"attn_mask": drawn(4, LENGTH, LENGTH)}, drawn(4, LENGTH, LENGTH).view(2, 2, 5, 5)),
    "padding": ({"key_padding_mask": PADDED}, added(PADDED)[:, None, None]),
    "float padding": ({"key_padding_mask": drawn(2, LENGTH)}, drawn(2, LENGTH)[:, None, None]),
    "both": ({"attn_mask": SOFT, "key_padding_mask": added(PADDED)}, SOFT + added(PADDED)[:, None, None]),
    "causal": (
        {"attn_mask": nn.Transformer.generate_square_subsequent_mask(LENGTH).double(), "is_causal": True},
        added(torch.ones(LENGTH, LENGTH).triu(1).bool()),
    ),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_self_attention(mask, batch_first):
    given, mask = MASKS[mask]

    def fused(m, x):
        x = x if batch_first else x.transpose(0, 1)
        y = m.att(x, x, x, **given)[0]
        return pooled(m, y if batch_first else y.transpose(0, 1))

    att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
    assert_same_maps(*networks(fused, lambda m, x: pooled(m, multihead(m.att, x, x, x, mask)[0]), att=att), X)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 7}, {"kdim": 6, "bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_cross_attention_of_two_inputs(options, batch_first):
    def cut(kv):
        return kv[..., : options.get("kdim", WIDTH)], kv[..., -options.get("vdim", WIDTH) :]

    def fused(m, x, kv):
        signals = (x, *cut(kv))
        if batch_first:
            return pooled(m, m.att(*signals)[0])
        return pooled(m, m.att(*(s.transpose(0, 1) for s in signals), need_weights=False)[0].transpose(0, 1))

    def hand(m, x, kv):
        return pooled(m, multihead(m.att, x, *cut(kv))[0])

    att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
    one, other = networks(fused, hand, Two, att=att)
    assert_same_maps(one, other, (X, KV), ["AttnLRP"])
    for name in ("CP-LRP", "epsilon, plus", "LRP-0"):  # nothing to the queries
        (_, found), (to_queries, expected) = maps(one, (X, KV), RULES[name]), maps(other, (X, KV), RULES[name])
        assert same(found, expected) and not to_queries.any()


@pytest.mark.parametrize("average", [True, False])
def test_weights_that_are_used_as_a_signal(average):
    """Relevance gets to the softmax by them, which only AttnLRP has a rule for."""

    def run(m, y, weights):
        return m.head(torch.cat([F.relu(m.last(y)).mean(1), weights.flatten(1)], 1))

    def hand(m, x):
        y, weights = multihead(m.att, x, x, x)
        return run(m, y, weights.mean(1) if average else weights)

    att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    head = nn.Linear(6 + LENGTH**2 * (1 if average else HEADS), 3)
    fused = networks(lambda m, x: run(m, *m.att(x, x, x, average_attn_weights=average)), hand, att=att, head=head)
    assert_same_maps(*fused, X, ["AttnLRP"])
    for name in ("CP-LRP", "epsilon, plus"):
        with pytest.raises(UnsupportedOperation, match="softmax"):
            LRP(fused[0], RULES[name]).explain(X, 1)


@pytest.mark.parametrize("mask", [None, SQUARE, CUBE[:HEADS]])
def test_one_series_without_an_axis_of_samples(mask):
    def fused(m, x):
        return pooled(m, m.att(x[0], x[0], x[0], attn_mask=mask)[0].unsqueeze(0))

    def hand(m, x):
        return pooled(m, multihead(m.att, x, x, x, None if mask is None else added(mask))[0])

    assert_same_maps(*networks(fused, hand, att=nn.MultiheadAttention(WIDTH, HEADS)), X[:1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("mask", ["none", "boolean", "float, of each head", "padding"])
def test_keys_of_its_own(options, mask, batch_first):
    """bias_k and bias_v, or zeros, stand behind the keys and values of the input, and every query sees them."""
    given, mask = MASKS[mask]

    def fused(m, x):
        x = x if batch_first else x.transpose(0, 1)
        y = m.att(x, x, x, **given)[0]
        return pooled(m, y if batch_first else y.transpose(0, 1))

    def hand(m, x):
        q, k, v = (
            split(F.linear(x, w, b))
            for w, b in zip(m.att.in_proj_weight.chunk(3), m.att.in_proj_bias.chunk(3), strict=True)
        )
        own = (m.att.bias_k, m.att.bias_v) if "add_bias_kv" in options else (torch.zeros(1, 1, WIDTH).double(),) * 2
        k, v = (torch.cat([s, split(t).expand(2, -1, -1, -1)], 2) for s, t in zip((k, v), own, strict=True))
        o = torch.matmul(attention(q, k, v, None if mask is None else F.pad(mask, (0, 1))), v)
        return pooled(m, m.att.out_proj(o.transpose(1, 2).flatten(2)))

    att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
    assert_same_maps(*networks(fused, hand, att=att), X)


@pytest.mark.parametrize("separate", [False, True])
def test_multi_head_attention_forward(separate):
    def fused(m, x):
        a, x = m.att, x.transpose(0, 1)
        own = {f"{s}_proj_weight": getattr(a, f"{s}_proj_weight") for s in "qkv"} if separate else {}
        y, _ = F.multi_head_attention_forward(
            x, x[..., :6] if separate else x, x, WIDTH, HEADS, a.in_proj_weight, a.in_proj_bias, None, None, False,
            0.1, a.out_proj.weight, a.out_proj.bias, training=False, use_separate_proj_weight=separate, **own,
            attn_mask=SOFT,
        )  # fmt: skip
        return pooled(m, y.transpose(0, 1))

    att = nn.MultiheadAttention(WIDTH, HEADS, **({"kdim": 6} if separate else {}))

    def hand(m, x):
        return pooled(m, multihead(m.att, x, x[..., :6] if separate else x, x, SOFT)[0])

    assert_same_maps(*networks(fused, hand, att=att), X)


class Own(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"kdim": WIDTH, "vdim": 7}])
def test_a_class_of_ones_own_that_calls_torch(options):
    """Its forward is looked into, and multi_head_attention_forward, which it calls, is opened as the module is."""
    for given in ({}, {"key_padding_mask": PADDED, "need_weights": False}):
        found = []
        for cls in (nn.MultiheadAttention, Own):
            torch.manual_seed(2)
            att = cls(WIDTH, HEADS, batch_first=True, **options)

            def run(m, x, given=given):
                return pooled(m, m.att(x, x, x[..., : options.get("vdim")], **given)[0])

            found.append(LRP(networks(run, None, att=att)[0], RULES["AttnLRP"]).attribute(X, 1))
        assert same(found[1], found[0])


# ---------------------------------------------------------------- scaled_dot_product_attention


CAUSAL = added(torch.ones(LENGTH, LENGTH).triu(1).bool())
DOT_PRODUCTS = {  # arguments of the call, mask, scale; how q, k and v are split into heads
    "plain": ({}, None, None, (2, 2, 2)),
    "boolean": ({"attn_mask": ~SQUARE}, added(SQUARE), None, (2, 2, 2)),
    "boolean, of each head": ({"attn_mask": ~CUBE.view(2, 2, 5, 5)}, added(CUBE).view(2, 2, 5, 5), None, (2, 2, 2)),
    "float": ({"attn_mask": SOFT}, SOFT, None, (2, 2, 2)),
    "row for all queries": ({"attn_mask": ~PADDED[:, None, None]}, added(PADDED)[:, None, None], None, (2, 2, 2)),
    "causal": ({"is_causal": True}, CAUSAL, None, (2, 2, 2)),
    "scale": ({"scale": 0.7, "attn_mask": SOFT}, SOFT, 0.7, (2, 2, 2)),
    "grouped queries": ({"enable_gqa": True, "is_causal": True}, CAUSAL, None, (4, 2, 2)),
    "one head of keys": ({}, None, None, (2, 1, 1)),
}


def test_scaled_dot_product_attention():
    for given, mask, scale, heads in DOT_PRODUCTS.values():
        sizes = [2 * n for n in heads]

        def split_as(m, x, heads=heads):
            return [split(layer(x), n) for layer, n in zip((m.q, m.k, m.v), heads, strict=True)]

        def fused(m, x, given=given, split_as=split_as):
            return pooled(m, F.scaled_dot_product_attention(*split_as(m, x), **given).transpose(1, 2).flatten(2))

        def hand(m, x, mask=mask, scale=scale, heads=heads, split_as=split_as):
            q, k, v = split_as(m, x)
            if heads[0] != heads[1]:
                k, v = (t.repeat_interleave(heads[0] // heads[1], 1) for t in (k, v))
            return pooled(m, torch.matmul(attention(q, k, v, mask, scale), v).transpose(1, 2).flatten(2))

        layers = {n: nn.Linear(WIDTH, size) for n, size in zip("qkv", sizes, strict=True)}
        assert_same_maps(*networks(fused, hand, **layers, last=nn.Linear(sizes[0], 6)), X)


SCORES = {  # beta input + alpha q k^T, as GPT-NeoX and BLOOM write it
    "position bias": (lambda q, k, b: torch.baddbmm(b, q, k, alpha=0.5), lambda q, k, b: 0.5 * (q @ k) + b),
    "both scaled": (lambda q, k, b: b.baddbmm(q, k, beta=2, alpha=0.5), lambda q, k, b: 0.5 * (q @ k) + 2 * b),
    "without a bias": (
        lambda q, k, b: torch.baddbmm(torch.full_like(b, torch.nan), q, k, beta=0, alpha=0.5),
        lambda q, k, b: 0.5 * (q @ k),
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_with_a_sum(name):
    def run(scores):
        return lambda m, x: pooled(m, scores(m.q(x), x.mT, m.bias).softmax(-1) @ m.v(x))

    layers = {n: nn.Linear(WIDTH, WIDTH) for n in "qv"}
    assert_same_maps(*networks(*map(run, SCORES[name]), bias=SOFT, **layers), X[:1])


# ---------------------------------------------------------------- torch's transformers


def feed_forward(m, x):
    return m.linear2(m.activation(m.linear1(x)))


def encoder(m, x, mask=None):
    if m.norm_first:
        y = m.norm1(x)
        x = x + multihead(m.self_attn, y, y, y, mask)[0]
        return x + feed_forward(m, m.norm2(x))
    x = m.norm1(x + multihead(m.self_attn, x, x, x, mask)[0])
    return m.norm2(x + feed_forward(m, x))


def decoder(m, x, kv, mask=None):
    if m.norm_first:
        y = m.norm1(x)
        x = x + multihead(m.self_attn, y, y, y, mask)[0]
        x = x + multihead(m.multihead_attn, m.norm2(x), kv, kv)[0]
        return x + feed_forward(m, m.norm3(x))
    x = m.norm1(x + multihead(m.self_attn, x, x, x, mask)[0])
    x = m.norm2(x + multihead(m.multihead_attn, x, kv, kv)[0])
    return m.norm3(x + feed_forward(m, x))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder(norm_first, activation):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, norm_first=norm_first, batch_first=True, activation=activation)
    one, other = networks(lambda m, x: pooled(m, m.e(x)), lambda m, x: pooled(m, encoder(m.e, x)), e=layer)
    assert_same_maps(one, other, X)
    stack = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=not norm_first)
    mask = added(PADDED)[:, None, None]

    def hand(m, x):
        return pooled(m, m.e.norm(encoder(m.e.layers[1], encoder(m.e.layers[0], x, mask), mask)))

    one, other = networks(lambda m, x: pooled(m, m.e(x, src_key_padding_mask=m.mask)), hand, e=stack, mask=PADDED)
    assert_same_maps(one, other, X)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_of_two_inputs(norm_first):
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 12, norm_first=norm_first, batch_first=True)

    def fused(m, x, kv):
        return pooled(m, m.d(x, kv, tgt_mask=SQUARE))

    def hand(m, x, kv):
        return pooled(m, decoder(m.d, x, kv, added(SQUARE)))

    assert_same_maps(*networks(fused, hand, Two, d=layer), (X, KV))


def test_a_whole_transformer():
    parts = {"t": nn.Transformer(WIDTH, HEADS, 1, 1, 12, batch_first=True)}

    def hand(m, x, kv):
        memory = m.t.encoder.norm(encoder(m.t.encoder.layers[0], x))
        return pooled(m, m.t.decoder.norm(decoder(m.t.decoder.layers[0], kv, memory)))

    assert_same_maps(*networks(lambda m, x, kv: pooled(m, m.t(x, kv)), hand, Two, **parts), (X, KV))


# ---------------------------------------------------------------- masks, and the order of tokens


def in_a_view(scores, mask):
    """As in a Swin block: the mask is added to windows, and the softmax is taken of another view."""
    return (scores.view(1, -1, HEADS, LENGTH, LENGTH) + mask[None, None, None]).view(-1, HEADS, LENGTH, LENGTH)


ATTENDED = {
    "added by hand": lambda m, q, k, v: torch.matmul(attention(q, k, v, m.mask), v),
    "added in a view": lambda m, q, k, v: torch.matmul(in_a_view(q @ k.mT * 0.5, m.mask).softmax(-1), v),
    "of a permuted view": lambda m, q, k, v: torch.matmul(in_a_view((k @ q.mT * 0.5).mT, m.mask).softmax(-1), v),
    "filled in": lambda m, q, k, v: torch.matmul(
        (q @ k.mT * 0.5).masked_fill(m.mask < 0, m.mask.min().item()).softmax(-1), v
    ),
    "of scaled_dot_product_attention": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.mask),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lowest", [True, False])
def test_hidden_keys_by_infinity_or_the_lowest_number(lowest, dtype):
    """The map is finite, the same whichever way the mask gets there, and near that of masks that are mild enough."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.2)
    for rule in ("AttnLRP", "CP-LRP"):
        found = []
        for low in (-60.0, torch.finfo(dtype).min if lowest else -torch.inf):
            for call in ATTENDED.values():

                def run(m, x, call=call):
                    q, k, v = (split(layer(x)) for layer in (m.q, m.k, m.v))
                    return pooled(m, call(m, q, k, v).transpose(1, 2).flatten(2))

                torch.manual_seed(2)
                model = networks(run, None, **{n: nn.Linear(WIDTH, WIDTH) for n in "qkv"})[0].to(dtype)
                model.mask = torch.zeros(LENGTH, LENGTH, dtype=dtype).masked_fill(SQUARE, low)
                found.append(LRP(model, RULES[rule]).attribute(X.to(dtype), 1))
        assert all(same(R, found[0], tolerance) for R in found[1:])


@pytest.mark.parametrize("rule", RULES)
def test_a_query_that_sees_no_key(rule):
    """torch gives it zeros; its place is as if the head did not read it."""
    blind = torch.eye(LENGTH).bool()
    blind[2] = False

    def run(m, x, kept=slice(None)):
        y = F.scaled_dot_product_attention(m.q(x), x, m.v(x), m.mask)
        return m.head(m.last(y)[:, kept].sum(1))

    layers = {n: nn.Linear(WIDTH, WIDTH) for n in "qv"} | {"last": nn.Linear(WIDTH, 6, bias=False)}
    one, other = networks(run, lambda m, x: run(m, x, [0, 1, 3, 4]), mask=blind, **layers)
    assert_same_maps(one, other, X, [rule])


def test_a_buffer_may_hide_keys_but_not_be_spoilt():
    model = networks(lambda m, x: pooled(m, F.scaled_dot_product_attention(m.q(x), x, x, m.mask)), None,
                     q=nn.Linear(WIDTH, WIDTH), mask=added(SQUARE))[0]  # fmt: skip
    assert LRP(model).attribute(X, 1).isfinite().all()
    for wrong in (torch.nan, torch.inf):
        model.mask[0, 0] = wrong
        with pytest.raises(InputError, match="`mask` of Net holds NaN or infinite"):
            LRP(model).attribute(X, 1)


@pytest.mark.parametrize("rule", ["AttnLRP", "CP-LRP", "epsilon, plus"])
def test_a_hidden_token_gets_nothing(rule):
    """It is hidden from all others, and the head does not read its own place."""
    hides = torch.tensor([[False] * 4 + [True]] * 2)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True)
    encoders = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def run(m, x):
        return pooled(m, m.e(x, src_key_padding_mask=m.hides)[:, :4])

    R = LRP(networks(run, None, e=encoders, hides=hides)[0], RULES[rule]).attribute(X, 1)
    assert R.isfinite().all() and not R[:, 4].any() and (R[:, :4].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("rule", ["AttnLRP", "CP-LRP", "epsilon, plus"])
def test_tokens_in_another_order(rule):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True, norm_first=True)
    explainer = LRP(networks(lambda m, x: pooled(m, m.e(x)), None, e=layer)[0], RULES[rule])
    order = torch.tensor([3, 1, 4, 0, 2])
    assert same(explainer.attribute(X[:, order], 1), explainer.attribute(X, 1)[:, order])


def test_each_sample_alone_and_a_series_of_another_length():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12)  # the samples are on the second axis inside
    model = networks(lambda m, x: pooled(m, m.e(x.transpose(0, 1)).transpose(0, 1)), None, e=layer)[0]
    explainer = LRP(model, RULES["AttnLRP"])
    for x in (X, KV, drawn(1, 2, WIDTH)):
        whole = explainer.explain(x, 1)
        alone = torch.cat([explainer.attribute(one[None], 1) for one in x])
        assert same(whole.relevance, alone) and whole.imbalance < 1e-9


# ---------------------------------------------------------------- what is refused, by name


def test_weights_that_are_dropped_in_eval_mode():
    model = networks(lambda m, x: pooled(m, F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), None)[0]
    with pytest.raises(UnsupportedOperation, match=r"scaled_dot_product_attention.*test_opened.py:\d+.*dropout_p=0.1"):
        LRP(model).attribute(X, 1)

    def function(m, x):
        a = m.att
        return pooled(m, F.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.1, a.out_proj.weight,
            a.out_proj.bias,
        )[0])  # fmt: skip

    with pytest.raises(UnsupportedOperation, match=r"dropout_p=0.1.*training=False"):
        LRP(networks(function, None, att=nn.MultiheadAttention(WIDTH, HEADS))[0]).attribute(X, 1)


def test_dropout_of_a_module_in_eval_mode_is_nothing():
    found = []
    for p in (0.0, 0.5):
        torch.manual_seed(2)
        att = nn.MultiheadAttention(WIDTH, HEADS, dropout=p, batch_first=True)
        model = networks(lambda m, x: pooled(m, m.att(x, x, x)[0]), None, att=att)[0]
        found.append(LRP(model, RULES["AttnLRP"]).attribute(X, 1))
    assert found[0].equal(found[1])
    with pytest.raises(InputError, match="training mode"):
        LRP(model.train())


def test_keys_that_are_made_beforehand():
    def run(m, x):
        a, ahead = m.att, torch.zeros(2 * HEADS, 3, WIDTH // HEADS, dtype=x.dtype)
        return pooled(m, F.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight,
            a.out_proj.bias, static_k=ahead, static_v=ahead,
        )[0])  # fmt: skip

    model = networks(run, None, att=nn.MultiheadAttention(WIDTH, HEADS))[0]
    with pytest.raises(UnsupportedOperation, match="static_k"):
        LRP(model).attribute(X.transpose(0, 1), 1)


def test_a_mask_that_is_computed_from_the_input():
    """What a comparison says is a constant; numbers that carry relevance are refused, or are summands of the scores."""

    def hand(m, x):
        hides = (x[..., 0] < -0.5).double() * -50
        return pooled(m, multihead(m.att, x, x, x, hides[:, None, None])[0])

    def fused(m, x):
        return pooled(m, m.att(x, x, x, key_padding_mask=(x[..., 0] < -0.5).double() * -50)[0])

    def boolean(m, x):
        return pooled(m, m.att(x, x, x, key_padding_mask=(x < -0.5)[..., 0].logical_not().logical_not())[0])

    att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    one, other = networks(fused, hand, att=att)
    assert_same_maps(one, other, X)
    assert same(LRP(networks(boolean, None, att=att)[0]).attribute(X, 1), LRP(one).attribute(X, 1), 1e-6)
    model = networks(lambda m, x: pooled(m, m.att(x, x, x, key_padding_mask=x[..., 0])[0]), None, att=att)[0]
    with pytest.raises(UnsupportedOperation, match=r"node `att` .*mask that is computed from the input's values"):
        LRP(model).attribute(X, 1)

    def biased(attend):
        return lambda m, x: pooled(m, attend(m.q(x), x, x, m.bias(x)))

    one, other = networks(
        biased(F.scaled_dot_product_attention), biased(lambda q, k, v, b: torch.matmul(attention(q, k, v, b), v)),
        q=nn.Linear(WIDTH, WIDTH), bias=nn.Linear(WIDTH, LENGTH),
    )  # fmt: skip
    assert_same_maps(one, other, X)
