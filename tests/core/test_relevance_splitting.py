"""The preset of relevance splitting, against the authors' rules written out for a ResNet of BasicBlocks."""

import pytest
import torch
import torch.nn.functional as F
from networks import sound
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lrp import LRP, UnsupportedOperation, composites, rules, seeds

ADDED = 1e-5


def plus(layer, a, R, ones=False):
    """z+ on the raw weight, by autograd: a * d(sum of z s)/da."""
    a = torch.ones_like(a) if ones else a
    leaf = a.detach().requires_grad_()
    w = layer.weight.detach().clamp(min=0)
    linear = isinstance(layer, nn.Linear)
    z = F.linear(leaf, w) if linear else F.conv2d(leaf, w, None, layer.stride, layer.padding)
    return a * torch.autograd.grad(z, leaf, R / (z.detach() + ADDED))[0]


def split(R, main, skip, mode, identity):
    if mode.endswith("no identity") and identity:
        return R, torch.zeros_like(R)
    if mode.startswith("symmetric"):
        return R / 2, R / 2
    share = main.abs() / (main.abs() + skip.abs())
    return R * share, R * (1 - share)


def block_backward(block, x, R, mode):
    a1 = block.bn1(block.conv1(x)).relu()
    main = block.bn2(block.conv2(a1))
    skip = x if block.downsample is None else block.downsample(x)
    R_main, R_skip = split(R, main, skip, mode, block.downsample is None)
    R_main = plus(block.conv1, x, plus(block.conv2, a1, R_main))
    return R_main + (R_skip if block.downsample is None else plus(block.downsample[0], x, R_skip))


def by_hand(model, x, mode):
    """Relevance of the pixels, summed over colours, step by step."""
    with torch.enable_grad():
        stem = model.bn1(model.conv1(x)).relu()
        a, inputs = model.maxpool(stem), []
        blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
        for block in blocks:
            inputs.append(a)
            a = block(a)
        pooled = a.mean((2, 3))
        p = model.fc(pooled).softmax(1)
        R = F.one_hot(p.argmax(1), p.shape[1]) * p
        R = plus(model.fc, pooled, R)
        area = a.shape[2] * a.shape[3]
        R = a / area * (R / (pooled + ADDED))[:, :, None, None]
        totals = [R.sum()]
        for block, a in zip(reversed(blocks), reversed(inputs), strict=True):
            R = block_backward(block, a, R, mode)
            totals.append(R.sum())
        s = R / (F.avg_pool2d(stem, 2) + ADDED)
        R = stem / 4 * F.interpolate(s, scale_factor=2, mode="nearest")
        return plus(model.conv1, x, R, ones=True).detach(), torch.stack(totals).detach()


def network(layers=(1, 2, 1, 2), colours=3):
    torch.manual_seed(0)
    model = ResNet(BasicBlock, list(layers), num_classes=6)
    model.conv1 = nn.Conv2d(colours, 64, 7, 2, 3, bias=False)
    return sound(model)


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


MODES = {
    "symmetric, no identity": {"splitting": "symmetric", "identical": False},
    "symmetric": {"splitting": "symmetric"},
    "ratio, no identity": {"identical": False},
    "ratio": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_preset_is_the_authors_program(mode, x):
    model = network()
    expected, totals = by_hand(model, x, mode)
    names = ["layer4.1", "layer4.0", "layer3.0", "layer2.1", "layer2.0", "layer1.0"]
    e = LRP(model, composites.RelevanceSplitting(**MODES[mode])).explain(x, seed=seeds.Probability(), layers=names)
    assert torch.allclose(e.relevance, expected, rtol=1e-9, atol=1e-15)
    assert (e.relevance >= 0).all() and torch.equal(e.target, model(x).argmax(1))
    assert torch.allclose(torch.stack([e.layers[name].sum() for name in names]), totals[:-1], rtol=1e-9)


def test_blocks_conserve_and_only_the_pool_leaks(x):
    e = LRP(network(), composites.RelevanceSplitting()).explain(
        x, seed=seeds.Probability(), layers=["layer1", "layer4"]
    )
    ratio = e.layers["layer1"].sum((1, 2, 3)) / e.layers["layer4"].sum((1, 2, 3))
    assert ((ratio - 1).abs() < 1e-3).all()
    lost = e.ledger_of().lost.abs()
    assert lost.idxmax() == "maxpool" and lost.drop("maxpool").max() < 1e-9


def test_the_same_map_on_every_call_and_for_any_batch(x):
    explainer = LRP(network(), composites.RelevanceSplitting())
    first = explainer.attribute(x, seed=seeds.Probability())
    assert torch.equal(explainer.attribute(x, seed=seeds.Probability()), first)
    alone = torch.cat([explainer.attribute(one[None], seed=seeds.Probability()) for one in x])
    assert torch.allclose(alone, first, rtol=1e-10, atol=1e-16)


def test_the_first_layer_is_blind_to_the_image(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).double().eval()
    R = torch.rand(2, 4, 62, 62, dtype=torch.float64)
    explainer = LRP(model, composites.RelevanceSplitting())
    assert torch.equal(explainer.attribute(x, seed=R), explainer.attribute(x.flip(2), seed=R))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_the_corrected_preset_conserves_from_logit_to_pixels(block):
    torch.manual_seed(1)
    model = sound(ResNet(block, [2, 1, 1, 1], num_classes=5)).float()
    x = torch.rand(2, 3, 64, 64)
    e = LRP(model, composites.RelevanceSplitting(faithful=False, low=0.0, high=1.0)).explain(x)
    assert torch.allclose(e.received, e.seed, rtol=1e-4) and e.imbalance < 1e-4


def test_grayscale_and_options():
    model = network((1, 1, 1, 1), colours=1)
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    assert LRP(model, composites.RelevanceSplitting()).attribute(x).shape == x.shape
    signed = composites.RelevanceSplitting(faithful=False, low=0.0, high=1.0, addition=rules.ZPlus())
    assert isinstance(signed.addition, rules.ZPlus)


def test_refusals():
    with pytest.raises(ValueError, match="splitting must be 'ratio' or 'symmetric', not 'half'"):
        composites.RelevanceSplitting(splitting="half")
    with pytest.raises(ValueError, match="needs the bounds of the pixels"):
        composites.RelevanceSplitting(faithful=False)
    pool = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(400, 2)).double().eval()
    )
    with pytest.raises(UnsupportedOperation, match="needs a pool that halves height and width"):
        LRP(pool, composites.RelevanceSplitting()).attribute(torch.rand(1, 3, 32, 32, dtype=torch.float64))


def test_with_the_winner_in_place_of_the_average_the_total_stays(x):
    """The substituted pool is the one place where the preset loses relevance."""
    preset = composites.RelevanceSplitting()
    preset.rules = [(condition, rule) for condition, rule in preset.rules if condition != "maximum"]
    e = LRP(network(), preset).explain(x, seed=seeds.Probability())
    assert torch.allclose(e.received, e.seed, rtol=1e-3)
