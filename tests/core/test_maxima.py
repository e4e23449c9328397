"""Maxima of tensors, masks and constants: the winner takes all, and what a constant wins is its bias."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

from lrp import LRP, LRPWarning, UnsupportedOperation, composites, rules

LRP0 = {"epsilon": 1e-12, "addition": rules.Epsilon(1e-12)}


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def explained(call, width=8, **parts):
    """A network of two layers without biases with `call` between, explained by LRP-0; its gradient x input, too."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.head(call(m, m.stem(x))),
        stem=nn.Linear(5, 8, bias=False),
        head=nn.LazyLinear(3, bias=False),
        **parts,
    )
    model, x = model.double().eval(), pictures(4, 5)
    model(x)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", LRPWarning)
        return LRP(model, composites.Epsilon(**LRP0)).explain(x, 1), (gradient * x).detach()


def halves(h):
    return h.chunk(2, 1)


@pytest.mark.parametrize(
    "join",
    [
        lambda m, h: torch.max(*halves(h)),
        lambda m, h: torch.min(halves(h)[0], other=halves(h)[1]),
        lambda m, h: halves(h)[0].max(halves(h)[1]),
        lambda m, h: torch.maximum(*halves(h)),
        lambda m, h: torch.minimum(*halves(h)),
        lambda m, h: torch.fmax(*halves(h)),
        lambda m, h: torch.fmin(*halves(h)),
        lambda m, h: torch.stack([h[:, :4], h[:, 4:], h[:, 2:6]]).amax(0),
        lambda m, h: torch.stack([h[:, :4], h[:, 4:], h[:, 2:6]], 1).max(1).values,
        lambda m, h: torch.max(torch.max(h[:, :2], h[:, 2:4]), h[:, 4:6]),
        lambda m, h: torch.where(halves(h)[0] > halves(h)[1] + 0.1, *halves(h)),
        lambda m, h: torch.where(torch.tensor([True, False, True, False]), *halves(h)),
        lambda m, h: torch.clamp(halves(h)[0], min=halves(h)[1]),
        lambda m, h: torch.clamp_max(halves(h)[0], halves(h)[1]),
        lambda m, h: halves(h)[0].masked_fill(halves(h)[1] > 0, 0.0),
        lambda m, h: torch.tril(h.unflatten(1, (2, 4))).flatten(1),
        lambda m, h: h.repeat_interleave(2, 1),
        lambda m, h: F.unfold(h.unflatten(1, (2, 2, 2)), 2, padding=1).flatten(1),
        lambda m, h: F.fold(h.unflatten(1, (4, 2)), (2, 3), (2, 2)).flatten(1),
    ],
)
def test_the_winner_takes_all(join):
    """For a network without biases LRP-0 is gradient x input."""
    e, expected = explained(join)
    assert torch.allclose(e.relevance, expected, rtol=1e-6, atol=1e-9)
    assert float(e.sum_of("bias").abs().max()) < 1e-9


@pytest.mark.parametrize(
    "join",
    [
        lambda m, h: torch.maximum(h, m.floor),
        lambda m, h: torch.min(m.floor, h),
        lambda m, h: torch.maximum(h, h.new_full((1,), 0.2)),
        lambda m, h: torch.clamp(h, min=m.floor),
        lambda m, h: torch.where(m.mask, h, m.floor),
        lambda m, h: torch.where(m.mask, h, 0.3),
        lambda m, h: h.masked_fill(m.mask, 0.3),
        lambda m, h: h.index_fill(1, torch.tensor([0, 3]), 0.3),
        lambda m, h: torch.cat([m.floor.expand(4, 8), h], 1),
        lambda m, h: torch.stack([h, m.floor.expand(4, 8)], 1).flatten(1),
        lambda m, h: F.pad(h, (1, 2), value=0.4),
        lambda m, h: torch.stack([h, m.floor.expand(4, 8)]).amax(0),
        lambda m, h: h.scatter(1, torch.tensor([[0, 3]]).expand(4, 2), 0.3),
    ],
)
@pytest.mark.parametrize("policy", ["absorb", "exclude"])
def test_what_a_constant_wins_is_its_bias(join, policy):
    """It never reaches an input, is booked at the node, and nothing is lost."""
    torch.manual_seed(0)
    floor, mask = nn.Parameter(torch.full((1,), 0.3)), torch.arange(8) % 3 == 0
    e, expected = explained(join, floor=floor, mask=mask)
    assert torch.allclose(e.relevance, expected, rtol=1e-6, atol=1e-9)
    biases = e.ledger.bias[e.ledger.bias != 0]
    assert len(biases) == 1 and float(biases.iloc[0]) == pytest.approx(float((e.seed - e.received).sum()))


def test_one_rule_for_bias_and_constants():
    """A class token beside the words keeps its part, excluded biases or not: it is none of the input's."""
    token = nn.Parameter(torch.tensor([[2.0, 1.0]]))

    def call(m, x):
        return m.head(torch.cat([m.token.expand(x.size(0), 2), x], 1))

    model = Net(call, token=token, head=nn.Linear(4, 2, bias=False)).double().eval()
    x, w = pictures(3, 2), model.head.weight[1].detach()
    for policy in ("absorb", "exclude"):
        e = LRP(model, composites.Epsilon(1e-12, bias=policy)).explain(x, 1)
        assert torch.allclose(e.relevance, x * w[2:])
        assert torch.allclose(e.sum_of("bias")[0], (token.double() * w[:2]).sum().detach().expand(3))


def test_pass_is_refused_where_two_inputs_fit_and_never_proposed_there():
    model = Net(lambda m, x: m.c(torch.atan2(m.a(x), m.b(x))), **{n: nn.Linear(3, 3) for n in "abc"}).double().eval()
    with pytest.raises(UnsupportedOperation, match=r"atan2 of `a`, `b`, and no rule .*start=") as error:
        LRP(model)
    assert "Pass" not in str(error.value) and "Epsilon" not in str(error.value)
    explainer = LRP(model, composites.EpsilonPlus(overrides={"atan2": rules.Pass()}))
    with pytest.raises(
        UnsupportedOperation, match=r"Pass\(\) at node `atan2` needs one input .* a \(2, 3\), b \(2, 3\)"
    ):
        explainer.explain(pictures(2, 3), 0)
