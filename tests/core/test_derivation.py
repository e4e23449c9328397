"""The second derivation of LRP-0 (`tests/derivation.py`) gives what can be worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from derivation import relevance
from networks import Net

X = torch.tensor([[1.5, -2.0, 0.5]], dtype=torch.float64)
A = torch.tensor([[1.0, 0.5, -1.0], [-2.0, 1.0, 3.0]], dtype=torch.float64)  # A x = (0, -3.5) + (0, 0)
B = torch.tensor([[0.5, 1.0, 2.0], [1.0, -1.0, 1.0]], dtype=torch.float64)


def shares(call, x=X, **options):
    return relevance(Net(lambda _, x: call(x)), x, torch.ones(1, 1), **options).relevance


def head(h):
    return h.sum(1, keepdim=True)


@pytest.mark.parametrize("act", [F.silu, torch.tanh, F.gelu, F.elu, lambda h: h * h.sigmoid(), lambda h: h**2])
def test_an_activation_is_a_fixed_factor(act):
    h = X @ B.T
    assert torch.allclose(shares(lambda x: head(act(x @ B.T))), X * ((act(h) / h) @ B))


def test_where_no_activation_bends_it_is_gradient_times_input():
    x = X.clone().requires_grad_()
    call = lambda x: head(torch.maximum(F.relu(x @ B.T), x[:, :2])) + x.amax(1, keepdim=True)  # noqa: E731
    call(x).sum().backward()
    assert torch.equal(shares(call), X * x.grad)


@pytest.mark.parametrize(
    "gate",
    [
        lambda g: g.sigmoid(),
        lambda g: 1 - g.sigmoid(),
        lambda g: (g.tanh() + 1) / 2,
        lambda g: F.relu6(g + 3) / 6,
        lambda g: g.softmax(1),
        lambda g: g.sigmoid() / g.sigmoid().sum(1, keepdim=True),
        lambda g: g.mean(1, keepdim=True).sigmoid().expand_as(g),
    ],
)
def test_a_gate_is_a_fixed_number(gate):
    expected = X * (gate(X @ B.T) @ A)
    assert torch.allclose(shares(lambda x: head((x @ A.T) * gate(x @ B.T))), expected)
    assert torch.allclose(shares(lambda x: head(gate(x @ B.T) * (x @ A.T))), expected)


def test_a_product_is_an_activation_of_the_nearest_value_that_both_factors_are_made_of():
    c = torch.tensor([0.3, -0.2], dtype=torch.float64)
    bent = lambda h: h * (h.relu() + 1)  # noqa: E731
    apart = lambda x: bent((x @ B.T) * 2 + c)  # noqa: E731 (of the shifted value: the shift keeps its share)
    layer = lambda x: bent(F.linear(x, 2 * B, c))  # noqa: E731
    assert torch.allclose(shares(lambda x: head(apart(x))), shares(lambda x: head(layer(x))))
    h = F.linear(X, 2 * B, c)
    assert torch.allclose(shares(lambda x: head(layer(x))), X * ((bent(h) / h) @ (2 * B)))


def test_two_signals_share_in_halves_and_the_smaller_factor_is_a_gate():
    a, b = X @ A.T, X @ B.T
    assert torch.allclose(shares(lambda x: head((x @ A.T) * (x @ B.T))), X * (b @ A + a @ B) / 2)
    assert torch.allclose(shares(lambda x: head((x @ A.T).mean(1, keepdim=True) * (x @ B.T))), X * a.mean() * B.sum(0))


def test_a_bias_keeps_its_share_and_a_normalisation_of_the_input_passes():
    c = torch.tensor([0.3, -0.2], dtype=torch.float64)
    assert torch.allclose(shares(lambda x: head(F.relu(F.linear(x, B, c)))), X * ((X @ B.T + c > 0).double() @ B))
    inside = shares(lambda x: head(F.silu(((x - 0.4) / 0.5) @ B.T)))
    assert torch.allclose(inside, shares(lambda x: head(F.silu(x @ B.T)), (X - 0.4) / 0.5))
    apart = shares(lambda x: head(F.relu(((x - 0.4) / 0.5) @ B.T)), front_passes=False)
    assert torch.allclose(apart, X * (((X - 0.4) / 0.5 @ B.T > 0).double() @ B) / 0.5)


def test_calls_in_place_and_through_views_are_followed():
    def inplace(x):
        h = x @ B.T
        F.silu(h[:, :1], inplace=True)
        h[:, 1:].mul_(2).tanh_()
        h += x[:, :2]
        return head(h)

    def pure(x):
        h = x @ B.T
        return head(torch.cat([F.silu(h[:, :1]), (2 * h[:, 1:]).tanh()], 1) + x[:, :2])

    assert torch.allclose(shares(inplace), shares(pure))


def test_a_value_chosen_by_a_condition_on_itself_is_an_activation():
    """One function, one map: a threshold, however it is written; a condition on another value only chooses."""
    c = torch.tensor([0.3, -0.2], dtype=torch.float64)
    own = shares(lambda x: head(F.threshold(F.linear(x, B, c), 1.0, 0.5)))
    masked = lambda h: h.masked_fill(h <= 1.0, 0.5)  # noqa: E731
    chosen = lambda h: torch.where(h > 1.0, h, torch.tensor(0.5, dtype=torch.float64))  # noqa: E731
    assert torch.equal(own, shares(lambda x: head(masked(F.linear(x, B, c)))))
    assert torch.equal(own, shares(lambda x: head(chosen(F.linear(x, B, c)))))
    other = shares(lambda x: head(torch.where(x[:, :2] > 0, F.linear(x, B, c), 0.5)))
    assert torch.allclose(other, X * ((X[:, :2] > 0).double() @ B))


def test_what_has_no_rule_is_named_only_where_relevance_meets_it():
    met = relevance(Net(lambda _, x: head(x.exp())), X, torch.ones(1, 1))
    gate = relevance(Net(lambda _, x: head((x @ A.T) * x.exp()[:, :2].sigmoid())), X, torch.ones(1, 1))
    assert met.refused == ["exp"] and gate.refused == []
    asked = relevance(Net(lambda _, x: head((x @ B.T).exp())), X, torch.ones(1, 1), passes=["exp"])
    assert asked.refused == [] and torch.allclose(asked.relevance, X * (((X @ B.T).exp() / (X @ B.T)) @ B))


def test_a_value_of_zero_that_would_have_to_be_shared_is_counted():
    zero = relevance(Net(lambda _, x: head(F.relu(x).amax(1, keepdim=True).mul(0).sigmoid())), X, torch.ones(1, 1))
    assert zero.output.item() == 0.5 and zero.undefined == 0  # it passes to x, which is not zero
    zero = relevance(Net(lambda _, x: head(F.relu(-x)[:, :1].sigmoid())), X, torch.ones(1, 1))
    assert zero.undefined == 0
    zero = relevance(Net(lambda _, x: head((x - x).sigmoid())), X, torch.ones(1, 1), front_passes=False)
    assert zero.undefined == 3
