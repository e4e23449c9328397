"""Random networks, from draws: (kind, seed, values it reads). What is drawn stands in `fuzz_ops` and `fuzz_wiring`."""

import random
from dataclasses import dataclass, replace

import fuzz_wiring  # noqa: F401 (its operations enter themselves)
import torch
from fuzz_ops import KINDS
from torch import Tensor, nn

AFFINE = {"batchnorm", "shift"}
MOVES = set("scale view cut identity pad add spread_add join pieces chosen flatten_all resize".split())
ONE_VALUE = {
    "shift",
    "batchnorm",
    "scale",
    "chosen",
    "activation",
    "relu",
    "relu_inplace",
    "identity",
    "by_hand",
}  # functions of one value
MEETINGS = {"add", "larger", "product"}  # of two, perhaps of one value


@dataclass(frozen=True)
class Draw:
    """One operation: its kind, the seed of its parameters, which values it reads, a power of ten for its weights."""

    kind: str
    seed: int
    reads: tuple[int, ...]
    power: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A network and its input, by shape and seeds."""

    shape: tuple[int, ...]
    seed: int
    power: float = 0.0
    draws: tuple[Draw, ...] = ()

    def input(self) -> Tensor:
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return x * 10**self.power


class Random(nn.Module):
    """The network of a recipe; `forward` keeps all values, as a network with skips does."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.steps, self.reads, self.labels, self.linear = nn.ModuleList(), [], [], True
        values = [recipe.input()]
        for i, draw in enumerate(recipe.draws):
            step, more = grown(recipe.draws[:i], draw, values)
            if step is None:
                raise ValueError(f"{draw} does not fit")
            values = more
            self.steps.append(step), self.reads.append(draw.reads)
            self.labels.append(f"v{len(values) - 1} = {draw.kind}: {step.label}  of {draw.reads}, {draw.power:+.0f}")
            self.linear &= KINDS[draw.kind][2]
        self.eval()

    def forward(self, x):
        values = [x]
        for step, reads in zip(self.steps, self.reads, strict=True):
            values.append(step(*[values[i] for i in reads]))
        return values[-1]


def make(draw: Draw, values: list[Tensor]) -> nn.Module | None:
    """The operation of a draw, in float64 and eval mode; None where it does not fit the values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.seed)
        step = KINDS[draw.kind][0](random.Random(draw.seed), *(values[i] for i in draw.reads))
    if step is None:
        return None
    if draw.power:
        with torch.no_grad():
            for p in step.parameters():
                p.mul_(10**draw.power)
    return step.double().eval()


def sound(values: list[Tensor]) -> bool:
    """Within float64 together with its squares, not too large, samples along the first axis."""
    x = values[-1]
    largest = float(x.detach().abs().max()) if x.numel() else 0.0
    small = x.numel() <= 3000 and 2 <= x.dim() <= 5 and len(x) == len(values[0])
    return small and (largest == 0 or 1e-100 < largest < 1e100)


def recipe(seed: int, without: frozenset[str] = frozenset()) -> Recipe:
    """The random network of this number, of other kinds than these."""
    rng = random.Random(seed)
    rank = rng.choice([2, 3, 3, 4, 4, 4, 5])
    shape = (rng.randint(2, 3), rng.randint(1, 6), *(rng.randint(2, {3: 9, 4: 7, 5: 4}[rank]) for _ in range(rank - 2)))
    wide = rng.random() < 0.3
    made = Recipe(shape, seed, rng.uniform(-12, 12) if wide else 0.0)
    values = [made.input()]
    for _ in range(200):
        if len(made.draws) >= 2 + seed % 9:
            break
        name = rng.choice(sorted(KINDS.keys() - without))
        last, some = len(values) - 1, rng.randrange(len(values))
        reads = tuple(rng.choice([last, last, some]) for _ in range(KINDS[name][1]))
        power = rng.uniform(-12, 12) if wide and rng.random() < 0.3 else 0.0
        draw = Draw(name, rng.randrange(2**31), reads, power)
        step, more = grown(made.draws, draw, values)
        if step is not None:
            made, values = replace(made, draws=(*made.draws, draw)), more
    return replace(made, draws=(*made.draws, *_head(rng, values)))


def grown(draws: tuple[Draw, ...], draw: Draw, values: list[Tensor]) -> tuple[nn.Module | None, list[Tensor]]:
    """The operation of a draw, and the values with its own; None where it is left out or does not compute."""
    front = {0}  # values that are the input itself, or parts of it
    for i, earlier in enumerate(draws):
        if earlier.kind in MOVES and front & set(earlier.reads):
            front.add(i + 1)
    if draw.kind in AFFINE and front & set(draw.reads):
        return None, values
    values = [value.clone() for value in values]  # the operation may write over them
    try:
        step = make(draw, values)
        if step is None:
            return None, values
        with torch.no_grad():
            more = [*values, step(*(values[i] for i in draw.reads))]
    except (RuntimeError, ValueError, IndexError):
        return None, values
    return (step, more) if sound(more) else (None, values)


def _head(rng: random.Random, values: list[Tensor]) -> list[Draw]:
    """Flatten and a dense layer."""
    return [Draw("flatten_all", 0, (len(values) - 1,)), Draw("dense", rng.randrange(2**31), (len(values),))]


def shifted_onto_itself(network: Recipe) -> bool:
    """Do a value and an elementwise function of it meet in a sum or maximum, with a constant added on the way?

    As in x + (x - c): all of it is an activation of x for the package, through which relevance passes; LRP-0 and the
    derivation book c as a bias.
    """

    def line(k: int) -> list[int]:
        found = [k]
        while k:
            draw = network.draws[k - 1]
            if draw.kind not in ONE_VALUE | MEETINGS or (k := met(*map(line, draw.reads))) is None:
                break
            found.append(k)
        return found

    def met(one: list[int], *others: list[int]) -> int | None:
        return next((k for k in one if all(k in other for other in others)), None)

    for draw in network.draws:
        lines = [line(k) for k in draw.reads]
        if draw.kind in ("add", "larger") and (k := met(*lines)) is not None:
            way = [n for found in lines for n in found[: found.index(k)]]
            if any(network.draws[n - 1].kind in ("shift", "batchnorm", "chosen") for n in way):
                return True
    return False
