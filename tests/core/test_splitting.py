"""Rules for sums: conserving or not, bounded or not, safe where summands vanish or cancel."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, sound
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from lrp import LRP, LRPError, LRPWarning, composites, rules
from lrp.splitting import BranchOnly, Copy, GlobalRatio

CONSERVING = [rules.Ratio(), rules.Symmetric(), rules.ZPlus(), BranchOnly(), BranchOnly("symmetric"), GlobalRatio()]
numbers = st.floats(-10, 10).map(lambda v: round(v, 3))


def identity_block():
    """x + f(x) at one place, nothing else, so that relevance of the input is the sum of both parts."""
    return Net(lambda m, x: x + m.f(x), f=nn.Linear(4, 4, bias=False)).double().eval()


def parts(rule, a, b, R=1.0, skips=(True, False)):
    a, b, R = (torch.tensor([[float(v)]], dtype=torch.float64) for v in (a, b, R))
    return [float(p) for p in rule.share([a, b], R[None], SimpleNamespace(skips=list(skips)))]


@settings(max_examples=200, deadline=None)
@given(a=numbers, b=numbers, R=numbers, skips=st.tuples(st.booleans(), st.booleans()))
def test_shares_of_two_numbers(a, b, R, skips):
    for otherwise, ratio in (("ratio", abs(a) / (abs(a) + abs(b)) if a or b else 0.5), ("symmetric", 0.5)):
        first, second = parts(BranchOnly(otherwise), a, b, R, skips)
        expected = {(True, False): 0.0, (False, True): 1.0}.get(skips, ratio)
        assert first == pytest.approx(expected * R, rel=1e-12) and second == pytest.approx(
            (1 - expected) * R, rel=1e-12
        )
    assert parts(Copy(), a, b, R) == [R, R]
    first, second = parts(GlobalRatio(), a, b, R)
    if abs(a + b) > 1e-2:
        assert first + second == pytest.approx(R, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("rule", [*CONSERVING, rules.Epsilon(), rules.AlphaBeta(2, 1)], ids=repr)
def test_safe_where_summands_vanish_or_cancel(rule):
    """In a network: a = b = 0 and a = -b give finite relevance, and the books balance."""
    cancel = Net(lambda m, x: m.head(torch.relu(x) - m.f(torch.relu(x))), f=nn.Linear(3, 3, bias=False),
                 head=nn.Linear(3, 2)).double().eval()  # fmt: skip
    with torch.no_grad():
        cancel.f.weight.copy_(torch.eye(3))
    x = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    e = LRP(cancel, composites.EpsilonPlus(addition=rule)).explain(x, 0)
    assert torch.isfinite(e.relevance).all() and e.imbalance < 1e-9


@pytest.mark.parametrize("rule", CONSERVING, ids=repr)
def test_two_summands_conserve_what_arrives(rule):
    torch.manual_seed(0)
    x, R = torch.randn(3, 4).double(), torch.randn(2, 3, 4).double()
    e = LRP(identity_block(), composites.Composite([("any", rules.ZPlus())], addition=rule)).explain(x, seed=R)
    assert torch.allclose(e.received, R.sum(2), rtol=1e-6) and e.imbalance < 1e-9


def resnet(layers=(2, 2, 2, 2), **options):
    torch.manual_seed(0)
    return sound(ResNet(BasicBlock, list(layers), num_classes=5, **options))


def test_identity_skips_and_projections_are_told_apart():
    graph = LRP(resnet()).graph
    found = {node.name: graph.skips(node) for node in graph.nodes if node.kind == "add"}
    identity = {name: sum(skips) for name, skips in found.items()}
    assert list(identity.values()) == [1, 1, 0, 1, 0, 1, 0, 1]  # the first block of stages 2 to 4 has a projection


def test_without_identity_skips_the_branches_get_everything():
    model, x = resnet(), torch.randn(2, 3, 32, 32).double()
    plus = {"rules": [("dense", rules.Epsilon()), ("any", rules.ZPlus())], "bias": "exclude"}
    e = LRP(model, composites.Composite(**plus, addition=BranchOnly())).explain(x, layers=["layer1.0", "layer1.1"])
    assert e.imbalance < 1e-9 and torch.allclose(e.received, e.seed, rtol=1e-4)
    rows = e.ledger_of()
    ratio = LRP(model, composites.Composite(**plus)).explain(x)
    assert not torch.allclose(e.relevance, ratio.relevance)
    assert rows.loc[[n for n in rows.index if n.endswith("conv2")], "relevance_out"].iloc[0] == pytest.approx(
        rows[rows.kind == "add"].relevance_out.iloc[0], rel=1e-9
    )


def test_copies_double_at_every_skip():
    model, x = resnet(), torch.randn(1, 3, 32, 32).double()
    with pytest.warns(LRPWarning, match="unaccounted for"):
        e = LRP(model, composites.EpsilonPlus(addition=Copy(), bias="exclude")).explain(x)
    assert float(e.received / e.seed) == pytest.approx(2**8, rel=1e-3)


def test_the_global_ratio_by_its_formula():
    torch.manual_seed(0)
    a, b, R = (torch.rand(2, 3, 4).double() for _ in range(3))
    A, B = R * a / (a + b), R * b / (a + b)
    total = [v.sum((1, 2)).abs() for v in (A, B)]
    expected = total[0] / (total[0] + total[1]) * R.sum((1, 2))
    first, second = GlobalRatio().share([a, b], R[None], None)
    assert torch.allclose(first[0].sum((1, 2)), expected, rtol=1e-4)
    assert torch.allclose((first + second)[0].sum((1, 2)), R.sum((1, 2)), rtol=1e-4)
    assert torch.allclose(first[0] / A, (expected / A.sum((1, 2)))[:, None, None].expand_as(A), rtol=1e-4)


def test_signs_and_broadcasts():
    """a - b splits by a and -b; what was broadcast gets the sum of its copies."""
    model = Net(lambda m, x: m.f(x) - x.mean(1, keepdim=True), f=nn.Linear(4, 4)).double().eval()
    x, R = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    for rule in (BranchOnly(), GlobalRatio()):
        e = LRP(model, composites.EpsilonPlus(addition=rule, bias="exclude")).explain(x, seed=R)
        assert torch.isfinite(e.relevance).all() and e.imbalance < 1e-9


def test_refusals():
    with pytest.raises(LRPError, match=r"Copy\(\) is a rule for add; `f` is dense"):
        LRP(identity_block(), composites.EpsilonPlus(overrides={"f": Copy()}))
    with pytest.raises(ValueError, match="otherwise must be 'ratio' or 'symmetric', not 'half'"):
        BranchOnly("half")
