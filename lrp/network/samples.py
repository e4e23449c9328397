"""Where the samples of a batch are in a value: on its first axis, mostly; after permute(2, 0, 3, 1, 4), elsewhere.

Amounts of the ledger, and all that is relative to a sample's own size, need to know. A value whose first axis counts
the samples has None for its `Samples`. `follow` finds them once per shape of the input: views are run on the numbers of
the samples in the place of their values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from ..errors import UnsupportedOperation
from . import kinds as v
from .graph import Node

MOVERS = (v.REARRANGE, v.PIECES, v.AVERAGE, v.MAXIMUM)
ELEMENTWISE = (v.ADD, v.PRODUCT, v.ACTIVATION, v.SCALE)  # axes are counted from the right, as torch broadcasts them
NAMED_AXES = {"einsum", "tensordot"}  # products that put axes anywhere
# words in names of what leaves the first axis alone
IN_PLACE = "pool pad fold interpolate upsample pixel first_state".split()


@dataclass(frozen=True, eq=False)
class Samples:
    """Which entries of one axis belong to which of the `count` samples; `order` sorts them by sample.

    Without an axis the whole value belongs to one sample.
    """

    count: int
    axis: int | None = None
    ids: Tensor | None = None

    def rows(self, z: Tensor, lead: int = 0) -> Tensor:
        """The value (..., ...) with one row for each sample: (lead axes, N, M)."""
        if self.axis is None:
            return z.reshape(*z.shape[:lead], 1, -1)
        order = self.ids.to(z.device).argsort(stable=True)
        z = z.movedim(self.axis + lead, lead).index_select(lead, order)
        return z.reshape(*z.shape[:lead], self.count, -1)

    def beside(self, amounts: Tensor, z: Tensor) -> Tensor:
        """One amount for each sample, (N,), so that it broadcasts over the value z."""
        if self.axis is None:
            return amounts.view([1] * z.dim())
        shape = [-1 if d == self.axis else 1 for d in range(z.dim())]
        return amounts[self.ids.to(amounts.device)].view(shape)


class Mixed(Samples):
    """A value in which samples are no longer apart."""

    def __init__(self, node: Node, shape: torch.Size):
        super().__init__(0)
        error = f"node {node.called} gives {tuple(shape)}, in which the samples of the batch cannot be told apart"
        object.__setattr__(self, "error", f"{error}: keep samples along one axis, mixed with nothing else")

    def rows(self, z, lead=0):
        raise UnsupportedOperation(self.error)

    def beside(self, amounts, z):
        raise UnsupportedOperation(self.error)


def rows(z: Tensor, samples: Samples | None, lead: int = 0) -> Tensor:
    """The value with one row for each sample, (N, M), behind `lead` more axes."""
    return z.reshape(*z.shape[: lead + 1], -1) if samples is None else samples.rows(z, lead)


def within(z: Tensor, samples: Samples | None, lead: int = 0) -> tuple[Tensor, tuple[int, ...]]:
    """The value, and the axes along which one sample's values stand: for sums, norms and extremes without a copy.

    In channels-last, a row for each sample would be one.
    """
    if samples is None and z.dim() > lead + 1:
        return z, tuple(range(lead + 1, z.dim()))
    return rows(z, samples, lead), (lead + 1,)


def beside(amounts: Tensor, z: Tensor, samples: Samples | None) -> Tensor:
    """One amount for each sample, (N,), so that it broadcasts over the value z."""
    return amounts.view(-1, *[1] * (z.dim() - 1)) if samples is None else samples.beside(amounts, z)


def follow(node: Node, value: Tensor, values: dict, known: dict[Node, Samples | None], n: int) -> Samples | None:
    """Where the n samples are in the node's value, from where they are in the values of its sources."""
    if n == 1:
        return None if value.dim() and len(value) == 1 else Samples(1)
    followed = tuple(dict.fromkeys(node.signals))  # the way to a gate is not followed
    sources = [known.get(source) for source in followed]
    if mixed := next((s for s in sources if isinstance(s, Mixed)), None):
        return mixed
    stay = node.op in v.JOINS or (node.fills and value.shape == values[node.sources[0]].shape)
    if any(word in node.op for word in IN_PLACE):
        stay = stay or _same_first(node, value, values)
    if node.kind in MOVERS and not stay:
        return _seen(node, _probe(node, values, known, n), n)
    if node.op in NAMED_AXES and node.kind in (v.DENSE, v.MATMUL):
        found = [_seen(node, _probe(node, values, known, n, factor), n) for factor in followed]
        return found[0] if all(_alike(found[0], other, n) for other in found) else Mixed(node, value.shape)
    if node.kind not in ELEMENTWISE and not any(sources) and value.dim() and len(value) == n:
        return None
    return _aligned(node, value, values, dict(zip(followed, sources, strict=True)), n)


def _same_first(node: Node, value: Tensor, values: dict) -> bool:
    return value.dim() > 0 and len(value) == len(values[node.sources[0]])


def _probe(node: Node, values: dict, known: dict, n: int, numbered: Node | None = None) -> Tensor:
    """The node's value where the inputs hold the number of their sample, from 1; 0 is what belongs to none.

    Of a product only the factor `numbered` does, and the other one holds ones.
    """
    given, rest = {}, torch.zeros_like if numbered is None else torch.ones_like

    def emptied(x):
        return rest(x, dtype=torch.float64) if isinstance(x, Tensor) and x.is_floating_point() else x

    for source in node.sources if numbered is None else [numbered]:
        x, samples = values[source], known.get(source)
        ids = torch.arange(n) if samples is None else samples.ids
        numbers = beside(ids.to(x.device) + 1, x, Samples(n, samples.axis if samples else 0, torch.arange(len(ids))))
        given[source] = torch.empty_like(x, dtype=torch.float64).copy_(numbers)  # strided as x is, for views
    given = {other: emptied(values[other]) for other in values} | given
    args, kwargs = map_aggregate((node.args, node.kwargs), emptied)  # tensors that were made while it was recorded
    return replace(node, args=args, kwargs=kwargs).run(given)


def _seen(node: Node, probe: Tensor, n: int) -> Samples | None:
    """The axis along which the numbers of samples vary, perhaps times a factor, as behind a sum."""
    for axis in range(probe.dim()):
        others = [d for d in range(probe.dim()) if d != axis]
        line = probe.abs().amax(others) if others else probe.abs()
        line = line / line.min()  # the number of the first sample is 1
        ids = (line - 1).nan_to_num(-1).round().long()
        numbers = probe.abs() / probe.abs()[probe != 0].min() if probe.any() else probe
        there = (numbers == 0) | (
            (numbers - line.view([-1 if d == axis else 1 for d in range(probe.dim())])).abs() < 1e-6
        )
        if there.all() and ids.min() >= 0 and ids.bincount(minlength=n).tolist() == [len(ids) // n] * n:
            plain = axis == 0 and len(ids) == n and ids.tolist() == list(range(n))
            return None if plain else Samples(n, axis, ids.cpu())
    return Mixed(node, probe.shape)


def _aligned(node: Node, value: Tensor, values: dict, sources: dict[Node, Samples | None], n: int) -> Samples | None:
    """Elementwise, dense and convolving nodes leave samples on their axis, counted from the right."""
    found = []
    for source, samples in sources.items():
        axis, x = 0 if samples is None else samples.axis, values[source]
        out, last = axis + value.dim() - x.dim(), axis == x.dim() - 1
        kept = 0 <= out < value.dim() and value.shape[out] == x.shape[axis]
        if not kept or (node.kind == v.DENSE and last) or (node.kind == v.CONVOLUTION and axis):
            return Mixed(node, value.shape)
        found.append(None if samples is None and out == 0 else Samples(n, out, _ids(samples, n)))
    return found[0] if all(_alike(found[0], other, n) for other in found) else Mixed(node, value.shape)


def _alike(one: Samples | None, two: Samples | None, n: int) -> bool:
    """Are the samples in the same places?"""
    if isinstance(one, Mixed) or isinstance(two, Mixed):
        return False
    return (one and one.axis) == (two and two.axis) and _ids(one, n).equal(_ids(two, n))


def _ids(samples: Samples | None, n: int) -> Tensor:
    return torch.arange(n) if samples is None else samples.ids
