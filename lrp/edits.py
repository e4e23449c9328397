"""What of a model may be edited between two calls, and how that is noticed, for a few hundredths of a forward pass.

A `Watch` remembers a model as it was captured. Two questions cost little enough to be asked at every call:

* `same_structure`: are these the same modules, with the same attributes, hooks and parameters? Where they are not, the
  network needs another graph.
* `same_content`: do the tensors hold the same numbers? Where they do not, weights that a rule modified are made anew.

A tensor's version counts the edits that torch knows of. It does not count those through `.data` or NumPy, so numbers
are read: a block of 1024 becomes its product with a fixed vector of random numbers, in which every place has a weight
of its own. Of a storage with more than LARGE values every fourth block is read: memory is not fast enough for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

BLOCK, LARGE, EVERY = 1024, 2**22, 4
REMAKE_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)  # torch's own hooks, whose sources are watched


class Watch:
    """A model as it is now; `noted` are attributes that its own forward rewrites, names by id of the module."""

    def __init__(self, model: nn.Module, noted: dict[int, set[str]] | None = None):
        self.model, self.noted = model, noted or {}
        self.modules, self.everywhere = modules(model), _everywhere()
        self.classes = [(type(m), type(m).forward) for m in self.modules]
        self.attributes = [_copied(self._now(m)) for m in self.modules]
        self.slots = [slot for m in self.modules for slot in _slots(self._now(m))]
        self.content: tuple | None = None  # not read yet
        self._views: dict[tuple, tuple] = {}

    def _now(self, module: nn.Module) -> dict:
        """The attributes of a module, without those that forward rewrites."""
        held, noted = vars(module), self.noted.get(id(module))
        return {name: value for name, value in held.items() if name not in noted} if noted else held

    def same_structure(self) -> bool:
        """Are modules, classes, attributes, hooks and parameters what they were?"""
        now = modules(self.model)
        if now != self.modules or _everywhere() != self.everywhere:
            return False
        if [(type(m), type(m).forward) for m in now] != self.classes:
            return False
        return all(_same(then, self._now(m)) for m, then in zip(now, self.attributes, strict=True))

    def note(self) -> None:
        """Take attributes that are others now for notes of forward's own: nothing but forward has run meanwhile."""
        noted = {id(m): set(self.noted.get(id(m), ())) for m in self.modules}
        for m, then in zip(self.modules, self.attributes, strict=True):
            now = self._now(m)
            if not _same(then, now):
                noted[id(m)] |= {name for name in now if name not in then or not _same({0: then[name]}, {0: now[name]})}
        noted = {key: names for key, names in noted.items() if names}
        if noted != self.noted:
            content = self.content
            self.__init__(self.model, noted)
            self.content = content and self._read()

    def same_content(self) -> bool:
        """Do the tensors hold the numbers that they held when this was last asked? At first: no."""
        before, self.content = self.content, self._read()
        return before == self.content

    def _read(self) -> tuple:
        tensors, views = [held[key] for held, key in self.slots], {}
        for t in tensors:
            if t.layout == torch.strided and (place := (t.untyped_storage().data_ptr(), t.dtype)) not in views:
                views[place] = self._views.get(place) or _blocks(t)  # these keep their memory: no other gets its place
        self._views = views
        return [(id(t), 0 if t.is_inference() else t._version) for t in tensors], _sums(list(views.values()))


def modules(model: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, in an order that depends on theirs."""
    found, todo = {}, [model]
    while todo:
        module = todo.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            todo += module._modules.values()
    return list(found.values())


def _everywhere() -> tuple[dict, dict]:
    """Forward hooks of all modules."""
    return dict(nn.modules.module._global_forward_hooks), dict(nn.modules.module._global_forward_pre_hooks)


def hooked(model: nn.Module) -> list[str]:
    """Modules with forward hooks, by name, but for torch's own hooks that only make weights anew."""
    names = ["every module"] if any(_everywhere()) else []
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(isinstance(hook, REMAKE_WEIGHTS) for hook in hooks):
            names.append(f"`{name}`" if name else type(module).__name__)
    return names


# ---------------------------------------------------------------- attributes


def _slots(held: dict | list | tuple) -> Iterator[tuple]:
    """Where tensors stand: containers, and the keys of tensors in them."""
    for key, value in held.items() if isinstance(held, dict) else enumerate(held):
        if isinstance(value, Tensor):
            yield held, key
        elif isinstance(value, dict | list | tuple):
            yield from _slots(value)


def _copied(value):
    """A value that stays as it is when its containers, or the attributes of an object, are edited in place."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, set):
        return set(value)
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_copied, value))
    whole = isinstance(value, nn.Module | Tensor) or callable(value) or not hasattr(value, "__dict__")
    return value if whole else _Held(value)


class _Held:
    """An object of another kind, as a configuration, and its attributes; not those of objects in these."""

    def __init__(self, value):
        self.value, self.attributes = value, dict(vars(value))

    def __eq__(self, other):
        return self.value is other and _same(self.attributes, vars(other))

    __hash__ = None


def _same(then: dict, now: dict) -> bool:
    """Are they equal? Tensors and arrays, whose equality is no bool, are equal if they are the very same."""
    try:
        return then == now
    except (RuntimeError, ValueError, TypeError):
        return False


# ---------------------------------------------------------------- numbers


def _blocks(t: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The memory in which a tensor lies, as blocks (n, BLOCK) to be read, and what is left over, (m,)."""
    memory = torch.empty(0, dtype=t.dtype, device=t.device).set_(t.detach().untyped_storage())
    memory = torch.view_as_real(memory).flatten() if memory.is_complex() else memory
    whole = len(memory) - len(memory) % BLOCK
    blocks = memory[:whole].view(-1, BLOCK)[:: EVERY if len(memory) > LARGE else 1]
    return blocks if whole else None, memory[whole:] if whole < len(memory) else None


def _sums(views: list[tuple[Tensor | None, Tensor | None]]) -> list[bytes]:
    """Marks of blocks and rests that depend on each value in its place."""
    sums, rests = {}, {}
    for blocks, rest in views:
        if blocks is not None:
            sums.setdefault(blocks.device, []).append(_sum(blocks))
        if rest is not None:
            rests.setdefault(rest.device, []).append(rest)
    for device, some in rests.items():
        rest = torch.cat(some)
        blocks = nn.functional.pad(rest, (0, -len(rest) % BLOCK)).view(-1, BLOCK)
        sums.setdefault(device, []).append(_sum(blocks))
    return [torch.cat(some).cpu().numpy().tobytes() for some in sums.values()]


def _sum(blocks: Tensor) -> Tensor:
    """(n, BLOCK) -> (n,)"""
    blocks = blocks if blocks.dtype in (torch.float32, torch.float64) else blocks.float()
    return torch.mv(blocks, _weights(blocks.dtype, blocks.device))


@cache
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers for the places of a block, always the same ones."""
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    return numbers.to(device, dtype)
