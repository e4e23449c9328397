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
    """The relevance R (T, N, ...) that arrives at one linear node, and what becomes of it.

    `z` is the node's output as the rule is to see it, without the bias if that is excluded (None: not known).
    After `share`: `relevance`, one (T, N, ...) per input of the node, and what the `bias` and the `stabiliser`
    kept, (T, N) each.
    """

    def __init__(
        self,
        operator: Operator,
        xs: list[Tensor],
        z: Tensor | None,
        R: Tensor,
        weights: tuple[Tensor, Tensor | None],
        parts: dict,
        absorb: bool = True,
        nonnegative: Sequence[bool] = (),
    ):
        self.operator, self.xs, self.z, self.R = operator, xs, z, R
        self.w, self.b = weights
        self.parts, self.absorb = parts, absorb
        self.nonnegative = nonnegative or [False] * len(xs)  # which inputs are known to be >= 0
        self.made: dict = {}  # parts of the inputs
        self.relevance: list[Tensor | None] = [None] * len(xs)
        self.bias = self.stabiliser = 0.0

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

    def send(self, group: Group, s: Tensor) -> None:
        """Hand s = c R / z (T, N, ...) down to the group's contributions, and the bias its share."""
        for xs, w in self._terms(group):
            for k, (x, back) in enumerate(zip(xs, self.operator.transpose(s, w, xs), strict=True)):
                R = back.mul_(x) if self.operator.fresh else x * back
                self.relevance[k] = R if self.relevance[k] is None else self.relevance[k] + R
        b = self._bias(group)
        if b is not None:
            self.bias = self.bias + self.operator.kept(b, s).double()

    def _over(self, R: Tensor, z: Tensor) -> Tensor:
        """R / z, written over z where that is new memory (a sum of one term may be that term itself)."""
        others = [self.z, *self.xs, *(x for made in self.made.values() for x in made)]
        ours = len(R) == 1 and not any(z is other for other in others)
        return torch.div(R[0], z, out=z)[None] if ours else R / z

    def share(self, rule: Rule) -> "Step":
        """Apply the rule."""
        if rule.one_sided:
            self._share_exactly(rule)
        else:
            self._share_stabilised(rule)
        for k, x in enumerate(self.xs):
            if self.relevance[k] is None:
                self.relevance[k] = self.R.new_zeros(len(self.R), *x.shape)
        return self

    def _share_stabilised(self, rule: Rule) -> None:
        z = self.output()
        for c, group in rule.groups:
            R = self.R if c == 1 else c * self.R
            if group.where:
                here = z >= 0 if group.where > 0 else z < 0
                R = R * here
                if _nothing(R):
                    continue
            z_g = self.measure(group)
            z_s = stabilise(z_g, rule.epsilon, rule.relative)
            s = R / z_s
            self.send(group, s)
            self.stabiliser = self.stabiliser + total(s * (z_s - z_g))

    def _share_exactly(self, rule: Rule) -> None:
        measured = [(c, group, self.measure(group)) for c, group in rule.groups]
        if all(_all_alive(z) for _, _, z in measured):
            for c, group, z in measured:
                self.send(group, self._over(self.R if c == 1 else c * self.R, z))
            return
        alive = [_alive(z) for _, _, z in measured]
        # how much of 1 is given away: 1 itself where all groups live, alpha or -beta where only that one does
        given = sum(c * a.to(z.dtype) for (c, _, z), a in zip(measured, alive, strict=True)) if len(alive) > 1 else 1
        for (c, group, z), a in zip(measured, alive, strict=True):
            self.send(group, self.R / torch.where(a, z if c == 1 else given * z / c, torch.inf))
        left = torch.where(torch.stack(alive).any(0) if len(alive) > 1 else alive[0], 0, self.R)
        for group in rule.fallback:
            if _nothing(left):
                return
            z = self.measure(group)
            here = _alive(z)
            self.send(group, left / torch.where(here, z, torch.inf))
            left = torch.where(here, 0, left)
        if not _nothing(left):  # what no input is connected to is its bias alone (edges of transposed convolutions)
            self.bias = self.bias + total(left * (self.measure(EQUAL) == 0))


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


def _alive(z: Tensor) -> Tensor:
    """Where a sum is more than rounding noise."""
    return z.abs() > _noise(z)[1].view(-1, *[1] * (z.dim() - 1))


def _nothing(t: Tensor) -> bool:
    """Zero everywhere?"""
    return bool(t.amin() == 0) and bool(t.amax() == 0)
