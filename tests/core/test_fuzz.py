"""Random networks: the right map, balanced books, an untouched model; what is held stands in `tests/fuzz.py`.

A failure prints the seed and the smallest network that still goes wrong; `python tests/fuzz.py SEED` repeats it.
"""

import warnings

import fuzz
import pytest
import torch
from fuzz_ops import KINDS

from lrp.network.graph import Graph
from lrp.nodes.steps import Through


@pytest.mark.parametrize("part", range(6))
def test_random_networks_get_the_right_map(part):
    holds(range(50 * part, 50 * (part + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(100))
def test_ten_thousand_random_networks_get_the_right_map(part):
    holds(range(1000 + 97 * part, 1000 + 97 * (part + 1)))


def holds(seeds):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")
        failures, counts = fuzz.run(seeds)
    assert not failures, "\n" + "\n".join(failures)
    refusals = {name: n for name, n in counts.items() if name.startswith("refused:")}
    assert counts["refused"] <= 0.02 * counts["networks"] + 2, refusals
    assert counts["warned"] <= 0.02 * counts["networks"] + 2
    assert counts["derivation"] >= 0.7 * counts["networks"] and counts["gradient x input"] >= 0.2 * counts["networks"]


def test_a_recipe_is_drawn_again_from_its_seed():
    for seed in range(20):
        recipe = fuzz.recipe(seed)
        one, two = fuzz.Random(recipe), fuzz.Random(fuzz.recipe(seed))
        assert one.labels == two.labels and torch.equal(one(recipe.input()), two(recipe.input()))


def test_every_kind_is_drawn():
    drawn = {draw.kind for seed in range(300) for draw in fuzz.recipe(seed).draws}
    assert drawn == KINDS.keys()


def test_a_wrong_map_is_found_and_made_small(monkeypatch):
    """An activation that hands on twice what it gets, and a graph that forgets a reader."""
    back = Through.back

    def twice(self, R, last=True):
        shares = back(self, R, last)
        shares.relevance = [None if r is None else 2 * r for r in shares.relevance]
        return shares

    quiet = frozenset({"by_hand", "chosen", "pieces", "cut"})
    monkeypatch.setattr(Through, "back", twice)
    failures, counts = fuzz.run(range(6), quiet)
    assert len(failures) == counts["wrong"] >= 2
    assert all("derivation" in failure and len(failure.splitlines()) <= 6 for failure in failures), failures


def test_a_changed_model_is_found(monkeypatch):
    init = Graph.__init__

    def touching(self, nodes, output, modules, model):
        init(self, nodes, output, modules, model)
        model.touched = True

    monkeypatch.setattr(Graph, "__init__", touching)
    assert "model changed" in fuzz.check(fuzz.recipe(0, frozenset({"by_hand", "chosen", "pieces", "cut"}))).wrong
