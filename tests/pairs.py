"""Pairs of networks that are one function, written in two ways: their maps must be one, too (`core/test_metamorphic`).

To add a pair, write a function in a file `pairs_*.py` beside this one that makes both networks from the same parts::

    @pair(3, 8, 8)                              # the shape of one input
    def bias_kept_apart():
        conv = nn.Conv2d(3, 4, 3)
        return one, other                       # two modules

`apart={"unfolded": why}` names presets under which the two may differ; `within` is how far apart the maps may be, as a
share of the largest value.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from networks import Net
from torch import nn


class Pair(NamedTuple):
    make: Callable[[], tuple[nn.Module, nn.Module]]
    shape: tuple[int, ...]
    apart: tuple[str, ...]
    within: float

    def networks(self, seed=0):
        """Both networks in float64, whose parts are drawn in float64, too."""
        torch.manual_seed(seed)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return tuple(model.eval() for model in self.make())
        finally:
            torch.set_default_dtype(default)


PAIRS: dict[str, Pair] = {}


def pair(*shape, name=None, apart=(), within=1e-9):
    """Register the pair that a function makes, under the function's name or another."""

    def register(make):
        known = name or make.__name__
        assert known not in PAIRS, f"two pairs are called {known}"
        PAIRS[known] = Pair(make, shape, tuple(apart), within)
        return make

    return register


def collected() -> dict[str, Pair]:
    """The pairs of all files."""
    for file in sorted(Path(__file__).parent.glob("pairs_*.py")):
        made = getattr(import_module(file.stem), "PAIRS", {})  # or both networks as functions, beside the whole shape
        for name, (one, other, shape) in made.items() if made is not PAIRS else ():
            PAIRS[name] = Pair(lambda one=one, other=other: (one(), other()), shape[1:], (), 1e-9)
    return PAIRS


def random(*shape, low=None):
    """A tensor of numbers of both signs, or of positive ones, from `low` to `low` + 1."""
    return torch.randn(*shape) if low is None else low + torch.rand(*shape)


def behind(dims, *writings, conv=None, **parts):
    """Networks that differ in what they write between a convolution and the ReLU that follows: f(m, y)."""
    layer = conv or getattr(nn, f"Conv{dims}d")(3, 4, 3, padding=1, bias=False)
    parts |= {"c": layer, "d": getattr(nn, f"Conv{dims}d")(4, 5, 3), "f": nn.Linear(5, 3)}

    def network(write):
        def call(m, x):
            y = F.relu(m.d(F.relu(write(m, m.c(x)))))
            return m.f(y.flatten(2).mean(2))

        return Net(call, **parts)

    return tuple(map(network, writings))


def dense(*writings, **parts):
    """Networks that differ in a dense layer from 6 to 4 values, f(m, h), on (N, 6) or (N, L, 6), between two others."""
    parts |= {"a": nn.Linear(5, 6), "z": nn.Linear(4, 3)}

    def network(write):
        def call(m, x):
            h = m.z(F.relu(write(m, F.relu(m.a(x)))))
            return h if h.dim() == 2 else h.mean(1)

        return Net(call, **parts)

    return tuple(map(network, writings))


def norm(module):
    """A BatchNorm with statistics, and scales of both signs."""
    module.running_mean.normal_(0, 0.5), module.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.weight), nn.init.normal_(module.bias, 0, 0.3)
    return module
