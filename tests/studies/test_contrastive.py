"""Contrastive LRP: the collapse of z+, the signed pass against its definition, and the study's small helpers."""

import pytest
import torch
from torch import nn

from lrp import LRP, LRPError, composites, rules, seeds
from lrp.evaluate import localisation as loc
from lrp.evaluate import metrics
from lrp.studies import contrastive

LOW, HIGH = -2.0, 2.0


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    ).double().eval()  # fmt: skip


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=generator) * (HIGH - LOW) + LOW


PRESET = contrastive.preset(LOW, HIGH)


# ---------------------------------------------------------------- rules and seeds


def test_the_preset_is_box_then_plus_and_biases_get_nothing(x):
    explainer = LRP(small(), PRESET)
    drawn = [explainer.rules[node] for node in explainer.graph.nodes if node.kind in ("convolution", "dense")]
    assert [type(rule) for rule in drawn] == [rules.ZBox, *[rules.ZPlus] * 3]
    e = explainer.explain(x, target=1)
    assert torch.allclose(e.received, e.seed) and (e.relevance * e.seed.view(-1, 1, 1, 1) >= 0).all()
    assert contrastive.preset(LOW, HIGH, bias="absorb").bias == "absorb"


@pytest.mark.parametrize("kind", [1, 2])
def test_a_signed_pass_is_the_difference_of_two(kind, x):
    model = small()
    for target in (0, 3):
        R, dual = contrastive.two_passes(model, PRESET, x, target, kind=kind)
        signed = LRP(model, PRESET).attribute(x, target, seeds.Contrastive(kind, positive=False))
        assert torch.allclose(R - dual, signed, rtol=1e-10, atol=1e-13)
        assert torch.allclose(R.sum((1, 2, 3)), dual.sum((1, 2, 3))) and not torch.allclose(R, dual)


def test_the_opposite_under_epsilon_is_the_same_and_is_refused(x):
    mixed = composites.EpsilonPlus(bias="exclude")
    R, dual = contrastive.two_passes(small(), mixed, x, 2, kind=2)
    assert torch.equal(R, dual)
    with pytest.raises(LRPError, match="identically zero"):
        LRP(small(), mixed).attribute(x, 2, contrastive.UnitContrast(2))
    with pytest.raises(LRPError, match="no dense layer"):
        contrastive.two_passes(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).double().eval(), PRESET, x, 0, kind=2)


@pytest.mark.parametrize("kind", [1, 2])
def test_a_contrast_from_one_is_that_from_the_logit_but_for_scale(kind, x):
    model = small()
    explainer, f = LRP(model, PRESET), model(x)[:, 2, None, None, None].detach()
    one = explainer.attribute(x, 2, contrastive.UnitContrast(kind, positive=False))
    logit = explainer.attribute(x, 2, seeds.Contrastive(kind, positive=False))
    assert torch.allclose(one * f, logit, rtol=1e-10, atol=1e-13)
    shown = explainer.attribute(x, 2, contrastive.UnitContrast(kind))
    assert torch.equal(shown, one.clamp(min=0))


def test_a_contrast_from_one_has_no_logits_to_weigh_by():
    with pytest.raises(ValueError, match="uniform"):
        contrastive.UnitContrast(1, others="logit")


def test_the_difference_explains_a_difference_of_logits(x):
    """Under epsilon -> 0 without biases: the gradient x input of f_t minus the mean of the others."""
    model = small()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    composite = composites.Epsilon(0, addition=rules.Epsilon(0))
    R = LRP(model, composite).attribute(x, 1, contrastive.Difference())
    leaf = x.clone().requires_grad_()
    f = model(leaf)
    margin = f[:, 1] - (f.sum(1) - f[:, 1]) / 4
    margin.sum().backward()
    assert torch.allclose(R, x * leaf.grad, rtol=1e-8, atol=1e-10)
    assert torch.allclose(R.sum((1, 2, 3)), margin.detach())


# ---------------------------------------------------------------- maps


def test_maps_are_summed_over_channels_before_they_are_cut(x):
    explainer, targets = LRP(small(), PRESET), [0, torch.tensor([1, 2, 3, 4])]
    seed = contrastive.UnitContrast(1)
    R = contrastive.maps(explainer, x, targets, seed)
    signed = explainer.attribute(x, targets, contrastive.UnitContrast(1, positive=False)).sum(2)
    assert R.shape == (2, 4, 8, 8) and torch.allclose(R, signed.clamp(min=0), atol=1e-14)
    assert torch.allclose(contrastive.maps(explainer, x, [0]), explainer.attribute(x, [0]).sum(2))
    hidden = contrastive.maps(explainer, x, [1, 5], contrastive.UnitContrast(2), start="6")
    assert hidden.shape == (2, 4, 8, 8)
    with pytest.raises(LRPError, match="targets are a list"):
        contrastive.maps(explainer, x, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(LRPError, match="targets are a list"):
        contrastive.maps(explainer, x, [])
    both = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]])
    assert torch.equal(contrastive.maps(explainer, x, both, seed), R)


def test_batches_change_nothing(x, monkeypatch):
    explainer = LRP(small(), PRESET)
    many = torch.cat([x] * 5)
    whole = contrastive.maps(explainer, many, [0, 1], seeds.OneHot())
    monkeypatch.setattr(contrastive, "PIXELS", 1)
    assert torch.allclose(contrastive.maps(explainer, many, [0, 1], seeds.OneHot()), whole, atol=1e-14)


def test_compare_gives_maps_by_method(x):
    model, targets = small(), [torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 2, 1])]
    mixed = composites.EpsilonPlus()
    family = {
        "LRP": (PRESET, seeds.OneHot()),
        "mixed": (mixed, seeds.Logit()),
        "CLRP2": (PRESET, contrastive.UnitContrast(2)),
        "CLRP1": (PRESET, contrastive.UnitContrast(1)),
        "SGLRP": (PRESET, seeds.SoftmaxGradient()),
    }
    found = contrastive.compare(model, x, targets, family, ["gradient"])
    assert list(found) == [*family, "gradient"]
    for title, (composite, seed) in family.items():
        alone = contrastive.maps(LRP(model, composite), x, targets, seed)
        assert torch.allclose(found[title], alone, rtol=1e-10, atol=1e-14), title
    assert torch.allclose(found["gradient"][1], contrastive.METHODS["gradient"](model, x, targets[1]))
    assert list(contrastive.compare(model, x, targets, {"CLRP2": family["CLRP2"]})) == ["CLRP2"]


# ---------------------------------------------------------------- how alike


def test_cosines_and_pairs_against_a_loop(x):
    R = torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    C = contrastive.cosines(R)
    for n in range(4):
        for s in range(3):
            for t in range(3):
                expected = torch.cosine_similarity(R[s, n].flatten(), R[t, n].flatten(), dim=0)
                assert C[n, s, t] == pytest.approx(float(expected))
    off = (C[:, 0, 1] + C[:, 0, 2] + C[:, 1, 2]) / 3
    assert torch.allclose(contrastive.pairs(C), off)


def test_random_networks_collapse_under_plus_by_depth():
    """Known: 0.947, 0.998 and more than 0.9999 for 1, 2 and 4 hidden layers of width 200."""
    table = contrastive.collapse([1, 2, 4], rules.ZPlus())
    assert table.groupby("depth").likeness.mean().tolist() == pytest.approx([0.947, 0.998, 1.0], abs=0.01)
    assert table[table.depth == 4].likeness.min() > 0.9999 and len(table) == 15
    contrast = contrastive.collapse([4], rules.ZPlus(), contrastive.UnitContrast(1, positive=False))
    assert contrast.likeness.max() < 0.6


def test_z_plus_is_a_product_of_column_stochastic_matrices():
    """The matrix from output to input: non-negative, columns sum to one, columns nearly alike."""
    model = contrastive.random_network(4, width=30, classes=6)
    x = torch.rand(1, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = LRP(model, composites.Composite([("any", rules.ZPlus())])).attribute(x, list(range(6)), seeds.OneHot())[:, 0].T
    assert (A >= 0).all() and torch.allclose(A.sum(0), torch.ones(6, dtype=torch.float64))
    singular = torch.linalg.svdvals(A)
    assert singular[1] < 0.05 * singular[0]


def test_relevance_grows_alike_on_the_way_down(x):
    found = contrastive.by_layer(LRP(small(), PRESET), x, seeds.OneHot(), ["7", "2"])
    assert list(found) == ["7", "2", "pixels"]
    top, _, bottom = (v.mean() for v in found.values())
    assert top < bottom <= 1


# ---------------------------------------------------------------- two things at a time


def test_scores_are_averaged_over_the_targets_of_an_image():
    R = torch.zeros(2, 3, 4, 4)
    R[:, :, 0, 0] = 1
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    masks[0, :, :2] = True
    masks[1, 0, 2:] = masks[1, 1, :2] = True  # the second target of image 2 has no mask
    assert contrastive.per_image(loc.pointing_game, R, masks).tolist() == [0.5, 1, 1]
    assert contrastive.per_image(loc.energy_hits, R, masks).shape == (3, len(loc.ENERGIES))


def test_preference_of_known_maps():
    masks = torch.zeros(2, 1, 2, 4, dtype=torch.bool)
    masks[0, :, :, :2] = masks[1, :, :, 2:] = True
    R = torch.ones(2, 1, 2, 4)
    assert contrastive.preference(R, masks).tolist() == [[0], [0]]
    assert contrastive.preference(R * masks, masks).tolist() == [[1], [1]]
    assert contrastive.preference(R * ~masks, masks).tolist() == [[-1], [-1]]
    R[0, :, :, :2] = 3
    assert contrastive.preference(R, masks).tolist() == [[0.5], [0]]


def test_a_map_of_its_own_image_beats_a_borrowed_one():
    masks = metrics.box_masks(torch.tensor([[0, 0, 2, 2], [2, 2, 4, 4], [0, 0, 2, 2], [1, 1, 3, 3]]), (4, 4))
    labels = torch.tensor([3, 3, 5, 3])
    gain = contrastive.instance_gain(masks.float(), labels, masks)
    assert gain.tolist() == [1, 0.75]  # image 1 borrows from 0, image 3 from 1; image 2 has no other of its class
    assert contrastive.instance_gain(torch.ones(4, 4, 4), labels, masks).tolist() == [0, 0]


def test_concentration_of_known_maps():
    whole = metrics.box_masks(torch.tensor([[0, 0, 4, 2]] * 3), (4, 4))
    part = metrics.box_masks(torch.tensor([[0, 0, 2, 4]] * 3), (4, 4))  # reaches out of the whole
    R = torch.ones(3, 4, 4)
    R[1] = part[1]
    R[2, 0, 0] = 3
    assert contrastive.concentration(R, part, whole).tolist() == pytest.approx([0, 0.5, 0.1])


def test_pictures_side_by_side():
    left, right = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    picture, masks = contrastive.beside(left, right)
    assert picture.shape == (3, 4, 8) and masks.shape == (2, 4, 8)
    assert torch.equal(picture[0].bool(), masks[1]) and torch.equal(masks[0], ~masks[1])
    with pytest.raises(LRPError, match="one size"):
        contrastive.beside(left, right[:, :2])


def test_neighbours_of_different_classes():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    boxes = metrics.box_masks(torch.tensor([[0, 0, 2, 2]] * 5), (4, 4))
    pictures, targets, masks = contrastive.neighbours(images, torch.tensor([7, 3, 5, 5, 1]), boxes)
    assert pictures.shape == (1, 3, 4, 8) and targets.tolist() == [[7], [3]]
    assert pictures[0, 0, 0].tolist() == [0] * 4 + [1] * 4
    assert masks.shape == (2, 1, 4, 8) and masks.sum().item() == 8 and masks[1, 0, 0, 4:6].all()
