"""More of what random networks are made of (see `tests/fuzz_ops.py`): views, pieces, sums, gates, shared and changed
tensors."""

import torch
import torch.nn.functional as F
from fuzz_ops import Do, kind
from torch import nn


@kind()
def view(rng, x):
    n = x.dim()
    a, b = rng.sample(range(1, n), 2) if n > 2 else (1, 1)
    order = [0, *rng.sample(range(1, n), n - 1)]
    forms = {f"x.flip({a})": lambda m, x: x.flip(a), f"x.roll(1, {a})": lambda m, x: x.roll(1, a)}
    if n > 2:
        forms |= {
            f"x.transpose({a}, {b})": lambda m, x: x.transpose(a, b),
            f"x.permute{order}": lambda m, x: x.permute(*order),
            "x.flatten(1)": lambda m, x: x.flatten(1), "x.flatten(-2)": lambda m, x: x.flatten(-2),
            "torch.flatten": lambda m, x: torch.flatten(x, 1),
            "reshape": lambda m, x: x.reshape(x.shape[0], x.shape[1], -1),
            "view(size(0))": lambda m, x: x.contiguous().view(x.size(0), -1), "nn.Flatten": lambda m, x: m.flat(x),
        }  # fmt: skip
    if n < 5:
        forms |= {"x.unsqueeze(-1)": lambda m, x: x.unsqueeze(-1), "x[:, None]": lambda m, x: x[:, None]}
    if n > 2 and x.shape[-1] == 1:
        forms |= {"x.squeeze(-1)": lambda m, x: x.squeeze(-1), "x[..., 0]": lambda m, x: x[..., 0]}
    if n == 4 and x.shape[1] % 4 == 0:
        forms["pixel_shuffle"] = lambda m, x: F.pixel_shuffle(x, 2)
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], flat=nn.Flatten())


@kind()
def flatten_all(rng, x):
    return Do("x.flatten(1)", lambda m, x: x.flatten(1))


@kind()
def cut(rng, x):
    axis = rng.randint(1, x.dim() - 1)
    n = x.shape[axis]
    if n < 2:
        return None
    at, step = rng.randint(1, n - 1), rng.randint(1, 2)
    before, index = (slice(None),) * axis, torch.tensor([rng.randrange(n) for _ in range(3)])
    forms = {
        f"x[{axis}: :{at}]": lambda m, x: x[(*before, slice(None, at))],
        f"x[{axis}: {at}:]": lambda m, x: x[(*before, slice(at, None))],
        f"x[{axis}: ::{step + 1}]": lambda m, x: x[(*before, slice(None, None, step + 1))],
        f"x[..., -1:] on {axis}": lambda m, x: x[(*before, slice(-1, None))],
        f"narrow({axis}, 0, {at})": lambda m, x: x.narrow(axis, 0, at),
        f"index_select({axis})": lambda m, x: x.index_select(axis, m.index),
        f"chunk(2, {axis})[0]": lambda m, x: x.chunk(2, axis)[0],
        f"split({at}, {axis})[-1]": lambda m, x: x.split(at, axis)[-1],
        f"torch.split([{at}, {n - at}], {axis})[1]": lambda m, x: torch.split(x, [at, n - at], axis)[1],
    }  # fmt: skip
    if x.dim() > 2:
        forms |= {
            f"select({axis}, 0)": lambda m, x: x.select(axis, 0),
            f"unbind({axis})[1]": lambda m, x: x.unbind(axis)[1],
        }
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], index=index)


@kind()
def pieces(rng, x):
    """Cut, work on a piece, put together again; a tuple in between."""
    axis = rng.randint(1, x.dim() - 1)
    if x.shape[axis] % 2 or x.shape[axis] < 2:
        return None

    class Two(nn.Module):
        def forward(self, x):
            return tuple(x.chunk(2, axis))

    def swapped(m, x):
        a, b = m.two(x)
        return torch.cat([b, a.relu(), b], axis)

    def named(m, x):
        a, b = x.chunk(2, dim=axis)
        return {"sum": a + b, "other": a}["sum"]

    def stacked(m, x):
        a, b = torch.chunk(x, 2, axis)
        return torch.stack([a, b], 1).flatten(1, 2) if axis > 1 else torch.stack((b, a), -1).mean(-1)

    def unbound(m, x):
        return sum(x.unbind(axis)).unsqueeze(axis)

    call = rng.choice([swapped, named, stacked, unbound])
    return Do(f"{call.__name__} along {axis}", call, two=Two())


@kind(values=2)
def add(rng, a, b):
    if a.shape != b.shape:
        return None
    forms = {
        "a + b": lambda m, a, b: a + b, "a - b": lambda m, a, b: a - b,
        "torch.add": lambda m, a, b: torch.add(a, b, alpha=0.5),
        "a.add(b)": lambda m, a, b: a.add(b), "a.sub(b)": lambda m, a, b: a.sub(b, alpha=2),
        "sum": lambda m, a, b: sum([a, b, a]),
        "torch.sub": lambda m, a, b: torch.sub(a, b), "a + 0.1 b": lambda m, a, b: a + 0.1 * b,
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label])


@kind(values=2)
def spread_add(rng, a, b):
    """A sum in which one value is copied along axes of the other."""
    if a.dim() < 3 or a.shape[:2] != b.shape[:2]:
        return None
    ends = [1] * (a.dim() - 2)
    return (
        Do("a + mean(b)", lambda m, a, b: a + b.flatten(2).mean(-1).reshape(b.shape[0], b.shape[1], *ends))
        if b.dim() > 2
        else None
    )


@kind(values=2)
def join(rng, a, b):
    axes = [
        d
        for d in range(1, a.dim())
        if a.dim() == b.dim() and a.shape[:d] == b.shape[:d] and a.shape[d + 1 :] == b.shape[d + 1 :]
    ]
    if not axes:
        return None
    axis = rng.choice(axes)
    forms = {
        f"cat({axis})": lambda m, a, b: torch.cat([a, b], axis),
        f"cat({axis}, a b a)": lambda m, a, b: torch.cat((a, b, a), dim=axis),
    }
    if a.shape == b.shape:
        forms |= {"stack(1).mean(1)": lambda m, a, b: torch.stack([a, b], 1).mean(1), "stack(-1).amax(-1)": lambda m, a, b: torch.stack([a, b], -1).amax(-1)}  # fmt: skip # noqa: E501
    label = rng.choice(sorted(forms))
    return Do(label, forms[label])


@kind(values=2)
def larger(rng, a, b):
    return Do("torch.maximum", lambda m, a, b: torch.maximum(a, b)) if a.shape == b.shape else None


@kind(linear=False)
def gate(rng, x):
    if x.dim() != 4:
        return None
    c = x.shape[1]
    forms = {
        "squeeze-excite": lambda m, x: x * m.fc(F.adaptive_avg_pool2d(x, 1)).sigmoid(),
        "squeeze-excite, hard": lambda m, x: F.hardsigmoid(m.fc(F.adaptive_avg_pool2d(x, 1))) * x,
        "spatial": lambda m, x: x * torch.sigmoid(m.one(x)),
        "x * sigmoid(conv)": lambda m, x: torch.mul(x, torch.sigmoid(m.fc(x))),
        "x *= gate": lambda m, x: m.fc(x).mul_(m.fc(x.mean((2, 3), keepdim=True)).sigmoid()),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], fc=nn.Conv2d(c, c, 1), one=nn.Conv2d(c, 1, 1))


@kind(values=2, linear=False)
def product(rng, a, b):
    if a.shape != b.shape or a is b:
        return None
    forms = {
        "a * b": lambda m, a, b: a * b,
        "a * sigmoid(b)": lambda m, a, b: a * b.sigmoid(),
        "sigmoid(a) * b": lambda m, a, b: torch.sigmoid(a) * b,
    }
    label = rng.choice(sorted(forms))
    return Do(label, forms[label])


@kind(linear=False)
def by_hand(rng, x):
    """An activation or a gate of one value, written out."""
    forms = {
        "x * sigmoid(x)": lambda m, x: x * x.sigmoid(),
        "relu6(x + 3) * x / 6": lambda m, x: F.relu6(x + 3) * x / 6,
        "x * clamp(x / 6 + 0.5, 0, 1)": lambda m, x: x * (x / 6 + 0.5).clamp(0, 1),
        "x * tanh(softplus(x))": lambda m, x: x * torch.tanh(F.softplus(x)),
        "0.5 x (1 + tanh(x + x^3))": lambda m, x: 0.5 * x * (1 + torch.tanh(x + 0.1 * x * x * x)),
        "x * sigmoid(1.702 x)": lambda m, x: x * torch.sigmoid(1.702 * x),
        "f(x) * (1 - sigmoid(g(x)))": lambda m, x: m.f(x) * (1 - m.g(x).sigmoid()),
        "s f(x) + (1 - s) x": lambda m, x: (s := m.g(x).sigmoid()) * m.f(x) + (1 - s) * x,
        "f(x) * (tanh(g(x)) + 1) / 2": lambda m, x: m.f(x) * ((m.g(x).tanh() + 1) / 2),
        "f(x) * softmax(g(x))": lambda m, x: m.f(x) * m.g(x).softmax(-1),
        "f(x) * sigmoid(mean).expand": lambda m, x: m.f(x) * m.g(x).mean(1, keepdim=True).sigmoid().expand_as(x),
        "f(x) * 2 sigmoid(g(x))": lambda m, x: m.f(x) * (2 * m.g(x).sigmoid()),
        "x.masked_fill(x < 0.1, 0.5)": lambda m, x: x.masked_fill(x < 0.1, 0.5),
        "sigmoid(g(x)) * tanh(f(x))": lambda m, x: m.g(x).sigmoid() * m.f(x).tanh(),
    }
    label, n = rng.choice(sorted(forms)), x.shape[-1]
    return Do(label, forms[label], f=nn.Linear(n, n), g=nn.Linear(n, n))


@kind()
def chosen(rng, x):
    """The larger of several, a constant among them; values chosen by a condition."""
    axis = rng.randint(1, x.dim() - 1)
    forms = {
        "torch.maximum(x, c)": lambda m, x: torch.maximum(x, m.c), "x.clamp(min=c)": lambda m, x: x.clamp(min=m.c),
        "x.masked_fill(x.roll < 0, 0.5)": lambda m, x: x.masked_fill(x.roll(1, -1) < 0, 0.5),
        "torch.where(x > 0, x, 0.1 x)": lambda m, x: torch.where(x > 0, x, 0.1 * x),
        f"x.max({axis}).values": lambda m, x: x.max(axis, keepdim=True).values,
        f"x.max({axis})[0] + x": lambda m, x: x.max(axis, keepdim=True)[0] + x,
        f"x.sort({axis})[0]": lambda m, x: x.sort(axis)[0],
        f"x.topk(1, {axis})[0]": lambda m, x: x.topk(1, axis)[0],
        "torch.max(x, -x)": lambda m, x: torch.max(x, -x),
        "cat([x, ones])": lambda m, x: torch.cat([x, torch.ones_like(x)], axis),
        "cat([x, token])": lambda m, x: torch.cat([x, m.token.expand_as(x[:, :1])], 1),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    c, token = torch.randn(1, *[1] * (x.dim() - 1)), torch.randn(1, *x[:1, :1].shape[1:])
    return Do(label, forms[label], c=c, token=nn.Parameter(token))


@kind()
def twice(rng, x):
    """One module at two places. (Halved: f(x) + relu(f(-x)) would cancel, to rounding.)"""
    layer = nn.Linear(x.shape[-1], x.shape[-1])
    forms = {
        "f(f(x))": lambda m, x: m.f(m.act(m.f(x))), "f(x) + f(-x) / 2": lambda m, x: m.f(x) + m.act(m.f(-x)) / 2,
        "x + f(x)": lambda m, x: x + m.act(m.f(x)),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], f=layer, act=rng.choice([nn.ReLU(), nn.ReLU(True)]))


@kind(values=2)
def changed(rng, a, b):
    """A value that is changed in place, by itself, by another value, or through a view of it."""
    if a.shape != b.shape or a is b:
        return None

    def through_view(m, a, b):
        a = m.f(a)
        a[:, :1].relu_()
        return a + b

    def piece_then_relu(m, a, b):
        a = m.f(a)
        piece = a[:, :1]
        return m.act(a).sum(1, keepdim=True) + piece

    forms = {
        "a = f(a); a += b": lambda m, a, b: m.f(a).add_(b), "a = f(a); a -= b": lambda m, a, b: m.f(a).sub_(b),
        "a = f(a); a[:, :1].relu_()": through_view, "piece = f(a)[:, :1]; relu_(f(a))": piece_then_relu,
        "a = f(a); a *= 2; a": lambda m, a, b: m.f(a).mul_(2) + b,
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], f=nn.Linear(a.shape[-1], a.shape[-1]), act=nn.ReLU(True))
