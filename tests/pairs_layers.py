"""Products with constants, pads and transposed convolutions, in many writings."""

from functools import partial

import torch
import torch.nn.functional as F
from networks import Net
from pairs import behind, dense, pair
from torch import nn


def products(shape, options, **writings):
    """Pairs of a dense layer and each of these writings, which read m.l.weight and m.l.bias."""
    for name, write in writings.items():
        pair(*shape, name=name, **options)(partial(_product, write))


def _product(write):
    layer = nn.Linear(6, 4)
    nn.init.normal_(layer.bias, 0, 0.3)
    return dense(lambda m, h: m.l(h), write, l=layer)


products(
    (5,),
    {},
    matrix_on_the_right=lambda m, h: h @ m.l.weight.T + m.l.bias,
    matrix_multiplied=lambda m, h: torch.mm(h, m.l.weight.t()).add(m.l.bias),
    product_of_three=lambda m, h: torch.addmm(m.l.bias, h, m.l.weight.T),
    batched_product_of_three=lambda m, h: torch.baddbmm(m.l.bias, h[:, None], _many(m.l.weight.T, h)).squeeze(1),
    einstein=lambda m, h: torch.einsum("nk,ck->nc", h, m.l.weight) + m.l.bias,
    einstein_turned=lambda m, h: torch.einsum("ck,nk->nc", m.l.weight, h) + m.l.bias,
    tensordot=lambda m, h: torch.tensordot(h, m.l.weight, dims=([1], [1])) + m.l.bias,
    inner=lambda m, h: torch.inner(h, m.l.weight) + m.l.bias[None],
    matrix_on_the_left=lambda m, h: (m.l.weight @ h[..., None] + m.l.bias[:, None]).squeeze(-1),
    functional_dense=lambda m, h: F.linear(h, m.l.weight, m.l.bias),
    bias_of_a_dense_layer=lambda m, h: F.linear(h, m.l.weight) + m.l.bias,
)
products(
    (7, 5),
    {},
    matrix_on_the_right_of_sequences=lambda m, h: h @ m.l.weight.T + m.l.bias,
    matrices_on_the_right=lambda m, h: h @ m.l.weight.T[None] + m.l.bias,
    matrices_by_bmm=lambda m, h: torch.bmm(h, _many(m.l.weight.T, h)) + m.l.bias,
    einstein_of_sequences=lambda m, h: torch.einsum("nlk,ck->nlc", h, m.l.weight) + m.l.bias,
    bias_of_sequences=lambda m, h: F.linear(h, m.l.weight) + m.l.bias.view(1, 1, -1),
)
DENSE = ("plus", "plus flat", "gamma box", "a2b1", "a2b1 flat", "unfolded")  # these give dense layers their own rule
products(
    (7, 5),
    {"apart": dict.fromkeys(DENSE, "behind it a transposition moves places, as in a mixer")},
    matrix_on_the_left_of_sequences=lambda m, h: (m.l.weight @ h.transpose(1, 2) + m.l.bias[:, None]).transpose(1, 2),
)
products(
    (5,),
    {"within": 1e-5},  # each vector is a node with a stabiliser of its own
    vectors=lambda m, h: torch.stack([h @ m.l.weight[i] + m.l.bias[i] for i in range(4)], 1),
    vectors_by_mv=lambda m, h: torch.stack([torch.mv(h, m.l.weight[i]) + m.l.bias[i] for i in range(4)], 1),
)
products(
    (5,),
    {"apart": {"unfolded": "a scale that stays a node is no weight of the layer"}},
    product_of_three_doubled=lambda m, h: torch.addmm(m.l.bias * 2, h, m.l.weight.T / 2, beta=0.5, alpha=2),
    functional_dense_of_computed=lambda m, h: F.linear(h, m.l.weight * 2, -m.l.bias) * 0.5 + 1.5 * m.l.bias,
)


def _many(matrix, h):
    return matrix.expand(h.shape[0], 6, 4)


def padded(dims, write, own, **options):
    """A convolution that pads by itself, and one whose input is padded by `write`; behind a ReLU and a bias."""
    c = getattr(nn, f"Conv{dims}d")(4, 5, 3, padding=own, **options)
    e = getattr(nn, f"Conv{dims}d")(4, 5, 3, **{k: o for k, o in options.items() if k != "padding_mode"})
    e.weight, e.bias = c.weight, c.bias
    parts = {"a": getattr(nn, f"Conv{dims}d")(3, 4, 1), "c": c, "e": e, "f": nn.Linear(5, 3)}
    nn.init.constant_(c.bias, -0.3)

    def network(call):
        return Net(lambda m, x: m.f(F.relu(call(m, m.a(x))).flatten(2).mean(2)), **parts)

    return network(lambda m, y: m.c(F.relu(y))), network(lambda m, y: write(m, F.relu(y)))


PADS = {
    "zero_pad": (2, lambda m, y: m.e(nn.ZeroPad2d(1)(y)), 1, {}),
    "function_pad": (2, lambda m, y: m.e(F.pad(y, (1, 1, 1, 1))), 1, {}),
    "function_pad_by_name": (2, lambda m, y: m.e(F.pad(y, pad=[2, 2, 1, 1], mode="constant", value=0)), (1, 2), {}),
    "constant_pad": (2, lambda m, y: m.e(nn.ConstantPad2d((1, 1, 2, 2), 0.0)(y)), (2, 1), {}),
    "pad_of_a_line": (1, lambda m, y: m.e(nn.ZeroPad1d(2)(y)), 2, {"dilation": 2}),
    "pad_of_a_volume": (3, lambda m, y: m.e(nn.ZeroPad3d(1)(y)), 1, {"stride": 2}),
    "pad_of_groups": (2, lambda m, y: m.e(F.pad(y, (1, 1, 1, 1))), 1, {"groups": 1, "stride": 2}),
    "pad_in_two": (2, lambda m, y: m.e(F.pad(nn.ZeroPad2d((1, 0, 1, 0))(y), (0, 1, 0, 1))), 1, {}),
    "pad_behind_dropout": (2, lambda m, y: m.e(F.dropout(F.pad(y, (1, 1, 1, 1)), 0.2, m.training)), 1, {}),
    "pad_and_relu_change_places": (2, lambda m, y: m.e(F.relu(F.pad(y, (1, 1, 1, 1)))), 1, {}),
    "pad_by_sizes": (2, lambda m, y: m.e(F.pad(y, [y.shape[-1] // 8] * 2 + [y.shape[-2] // 8] * 2)), 1, {}),
    "reflected": (2, lambda m, y: m.e(nn.ReflectionPad2d(1)(y)), 1, {"padding_mode": "reflect"}),
    "replicated": (2, lambda m, y: m.e(F.pad(y, (1, 1, 1, 1), mode="replicate")), 1, {"padding_mode": "replicate"}),
    "circular": (2, lambda m, y: m.e(F.pad(y, (1, 1, 1, 1), "circular")), 1, {"padding_mode": "circular"}),
}
for _name, (_dims, _write, _own, _options) in PADS.items():
    pair(3, *[8 if _dims < 3 else 5] * _dims, name=_name)(partial(padded, _dims, _write, _own, **_options))


@pair(3, 8, 8)
def pad_as_in_tensorflow():
    """An even kernel padded to the same size has one more zero at the end."""
    c, e = nn.Conv2d(3, 4, 2, padding="same"), nn.Conv2d(3, 4, 2)
    e.weight, e.bias = c.weight, c.bias

    def call(m, x):
        h, w = x.shape[-2:]
        down, right = max((h - 1) + 2 - h, 0), max((w - 1) + 2 - w, 0)
        return m.e(F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2]))

    f = nn.Linear(4, 3)
    calls = (lambda m, x: m.c(x), call)
    return tuple(Net(lambda m, x, c=one: m.f(F.relu(c(m, x)).mean((2, 3))), c=c, e=e, f=f) for one in calls)


@pair(3, 8, 8)
def pad_of_an_average():
    return behind(
        2, lambda m, y: F.avg_pool2d(F.relu(y), 3, 2, 1), lambda m, y: F.avg_pool2d(F.pad(F.relu(y), [1] * 4), 3, 2)
    )


@pair(3, 8, 8)
def pad_of_an_average_of_negative_values():
    return behind(2, lambda m, y: F.avg_pool2d(y, 2, 2, 1), lambda m, y: nn.AvgPool2d(2, 2)(nn.ZeroPad2d(1)(y)))


@pair(3, 8, 8)
def pad_with_a_constant():
    c, e = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    e.weight, e.bias = c.weight, c.bias
    f = nn.Linear(4, 3)
    calls = (
        lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), value=0.3)),
        lambda m, x: m.e(nn.ConstantPad2d((1, 0, 0, 0), 0.3)(nn.ConstantPad2d((0, 1, 1, 1), 0.3)(x))),
    )
    return tuple(Net(lambda m, x, c=one: m.f(F.relu(c(m, x)).mean((2, 3))), c=c, e=e, f=f) for one in calls)


def enlarged(dims, write, **options):
    conv = getattr(nn, f"ConvTranspose{dims}d")(3, 4, 3, stride=2, padding=1, output_padding=1, **options)
    plain = getattr(nn, f"ConvTranspose{dims}d")(3, 4, 3, stride=2, padding=1, **options)
    plain.weight, plain.bias = conv.weight, conv.bias
    rest = {"d": getattr(nn, f"Conv{dims}d")(4, 5, 3), "f": nn.Linear(5, 3)}

    def network(call):
        return Net(lambda m, x: m.f(F.relu(m.d(F.relu(call(m, x)))).flatten(2).mean(2)), u=conv, p=plain, **rest)

    return network(lambda m, x: m.u(x)), network(write)


SIZED = {
    "size_of_the_output": (2, lambda m, x: m.p(x, output_size=(12, 12))),
    "size_by_position": (2, lambda m, x: m.p(x, [12, 12])),
    "whole_shape_of_the_output": (2, lambda m, x: m.p(x, output_size=F.interpolate(x, scale_factor=2).shape[2:])),
    "size_of_a_line": (1, lambda m, x: m.p(x, output_size=[12])),
    "size_of_a_volume": (3, lambda m, x: m.p(x, output_size=[12, 12, 12])),
}
for _name, (_dims, _write) in SIZED.items():
    pair(3, *[6] * _dims, name=_name)(partial(enlarged, _dims, _write))
