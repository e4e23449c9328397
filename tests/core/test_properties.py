"""Properties that hold for every network: random small graphs, made by hypothesis."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrp import LRP, composites, rules

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

BLOCKS = ["conv", "norm", "conv norm", "depthwise", "skip", "difference", "concat", "gate", "reuse", "pool", "average",
          "relu", "leaky", "shuffle", "pad", "constant"]  # fmt: skip
PRESETS = [
    composites.Epsilon,
    composites.EpsilonPlus,
    composites.EpsilonPlusFlat,
    lambda **o: composites.EpsilonGammaBox(-10.0, 10.0, **o),
    composites.EpsilonAlpha2Beta1,
    lambda **o: composites.EpsilonAlpha2Beta1Flat(addition=rules.Flat(), **o),
    lambda **o: composites.Composite([("any", rules.Ratio())], addition=rules.ZPlus(), **o),
    lambda **o: composites.Composite([("any", rules.AlphaBeta(1.7, 0.7))], fold_batchnorm=False, **o),
]


class Random(nn.Module):
    """A chain of blocks, written with modules or with functions; both forms compute the same."""

    def __init__(self, blocks, bias):
        super().__init__()
        self.blocks, self.functional = list(blocks), False
        self.convs, self.norms, self.small = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for block in self.blocks:
            groups = 4 if block == "depthwise" else 1
            self.convs.append(nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=bias))
            self.norms.append(nn.BatchNorm2d(4))
            self.small.append(nn.Conv2d(8 if block == "concat" else 4, 4, 1, bias=bias))
        self.relu, self.sigmoid, self.pool = nn.ReLU(inplace=True), nn.Sigmoid(), nn.MaxPool2d(2)
        self.mean, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3, bias=bias)

    def run(self, module, x):
        if not self.functional:
            return module(x)
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, module.weight, module.bias, padding=module.padding, groups=module.groups)
        if isinstance(module, nn.BatchNorm2d):
            return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
        if module is self.head:
            return F.linear(x, module.weight, module.bias)
        if module is self.relu:
            return F.relu(x, inplace=True)
        return {self.sigmoid: torch.sigmoid, self.pool: lambda t: F.max_pool2d(t, 2)}[module](x)

    def forward(self, x):
        for block, conv, norm, small in zip(self.blocks, self.convs, self.norms, self.small, strict=True):
            x = self.block(block, conv, norm, small, x)
        x = x.mean((2, 3)) if self.functional else self.mean(x).flatten(1)
        return self.run(self.head, x)

    def block(self, block, conv, norm, small, x):
        run = self.run
        if block in ("conv", "depthwise"):
            return run(self.relu, run(conv, x))
        if block == "norm":
            return run(norm, x)
        if block == "conv norm":
            return run(norm, run(conv, x))
        if block == "skip":
            return run(self.relu, x + run(norm, run(conv, x)))
        if block == "difference":
            return x - run(small, run(self.relu, run(norm, x)))
        if block == "concat":
            return run(small, torch.cat([x, run(conv, x)], 1))
        if block == "gate":
            return x * run(self.sigmoid, run(small, x.mean((2, 3), keepdim=True)))
        if block == "reuse":
            return run(norm, run(small, run(self.relu, run(small, x))))
        if block == "pool":
            return run(self.pool, F.pad(x, (0, 1, 1, 0), mode="replicate"))
        if block == "average":
            return F.avg_pool2d(x, 3, 1, 1)
        if block == "relu":
            return run(self.relu, x.clone())
        if block == "leaky":
            return F.leaky_relu(x, 0.3)
        if block == "shuffle":
            a, b = x.chunk(2, 1)
            return torch.cat([b, a], 1)
        return F.pad(x, (1, 0, 0, 1)) if block == "pad" else 2 - x


@st.composite
def networks(draw, blocks=BLOCKS):
    torch.manual_seed(draw(st.integers(0, 10**6)))
    model = Random(draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=4)), draw(st.booleans())).double().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3), m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight), nn.init.normal_(m.bias, 0, 0.3)
    model.functional = draw(st.booleans())
    return model, torch.randn(2, 4, 4, 4).double()


def examples(n):
    return hypothesis.settings(deadline=None, max_examples=n, derandomize=True, database=None)


@examples(40)
@hypothesis.given(networks(), st.sampled_from(PRESETS), st.sampled_from(["absorb", "exclude"]))
def test_books_balance_and_nothing_changes(network, preset, bias):
    model, x = network
    before = copy.deepcopy(model.state_dict())
    attributes = [sorted(vars(m)) for m in model.modules()]
    e = LRP(model, preset(bias=bias)).explain(x, [0, 2])
    assert torch.allclose(e.output, model(x), rtol=1e-9, atol=1e-12)
    assert e.imbalance < 1e-9
    kept = sum(torch.as_tensor(entry.bias) + torch.as_tensor(entry.stabiliser) for entry in e.rows)
    size = e.magnitude + sum(entry.relevance_out.abs() for entry in e.rows)
    gap = (e.relevance.flatten(2).sum(2) + kept - torch.stack([e.output[:, 0], e.output[:, 2]])).abs()
    assert (gap <= 1e-9 * size).all()
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


KEEPING = [b for b in BLOCKS if b not in ("pad",)]  # zeros that are padded keep what they get


@examples(30)
@hypothesis.given(networks(KEEPING))
def test_one_sided_rules_hand_everything_to_the_input(network):
    """z+ everywhere, biases excluded: the map sums to the logit, and its sign is the logit's."""
    model, x = network
    composite = composites.Composite([("any", rules.ZPlus())], bias="exclude")
    e = LRP(model, composite).explain(x)
    R = e.relevance.flatten(1)
    assert torch.allclose(R.sum(1), e.output.max(1).values, rtol=1e-8, atol=1e-12)
    assert (R * e.output.max(1).values[:, None] >= -1e-12).all()


@examples(25)
@hypothesis.given(networks(), st.sampled_from(PRESETS))
def test_batch_and_single_agree(network, preset):
    model, x = network
    explainer = LRP(model, preset())
    together = explainer.attribute(x, 1)
    alone = torch.cat([explainer.attribute(x[n : n + 1], 1) for n in range(2)])
    assert torch.allclose(together, alone, rtol=1e-8, atol=1e-11 * float(together.abs().max() + 1))


@examples(25)
@hypothesis.given(networks(), st.sampled_from(PRESETS))
def test_functions_and_modules_agree(network, preset):
    """Functional norms are not folded, so neither are the modules here."""
    model, x = network
    R = []
    for functional in (True, False):
        model.functional = functional
        composite = preset()
        composite.fold_batchnorm = False
        R.append(LRP(model, composite).attribute(x, 1))
    assert torch.allclose(*R, rtol=1e-8, atol=1e-11 * float(R[0].abs().max() + 1))


@examples(25)
@hypothesis.given(networks())
def test_folding_keeps_outputs_and_lrp0(network):
    """Folding is exact: the same output, and under LRP-0 with absorbed biases the same relevance."""
    model, x = network
    model.functional = False
    options = {"addition": rules.Epsilon(1e-12)}
    one, two = (
        LRP(model, composites.Epsilon(1e-12, fold_batchnorm=fold, **options)).explain(x, 1) for fold in (True, False)
    )
    assert torch.allclose(one.output, two.output, rtol=1e-9, atol=1e-11)
    size = float(one.relevance.abs().max() + sum(entry.relevance_out.abs().max() for entry in two.rows))
    assert torch.allclose(one.relevance, two.relevance, rtol=1e-5, atol=1e-6 * size)
