"""Studies of skip connections: shares by hand, growth, the lattice and its cure, any ResNet in one call."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, sound
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lrp import LRP, DataError, LRPError, LRPWarning, composites, rules, seeds
from lrp.data import datasets, models
from lrp.data.networks import CIFARResNet, PaddedShortcut
from lrp.splitting import BranchOnly, Copy, GlobalRatio, gaps, spread
from lrp.studies import skips


def resnet(block=BasicBlock, layers=(1, 2, 1, 1), colours=3):
    torch.manual_seed(0)
    model = ResNet(block, list(layers), num_classes=5)
    model.conv1 = nn.Conv2d(colours, 64, 7, 2, 3, bias=False)
    return sound(model)


@pytest.fixture
def x():
    return torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------- at a sum


def test_shares_by_hand_are_the_formulas():
    a, b = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([3.0, 3.0, 1.0, 0.0], [1.0, -1.0, -2.0, 0.0]))
    expected = {
        rules.Ratio(): [3 / 4, 3 / 4, 1 / 3, 1 / 2],
        GlobalRatio(): [3 / 4, 3 / 4, 1 / 3, None],  # of a single unit
        rules.Symmetric(): [1 / 2] * 4,
        BranchOnly(): [0.0] * 4,
        Copy(): [1.0] * 4,
        rules.Epsilon(0): [3 / 4, 3 / 2, -1, None],
        rules.ZPlus(): [3 / 4, 1, None, None],
    }
    for rule, shares in expected.items():
        found, _ = skips.by_hand(rule, a, b)
        for share, value in zip(shares, found[:, 0].tolist(), strict=True):
            assert share is None or value == pytest.approx(share, rel=1e-5), rule


def test_no_rule_has_all_three_virtues_but_those_that_share_by_sign():
    character = {type(rule).__name__: skips.character(rule) for rule in (
        rules.Ratio(), rules.Flat(), rules.Epsilon(), rules.ZPlus(), rules.AlphaBeta(2, 1), Copy(), GlobalRatio(),
        BranchOnly(),
    )}  # fmt: skip
    conserving, bounded, aware = (
        {n for n, c in character.items() if c[k]} for k in ("conserving", "bounded", "sign-aware")
    )
    assert set(character) - conserving == {"Copy"}
    assert set(character) - bounded == {"Epsilon", "GlobalRatio"}
    assert {"Epsilon", "ZPlus", "AlphaBeta"} <= aware and not aware & {"Ratio", "Flat", "Copy", "BranchOnly"}


# ---------------------------------------------------------------- on the way down


def test_copies_grow_and_ratios_do_not(x):
    model = resnet()
    explainer = LRP(model, composites.EpsilonPlus(addition=Copy(), bias="exclude"))
    with pytest.warns(LRPWarning, match="unaccounted for"):
        found = skips.growth(explainer, x)
    assert list(found) == ["layer4.0.add", "layer3.0.add", "layer2.1.add", "layer2.0.add", "layer1.0.add", "input"]
    for n, share in enumerate(found.values()):
        assert torch.allclose(share, torch.full((2,), 2.0**n).double(), rtol=1e-3)
    kept = skips.growth(LRP(model, composites.EpsilonPlus(bias="exclude")), x)
    assert all(torch.allclose(share, torch.ones(2).double(), rtol=1e-4) for share in kept.values())


def test_the_share_of_skips_against_a_sum_over_units(x):
    """The ledger's answer against |skip| / (|skip| + |branch|), summed over units with their relevance."""
    model = resnet()
    explainer = LRP(model, composites.EpsilonPlus(bias="exclude"))
    found = skips.skip_share(explainer, x, 1)
    for name, identity in (("layer1.0", True), ("layer2.0", False), ("layer2.1", True)):
        block = model.get_submodule(name)
        stop = {}
        handle = block.register_forward_hook(lambda m, i, o, stop=stop: stop.update(into=i[0].clone()))
        with torch.no_grad():
            model(x)
            handle.remove()
            h = stop["into"]
            branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(h)))))
            skip = h if identity else block.downsample(h)
        R = explainer.explain(x, 1, layers=[name]).layers[name]
        share = (R * skip.abs() / (skip.abs() + branch.abs())).sum((1, 2, 3)) / R.sum((1, 2, 3))
        assert torch.allclose(found[f"{name}.add"], share, rtol=1e-6), name
    half = skips.skip_share(LRP(model, composites.EpsilonPlus(bias="exclude", addition=rules.Symmetric())), x)
    assert all(torch.allclose(share, torch.full((2,), 0.5).double(), rtol=1e-6) for share in half.values())
    none = skips.skip_share(LRP(model, composites.EpsilonPlus(bias="exclude", addition=BranchOnly())), x)
    assert none["layer1.0.add"].abs().max() < 1e-9 < none["layer2.0.add"].min()


def test_a_network_without_skips_has_no_share():
    vgg = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().eval()
    with pytest.raises(LRPError, match="no sum of a skip and a branch"):
        skips.skip_share(LRP(vgg), torch.rand(2, 3, 2, 2).double())


# ---------------------------------------------------------------- the lattice and its cure


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([(2, 8, 12), (4, 8, 8), (3, 6, 9)]), st.integers(0, 1000))
def test_the_lattice_by_phases_is_that_of_the_spectrum(case, seed):
    period, h, w = case
    maps = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    power = torch.fft.fft2(maps).abs().square()[:, :: h // period, :: w // period]  # frequencies of the lattice
    expected = power.sum((1, 2)) / power[:, 0, 0] - 1
    assert torch.allclose(skips.lattice(maps, period), expected, rtol=1e-9, atol=1e-12)
    dots = torch.zeros(1, h, w)
    dots[:, ::period, ::period] = 1
    assert skips.lattice(dots, period).item() == pytest.approx(period**2 - 1)
    assert skips.lattice(torch.ones(1, h, w), period).abs().item() < 1e-12
    middle = skips.spectrum(maps)
    assert middle.shape == (h, w) and middle[h // 2, w // 2] == pytest.approx(1)


def test_a_lattice_must_fit():
    with pytest.raises(LRPError, match=r"period 3 must divide maps of \(8, 9\)"):
        skips.lattice(torch.ones(1, 8, 9), 3)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), a=st.integers(1, 3), b=st.integers(1, 3), seed=st.integers(0, 999))
def test_spreading_by_a_slow_loop(h, w, a, b, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2, h, w, generator=g, dtype=torch.float64) * (torch.rand(2, 2, h, w, generator=g) < 0.6)
    R = torch.zeros(3, 2, 2, h, w, dtype=torch.float64)
    R[..., ::a, ::b] = torch.randn(R[..., ::a, ::b].shape, generator=g, dtype=torch.float64)
    expected = torch.zeros_like(R)
    for i in range(0, h, a):
        for j in range(0, w, b):
            cell = x[..., i : i + a, j : j + b].abs()
            whole = cell.sum((-2, -1), keepdim=True)
            share = torch.where(whole > 0, cell / whole.clamp(min=1e-300), torch.zeros_like(cell))
            share[..., :1, :1] += (whole == 0).double()
            expected[..., i : i + a, j : j + b] = R[..., i : i + 1, j : j + 1] * share
    found = spread(R, x, (a, b))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert torch.allclose(found.sum((-2, -1)), R.sum((-2, -1)), rtol=1e-9, atol=1e-12)


def test_who_leaves_gaps():
    def of(layer):
        explainer = LRP(nn.Sequential(layer).eval(), composites.Epsilon())
        return [gaps(node, {}) for node in explainer.graph.nodes if node.carries and node.kind != "input"]

    assert of(nn.Conv2d(3, 2, 1, stride=(2, 1))) == [(2, 1)]
    assert of(nn.Conv2d(3, 2, 1, stride=2, padding="valid")) == [(2, 2)]
    for closed in (nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, stride=2), nn.Conv2d(3, 2, 1, stride=2, padding=1)):
        assert of(closed) == [None]
    assert of(nn.ConvTranspose2d(3, 2, 1, stride=2)) == [None]
    assert of(Net(lambda m, x: x[:, :, ::2, ::3])) == [(2, 3)]
    for index in (slice(None), (slice(None), slice(0, 2)), (slice(None), slice(None), slice(1, None, 2), slice(None))):
        assert of(Net(lambda m, x, index=index: x[index])) == [None]


@pytest.mark.parametrize(
    "make", [resnet, lambda: resnet(Bottleneck), CIFARResNet], ids=["basic", "bottleneck", "option A"]
)
def test_the_cure_keeps_the_total_and_removes_the_lattice(make):
    """On average over networks: with random weights one alone may have hardly any lattice."""
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    strength = {False: [], True: []}
    for seed in range(3):
        torch.manual_seed(seed)
        model = sound(make())
        first = "layer1" if isinstance(model, CIFARResNet) else "maxpool"
        for cured, found in strength.items():
            composite = composites.EpsilonPlus(bias="exclude", spread=cured)
            e = LRP(model, composite).explain(x, 0, layers=[first])
            assert e.imbalance < 1e-9 and torch.allclose(e.received, e.seed, rtol=1e-3)
            found.append(skips.lattice(e.layers[first].sum(1), 4).mean())
    before, after = (torch.stack(strength[cured]).mean() for cured in (False, True))
    assert after < 0.5 * before


# ---------------------------------------------------------------- any ResNet, in one call


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_one_call_explains_any_resnet(block, colours, x):
    model, x = resnet(block, colours=colours), x[:, :colours]
    R = skips.explain(model, x, low=0.0, high=1.0)
    expected = LRP(model, composites.RelevanceSplitting(faithful=False, low=0.0, high=1.0)).attribute(x).sum(1)
    assert R.shape == (2, 64, 64) and torch.equal(R, expected)
    assert torch.allclose(R.sum((1, 2)), model(x).amax(1).detach(), rtol=1e-4)
    p = model(x).softmax(1).amax(1).detach()
    raw = skips.explain(model, x, faithful=True)
    assert (raw >= 0).all() and (raw.sum((1, 2)) <= p * (1 + 1e-9)).all()
    quantized = skips.explain(model, x, [0, 1], faithful=True, levels=8)
    assert quantized.shape == (2, 2, 64, 64)
    assert all(len(one.unique()) <= 8 for one in quantized.flatten(0, 1))
    with pytest.raises(ValueError, match="needs the bounds of the pixels"):
        skips.explain(model, x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_the_corrected_preset_conserves_on_torchvision(name):
    torch.manual_seed(0)
    model = sound(torchvision.models.get_model(name, weights=None, num_classes=7)).float()
    x = torch.rand(2, 3, 64, 64)
    e = LRP(model, composites.RelevanceSplitting(faithful=False, low=0.0, high=1.0)).explain(x)
    assert torch.allclose(e.received, e.seed, rtol=1e-4) and e.imbalance < 1e-4


@pytest.mark.parametrize("name", ["mobilenet_v2", "cifar_resnet20"])
def test_the_corrected_preset_conserves_on_trained_networks(name):
    try:
        model = models.load(name)
    except DataError as error:
        pytest.skip(str(error))
    normalizer = models.normalizer(name)
    x = normalizer(torch.stack(list(datasets.photographs(["cat", "coffee"], size=models.side(name)).values())))
    low, high = normalizer.bounds()
    e = LRP(model, composites.RelevanceSplitting(False, low=low, high=high)).explain(x)
    assert torch.allclose(e.received, e.seed, rtol=1e-4) and e.imbalance < 1e-4
    if name == "mobilenet_v2":
        assert len(skips.skip_share(LRP(model, composites.RelevanceSplitting(False, low=low, high=high)), x)) == 10
    else:
        found = LRP(model, composites.RelevanceSplitting()).explain(x, seed=seeds.Probability(), layers=["layer1"])
        assert torch.allclose(found.layers["layer1"].double().sum((1, 2, 3)), found.seed[0].double(), rtol=1e-3)


def test_captum_is_no_lrp_where_additions_are_functions():
    """Pitfall 3: equal to gradient x input without a skip, far from it with one."""

    def run(m, x, skip):
        h = m.r1(m.a(x))
        out = m.b(h)
        return m.head(m.r2(out + h if skip else out))

    def build(skip):
        torch.manual_seed(0)
        return Net(
            lambda m, x: run(m, x, skip),
            a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 6, bias=False), head=nn.Linear(6, 3, bias=False),
            r1=nn.ReLU(), r2=nn.ReLU(),
        ).double().eval()  # fmt: skip

    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for skip, same in ((False, True), (True, False)):
        model = build(skip)
        leaf = x.clone().requires_grad_()
        model(leaf)[:, 0].sum().backward()
        theirs = skips.CAPTUM.raw(model, x.clone().requires_grad_(), torch.zeros(5, dtype=torch.long)).detach()
        ours = LRP(model, composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12))).attribute(x, 0)
        assert torch.allclose(ours, leaf.grad * x, rtol=1e-6, atol=1e-9)
        assert torch.allclose(theirs, ours, rtol=1e-6, atol=1e-7) == same


def test_zennit_sees_additions_with_its_canonizer_only():
    own = pytest.importorskip("zennit.torchvision")
    scenes = datasets.scenes(3, seed=5, split="test")
    model, target = models.load("scene_resnet"), torch.tensor([1, 2, 3])
    bare = skips.zennit_lrp(model, scenes.inputs, target)
    canonized = skips.zennit_lrp(model, scenes.inputs, target, [own.ResNetCanonizer])
    assert bare.shape == canonized.shape == (3, 64, 64)
    assert torch.allclose(canonized.sum((1, 2)), torch.ones(3), atol=1e-2)
    assert bare.sum((1, 2)).abs().min() > 50


# ---------------------------------------------------------------- option A


def test_padded_channels_lose_nothing_by_ratio_and_half_by_equal_parts():
    """Acceptance test 8: by ratio constants get |0| / |branch| = 0; in equal parts half, as the ledger says."""
    torch.manual_seed(0)
    model = sound(CIFARResNet())
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    pads = {}
    for name, rule in (("ratio", rules.Ratio()), ("symmetric", rules.Symmetric())):
        explainer = LRP(model, composites.EpsilonPlus(bias="exclude", addition=rule))
        e = explainer.explain(x, 0, seed=seeds.OneHot(), layers=["layer2.0", "layer3.0"])
        rows = e.ledger_of()
        pads[name] = rows[rows.index.str.contains("downsample")].bias.sum()
        padded = [
            R[:, [*range(n // 4), *range(3 * n // 4, n)]].sum()
            for n, R in zip((32, 64), e.layers.values(), strict=True)
        ]
        assert e.imbalance < 1e-9 and min(abs(R) for R in padded) > 1e-2
        if name == "ratio":
            assert torch.allclose(e.received, e.seed, rtol=1e-3)
        else:
            assert pads[name] == pytest.approx(float(sum(padded)) / 2, rel=1e-9)
            assert float(e.seed.sum() - e.received.sum()) == pytest.approx(pads[name], rel=1e-2)
    assert pads["ratio"] == pytest.approx(0, abs=1e-12) and abs(pads["symmetric"]) > 1e-2


def test_the_padded_shortcut():
    x = torch.rand(2, 16, 8, 8)
    y = PaddedShortcut(16, 32)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and y[:, :8].abs().sum() == 0 == y[:, 24:].abs().sum()
    assert CIFARResNet(5)(F.pad(x[:, :3], (0, 24, 0, 24))).shape == (2, 10)
    weights = sum(p.numel() for p in CIFARResNet(3).parameters())
    assert weights == 269_722  # 0.27 million in the paper
