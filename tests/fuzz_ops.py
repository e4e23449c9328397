"""What random networks are made of: each function makes one operation for given values, or None where it does not fit.

An operation is a module with a label. It is drawn by `rng` from the shapes of the values alone, so that the same draw
gives the same operation again; its weights come from torch's generator, seeded by the caller.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

KINDS = {}  # name -> (function, how many values it reads, is it piecewise linear without an offset of its own)


class Do(nn.Module):
    """An operation from its parts and its call: Do("label", lambda m, x: m.a(x), a=nn.Linear(2, 2))."""

    def __init__(self, label, call, **parts):
        super().__init__()
        self.label, self.call = label, call
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *xs):
        return self.call(self, *xs)


def kind(values=1, linear=True):
    def enter(function):
        KINDS[function.__name__] = (function, values, linear)
        return function

    return enter


def _dims(x):
    return x.dim() - 2


def _divisor(rng, *numbers):
    return rng.choice([d for d in range(1, 9) if all(n % d == 0 for n in numbers)])


def _channels(x):
    return torch.randn(x.shape[1], *[1] * (x.dim() - 2))


# ---------------------------------------------------------------- layers with weights


@kind()
def convolution(rng, x):
    d = _dims(x)
    if d not in (1, 2, 3):
        return None
    c, out = x.shape[1], rng.randint(1, 6)
    groups, k, dilation = _divisor(rng, c, out), [rng.randint(1, 3) for _ in range(d)], rng.randint(1, 2)
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    padding = [rng.randint(0, min(2, min(x.shape[2:]) - 1)) for _ in range(d)]
    options = {"stride": rng.randint(1, 2), "dilation": dilation, "groups": groups, "bias": rng.random() < 0.6}
    if rng.random() < 0.2:
        padding, options["stride"] = "same", 1
    reach = [dilation * (n - 1) + 1 for n in k]
    if padding != "same" and any(s + 2 * p < r for s, p, r in zip(x.shape[2:], padding, reach, strict=True)):
        return None
    layer = getattr(nn, f"Conv{d}d")(c, out, k, padding=padding, padding_mode=mode, **options)
    label = f"{layer}"
    if mode == "zeros" and rng.random() < 0.3:
        o = {n: v for n, v in options.items() if n != "bias"}
        call = getattr(F, f"conv{d}d")
        return Do(f"F.{label}", lambda m, x: call(x, m.w, m.b, padding=padding, **o), w=layer.weight, b=layer.bias)
    return Do(label, lambda m, x: m.layer(x), layer=layer)


@kind()
def transposed(rng, x):
    d = _dims(x)
    if d not in (1, 2, 3) or max(x.shape[2:]) > 8:
        return None
    c, out, stride = x.shape[1], rng.randint(1, 4), rng.randint(1, 2)
    k = rng.randint(1, 3)
    layer = getattr(nn, f"ConvTranspose{d}d")(
        c, out, k, stride, padding=rng.randint(0, k // 2), output_padding=rng.randint(0, stride - 1),
        groups=_divisor(rng, c, out), bias=rng.random() < 0.6, dilation=1,
    )  # fmt: skip
    return Do(f"{layer}", lambda m, x: m.layer(x), layer=layer)


@kind()
def dense(rng, x):
    layer, form = nn.Linear(x.shape[-1], rng.randint(1, 6), bias=rng.random() < 0.6), rng.randint(0, 3)
    if form == 0:
        return Do(f"F.{layer}", lambda m, x: F.linear(x, m.w, m.b), w=layer.weight, b=layer.bias)
    if form == 1:
        return Do(f"x @ W {tuple(layer.weight.T.shape)}", lambda m, x: x @ m.w, w=layer.weight.detach().T.contiguous())
    return Do(f"{layer}", lambda m, x: m.layer(x), layer=layer)


@kind()
def batchnorm(rng, x):
    d = max(1, _dims(x))
    if d > 3:
        return None
    norm = getattr(nn, f"BatchNorm{d}d")(x.shape[1], affine=rng.random() < 0.8)
    norm.running_mean.normal_(0, 0.5), norm.running_var.uniform_(0.3, 3)
    if norm.affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias, 0, 0.5)
    if rng.random() < 0.2 and d == 2:
        frozen = FrozenBatchNorm2d(x.shape[1])
        (
            frozen.weight.normal_(),
            frozen.bias.normal_(0, 0.5),
            frozen.running_mean.normal_(),
            frozen.running_var.uniform_(0.3, 3),
        )
        return Do("FrozenBatchNorm2d", lambda m, x: m.norm(x), norm=frozen)
    if rng.random() < 0.25:
        return Do("F.batch_norm", lambda m, x: F.batch_norm(x, m.mean, m.var, m.w, m.b), mean=norm.running_mean,
                  var=norm.running_var, w=norm.weight, b=norm.bias)  # fmt: skip
    return Do(f"{norm}", lambda m, x: m.norm(x), norm=norm)


@kind(linear=False)
def norm(rng, x):
    groups = _divisor(rng, x.shape[1])
    if x[0].numel() // groups < 2 or x.shape[-1] < 2:  # a single sample could not be normalised
        return None
    choices = [nn.LayerNorm(x.shape[-1]), nn.GroupNorm(groups, x.shape[1])]
    if _dims(x) in (1, 2, 3) and x[0, 0].numel() > 1:
        choices.append(getattr(nn, f"InstanceNorm{_dims(x)}d")(x.shape[1], affine=True))
    layer = rng.choice(choices)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return Do(f"{layer}", lambda m, x: m.norm(x), norm=layer)


@kind()
def scale(rng, x):
    c, number = _channels(x) + 0.1, rng.choice([2, -0.5, 0.1, 3.0])
    forms = {
        "x * number": lambda m, x: x * number, "number * x": lambda m, x: number * x,
        "x / number": lambda m, x: x / number,
        "x * c": lambda m, x: x * m.c, "c * x": lambda m, x: m.c * x, "x.mul(c)": lambda m, x: x.mul(m.c),
        "torch.div(x, c)": lambda m, x: torch.div(x, m.c), "-x": lambda m, x: -x,
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], c=nn.Parameter(c) if rng.random() < 0.5 else c)


@kind()
def shift(rng, x):
    c, number = _channels(x), rng.choice([2, -0.5, 0.1])
    forms = {
        "x + number": lambda m, x: x + number, "number - x": lambda m, x: number - x, "x - c": lambda m, x: x - m.c,
        "c + x": lambda m, x: m.c + x, "x.sub(c)": lambda m, x: x.sub(m.c),
        "torch.add": lambda m, x: torch.add(x, m.c, alpha=2),
        "(x - c) / number": lambda m, x: (x - m.c) / number,
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], c=nn.Parameter(c) if rng.random() < 0.5 else c)


# ---------------------------------------------------------------- activations


@kind()
def relu(rng, x):
    forms = {
        "nn.ReLU": lambda m, x: m.act(x), "F.relu": lambda m, x: F.relu(x), "torch.relu": lambda m, x: torch.relu(x),
        "x.relu": lambda m, x: x.relu(), "nn.LeakyReLU": lambda m, x: m.leaky(x), "nn.PReLU": lambda m, x: m.prelu(x),
        "F.leaky_relu": lambda m, x: F.leaky_relu(x, 0.2), "x.clamp(min=0)": lambda m, x: x.clamp(min=0),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], act=nn.ReLU(), leaky=nn.LeakyReLU(0.1), prelu=nn.PReLU())


@kind()
def relu_inplace(rng, x):
    forms = {
        "nn.ReLU(inplace)": lambda m, x: m.act(x), "F.relu(inplace)": lambda m, x: F.relu(x, inplace=True),
        "torch.relu_": lambda m, x: torch.relu_(x), "x.relu_()": lambda m, x: x.relu_(),
        "nn.LeakyReLU(inplace)": lambda m, x: m.leaky(x), "x.relu_(); x": lambda m, x: (x.relu_(), x)[1],
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], act=nn.ReLU(True), leaky=nn.LeakyReLU(0.1, True))


@kind(linear=False)
def activation(rng, x):
    modules = [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.Tanh(), nn.Hardswish(), nn.Mish(), nn.ReLU6(),
               nn.Softsign(), nn.CELU(), nn.SELU(), nn.Hardtanh(), nn.Softplus(), nn.Sigmoid(), nn.Tanhshrink(),
               nn.SiLU(True), nn.Hardswish(True), nn.ReLU6(True)]  # fmt: skip
    functions = [F.silu, F.gelu, F.elu, torch.tanh, F.hardswish, F.mish, F.relu6, F.softsign, torch.sigmoid]
    if rng.random() < 0.5:
        act = rng.choice(modules)
        return Do(f"{act}", lambda m, x: m.act(x), act=act)
    call = rng.choice(functions)
    return Do(call.__name__, lambda m, x: call(x))


@kind()
def identity(rng, x):
    forms = {
        "nn.Dropout": lambda m, x: m.drop(x), "F.dropout": lambda m, x: F.dropout(x, 0.5, m.training),
        "nn.Identity": lambda m, x: m.same(x), "contiguous": lambda m, x: x.contiguous(),
        "clone": lambda m, x: x.clone(),
        "to": lambda m, x: x.to(torch.float64), "double": lambda m, x: x.double(),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label], drop=nn.Dropout(0.3), same=nn.Identity())


# ---------------------------------------------------------------- pooling, resizing, padding


@kind()
def pool(rng, x):
    d = _dims(x)
    if d not in (1, 2, 3) or min(x.shape[2:]) < 2:
        return None
    k, stride, ceil = rng.randint(2, min(3, *x.shape[2:])), rng.randint(1, 2), rng.random() < 0.3
    pad = rng.randint(0, k // 2)
    name = rng.choice(["MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"])
    if name.startswith("Adaptive"):
        layer = getattr(nn, f"{name}{d}d")(rng.randint(1, 3))
    elif name == "AvgPool":
        layer = getattr(nn, f"AvgPool{d}d")(k, stride, pad, ceil_mode=ceil, count_include_pad=rng.random() < 0.5)
    else:
        layer = getattr(nn, f"MaxPool{d}d")(k, stride, pad, ceil_mode=ceil)
    if rng.random() < 0.3 and name == "MaxPool":
        call = getattr(F, f"max_pool{d}d")
        return Do(f"F.{layer}", lambda m, x: call(x, k, stride, pad, ceil_mode=ceil))
    return Do(f"{layer}", lambda m, x: m.pool(x), pool=layer)


@kind()
def reduce(rng, x):
    if x.dim() < 3:
        return None
    axis, keep = rng.randint(2, x.dim() - 1), rng.random() < 0.5
    forms = {
        f"x.mean({axis}, {keep})": lambda m, x: x.mean(axis, keepdim=keep),
        f"x.sum({axis}, {keep})": lambda m, x: x.sum(axis, keepdim=keep),
        f"x.amax({axis}, {keep})": lambda m, x: x.amax(axis, keepdim=keep),
        f"torch.mean({axis})": lambda m, x: torch.mean(x, axis), "mean over all": lambda m, x: x.flatten(2).mean(-1),
    }  # fmt: skip
    label = rng.choice(sorted(forms))
    return Do(label, forms[label])


@kind()
def resize(rng, x):
    if _dims(x) not in (1, 2, 3) or max(x.shape[2:]) > 5:
        return None
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[_dims(x)]
    mode = rng.choice(["nearest", smooth])
    corners = {"align_corners": rng.random() < 0.5} if mode == smooth else {}
    if rng.random() < 0.5:
        return Do(f"nn.Upsample({mode})", lambda m, x: m.up(x), up=nn.Upsample(scale_factor=2, mode=mode, **corners))
    size = [s + rng.randint(0, 2) for s in x.shape[2:]]
    return Do(f"F.interpolate({size}, {mode})", lambda m, x: F.interpolate(x, size=size, mode=mode, **corners))


@kind()
def pad(rng, x):
    d = _dims(x)
    if d not in (1, 2, 3) or max(x.shape[2:]) > 8:
        return None
    sides = [rng.randint(0, min(2, min(x.shape[2:]) - 1)) for _ in range(2 * d)]
    mode = rng.choice(["constant", "constant", "reflect", "replicate", "circular"])
    if mode == "constant" and rng.random() < 0.4:
        return Do(f"nn.ZeroPad{d}d({sides})", lambda m, x: m.pad(x), pad=getattr(nn, f"ZeroPad{d}d")(tuple(sides)))
    value = {"value": rng.choice([0.0, 0.0, 0.5])} if mode == "constant" else {}
    return Do(f"F.pad({sides}, {mode}, {value})", lambda m, x: F.pad(x, sides, mode, **value))
