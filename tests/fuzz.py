"""Random networks against what must hold of every map: `python tests/fuzz.py SEED`, or `python tests/fuzz.py 0 10000`.

A network is a list of draws, (kind, seed, values it reads): it can be drawn again from its seed alone, and made smaller
by leaving draws out. For each, several composites explain it, and each explanation is held against

* LRP-0 derived a second time (`tests/derivation.py`), and x times the gradient where the network is piecewise linear;
* the ledger, the model's own output, the same sample alone, the same call again, and the model's last byte.

Left out, by name: values beyond 1e+-100, whose squares leave float64 (the rms that scales epsilon); affine functions
of the input itself, (x - mean) / std, whose meaning is a convention that other tests hold; and f(x) + relu(-f(x)), a
sum that is rounding where it should be zero, which rules that ask for signs amplify.
"""

import random
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace

import fuzz_wiring  # noqa: F401 (its operations enter themselves)
import torch
from derivation import relevance as derived
from fuzz_ops import KINDS
from networks import state
from torch import Tensor, nn
from tqdm import tqdm

from lrp import LRP, LRPError, composites, rules

ZERO = "LRP-0"
COMPOSITES = {
    ZERO: lambda **o: composites.Epsilon(1e-15, addition=rules.Epsilon(1e-15), **o),
    "Epsilon": composites.Epsilon,
    "EpsilonPlus": composites.EpsilonPlus,
    "EpsilonPlus, exclude": lambda **o: composites.EpsilonPlus(bias="exclude", **o),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1,
    "EpsilonGammaBox": lambda **o: composites.EpsilonGammaBox(-1e13, 1e13, **o),
    "EpsilonPlusFlat, flat sums": lambda **o: composites.EpsilonPlusFlat(addition=rules.Flat(), **o),
    "unfolded": lambda **o: composites.EpsilonPlus(fold_batchnorm=False, **o),
}
AFFINE = {"batchnorm", "shift"}
MOVES = set("scale view cut identity pad add spread_add join pieces chosen flatten_all resize".split())
SAME, BOOKS = 1e-6, 1e-7  # how far two maps may differ, of the largest value; what may be lost of the seed


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


# ---------------------------------------------------------------- what must hold


@dataclass
class Found:
    """What went wrong (kind: message), what was refused, and what could be compared."""

    wrong: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    compared: Counter = field(default_factory=Counter)


def check(recipe: Recipe) -> Found:
    """Explain the network of a recipe by LRP-0 and two other composites; every complaint, by kind."""
    model, x, found = Random(recipe), recipe.input(), Found()
    rng = random.Random(recipe.seed)
    for name in (ZERO, *rng.sample([n for n in COMPOSITES if n != ZERO], 2)):
        before = facts(model, x)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _hold(name, model, x, found)
            found.warned += [f"{name}: {w.message}" for w in caught if "unaccounted" in str(w.message)]
        except LRPError as error:
            found.refused.append(f"{type(error).__name__}: {error}")
        except Exception as error:  # what is no LRPError is a fault
            found.wrong[f"raw {type(error).__name__}"] = f"{name}: {error}"[:200]
        if facts(model, x) != before:
            found.wrong["model changed"] = name
    return found


def _hold(name: str, model: nn.Module, x: Tensor, found: Found) -> None:
    explainer = LRP(model, COMPOSITES[name]())
    e = explainer.explain(x, 0)
    with torch.no_grad():
        y = model(x.clone())
    if not torch.allclose(e.output, y, rtol=1e-9, atol=1e-12 * float(y.abs().max())):
        found.wrong["output"] = f"{name}: {far(e.output, y):.2g} off"
    left = e.seed - e.relevance.flatten(1).sum(1) - e.sum_of("bias") - e.sum_of("stabiliser")
    lost = float((left.abs() / e.magnitude.clamp(min=1e-300)).max()) if float(e.magnitude.max()) else 0.0
    if not lost <= BOOKS and not e.imbalance > 1e-8:
        found.wrong["books"] = f"{name}: {lost:.2g} of the seed is lost without a warning"
    if not (torch.equal(e.relevance, explainer.attribute(x, 0))
            and torch.equal(e.relevance, LRP(model, COMPOSITES[name]()).attribute(x, 0))):  # fmt: skip
        found.wrong["again"] = f"{name}: another map the second time"
    alone = torch.cat([explainer.attribute(x[i : i + 1], 0) for i in range(len(x))])
    flow = torch.stack([row.relevance_out[0].abs() for row in e.rows]).amax(0)
    noise = (1e-7 * flow).clamp(min=1e-300)  # where all that arrives cancels, rounding is left
    if far(alone, e.relevance, noise) > SAME:
        found.wrong["alone"] = f"{name}: a sample alone is {far(alone, e.relevance, noise):.2g} off"
    found.compared["explanations"] += 1
    if name == ZERO:
        _derive(model, x, e.relevance, noise, found)


def _derive(model: nn.Module, x: Tensor, R: Tensor, noise: Tensor, found: Found) -> None:
    with torch.no_grad():
        seed = torch.zeros_like(model(x.clone()))
    seed[:, 0] = 1
    if model.linear:
        leaf = x.clone().requires_grad_()
        try:
            (grad,) = torch.autograd.grad(
                model(leaf * 1.0)[:, 0].sum(), leaf, allow_unused=True, materialize_grads=True
            )
            found.compared["gradient x input"] += 1
            if far(R, x * grad, noise) > SAME:
                found.wrong["gradient x input"] = f"{far(R, x * grad, noise):.2g} off"
        except RuntimeError:  # autograd cannot follow this change in place
            found.compared["no gradient"] += 1
    try:
        second = derived(model, x, seed)
    except RuntimeError as error:
        if "modified" not in str(error):
            raise
        return  # autograd cannot follow this change in place
    if second.refused or second.undefined:
        found.compared["underivable"] += 1
        return
    found.compared["derivation"] += 1
    if far(R, second.relevance, noise) > SAME:
        found.wrong["derivation"] = f"{far(R, second.relevance, noise):.2g} off"


def far(a: Tensor, b: Tensor, least: Tensor | float = 1e-300) -> float:
    """How far two maps differ at most, as a share of the largest value (or `least`), sample by sample."""
    a, b = a.flatten(1), b.flatten(1)
    return float(((a - b).abs().amax(1) / b.abs().amax(1).clamp(min=least)).max())


def facts(model: nn.Module, x: Tensor) -> tuple:
    """All that could change: the model to the last byte, its flags and hooks, the random state, the input."""
    return state(model), x.numpy().tobytes(), x.requires_grad, torch.is_grad_enabled()


# ---------------------------------------------------------------- a failure, made small


def shrunk(recipe: Recipe, kinds: set[str]) -> Recipe:
    """The smallest recipe found that still goes wrong in one of these ways, by leaving draws out."""
    smaller = True
    while smaller:
        smaller = False
        for i in reversed(range(len(recipe.draws))):
            for to in recipe.draws[i].reads:
                candidate = _without(recipe, i, to)
                try:
                    if kinds & check(candidate).wrong.keys():
                        recipe, smaller = candidate, True
                        break
                except Exception:  # it does not fit any more
                    continue
            if smaller:
                break
    return recipe


def _without(recipe: Recipe, i: int, to: int) -> Recipe:
    """Draw i left out; who read its value reads value `to`."""
    value = i + 1
    moved = [r - (r > value) if r != value else to for r in range(len(recipe.draws) + 1)]
    kept = (draw for k, draw in enumerate(recipe.draws) if k != i)
    return replace(recipe, draws=tuple(replace(draw, reads=tuple(moved[r] for r in draw.reads)) for draw in kept))


def describe(recipe: Recipe, found: Found) -> str:
    head = f"seed {recipe.seed}: {found.wrong}", f"  v0 = input {recipe.shape}, 1e{recipe.power:+.0f}"
    return "\n  ".join(["\n".join(head), *Random(recipe).labels])


def shifted_onto_itself(network: Recipe) -> bool:
    """Is x joined with an elementwise function of x in which a constant is added, as in x + (x - c) / n?

    All of it is an activation of x here, through which relevance passes; LRP-0 and the derivation book c as a bias.
    """

    def line(k: int) -> list[int]:
        found = [k]
        while k and network.draws[k - 1].kind in (
            "shift",
            "scale",
            "chosen",
            "activation",
            "relu",
            "identity",
            "by_hand",
        ):
            k = network.draws[k - 1].reads[0]
            found.append(k)
        return found

    for draw in network.draws:
        lines = [line(k) for k in draw.reads]
        if len(lines) > 1 and set(lines[0]) & set(lines[1]):
            between = (set(lines[0]) | set(lines[1])) - {0}
            if any(network.draws[k - 1].kind in ("shift", "chosen") for k in between):
                return True
    return False


def run(seeds, without: frozenset[str] = frozenset()) -> tuple[list[str], Counter]:
    """Check these networks: descriptions of failures, and counts."""
    failures, counts = [], Counter()
    for seed in tqdm(seeds, unit="net", disable=None):
        network = recipe(seed, without)
        if shifted_onto_itself(network):
            counts.update(networks=1, skipped=1)
            continue
        found = check(network)
        counts += found.compared
        counts.update(networks=1, refused=bool(found.refused), warned=bool(found.warned), wrong=bool(found.wrong))
        counts.update(f"refused: {r[:90]}" for r in set(found.refused))
        if found.wrong:
            least = shrunk(network, set(found.wrong))
            failures.append(describe(least, check(least)))
    return failures, counts


def main(arguments: list[str]) -> int:
    """One seed, or the first and the number of networks, then kinds to leave out; returns 1 if something went wrong."""
    torch.set_num_threads(1)
    first, n = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1
    failures, counts = run(range(first, first + n), frozenset(arguments[2:]))
    print("\n".join([*failures, *(f"{count:6d} {name}" for name, count in counts.most_common())]))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
