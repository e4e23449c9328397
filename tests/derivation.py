"""LRP-0 a second time, without the package: the gradient of a network in which what LRP holds fixed is held fixed.

With signed sums, epsilon -> 0 and biases that keep their share, relevance is x times the gradient of the network
in which

* an activation, a norm and LRN are a fixed factor: f(x) is x times the number f(x) / x;
* the gate of a product is a fixed number, and where nothing tells the factors apart each is fixed in turn, in halves;
  of two matrices, that is the one that a softmax made which did not make the other (what it only weighted aside);
* all else (layers, pooling, maxima, views, sums) is as it stands.

`relevance` runs the model's own forward under a mode of torch that sees every call, so it depends on no trace and no
graph. A gate is the factor that a sigmoid made, then one within [0, 2], then one within [-1, 1], then a bounded one,
then the smaller one; a product or quotient of elementwise functions of one value is an activation of that value.
"""

import copy
import inspect
from collections import Counter
from dataclasses import dataclass, replace

import bounds as b
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map


@dataclass
class Mark:
    """What is known of a tensor: where relevance passes to, what it is a function of place by place, its bounds."""

    base: Tensor
    above: tuple[Tensor, ...] = ()  # what it is an elementwise function of, the nearest first
    bounds: b.Bounds | None = None
    front: bool = False  # an affine function of the input alone
    summed: Tensor | None = None  # it is the sum of this one's values
    version: int = 0

    def __post_init__(self):
        self.stamps = [t._version for t in (self.base, *self.above)]


@dataclass
class Derived:
    """Relevance of the input, the output, functions without a rule that relevance met, and how many values of zero
    would have to share some (there the derivation says nothing)."""

    relevance: Tensor
    output: Tensor
    refused: list[str]
    undefined: int


def relevance(model: nn.Module, x: Tensor, seed=None, front_passes: bool = True, passes=()) -> Derived:
    """LRP-0 of the predicted class's logit (N, K), or of the sum of seed times output (`seed` shaped like that).

    With `front_passes` a normalisation of the input itself, (x - mean) / std, hands relevance through; `passes` names
    elementwise functions without a rule of their own, as "log", that are to be treated as activations.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    leaf, mode = x.detach().clone().requires_grad_(), Held(passes)
    with torch.enable_grad():
        start = leaf * 1.0
        mode.mark(start, Mark(start, front=front_passes))
        with mode:
            output = model(start)
    if seed is None:
        seed = nn.functional.one_hot(output.argmax(1), output.shape[1])
    output.backward(seed.to(output))
    grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return Derived(leaf.detach() * grad, output.detach(), sorted(mode.refused), mode.undefined)


class Held(TorchFunctionMode):
    """Sees every call of torch with a tensor that depends on the input (requires a gradient)."""

    def __init__(self, passes=()):
        super().__init__()
        self.passes = b.PASSES | set(passes)
        self.refused: Counter = Counter()
        self.softmaxes = 0
        self.signal: Tensor | None = None  # of a product that was just met
        self.undefined = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, inplace = b.plain(func)
        carried = _carried(args, kwargs)
        if name in b.FACTS or not carried:
            return func(*args, **kwargs)
        if name in b.COMPARES:
            y = func(*args, **kwargs)
            return self.mark(y, Mark(y, self._chain(self._common(*carried))))
        if not (inplace or _asks_inplace(func, args, kwargs)):
            return self._call(func, name, args, kwargs)
        if name == "setitem" or not _carried(args[:1], {}):  # a constant that becomes a value of the network
            return func(*args, **kwargs)
        target, old = args[0], args[0].clone()
        self._move(self.of(target), target, old)
        new = self._call(_pure(func, name), name, (old, *args[1:]), kwargs)
        target.copy_(new)
        return self._move(self.of(new), new, target)

    # ------------------------------------------------------------ marks

    @staticmethod
    def of(t: Tensor) -> Mark:
        """The mark of a tensor; what was written over since is forgotten."""
        mark = getattr(t, "_held", None)
        if mark is None or mark.version != t._version:
            return Mark(t)
        fresh = [v._version == at for v, at in zip((mark.base, *mark.above), mark.stamps, strict=True)]
        above = mark.above[: (*fresh[1:], False).index(False)]
        return replace(mark, base=mark.base if fresh[0] else t, above=above)

    def _chain(self, t: Tensor | None) -> tuple[Tensor, ...]:
        """The tensor and what it is an elementwise function of."""
        return () if t is None else (t, *self.of(t).above)

    def _common(self, *tensors: Tensor) -> Tensor | None:
        """The nearest value of which all these are elementwise functions."""
        first, *others = map(self._chain, tensors)
        return next((v for v in first if all(any(v is w for w in other) for other in others)), None)

    @staticmethod
    def mark(t: Tensor, mark: Mark) -> Tensor:
        t._held = replace(mark, version=t._version)
        return t

    def _move(self, mark: Mark, old: Tensor, new: Tensor) -> Tensor:
        """The mark of `old` for `new`."""
        return self.mark(new, replace(mark, base=new if mark.base is old else mark.base))

    # ------------------------------------------------------------ calls

    def _call(self, func, name, args, kwargs):
        """The call, and on its value a note of the softmaxes that it was computed from."""
        self.signal = None
        y = self._answer(func, name, args, kwargs)
        carried = _carried(args, kwargs) if self.signal is None else [self.signal]
        soft, self.signal = frozenset().union(*map(_softmaxes, carried)), None
        for part in _carried((y,), {}):
            part._softmaxes = soft | _softmaxes(part) | ({self._softmax()} if name == "softmax" else set())
        return y

    def _softmax(self) -> int:
        self.softmaxes += 1
        return self.softmaxes

    def _answer(self, func, name, args, kwargs):
        carried = _carried(args[:1] if name.endswith("_as") else args, kwargs)  # view_as reads a shape
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        if name == "multi_head_attention_forward":
            return self._heads(**inspect.signature(func).bind(*args, **kwargs).arguments)
        if name in b.MATRICES and len(carried) == 2:
            return self._matrices(func, args, kwargs, *carried)
        if name in b.PRODUCTS:
            return self._product(func, name, args, kwargs, carried)
        if name in b.SUMS:
            return self._sum(func, name, args, kwargs, carried)
        if name == "addcmul":
            return self._addcmul(*args, **kwargs)
        if name == "glu":
            a, gate = args[0].chunk(2, *args[1:], **kwargs)
            return a * gate.detach().sigmoid()
        if name in b.SAVES:  # autograd stores input and output of these, and someone may write over them later
            args = tuple(_copied(arg) for arg in args)
        y = func(*args, **kwargs)
        if not carried or not _carried((y,), {}):
            return y
        y = _copied(y) if name in b.SAVES else y
        x, old = carried[0], self.of(carried[0])
        if name in self.passes and len(carried) == 1 and not b.is_maximum(name, args, kwargs):
            bounds = b.activated(name, args, kwargs, old.bounds)
            out = self._factor(old.base, y)
            return self.mark(out, Mark(old.base, () if name in b.NORMS else self._chain(x), bounds))
        if name in b.CHOICES and (one := self._chosen(args, carried, y)) is not None:
            return self._activated(one, y)
        if name in b.ELEMENTWISE:
            return self.mark(self._no_rule(name, y), Mark(y, self._chain(x), b.BOUNDS.get(name)))
        if name == "batch_norm":
            y.register_hook(Tensor.contiguous)  # torch 2.15: else wrong for one sample, findings/batchnorm_of_one.sh
            return self._affine(carried[0], y, None)
        if name not in b.KNOWN or (name in b.ONE_FACTOR and len(carried) > 1):
            for part in _carried(y, {}):
                self.mark(self._no_rule(name, part), Mark(part, (), b.BOUNDS.get(name)))
            return y
        return self._as_it_stands(func, name, args, kwargs, carried, y)

    def _addcmul(self, t, one, two, value=1):
        product = self._call(torch.mul, "mul", (one, two), {}) if _carried((one, two), {}) else one * two
        product = self._call(torch.mul, "mul", (product, value), {}) if value != 1 else product
        return self._sum(torch.add, "add", (t, product), {}, _carried((t, product), {}))

    def _chosen(self, args, carried, y: Tensor) -> Tensor | None:
        """The value that is chosen by a condition on itself, place by place: an activation of it, like a threshold."""
        conditions = [a for a in args if isinstance(a, Tensor) and a.dtype == torch.bool]
        return self._same(self._common(*conditions, *carried), y) if conditions else None

    @staticmethod
    def _same(t: Tensor | None, y: Tensor) -> Tensor | None:
        return t if t is not None and t.shape == y.shape else None

    def _activated(self, x: Tensor, y: Tensor) -> Tensor:
        """y as an activation of x."""
        base = self.of(x).base
        return self.mark(self._factor(base, y), Mark(base, self._chain(x)))

    def _as_it_stands(self, func, name, args, kwargs, carried, y):
        """Gradient as it is; bounds, and where relevance passes to, go along with values that only move."""
        old = self.of(carried[0])
        if name in b.AVERAGES:
            self._cancels(y, lambda: func(args[0].detach().abs(), *args[1:], **kwargs))
        if isinstance(y, Tensor) and name in b.SHAPES and len(carried) == 1 and args and args[0] is carried[0]:
            base = func(old.base, *args[1:], **kwargs) if old.base.shape == args[0].shape else y
            above = self._chain(carried[0]) if name in b.COPIES else ()
            return self.mark(y, Mark(base if base.shape == y.shape else y, above, old.bounds, old.front))
        bounds = b.joined([self.of(t).bounds for t in carried]) if name in b.KEEPS_BOUNDS else None
        one_by_one = len(carried) == 1 and name in b.OF_TWO  # the larger of a value and a constant, or a mask
        for part in _carried(y, {}):
            above = self._chain(self._same(carried[0], part)) if one_by_one else ()
            self.mark(part, Mark(part, above, bounds, summed=carried[0] if name == "sum" else None))
        return y

    def _factor(self, base: Tensor, y: Tensor) -> Tensor:
        """base times the number y / base; where only base is zero, y is a constant, and a note if that matters."""
        ratio = (y / base).detach()
        bad = ~torch.isfinite(ratio)
        out, bad = base * ratio.masked_fill(bad, 0.0), bad & (y != 0).detach()
        out = out + (y - out).detach()  # the value to the last bit: rounding must not break a tie
        if bad.any():
            out.register_hook(lambda g: self._note(int(((g != 0) & bad).sum())))
        return out

    def _cancels(self, y: Tensor, size) -> None:
        """Note a sum that is zero though its terms are not: how would it share? `size` gives the sum of magnitudes."""
        zero = (y == 0).detach()
        if zero.any() and (zero := zero & (size() != 0)).any():
            y.register_hook(lambda g: self._note(int(((g != 0) & zero).sum())))

    def _note(self, n: int) -> None:
        self.undefined += n

    def _no_rule(self, name: str, y: Tensor) -> Tensor:
        """A value that must not get relevance: if it does, its name is noted."""
        y.register_hook(lambda g: self.refused.update([name] if bool((g != 0).any()) else []))
        return y

    # ------------------------------------------------------------ attention

    def _matrices(self, func, args, kwargs, one: Tensor, two: Tensor) -> Tensor:
        """A product of two matrices: linear in the signal, or in each in turn."""

        def held(fixed: Tensor) -> Tensor:
            swap = tree_map(lambda t: _fixed(t) if t is fixed else t, (args, kwargs))
            return func(*swap[0], **swap[1])

        made = [b.rank(self.of(t).bounds) <= 1 for t in (one, two)]
        if made[0] == made[1]:
            made = [bool(_softmaxes(a) - _softmaxes(b)) for a, b in ((one, two), (two, one))]
        if made[0] == made[1]:
            out = (held(one) + held(two)) / 2
        else:
            out, self.signal = held(one if made[0] else two), two if made[0] else one
        return self.mark(out, Mark(out))

    def _do(self, func, *args, **kwargs):
        return self._call(func, b.plain(func)[0], args, kwargs)

    def _attention(self, q, k, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        do = self._do
        if enable_gqa:
            k, value = (do(torch.repeat_interleave, t, q.shape[-3] // t.shape[-3], dim=-3) for t in (k, value))
        scores = do(torch.matmul, q, do(torch.transpose, k, -2, -1))
        scores = do(torch.mul, scores, q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
        if attn_mask is not None:
            scores = do(torch.add, scores, attn_mask)
        return do(torch.matmul, do(torch.softmax, scores, -1), value)

    def _heads(
        self, query, key, value, num_heads, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, **more
    ):
        """torch's multi-head attention without masks, on (L, N, E)."""
        assert more.get("attn_mask") is None and more.get("key_padding_mask") is None and in_proj_weight is not None
        do, parts = self._do, []
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        for signal, w, bias in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True):
            part = do(torch.unflatten, do(nn.functional.linear, signal, w, bias), -1, (num_heads, -1))
            parts.append(do(torch.permute, part, (1, 2, 0, 3)))
        out = do(torch.flatten, do(torch.permute, self._attention(*parts), (2, 0, 1, 3)), 2)
        return do(nn.functional.linear, out, out_proj_weight, out_proj_bias), None

    # ------------------------------------------------------------ products and sums

    def _product(self, func, name, args, kwargs, carried):
        operands = [*args, *(v for k, v in kwargs.items() if k == "other")]
        one, two = reversed(operands[:2]) if name.startswith("r") else operands[:2]
        y, divides = func(*args, **kwargs), name in b.DIVISIONS
        if kwargs.get("rounding_mode"):
            return self._no_rule(name, y)
        if len(carried) == 1:
            old = self.of(carried[0])
            if divides and two is carried[0]:  # c / x
                return self.mark(self._no_rule(name, y), Mark(y, self._chain(self._same(two, y))))
            constant = two if one is carried[0] else one
            return self._affine(carried[0], y, b.scaled(old.bounds, constant, divides), scale=True)
        first, second = self.of(one), self.of(two)
        if (root := self._same(self._common(one, two), y)) is not None:
            return self._activated(root, y)
        if divides:
            own = second.summed is not None and self._common(second.summed, one) is not None
            out = one / _fixed(two)
            return self.mark(
                out, Mark(out, (), b.Bounds(0.0, 1.0, first.bounds.gate) if own and b.rank(first.bounds) < 2 else None)
            )
        gate = _gate(first, second, one, two)
        self.signal = None if gate is None else two if gate == 0 else one
        out = one * _fixed(two) if gate == 1 else _fixed(one) * two
        out = (out + one * _fixed(two)) / 2 if gate is None else out
        return self.mark(out, Mark(out, (), b.times(first.bounds, second.bounds)))

    def _sum(self, func, name, args, kwargs, carried):
        y, marks = func(*args, **kwargs), [self.of(t) for t in carried]
        plain = "alpha" not in kwargs
        if len(carried) == 1:
            constant = next((o for o in (*args, *kwargs.values()) if o is not carried[0]), 0)
            minus = name == "rsub" or ("sub" in name and carried[0] is not args[0])
            bounds = b.shifted(marks[0].bounds, constant, name, minus) if plain else None
            return self._affine(carried[0], y, bounds)
        self._cancels(y, lambda: carried[0].detach().abs() + carried[1].detach().abs())
        root = self._same(self._common(*carried), y)
        bounds = b.added(marks[0].bounds, marks[1].bounds) if plain and "add" in name else None
        return self.mark(y, Mark(y, self._chain(root), bounds))

    def _affine(self, x, y, bounds, scale=False):
        """a x + b with constants: as it stands, but passed on where x is the input itself."""
        old = self.of(x)
        if old.front and y.shape == x.shape:
            return self.mark(self._factor(old.base, y), Mark(old.base, self._chain(x), bounds, front=True))
        base = old.base if scale and y.shape == old.base.shape else y
        return self.mark(y, Mark(base, self._chain(self._same(x, y)), bounds))


def _gate(first: Mark, second: Mark, one: Tensor, two: Tensor) -> int | None:
    """Which of two factors is the gate; None where nothing tells."""
    ranks = b.rank(first.bounds), b.rank(second.bounds)
    if ranks[0] != ranks[1]:
        return int(ranks[1] < ranks[0])
    return None if one.numel() == two.numel() else int(two.numel() < one.numel())


def _carried(args, kwargs) -> list[Tensor]:
    """Tensors that depend on the input, in nested arguments."""
    leaves = tree_flatten((args, kwargs))[0]
    return [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]


def _softmaxes(t: Tensor) -> frozenset:
    """The softmaxes that a tensor was computed from."""
    return getattr(t, "_softmaxes", frozenset())


def _copied(value):
    return value.clone() if isinstance(value, Tensor) and value.requires_grad else value


def _fixed(t: Tensor) -> Tensor:
    return t.detach().clone()  # a copy: an activation may write over the tensor later


def _asks_inplace(func, args, kwargs) -> bool:
    """relu(x, inplace=True), by position or by keyword."""
    try:
        return inspect.signature(func).bind(*args, **kwargs).arguments.get("inplace") is True
    except (TypeError, ValueError):
        return kwargs.get("inplace") is True


def _pure(func, name):
    """The same function, returning a new tensor."""
    if b.plain(func)[1]:
        return next(getattr(home, name) for home in (torch, nn.functional, Tensor) if hasattr(home, name))

    def call(*args, **kwargs):
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.arguments["inplace"] = False
        return func(*bound.args, **bound.kwargs)

    return call
