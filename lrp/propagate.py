"""One step of the walk: a rule applied at a linear node. The numerics of LRP live here and nowhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .operators import Operator
from .rules import EQUAL, PLAIN, Group, Rule, magnitude, neg, pos, same


def rms(z: Tensor) -> Tensor:
    """Root mean square of each sample: (N, ...) -> (N, 1, ...)."""
    wide = torch.float32 if z.element_size() < 4 else None
    norm = torch.linalg.vector_norm(z.reshape(len(z), -1), dim=1, dtype=wide)
    return (norm / (z[0].numel() ** 0.5)).to(z.dtype).view(-1, *[1] * (z.dim() - 1))


def stabilise(z: Tensor, epsilon: float = 1e-6, relative: bool = True) -> Tensor:
    """z moved away from zero, scale-free: z + sign(z) epsilon rms(z) per sample, with sign(+0) = +1.

    `relative=False` takes epsilon as an absolute number. In half precision a relative epsilon is at least the
    smallest step of the dtype, and never is the shift so small that dividing by it overflows. Shapes: (N, ...) ->
    (N, ...).
    """
    limits = torch.finfo(z.dtype)
    floor = limits.tiny if z.dtype == torch.float16 else limits.tiny**0.5
    if relative:
        shift = max(epsilon, limits.eps if z.element_size() < 4 else 0.0) * rms(z)
    else:
        shift = torch.full_like(z[:1], epsilon)
    return torch.copysign(shift.clamp(min=floor), z).add_(z)


def total(t: Tensor) -> Tensor:
    """Sum per target and sample, at least in float32: (T, N, ...) -> (T, N)."""
    return t.reshape(*t.shape[:2], -1).sum(-1, dtype=torch.float32 if t.element_size() < 4 else t.dtype).double()


class Step:
    """A rule at one linear node: what it makes of the inputs, and how any relevance is shared there.

    `z` is the node's output as the rule is to see it, without the bias if that is excluded (None: not known). What
    does not depend on the relevance is worked out when it is first asked for.
    """

    def __init__(
        self,
        rule: Rule,
        operator: Operator,
        xs: list[Tensor],
        z: Tensor | None,
        weights: tuple[Tensor, Tensor | None],
        parts: dict,
        absorb: bool = True,
        nonnegative: Sequence[bool] = (),
    ):
        self.rule, self.operator, self.xs, self.z = rule, operator, xs, z
        self.w, self.b = weights
        self.parts, self.absorb, self.keep = parts, absorb, False
        self.nonnegative = nonnegative or [False] * len(xs)  # which inputs are known to be >= 0
        self.made: dict = {}  # parts of the inputs
        self.measured: dict[Group, Tensor] = {}
        self.prepared: dict[Group, tuple] = {}
        self.divisors: tuple = ()

    def _weight(self, part) -> Tensor | None:
        """A part of the weight, kept for the next call; None where a fixed weight has no such part."""
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
        if part not in self.made:
            known = part in (pos, magnitude)
            self.made[part] = [x if known and n else part(x) for x, n in zip(self.xs, self.nonnegative, strict=True)]
        return self.made[part]

    def _bias(self, group: Group) -> Tensor | None:
        return group.bias(self.b) if self.absorb and group.bias and self.b is not None else None

    def _terms(self, group: Group) -> list[tuple[list[Tensor], Tensor]]:
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
            return z if b is None else z + self.operator.spread(b, z)
        z = self.operator.forward(*terms[0], b)
        for xs, w in terms[1:]:
            z = z + self.operator.apply(xs, w)
        return z

    def forward(self) -> Tensor:
        """The node's output as the sum of its groups, which are kept for the walk: their rule divides by them anyway.

        Only for rules whose groups together are z (`complete`): it spares the pass that would compute z itself.
        """
        for _, group in self.rule.groups:
            self.measured[group] = self.measure(group)
        first, *others = self.measured.values()
        z = first + sum(others[1:], others[0])
        return z if self.absorb or self.b is None else z.add_(self.operator.spread(self.b, z))

    def share(self, R: Tensor, keep: bool = False) -> "Shares":
        """Share relevance R (T, N, ...) among the inputs by the rule; `keep` what was worked out for another call."""
        self.keep = keep
        shares = Shares(self.operator, len(self.xs))
        (self._share_exactly if self.rule.one_sided else self._share_stabilised)(R, shares)
        return shares.finish(self.xs, R)

    def _send(self, group: Group, s: Tensor, shares: "Shares") -> None:
        """Hand s = c R / z (T, N, ...) down to the group's contributions, and the bias its share."""
        for xs, w in self._terms(group):
            shares.add(xs, self.operator.transpose(s, w, xs))
        b = self._bias(group)
        if b is not None:
            shares.bias = shares.bias + self.operator.kept(b, s).double()

    def _ours(self, z: Tensor) -> bool:
        """May z be overwritten: new memory that nobody asks for again? (A sum of one term may be that term.)"""
        others = [self.z, *self.xs, *(x for made in self.made.values() for x in made)]
        return not self.keep and not any(z is other for other in others)

    def _over(self, c: float, R: Tensor, z: Tensor) -> Tensor:
        """c R / z, written over z where that may be."""
        divisor = z[None]
        out = divisor if len(R) == 1 and self._ours(z) else torch.empty_like(R)
        if c == 1:
            return torch.div(R, divisor, out=out)
        return torch.addcdiv(R.new_zeros(()), R, divisor, value=c, out=out)

    def _kept(self, group: Group, prepare) -> tuple:
        """What `prepare` makes of the group's sums, once."""
        if group in self.prepared:
            return self.prepared[group]
        made = prepare(self.measure(group))
        self.measured.pop(group, None)
        if self.keep:
            self.prepared[group] = made
        return made

    def _share_stabilised(self, R: Tensor, shares: "Shares") -> None:
        z, rule = self.output(), self.rule
        for c, group in rule.groups:
            R_g = R if c == 1 else c * R
            if group.where:
                R_g = R_g * (z >= 0 if group.where > 0 else z < 0)
                if _nothing(R_g):
                    continue
            z_s, gap = self._kept(group, lambda z: _stabilised(z, rule))
            s = R_g / z_s
            self._send(group, s, shares)
            shares.stabiliser = shares.stabiliser + total(s * gap)

    def _share_exactly(self, R: Tensor, shares: "Shares") -> None:
        if not self.divisors:
            self.divisors = self._divide()
        divisors, empty = self.divisors
        for c, group, z in divisors:
            self._send(group, self._over(c, R, z), shares)
        if empty is None:
            return
        left = R * empty
        for group in self.rule.fallback:
            if _nothing(left):
                return
            z, dead = self._kept(group, self._without_dead)
            self._send(group, left / z, shares)
            left = left * dead
        if not _nothing(left):  # what no input is connected to is its bias alone (edges of transposed convolutions)
            shares.bias = shares.bias + total(left * (self.measure(EQUAL) == 0))

    def _divide(self) -> tuple[list[tuple[float, Group, Tensor]], Tensor | None]:
        """The groups with their divisors, infinite at units where a group is empty, and where all of them are.

        What an empty group would have given, the others give: as c of them all adds up to 1, alpha or -beta alone is
        divided by itself.
        """
        groups = self.rule.groups
        zs = [self.measure(group) for _, group in groups]
        self.measured.clear()
        if all(_all_alive(z) for z in zs):
            return [(c, group, z) for (c, group), z in zip(groups, zs, strict=True)], None
        if len(groups) == 1:
            z, dead = self._without_dead(zs[0])
            return [(*groups[0], z)], dead
        dead = [_dead(z) for z in zs]
        given = sum(c * (~d).to(zs[0].dtype) for (c, _), d in zip(groups, dead, strict=True))
        rows = zip(groups, zs, dead, strict=True)
        return [(c, g, torch.where(d, torch.inf, given * z)) for (c, g), z, d in rows], torch.stack(dead).all(0)

    def _without_dead(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z, infinite where it is no more than rounding noise, and where that is."""
        dead = _dead(z)
        return z.masked_fill_(dead, torch.inf) if self._ours(z) else z.masked_fill(dead, torch.inf), dead


class Shares:
    """What becomes of relevance at a node: `relevance`, one (T, N, ...) per input, what `bias` and `stabiliser` kept.

    Contributions to the same part of the inputs are added up first, and multiplied by that part once.
    """

    def __init__(self, operator: Operator, inputs: int):
        self.fresh = operator.fresh
        self.backs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.relevance: list[Tensor | None] = [None] * inputs
        self.bias = self.stabiliser = 0.0

    def add(self, xs: list[Tensor], backs: list[Tensor]) -> None:
        """Take in what came back along the connections, to be multiplied by xs."""
        if id(xs) in self.backs:
            earlier = self.backs[id(xs)][1]
            backs = [a.add_(b) if self.fresh else a + b for a, b in zip(earlier, backs, strict=True)]
        self.backs[id(xs)] = (xs, backs)

    def finish(self, inputs: list[Tensor], R: Tensor) -> "Shares":
        """Multiply and add up."""
        for xs, backs in self.backs.values():
            for k, (x, back) in enumerate(zip(xs, backs, strict=True)):
                share = back.mul_(x) if self.fresh else x * back
                self.relevance[k] = share if self.relevance[k] is None else self.relevance[k] + share
        self.backs.clear()
        for k, x in enumerate(inputs):
            if self.relevance[k] is None:
                self.relevance[k] = R.new_zeros(len(R), *x.shape)
        return self


def _stabilised(z: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """z moved away from zero, and by how much."""
    z_s = stabilise(z, rule.epsilon, rule.relative)
    return z_s, z_s - z


def _noise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of sums of contributions of one sign, per sample: the least, and what is no more than rounding noise."""
    flat = z.reshape(len(z), -1)
    low, high = flat.amin(1), flat.amax(1)
    limit = min(4 * torch.finfo(z.dtype).eps, 1e-4) * torch.maximum(-low, high)
    return torch.where(low > 0, low, -high), limit


def _all_alive(z: Tensor) -> bool:
    """Is every sum more than rounding noise? Asked first, because it takes no memory."""
    least, limit = _noise(z)
    return bool((least > limit).all())


def _dead(z: Tensor) -> Tensor:
    """Where a sum is no more than rounding noise."""
    return z.abs() <= _noise(z)[1].view(-1, *[1] * (z.dim() - 1))


def _nothing(t: Tensor) -> bool:
    """Zero everywhere?"""
    return bool(t.amin() == 0) and bool(t.amax() == 0)
