"""A rule at one linear map: how relevance is shared among the inputs. The numerics of LRP live here and nowhere else.

For each group of a rule, with coefficient c and parts (x_p, w_p) of input and weight (`lrp.rules`)::

    z = sum of apply(x_p, w_p) + b_p          the group's denominator
    s = c R / z                               relevance per unit of contribution
    R_i += x_p * transpose(s, w_p)            what the inputs receive
    bias += sum of s b_p                      what the bias receives

Two ways to divide. Where all contributions of a group have one sign (`one_sided`), z is zero only where nothing
contributes: division is exact, and such units go to the other groups, or to the rule's fallback. Otherwise
contributions may cancel, and z is moved away from zero (`stabilise`); what that costs is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.layout import in_memory
from ..network.operators import Operator
from ..network.samples import Samples, beside, within
from ..parts import EQUAL, PLAIN, Group, magnitude, neg, pos, same
from ..rules import Rule
from .amounts import least, stabilise, total


def reads_output(rule: Rule) -> bool:
    """Does the rule need the output of its node on the way back?"""
    return any(group is PLAIN or group.where for _, group in rule.groups)


@dataclass
class Shares:
    """What becomes of relevance at a node: one (T, N, ...) per input, and what bias and stabiliser keep, (T, N)."""

    relevance: list[Tensor]
    bias: Tensor | float = 0.0
    stabiliser: Tensor | float = 0.0


@dataclass
class Applied:
    """A rule at a linear map with inputs `xs`.

    `z` is the map's output as the rule is to see it, without the bias if that is excluded (None: not known).
    `parts` holds parts of the weight from earlier calls. `nonnegative` says which inputs are known to be >= 0.
    What does not depend on relevance is worked out when it is first needed, and used again if `back` is called again.
    """

    rule: Rule
    operator: Operator
    xs: list[Tensor]
    z: Tensor | None
    weights: tuple[Tensor, Tensor | None]
    parts: dict
    absorb: bool = True
    nonnegative: Sequence[bool] = ()
    samples: Samples | None = None  # where the samples are in the output

    def __post_init__(self):
        self.w, self.b = self.weights
        self.nonnegative = self.nonnegative or [False] * len(self.xs)
        self.inputs: dict = {}  # parts of the inputs
        self.measured: dict[Group, Tensor] = {}  # denominators that `forward` has worked out
        self.prepared: dict[Group | str, tuple] = {}  # denominators made safe to divide by
        self.divisors: tuple = ()
        self.again = False  # will `back` be called again? Then nothing that it needs may be overwritten

    # ------------------------------------------------------------ denominators

    def _weight(self, part) -> Tensor | None:
        """A part of the weight, stored for the next call; None where a fixed weight has no such part."""
        if part not in self.parts:
            w = part(self.w)
            self.parts[part] = None if w.dim() == 0 and w == 0 else w
        return self.parts[part]

    def _inputs(self, part) -> list[Tensor] | None:
        """A part of the inputs; None where it is known to vanish (x- after a ReLU)."""
        if part is same or (part in (pos, magnitude) and all(self.nonnegative)):
            return self.xs
        if part is neg and all(self.nonnegative):
            return None
        if part not in self.inputs:
            known = part in (pos, magnitude)
            self.inputs[part] = [x if known and n else part(x) for x, n in zip(self.xs, self.nonnegative, strict=True)]
        return self.inputs[part]

    def _bias(self, group: Group) -> Tensor | None:
        return group.bias(self.b) if self.absorb and group.bias and self.b is not None else None

    def _terms(self, group: Group) -> list[tuple[list[Tensor], Tensor]]:
        """The pairs (input part, weight part) of a group that do not vanish."""
        pairs = [(self._inputs(part.x), self._weight(part.w)) for part in group.parts]
        return [(xs, w) for xs, w in pairs if xs is not None and w is not None]

    def output(self) -> Tensor:
        """z as the rule sees it: with the bias if that is absorbed, without if it is excluded."""
        if self.z is None:
            self.z = self.operator.forward(self.xs, self.w, self.b if self.absorb else None)
        return self.z

    def measure(self, group: Group) -> Tensor:
        """The group's denominator, (N, ...)."""
        if group in self.measured:
            return self.measured[group]
        if group is PLAIN:
            return self.output()
        terms, b = self._terms(group), self._bias(group)
        if not terms:
            z = torch.zeros_like(self.output())
            return z if b is None else z + self.operator.broadcast(b, z)
        z = self.operator.forward(*terms[0], b)
        for xs, w in terms[1:]:
            more = self.operator.apply(xs, w)
            z = z.add_(more) if self.operator.fresh else z + more
        return z

    def forward(self) -> Tensor:
        """The map's output as the sum of its groups. They are stored: the rule divides by them on the way back.

        Only for rules whose groups together are z (`complete`): it spares the pass that would compute z itself.
        """
        for _, group in self.rule.groups:
            self.measured[group] = self.measure(group)
        first, second, *more = self.measured.values()
        z = first + second
        for other in more:
            z = z + other
        return z if self.absorb or self.b is None else z.add_(self.operator.broadcast(self.b, z))

    # ------------------------------------------------------------ shares

    def back(self, R: Tensor, last: bool = True) -> Shares:
        """Share relevance R (T, N, ...) among the inputs by the rule; `last` says that no further call follows."""
        self.again, self.bias, self.stabiliser, self.backs = not last, 0.0, 0.0, {}
        (self._exactly if self.rule.one_sided else self._stabilised)(R)
        relevance: list[Tensor | None] = [None] * len(self.xs)
        for xs, backs in self.backs.values():
            for k, (x, back) in enumerate(zip(xs, backs, strict=True)):
                share = back.mul_(x) if self.operator.fresh else x * back
                relevance[k] = share if relevance[k] is None else relevance[k] + share
        self.backs = {}
        nothing = (R.new_zeros(len(R), *x.shape) if r is None else r for r, x in zip(relevance, self.xs, strict=True))
        return Shares(list(nothing), self.bias, self.stabiliser)

    def _send(self, group: Group, s: Tensor) -> None:
        """Hand s = c R / z (T, N, ...) down to the group's contributions, and the bias its share.

        What comes back to one part of the inputs is added up first, and multiplied by that part once, in `back`.
        """
        for xs, w in self._terms(group):
            self._hand(xs, w, s)
        self._keep(self._bias(group), s)

    def _hand(self, xs: list[Tensor], w: Tensor, s: Tensor) -> None:
        backs = self.operator.transpose(s, w, xs)
        if id(xs) in self.backs:
            pairs = zip(self.backs[id(xs)][1], backs, strict=True)
            backs = [a.add_(b) if self.operator.fresh else a + b for a, b in pairs]
        self.backs[id(xs)] = xs, backs

    def _keep(self, b: Tensor | None, s: Tensor) -> None:
        if b is not None:
            self.bias = self.bias + self.operator.bias_share(b, s, self.samples).double()

    def _owned(self, z: Tensor) -> bool:
        """May z be overwritten? It must be new memory that is not read again; a sum of one term may be that term."""
        read = [self.z, *self.xs, *(x for made in self.inputs.values() for x in made)]
        return not self.again and not any(z is other for other in read)

    def _divided(self, c: float, R: Tensor, z: Tensor) -> Tensor:
        """c R / z, written over z where that may be."""
        divisor = z[None]
        out = divisor if len(R) == 1 and self._owned(z) else torch.empty_like(R)
        if c == 1:
            return torch.div(R, divisor, out=out)
        return torch.addcdiv(R.new_zeros(()), R, divisor, value=c, out=out)

    def _prepare(self, group: Group, make) -> tuple:
        """What `make` makes of the group's denominator, once."""
        if group in self.prepared:
            return self.prepared[group]
        made = make(self.measure(group))
        self.measured.pop(group, None)
        if self.again:
            self.prepared[group] = made
        return made

    def _stabilised(self, R: Tensor) -> None:
        """Division where contributions may cancel: by z moved away from zero."""
        groups, split = self.rule.groups, True
        if self.rule.own_sign:  # behind a ReLU, relevance is at units of z >= 0 only, and the first group is enough
            if not all(self.nonnegative) or _any(R, self.output() < 0):
                return self._by_own_sign(R)
            groups, split = groups[:1], False

        def moved(z: Tensor) -> tuple[Tensor, Tensor]:
            output = self.output() if self.rule.own_sign else None  # in both ways to compute Gamma, one shift
            z_s = stabilise(z, self.rule.epsilon, self.rule.relative, self.samples, output)
            return z_s, z_s - z

        for c, group in groups:
            R_g = R if c == 1 else c * R
            if group.where and split:
                z = self.output()
                R_g = R_g * (z >= 0 if group.where > 0 else z < 0)
                if _nothing(R_g):
                    continue
            z_s, gap = self._prepare(group, moved)
            s = R_g / z_s
            self._send(group, s)
            self.stabiliser = self.stabiliser + total(s * gap, self.samples)

    def _by_own_sign(self, R: Tensor) -> None:
        """Gamma at inputs of both signs, its two groups at once: half of the products that these take by themselves.

        Of contributions c and their magnitudes m, those of the sign of z are (c + sign(z) m) / 2.
        """
        g, bias = self.rule.own_sign / 2, self.b if self.absorb else None
        xs, w, b = self._inputs(magnitude), self._weight(magnitude), None if bias is None else bias.abs()
        if "own sign" not in self.prepared:
            z = self.output()
            sign = torch.where(z >= 0, 1.0, -1.0).to(z).mul_(g)
            own = z * (1 + g) + sign * self.operator.forward(xs, w, b)
            z_s = stabilise(own, self.rule.epsilon, self.rule.relative, self.samples, z)
            self.prepared["own sign"] = sign, z_s, z_s - own
        sign, z_s, gap = self.prepared["own sign"]
        s = R / z_s
        self.stabiliser = self.stabiliser + total(s * gap, self.samples)
        for values, weight, kept, part in ((self.xs, self.w, bias, s * (1 + g)), (xs, w, b, s * sign)):
            self._hand(values, weight, part)
            self._keep(kept, part)

    def _exactly(self, R: Tensor) -> None:
        """Division where contributions of a group have one sign. Units with nothing to divide by take the fallback."""
        if not self.divisors:
            self.divisors = self._divide()
        divisors, empty = self.divisors
        for c, group, z in divisors:
            self._send(group, self._divided(c, R, z))
        if empty is None:
            return
        if not _any(R, empty):
            return
        left = R * empty
        for group in self.rule.fallback:
            if _nothing(left):
                return
            z, dead = self._prepare(group, self._without_dead)
            self._send(group, left / z)
            left = left * dead
        if not _nothing(left):  # no input is connected there, the unit is its bias (edges of transposed convolutions)
            self.bias = self.bias + total(left * (self.measure(EQUAL) == 0), self.samples)

    def _divide(self) -> tuple[list[tuple[float, Group, Tensor]], Tensor | None]:
        """The groups with their divisors, infinite at units where a group is empty, and where all of them are.

        The other groups give what an empty group would have given. All c add up to 1, so where only one group is left,
        its c is divided by itself.
        """
        groups = self.rule.groups
        zs = [self.measure(group) for _, group in groups]
        self.measured.clear()
        if all(self._all_alive(z) for z in zs):
            return [(c, group, z) for (c, group), z in zip(groups, zs, strict=True)], None
        if len(groups) == 1:
            z, dead = self._without_dead(zs[0])
            return [(*groups[0], z)], dead
        dead = [self._dead(z) for z in zs]
        given = torch.ones_like(zs[0])
        for (c, _), d in zip(groups, dead, strict=True):
            given.add_(d, alpha=-c)
        zs = [z.mul_(given) if self._owned(z) else z * given for z in zs]
        rows = zip(groups, zs, dead, strict=True)
        return [(c, g, z.masked_fill_(d, torch.inf)) for (c, g), z, d in rows], torch.stack(dead).all(0)

    def _without_dead(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z, infinite where it is no more than rounding noise, and where that is."""
        dead = self._dead(z)
        return z.masked_fill_(dead, torch.inf) if self._owned(z) else z.masked_fill(dead, torch.inf), dead

    def _extent(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of sums of contributions of one sign, per sample: the least, the largest, and what counts as nothing."""
        each, axes = within(z, self.samples)
        low, high = each.amin(axes), each.amax(axes)
        return low, high, self._noise(torch.maximum(-low, high), z.dtype)

    def _noise(self, largest, dtype: torch.dtype):
        """What is no more than rounding noise beside the largest sum; of few terms, what is too small to divide by."""
        return min(4 * torch.finfo(dtype).eps, 1e-4) * largest if self.operator.long else 0 * largest + least(dtype)

    def _all_alive(self, z: Tensor) -> bool:
        """Is every sum more than nothing? Asked first, of all samples at once: that takes no memory."""
        low, high = map(float, torch.aminmax(in_memory(z)))
        if low > max(0, self._noise(high, z.dtype)) or -high > max(0, self._noise(-low, z.dtype)):
            return True
        low, high, limit = self._extent(z)
        return bool((torch.where(low > 0, low, -high) > limit).all())

    def _dead(self, z: Tensor) -> Tensor:
        """Where a sum counts as nothing."""
        low, _, limit = self._extent(z)
        return (z if bool((low >= 0).all()) else z.abs()) <= beside(limit, z, self.samples)


def _any(R: Tensor, where: Tensor) -> bool:
    """Is there any relevance (T, N, ...) at the units (N, ...) of this mask?"""
    return bool((R.bool() & where).any())


def _nothing(t: Tensor) -> bool:
    """Zero everywhere?"""
    return bool(t.amin() == 0) and bool(t.amax() == 0)
