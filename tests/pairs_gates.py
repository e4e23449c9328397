"""The same function written in two ways: activations, gates, maxima. Each pair has to give the same map.

PAIRS = {name: (make one, make the other, shape of the input)}; `seeded` gives both the same weights.
"""

import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

IMAGES = (2, 3, 6, 6)


def convolutions(act):
    """Three convolutions with an activation, a function of (module, x), behind each, and a head."""

    def run(m, x):
        for conv in m.convs:
            x = act(m, conv(x))
        return m.head(x.mean((2, 3)))

    def make():
        torch.manual_seed(1)
        convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)])
        scale, shift = nn.Parameter(torch.tensor(0.8944)), nn.Parameter(torch.tensor([-0.4472]))
        slopes = nn.Parameter(torch.rand(6, 1, 1))
        return Net(run, convs=convs, head=nn.Linear(6, 3), scale=scale, shift=shift, slopes=slopes)

    return make


def gated(gate, join=lambda x, g: x * g):
    """A signal and a gate made of one feature map, between convolutions; `model.gates(x)` gives the gate's values.

    The gate is a function of (module, map, pooled map).
    """

    def make(gate=gate):
        def between(m, x):
            h = F.relu(m.stem(x))
            return h, gate(m, m.gate(h), m.gate(h.mean((2, 3), keepdim=True)))

        def run(m, x):
            h, g = between(m, x)
            return m.head(F.relu(m.last(join(m.signal(h), g))).mean((2, 3)))

        torch.manual_seed(1)
        parts = {name: nn.Conv2d(6, 6, 1) for name in ("signal", "gate", "last")}
        model = Net(run, stem=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 3), **parts)
        model.gates = lambda x: between(model, x)[1]
        return model

    return make


def maxima(join):
    """Two halves of a convolution's channels, joined."""

    def run(m, x):
        return m.head(m.last(join(*m.stem(x).chunk(2, 1))).mean((2, 3)))

    def make():
        torch.manual_seed(1)
        return Net(run, stem=nn.Conv2d(3, 8, 3), last=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 3))

    return make


def recurrent(run, width=4):
    """Two steps of a recurrent network from two pieces of the input, by hand."""

    def make():
        torch.manual_seed(1)
        layers = {n: nn.Linear(2 * width, width) for n in ("update", "reset", "new", "forget", "cell")}
        return Net(run, head=nn.Linear(width, 3), **layers)

    return make


def gru(mix):
    def run(m, x):
        h = torch.tanh(m.cell(x[:, :8]))
        for xt in (x[:, 4:8], x[:, 8:]):
            both = torch.cat([xt, h], 1)
            z, r = torch.sigmoid(m.update(both)), torch.sigmoid(m.reset(both))
            h = mix(h, torch.tanh(m.new(torch.cat([xt, r * h], 1))), z)
        return m.head(h)

    return recurrent(run)


def lstm(last):
    def run(m, x):
        h = c = torch.tanh(m.cell(x[:, :8]))
        for xt in (x[:, 4:8], x[:, 8:]):
            both = torch.cat([xt, h], 1)
            f, i, o = torch.sigmoid(m.forget(both)), torch.sigmoid(m.update(both)), torch.sigmoid(m.reset(both))
            c = f * c + i * torch.tanh(m.new(both))
            h = last(o, c)
        return m.head(h)

    return recurrent(run)


def _acts(name, one, *others):
    """Pairs of a module of torch (or a first form) with each other form."""
    one = one if callable(one) and not isinstance(one, nn.Module) else (lambda m, x, act=one: act(x))
    ends = [""] if len(others) == 1 else [f" {i + 1}" for i in range(len(others))]
    return {
        f"{name}{end}": (convolutions(one), convolutions(other), IMAGES)
        for end, other in zip(ends, others, strict=True)
    }


ROOT = (2 / torch.pi) ** 0.5

ACTIVATIONS = {
    **_acts(
        "hard-swish",
        nn.Hardswish(),
        lambda m, x: x * F.relu6(x + 3) / 6,
        lambda m, x: x * torch.clamp(x + 3, 0, 6) / 6,
        lambda m, x: F.hardtanh(x + 3, 0, 6) / 6 * x,
        lambda m, x: x / 6 * (3 + x).clamp(min=0).clamp(max=6),
        lambda m, x: x * F.hardsigmoid(x),
    ),
    **_acts(
        "SiLU",
        nn.SiLU(),
        lambda m, x: x * torch.sigmoid(x),
        lambda m, x: x.sigmoid().mul(x),
        lambda m, x: x / (1 + torch.exp(-x)),
        lambda m, x: x * (0.5 * torch.tanh(0.5 * x) + 0.5),
    ),
    **_acts(
        "tanh-GELU",
        nn.GELU("tanh"),
        lambda m, x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x * x * x))),
        lambda m, x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3)))),
        lambda m, x: x * torch.sigmoid(2 * ROOT * x * (1 + 0.044715 * x**2)),
    ),
    **_acts(
        "erf-GELU",
        nn.GELU(),
        lambda m, x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5)),
        lambda m, x: 0.5 * (x + x * torch.erf(x * 0.5**0.5)),
    ),
    **_acts(
        "Mish", nn.Mish(), lambda m, x: x * torch.tanh(F.softplus(x)), lambda m, x: x * (1 + x.exp()).log().tanh()
    ),
    **_acts(
        "leaky ReLU",
        nn.LeakyReLU(0.1),
        lambda m, x: torch.maximum(x, 0.1 * x),
        lambda m, x: torch.where(x > 0, x, 0.1 * x),
        lambda m, x: F.relu(x) - 0.1 * F.relu(-x),
        lambda m, x: 0.9 * F.relu(x) + 0.1 * x,
        lambda m, x: x + (-0.9 * x).relu(),
        lambda m, x: (x > 0) * x + 0.1 * ((x <= 0) * x),
    ),
    **_acts(
        "ReLU",
        nn.ReLU(),
        lambda m, x: torch.maximum(x, torch.zeros_like(x)),
        lambda m, x: x * (x > 0),
        lambda m, x: x.masked_fill(x < 0, 0),
        lambda m, x: torch.where(x > 0, x, 0.0),
        lambda m, x: (x + x.abs()) / 2,
    ),
    **_acts(
        "clipped to -1..1",
        nn.Hardtanh(),
        lambda m, x: x.clamp(-1, 1),
        lambda m, x: ((x + 1).abs() - (x - 1).abs()) / 2,
    ),
    **_acts("softsign", nn.Softsign(), lambda m, x: x / (1 + x.abs())),
    **_acts("tanhshrink", nn.Tanhshrink(), lambda m, x: x - torch.tanh(x)),
    **_acts("square", lambda m, x: x**2, lambda m, x: x * x, lambda m, x: torch.square(x), lambda m, x: x.pow(2)),
    **_acts("cube", lambda m, x: x**3, lambda m, x: x * x * x, lambda m, x: torch.pow(x, 2) * x),
    **_acts(
        "StarReLU",
        lambda m, x: m.scale * F.relu(x) ** 2 + m.shift,
        lambda m, x: F.relu(x).square().mul(m.scale).add(m.shift),
        lambda m, x: torch.addcmul(m.shift, m.scale * F.relu(x), F.relu(x)),
    ),
    **_acts(
        "ELU",
        nn.ELU(),
        lambda m, x: torch.where(x > 0, x, torch.exp(x) - 1),
        lambda m, x: F.relu(x) + torch.expm1(-F.relu(-x)),
    ),
    **_acts(
        "PReLU of channels",
        lambda m, x: F.prelu(x, m.slopes.flatten()),
        lambda m, x: x.relu() - m.slopes * (-x).relu(),
    ),
}  # fmt: skip

GATES = {
    f"gate: {name}": (gated(one), gated(other), IMAGES)
    for name, one, other in (
        ("1 - s", lambda m, g, p: torch.sigmoid(-g), lambda m, g, p: 1 - torch.sigmoid(g)),
        ("twice", lambda m, g, p: torch.sigmoid(g) + torch.sigmoid(g), lambda m, g, p: 2 * torch.sigmoid(g)),
        ("1 + s", lambda m, g, p: torch.sigmoid(g) + 1, lambda m, g, p: 2 - torch.sigmoid(-g)),
        ("clamped", lambda m, g, p: F.hardsigmoid(g), lambda m, g, p: (g / 6 + 0.5).clamp(0, 1)),
        ("tanh", lambda m, g, p: torch.sigmoid(2 * g), lambda m, g, p: (torch.tanh(g) + 1) / 2),
        ("relu6", lambda m, g, p: F.hardsigmoid(g), lambda m, g, p: F.relu6(g + 3) / 6),
        ("softmax", lambda m, g, p: g.softmax(1), lambda m, g, p: _share(g.exp())),
        ("share", lambda m, g, p: F.normalize(g.sigmoid(), p=1.0, dim=1), lambda m, g, p: _share(g.sigmoid())),
        ("of gates", lambda m, g, p: (g.sigmoid() * p.sigmoid()), lambda m, g, p: p.sigmoid() * g.sigmoid()),
        ("expand_as", lambda m, g, p: p.sigmoid(), lambda m, g, p: p.sigmoid().expand_as(g)),
        ("expand", lambda m, g, p: p.sigmoid(), lambda m, g, p: p.sigmoid().expand(-1, -1, 4, 4)),
        ("interpolate", lambda m, g, p: p.sigmoid(), lambda m, g, p: F.interpolate(p.sigmoid(), size=(4, 4))),
        ("repeat", lambda m, g, p: p.sigmoid(), lambda m, g, p: p.sigmoid().repeat(1, 1, 4, 4)),
        ("pooled", lambda m, g, p: g.sigmoid().mean((2, 3), True), lambda m, g, p: F.avg_pool2d(g.sigmoid(), 4)),
        ("largest", lambda m, g, p: g.sigmoid().amax((2, 3), True), lambda m, g, p: F.max_pool2d(g.sigmoid(), 4)),
        ("pieces", lambda m, g, p: g.sigmoid(), lambda m, g, p: torch.cat(g.sigmoid().chunk(2, 1), 1)),
        ("stacked", lambda m, g, p: g.sigmoid(), lambda m, g, p: torch.stack([g.sigmoid(), g.sigmoid()]).mean(0)),
        ("sine", lambda m, g, p: torch.sin(g), lambda m, g, p: -torch.sin(-g)),
    )
}  # fmt: skip

JOINS = {
    "highway": (
        gated(lambda m, g, p: g.sigmoid(), lambda h, t: t * h + (1 - t) * h.tanh()),
        gated(lambda m, g, p: g.sigmoid(), lambda h, t: torch.lerp(h.tanh(), h, t)),
        IMAGES,
    ),
    "gate in front": (gated(lambda m, g, p: g.tanh()), gated(lambda m, g, p: g.tanh(), lambda x, g: g * x), IMAGES),
    "addcmul": (
        gated(lambda m, g, p: g.sigmoid(), lambda x, g: x + 0.5 * (x * g)),
        gated(lambda m, g, p: g.sigmoid(), lambda x, g: torch.addcmul(x, x, g, value=0.5)),
        IMAGES,
    ),
    "GRU": (
        gru(lambda h, n, z: (1 - z) * n + z * h),
        gru(lambda h, n, z: torch.lerp(n, h, z)),
        (2, 12),
    ),
    "LSTM": (lstm(lambda o, c: o * torch.tanh(c)), lstm(lambda o, c: torch.tanh(c).mul_(o)), (2, 12)),
    "max of two": (maxima(torch.maximum), maxima(torch.max), IMAGES),
    "fmax": (maxima(torch.maximum), maxima(torch.fmax), IMAGES),
    "max of a stack": (maxima(torch.maximum), maxima(lambda a, b: torch.stack([a, b]).amax(0)), IMAGES),
    "min of two": (maxima(torch.minimum), maxima(torch.min), IMAGES),
    "larger by where": (maxima(torch.maximum), maxima(lambda a, b: torch.where(a > b, a, b)), IMAGES),
    "clamped by a tensor": (maxima(torch.maximum), maxima(lambda a, b: torch.clamp(a, min=b)), IMAGES),
    "GLU": (maxima(lambda a, b: a * b.sigmoid()), maxima(lambda a, b: F.glu(torch.cat([a, b], 1), 1)), IMAGES),
}


def _share(s):
    return s / s.sum(1, keepdim=True)


PAIRS = ACTIVATIONS | GATES | JOINS
