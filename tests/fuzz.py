"""Random networks against what must hold of every map: `python tests/fuzz.py SEED`, or `python tests/fuzz.py 0 10000`.

A network is a list of draws, (kind, seed, values it reads): it can be drawn again from its seed alone, and made smaller
by leaving draws out. For each, several composites explain it, and each explanation is held against

* LRP-0 derived a second time (`tests/derivation.py`), and x times the gradient where the network is piecewise linear;
* the ledger, the model's own output, the same sample alone, the same call again, and the model's last byte.

Left out, by name: values beyond 1e+-100, whose squares leave float64 (the rms that scales epsilon); affine functions
of the input itself, (x - mean) / std, whose meaning is a convention that other tests hold; f(x) + relu(-f(x)), a sum
that is rounding where it should be one number, which signs and maxima amplify; and, of the comparison alone,
x + (x - c) (`fuzz_networks.shifted_onto_itself`). LRP-0 is `Epsilon(0)`: where values of one sample lie 16 orders of
magnitude apart, any relative epsilon keeps the smallest of them, and the comparison would be one of epsilons.
"""

import random
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from derivation import relevance as derived
from fuzz_networks import Random, Recipe, recipe, shifted_onto_itself
from networks import state
from torch import Tensor, nn
from tqdm import tqdm

from lrp import LRP, LRPError, composites, rules

ZERO = "LRP-0"
COMPOSITES = {
    ZERO: lambda **o: composites.Epsilon(0, addition=rules.Epsilon(0), **o),
    "Epsilon": composites.Epsilon,
    "EpsilonPlus": composites.EpsilonPlus,
    "EpsilonPlus, exclude": lambda **o: composites.EpsilonPlus(bias="exclude", **o),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1,
    "EpsilonGammaBox": lambda **o: composites.EpsilonGammaBox(-1e13, 1e13, **o),
    "EpsilonPlusFlat, flat sums": lambda **o: composites.EpsilonPlusFlat(addition=rules.Flat(), **o),
    "unfolded": lambda **o: composites.EpsilonPlus(fold_batchnorm=False, **o),
}
SAME, BOOKS = 1e-6, 1e-7  # how far two maps may differ, of the largest value; what may be lost of the seed


# ---------------------------------------------------------------- what must hold


@dataclass
class Found:
    """What went wrong (kind: message), what was refused, and what could be compared."""

    wrong: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    compared: Counter = field(default_factory=Counter)


def check(recipe: Recipe) -> Found:
    """Explain the network of a recipe by LRP-0 and another composite; every complaint, by kind."""
    model, x, found = Random(recipe), recipe.input(), Found()
    for name in (ZERO, random.Random(recipe.seed).choice([n for n in COMPOSITES if n != ZERO])):
        before = facts(model, x)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _hold(name, recipe, model, x, found)
            found.warned += [f"{name}: {w.message}" for w in caught if "unaccounted" in str(w.message)]
        except LRPError as error:
            found.refused.append(f"{type(error).__name__}: {error}")
        except Exception as error:  # what is no LRPError is a fault
            found.wrong[f"raw {type(error).__name__}"] = f"{name}: {error}"[:200]
        if facts(model, x) != before:
            found.wrong["model changed"] = name
    return found


def _hold(name: str, recipe: Recipe, model: nn.Module, x: Tensor, found: Found) -> None:
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
    if name == ZERO and not shifted_onto_itself(recipe):
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


def run(seeds, without: frozenset[str] = frozenset()) -> tuple[list[str], Counter]:
    """Check these networks: descriptions of failures, and counts."""
    failures, counts = [], Counter()
    for seed in tqdm(seeds, unit="net", disable=None):
        network = recipe(seed, without)
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
