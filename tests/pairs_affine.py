"""Affine maps with constants, in many writings: behind a layer, behind none, and at the front."""

from functools import partial

import torch
import torch.nn.functional as F
from networks import Net
from pairs import behind, dense, norm, pair, random
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

RAW = {"unfolded": "a BatchNorm that stays a node is no weight of the convolution"}
COLUMN = (1, -1, 1, 1)


def bare(conv, bias):
    """The same convolution without its bias; and the bias as a parameter."""
    other = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    other.weight = conv.weight
    nn.init.normal_(conv.bias)
    return {"c": conv, "e": other, "b": conv.bias if bias else conv.bias.detach().clone()}


def apart(write, bias=True):
    """A convolution with its own bias, and one to whose output it is added by `write`."""
    parts = bare(nn.Conv2d(3, 4, 3, padding=1), bias)
    rest = {"d": nn.Conv2d(4, 5, 3), "f": nn.Linear(5, 3)}

    def network(first):
        return Net(lambda m, x: m.f(F.relu(m.d(F.relu(first(m, x)))).mean((2, 3))), **parts, **rest)

    return network(lambda m, x: m.c(x)), network(lambda m, x: write(m, m.e(x)))


APART = {
    "parameter_added": lambda m, y: y + m.b[:, None, None],
    "parameter_added_first": lambda m, y: m.b.view(COLUMN) + y,
    "parameter_subtracted": lambda m, y: y - (-m.b).reshape(COLUMN),
    "parameter_added_in_place": lambda m, y: y.add_(m.b.reshape(4, 1, 1)),
    "parameter_added_in_halves": lambda m, y: torch.add(y, m.b.view(COLUMN), alpha=0.5) + m.b[None, :, None, None] / 2,
    "parameter_added_behind_dropout": lambda m, y: F.dropout(y.contiguous(), 0.5, m.training) + m.b.view(COLUMN),
    "parameter_expanded_as": lambda m, y: y + m.b.view(COLUMN).expand_as(y),
    "parameter_expanded": lambda m, y: y + m.b.view(COLUMN).expand(y.size()),
    "parameter_of_its_type": lambda m, y: y + m.b.view(COLUMN).type_as(y),
    "parameter_to_its_type": lambda m, y: y + m.b.to(y.dtype)[:, None, None],
    "parameter_by_its_channels": lambda m, y: y + m.b.view(1, y.shape[1], 1, 1),
    "parameter_by_its_size": lambda m, y: y + m.b.reshape(1, y.size(1), 1, 1),
    "parameter_by_its_axes": lambda m, y: y + m.b.view(1, -1, *[1] * (y.dim() - 2)),
    "parameter_added_by_addcmul": lambda m, y: torch.addcmul(y, m.b.view(COLUMN), m.b.new_ones(4, 1, 1)),
    "parameter_subtracted_from": lambda m, y: -((-m.b).view(COLUMN) - y),
}
for _name, _write in APART.items():
    pair(3, 8, 8, name=_name)(partial(apart, _write))


@pair(3, 8, 8)
def buffer_added():
    return apart(lambda m, y: y + m.b[:, None, None], bias=False)


def steps(n, y):
    """BatchNorm, word for word."""
    y = (y - n.running_mean.view(COLUMN)) / torch.sqrt(n.running_var.view(COLUMN) + n.eps)
    return y * n.weight.view(COLUMN) + n.bias.view(COLUMN)


def scale_then_shift(n, y):
    a = n.weight * torch.rsqrt(n.running_var + n.eps)
    return y * a[:, None, None] + (n.bias - a * n.running_mean)[:, None, None]


def shift_then_scale(n, y):
    a = n.weight * (n.running_var + n.eps) ** -0.5
    return (y + (n.bias / a - n.running_mean)[:, None, None]) * a.view(COLUMN)


def in_place(n, y):
    a = (n.weight / (n.running_var + n.eps).sqrt()).reshape(COLUMN)
    return y.clone().sub_(n.running_mean.reshape(COLUMN)).mul_(a).add_(n.bias.reshape(COLUMN))


def fused(n, y):
    a = (n.weight / (n.running_var + n.eps).sqrt()).reshape(COLUMN)
    return torch.addcmul(n.bias.reshape(COLUMN), y - n.running_mean.reshape(COLUMN), a)


def divided(n, y):
    s = (n.running_var + n.eps).sqrt() / n.weight
    return torch.addcdiv(n.bias.view(COLUMN), torch.sub(y, n.running_mean.view(COLUMN)), s.view(COLUMN))


def doubled(n, y):
    y = F.batch_norm(y * 4, n.running_mean * 4, n.running_var * 16, None, None, False, 0.1, n.eps * 16)
    return y * n.weight.view(COLUMN) + n.bias.view(COLUMN)


def functional(n, y):
    return F.batch_norm(y, n.running_mean, n.running_var, n.weight, bias=n.bias, eps=n.eps)


def torchs(n, y):
    return torch.batch_norm(y, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps, False)


NORMS = {f.__name__: f for f in (steps, scale_then_shift, shift_then_scale, in_place, fused, divided, doubled)}
NORMS |= {f.__name__: f for f in (functional, torchs)}


def module(n, y):
    return n(y)


def sizes_asked(n, y):
    count, channels, height, width = y.shape
    return n(y).view(count, channels, height, width)


def once_more(n, y):
    return n(n(y))


def as_one(n, y):
    a = n.weight / (n.running_var + n.eps).sqrt()
    b = n.bias - a * n.running_mean
    return y * (a * a)[:, None, None] + (a * b + b)[:, None, None]


PLACES = {  # where the norm stands, seen from the convolution
    "behind_a_convolution": lambda w, m, y: w(m.n, y),
    "behind_a_relu": lambda w, m, y: w(m.n, F.relu(y)),
    "behind_a_sum": lambda w, m, y: w(m.n, y.tanh() + y),
    "behind_a_pool": lambda w, m, y: w(m.n, F.avg_pool2d(y, 2)),
    "of_what_others_read": lambda w, m, y: w(m.n, y).tanh() + F.avg_pool2d(y, 3, 1, 1),
}


def placed(place, f, g, conv=None):
    n = norm(nn.BatchNorm2d(4))
    return behind(2, lambda m, y: place(f, m, y), lambda m, y: place(g, m, y), n=n, conv=conv)


def at_the_front(f, g):
    parts = {"n": norm(nn.BatchNorm2d(3)), "c": nn.Conv2d(3, 4, 3, padding=1), "f": nn.Linear(4, 3)}
    calls = [lambda m, x, w=w: m.f(F.relu(m.c(w(m.n, x))).mean((2, 3))) for w in (f, g)]
    return tuple(Net(call, **parts) for call in calls)


WRITINGS = {name: (module, f) for name, f in NORMS.items()}
WRITINGS |= {"twice": (once_more, as_one), "sizes_asked": (module, sizes_asked)}
for _name, _both in WRITINGS.items():
    pair(3, 8, 8, name=f"norm_at_the_front_{_name}")(partial(at_the_front, *_both))
    for _where, _place in PLACES.items():
        pair(3, 8, 8, name=f"norm_{_where}_{_name}")(partial(placed, _place, *_both))


@pair(3, 8, 8)
def norm_behind_a_transposed_convolution():
    return placed(PLACES["behind_a_convolution"], module, steps, nn.ConvTranspose2d(3, 4, 3, 2, 1))


@pair(3, 8, 8)
def frozen_norm_behind_a_convolution():
    n, frozen = norm(nn.BatchNorm2d(4)), FrozenBatchNorm2d(4)
    frozen.load_state_dict({k: t for k, t in n.state_dict().items() if "num_batches" not in k})
    return behind(2, lambda m, y: m.n(y), lambda m, y: m.z(y), n=n, z=frozen)


@pair(3, 8, 8)
def frozen_norm_behind_a_relu():
    n, frozen = norm(nn.BatchNorm2d(4)), FrozenBatchNorm2d(4)
    frozen.load_state_dict({k: t for k, t in n.state_dict().items() if "num_batches" not in k})
    return behind(2, lambda m, y: m.n(F.relu(y)), lambda m, y: m.z(F.relu(y)), n=n, z=frozen)


def weights_times(scale, write, **parts):
    """A convolution's output scaled by `write`, and a convolution whose weights are scaled."""
    conv, other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        other.weight.copy_(conv.weight * scale.reshape(-1, 1, 1, 1)), other.bias.copy_(conv.bias * scale.reshape(-1))
    rest = {"d": nn.Conv2d(4, 5, 3), "f": nn.Linear(5, 3)} | parts
    calls = (lambda m, x: write(m, m.c(x)), lambda m, x: m.e(x))

    def network(first):
        return Net(lambda m, x: m.f(F.relu(m.d(F.relu(first(m, x)))).mean((2, 3))), c=conv, e=other, **rest)

    return tuple(map(network, calls))


@pair(3, 8, 8)
def twice_the_output():
    return weights_times(torch.tensor([2.0]), lambda m, y: y * 2)


@pair(3, 8, 8, apart=RAW)
def minus_the_output():
    return weights_times(torch.tensor([-1.0]), lambda m, y: -y)


@pair(3, 8, 8, apart=RAW)
def layer_scale():
    g = torch.randn(4)
    return weights_times(g, lambda m, y: m.g[:, None, None] * y, g=nn.Parameter(g))


@pair(3, 8, 8, apart=RAW)
def divided_by_a_vector():
    g = torch.randn(4)
    return weights_times(1 / g, lambda m, y: y / m.g.view(COLUMN), g=g)


@pair(3, 8, 8, apart=RAW)
def norm_in_the_weights():
    conv, n = nn.Conv2d(3, 4, 3, padding=1), norm(nn.BatchNorm2d(4))
    whole = nn.utils.fuse_conv_bn_eval(conv.eval(), n.eval())
    parts = {"c": conv, "n": n, "w": whole, "d": nn.Conv2d(4, 5, 3), "f": nn.Linear(5, 3)}
    calls = (lambda m, x: m.n(m.c(x)), lambda m, x: m.w(x))
    return tuple(Net(lambda m, x, c=c: m.f(F.relu(m.d(F.relu(c(m, x)))).mean((2, 3))), **parts) for c in calls)


@pair(3, 8, 8)
def whole_map_added():
    return behind(
        2,
        lambda m, y: y + m.p,
        lambda m, y: (m.q + y) - (-m.q),
        p=nn.Parameter(torch.ones(4, 8, 8).cumsum(2) / 8),
        q=torch.ones(4, 8, 8).cumsum(2) / 16,
    )


@pair(3, 8)
def line_of_a_map_added():
    return behind(1, lambda m, y: y + m.p, lambda m, y: y + m.p.expand(4, 8), p=random(8))


@pair(3, 8)
def norm_in_one_dimension():
    n = norm(nn.BatchNorm1d(4))
    return behind(1, lambda m, y: m.n(y), lambda m, y: functional(m.n, y), n=n)


@pair(3, 6, 5, 6)
def norm_in_three_dimensions():
    n = norm(nn.BatchNorm3d(4))
    return behind(3, lambda m, y: m.n(y), lambda m, y: functional(m.n, y), n=n)


@pair(5)
def norm_behind_a_dense_layer():
    n, a = norm(nn.BatchNorm1d(4)), nn.Linear(6, 4)

    def write(m, h):
        scale = m.n.weight * torch.rsqrt(m.n.running_var + m.n.eps)
        return m.l(h) * scale + (m.n.bias - scale * m.n.running_mean)

    return dense(lambda m, h: m.n(m.l(h)), write, n=n, l=a)


@pair(7, 5)
def norm_of_sequences_behind_a_dense_layer():
    n = norm(nn.BatchNorm1d(7))
    return dense(lambda m, h: m.n(m.l(h)), lambda m, h: functional(m.n, m.l(h)), n=n, l=nn.Linear(6, 4))


@pair(7, 5)
def norm_of_sequences_the_other_way_round():
    """The model runs: BatchNorm gives new memory in the usual order, whatever the strides of its input."""
    n, first, last = norm(nn.BatchNorm1d(4)), nn.Linear(5, 4), nn.Linear(28, 3)

    def steps(m, y):
        a = m.n.weight * torch.rsqrt(m.n.running_var + m.n.eps)
        return (y * a[:, None] + (m.n.bias - a * m.n.running_mean)[:, None]).contiguous()

    calls = [
        lambda m, x, w=w: m.z(F.relu(w(m, F.relu(m.l(x)).transpose(1, 2))).view(-1, 28))
        for w in (lambda m, y: m.n(y), steps)
    ]
    return tuple(Net(call, n=n, l=first, z=last) for call in calls)
