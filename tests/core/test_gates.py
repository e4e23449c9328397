"""One function, one map: activations and gates however they are written, and what is a gate's share."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, sound
from pairs_gates import GATES
from torch import nn

from lrp import LRP, UnsupportedOperation, composites, rules
from lrp.network.tracing import capture
from lrp.plan import Plan
from lrp.studies.masked import Gradients
from lrp.walk import back, forward


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(found, expected, rtol=1e-9):
    return torch.allclose(found, expected, rtol=0, atol=rtol * float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", GATES)
def test_a_gate_gets_nothing(name):
    """The map is that of the network in which the gate's values at this input are constants."""
    x = pictures(2, 3, 6, 6)
    for make in GATES[name][:2]:
        model = make().double().eval()
        values = model.gates(x).detach()
        frozen = make(lambda m, g, p, values=values: values).double().eval()
        assert same(model(x), frozen(x))
        assert same(LRP(model).attribute(x, 1), LRP(frozen).attribute(x, 1))


@pytest.mark.parametrize(
    ("product", "gate"),
    [
        (lambda a, b: torch.sigmoid(a) * torch.tanh(b), 0),  # sigmoid before tanh
        (lambda a, b: F.relu6(a) * torch.sigmoid(b), 1),  # an activation of mobile networks, gated
        (lambda a, b: F.relu6(a) * (torch.tanh(b) + 1), 1),
        (lambda a, b: F.relu6(a) * b, 0),  # bounded, as in StarNet
        (lambda a, b: a * torch.tanh(b), 1),
        (lambda a, b: a.clamp(0, 1) * torch.sigmoid(b), 1),  # made by a sigmoid, before merely clamped
        (lambda a, b: a.relu() * (0.5 * torch.sigmoid(b) - 3), 1),
        (lambda a, b: a.relu() * b, None),  # both unbounded: halves
        (lambda a, b: torch.tanh(a) * torch.tanh(b), None),
        (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), None),
        (lambda a, b: a * (torch.sigmoid(b) / b.abs()), None),  # not bounded
        (lambda a, b: a / b, 1),
    ],
)
def test_which_factor_is_the_gate(product, gate):
    model = sound(Net(lambda m, x: m.c(product(m.a(x), m.b(x))), **{n: nn.Linear(4, 4) for n in "abc"}))
    e = LRP(model, composites.Epsilon()).explain(pictures(3, 4), 0, layers=["a", "b", "c"])
    parts = [float(e.layers[n].sum()) for n in "ab"]
    whole = float(e.ledger.relevance_in["c"])
    assert parts == pytest.approx([whole / 2] * 2 if gate is None else [whole * gate, whole * (1 - gate)])


def test_a_constant_among_positive_values_is_not_taken_for_positive():
    """cat, stack, pads and masked_fill with a negative constant: ZPlus has to see it."""
    for bring in (
        lambda x: torch.cat([x.relu(), x.new_full((1, 1), -2.0).expand(3, 1)], 1),
        lambda x: F.pad(x.relu(), (0, 1), value=-2.0),
        lambda x: torch.cat([x.relu(), x[:, :1]], 1).masked_fill(torch.tensor([False] * 4 + [True]), -2.0),
    ):
        model = sound(Net(lambda m, x, bring=bring: m.head(bring(m.a(x))), a=nn.Linear(4, 4), head=nn.Linear(5, 2)))
        x, w, b = pictures(3, 4), model.head.weight[1].detach(), model.head.bias[1].detach()
        h = bring(model.a(x)).detach()
        shares = (h * w).clamp(min=0)
        expected = shares / (shares.sum(1) + b.clamp(min=0))[:, None] * model(x)[:, 1:].detach()
        e = LRP(model, composites.Composite([("any", rules.ZPlus())])).explain(x, 1, layers=["a"])
        assert torch.allclose(e.layers["a"], expected[:, :4], rtol=1e-9)


UNARY = [
    torch.sigmoid, torch.tanh, torch.relu, F.softplus, F.gelu, torch.erf, torch.square, torch.abs, torch.neg,
    lambda x: 0.5 * x, lambda x: x.clamp(-0.5, 0.7), lambda x: torch.exp(-x * x), lambda x: torch.sin(x),
]  # fmt: skip
BINARY = [
    torch.mul, torch.add, torch.sub, torch.maximum, torch.minimum, lambda a, b: a / (1 + b.abs()),
    lambda a, b: torch.where(a > 0.1, a, b), lambda a, b: torch.lerp(a, b, 0.3), lambda a, b: a.addcmul(a, b),
]  # fmt: skip
EXPRESSIONS = st.recursive(
    st.just("x"),
    lambda below: st.tuples(st.sampled_from(UNARY), below) | st.tuples(st.sampled_from(BINARY), below, below),
    max_leaves=8,
)


def evaluate(expression, x):
    if expression == "x":
        return x
    function, *parts = expression
    return function(*(evaluate(part, x) for part in parts))


@settings(deadline=None, max_examples=60)
@given(EXPRESSIONS, EXPRESSIONS)
def test_any_expression_of_one_value_is_an_activation(one, other):
    """Its map passes relevance, its derivative is autograd's, and what shares its parts sees them.

    A constant that is added behind all of it is a bias.
    """
    x = pictures(2, 4)
    model = Net(lambda m, x: m.b(_joined(m.a(x), one, other)), a=nn.Linear(4, 5), b=nn.Linear(5, 3)).double().eval()
    e = LRP(model, composites.Epsilon(1e-12)).explain(x, 1, layers=["a"])
    kinds = list(e.ledger.kind)
    h = _joined(model.a(x), one, other).detach()
    if "batchnorm" not in kinds:
        assert set(kinds[1:-1]) <= {"activation", "scale"} and kinds[-1] == "dense"
        assert torch.allclose(e.layers["a"], h * model.b.weight[1].detach(), rtol=1e-5, atol=1e-9)
    graph = capture(model)
    run = forward(Plan(graph, Gradients()), (x,))
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    R = back(run, torch.eye(3, dtype=x.dtype)[1].expand(1, 2, 3)).relevance[0][0]
    assert torch.allclose(R, gradient, rtol=1e-9, atol=1e-12)


def _joined(x, one, other):
    return x * evaluate(one, x) - evaluate(other, x)


def test_parts_that_others_read_stay_and_the_rest_falls_out():
    def run(m, x):
        h = m.a(x)
        s = m.gate(h)
        return m.b(torch.cat([h * s, s * m.c(x)], 1))

    model = sound(Net(run, a=nn.Linear(4, 4), c=nn.Linear(4, 4), b=nn.Linear(8, 2), gate=nn.Sigmoid()))
    graph = capture(model)
    assert [n.name for n in graph.nodes] == ["input", "a", "gate", "mul", "c", "mul#2", "cat", "b"]
    assert graph.find("mul").kind == "activation" and graph.find("mul#2").gate == 0
    twice = Net(lambda m, x: m.b(m.a(x) * m.gate(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2), gate=nn.Sigmoid())
    assert capture(sound(twice)).find("mul").gate == 1, "two calls give two values"


def test_a_shift_is_a_bias_behind_a_layer_and_behind_an_activation():
    for by in (0.5, torch.full((4,), 0.5)):
        model = sound(nn.Sequential(nn.Linear(4, 4), Shift(by), nn.ReLU(), Shift(by), nn.Linear(4, 2)))
        e, x = LRP(model, composites.Epsilon(1e-12)).explain(pictures(3, 4), 1), pictures(3, 4)
        assert e.ledger.bias["3.add"] != 0 and list(e.ledger.kind) == ["dense", "batchnorm", "activation", "dense"]
        leaf = x.clone().requires_grad_()
        assert same(e.relevance, torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0] * x, 1e-6)


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(by) if isinstance(by, torch.Tensor) else by

    def forward(self, x):
        return x + self.by


def test_affine_maps_of_one_value_that_meet_keep_their_bias():
    """x + (a x + b) is no activation: b is a bias, whichever way it is written; without b, the factor passes."""
    b = torch.arange(4.0)
    calls = [(lambda h: h + (0.5 * h + b), True), (lambda h: h.relu() - (h - b), True), (lambda h: h - 0.25 * h, False)]
    for call, bias in calls:
        model = sound(Net(lambda m, x, call=call: m.c(call(m.a(x))), a=nn.Linear(4, 4), c=nn.Linear(4, 2)))
        x = pictures(3, 4)
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
        R = LRP(model, composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12))).attribute(x, 1)
        assert same(R, gradient * x, 1e-6)
        assert capture(model).output.inputs[0].kind == ("add" if bias else "activation")


def test_such_a_sum_may_be_part_of_an_activation():
    """x (x + tanh(x) + 1), in any order of the sum."""
    maps = []
    for call in (
        lambda h: h * (h + h.tanh() + 1),
        lambda h: (1 + h.tanh() + h) * h,
        lambda h: h * ((1 + h) + h.tanh()),
    ):
        torch.manual_seed(0)
        model = sound(Net(lambda m, x, call=call: m.c(call(m.a(x))), a=nn.Linear(4, 4), c=nn.Linear(4, 2)))
        maps.append(LRP(model).attribute(pictures(3, 4), 1))
        assert capture(model).output.inputs[0].kind == "activation"
    assert same(maps[1], maps[0]) and same(maps[2], maps[0])


@pytest.mark.parametrize("gate", [torch.sigmoid, torch.special.expit, lambda h: h.sigmoid()])
def test_a_gate_is_one_under_each_of_its_names(gate):
    for form in (lambda s: s, lambda s: 1 - s, lambda s: torch.negative(s) + 1, lambda s: 2 * s):
        node = capture(Net(lambda m, x, form=form: m.a(x) * form(gate(m.b(x))), a=nn.Linear(3, 3), b=nn.Linear(3, 3)))
        assert node.output.gate == 1


def test_functions_without_a_rule_are_refused_unless_part_of_an_activation():
    for call in (torch.exp, torch.sin, torch.log, lambda x: x**-1.0, lambda x: 1 / x, lambda x: 2**x):
        with pytest.raises(UnsupportedOperation, match="has no rule"):
            LRP(sound(Net(lambda m, x, call=call: m.a(call(x)), a=nn.Linear(2, 2))))
        LRP(sound(Net(lambda m, x, call=call: m.a(call(x) * x), a=nn.Linear(2, 2))))


@torch.fx.wrap
def sigmoid(x):
    return 100 * x


def test_a_function_of_the_users_own_is_no_gate():
    model = sound(Net(lambda m, x: m.c(m.a(x) * sigmoid(m.b(x))), **{n: nn.Linear(4, 4) for n in "abc"}))
    assert capture(model).find("mul").gate is None
