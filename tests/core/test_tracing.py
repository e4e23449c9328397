"""How a graph is named and asked, whose functions it trusts, and what it says where it cannot follow a model."""

import pytest
import torch
import torch.nn.functional as F
from networks import Net, sound
from torch import fx, nn

from lrp import LRP, CaptureError, LRPError, UnsupportedOperation, capture, composites, register, rules
from lrp.network import kinds as kinds

LRP0 = composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.block = Net(lambda m, x: torch.relu(m.a(x) + x), a=nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.block(self.block(self.stem(x)))
        return self.head(x.mean((2, 3)))


def test_nodes_are_named_after_modules():
    graph = capture(sound(Nested()))
    names = [node.name for node in graph.nodes if node.carries]
    assert names == ["input", "stem.0", "stem.1", "block.a", "block.add", "block.relu", "block.a#2", "block.add#2",
                     "block.relu#2", "mean", "head"]  # fmt: skip
    assert graph.find("stem") is graph.find("stem.1")
    assert "block.add#2" in repr(graph) and len(repr(graph).splitlines()) == 1 + len(graph.nodes)


def test_layers_hold_the_relevance_at_modules():
    x = torch.randn(2, 4, 6, 6).double()
    e = LRP(sound(Nested()), composites.EpsilonPlus()).explain(x, 1, layers=["stem", "block", "head", "stem.0"])
    assert e.layers["block"].shape == (2, 4, 6, 6) and e.layers["head"].shape == (2, 3)
    assert torch.equal(e.layers["stem"], e.layers["stem.0"])
    table = e.ledger
    assert float(e.layers["stem"].sum()) == pytest.approx(table.relevance_out["stem.0"], rel=1e-12)
    assert float(e.layers["block"].sum()) == pytest.approx(table.relevance_out["block.relu#2"], rel=1e-12)
    assert float(e.layers["head"].sum()) == pytest.approx(float(e.output[:, 1].sum()), rel=1e-12)


def test_fx_graph_modules_are_taken_as_they_are():

    def call(m, x):
        a, b = x.chunk(2, dim=1)
        return torch.cat((b, m.a(a).relu_()), dim=1).mean((2, 3))

    model, x = sound(Net(call, a=nn.Conv2d(2, 2, 1))), torch.randn(2, 4, 6, 6).double()
    traced = fx.symbolic_trace(model)
    code, targets = traced.code, [n.target for n in traced.graph.nodes]
    assert torch.equal(LRP(traced).attribute(x, 3), LRP(model).attribute(x, 3))
    assert traced.code == code and [n.target for n in traced.graph.nodes] == targets
    assert torch.equal(traced(x), model(x))


def relu(x):
    """Not torch's relu: it lets half of the negative values through."""
    return F.leaky_relu(x, 0.5)


def clone(x):
    """Not torch's clone: it changes the sign."""
    return -x


def halve_(x):
    """A function of one's own under a name that ends like those of torch's in-place functions."""
    return x / 2


fx.wrap("relu")
fx.wrap("clone")
fx.wrap("halve_")


def test_own_function_named_like_torchs_is_not_taken_for_it():
    model = sound(Net(lambda m, x: m.b(relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)))
    with pytest.raises(UnsupportedOperation, match=r"node `relu` .*calls relu.*overrides=\{'relu': rules\.Pass\(\)\}"):
        LRP(model)
    x = torch.randn(3, 4).double()
    R = LRP(model, composites.Composite([("any", rules.Ratio())], overrides={"relu": rules.Pass()})).attribute(x, 1)
    twin = sound(Net(lambda m, x: m.b(F.leaky_relu(m.a(x), 0.5)), a=model.a, b=model.b))
    assert torch.allclose(R, LRP(twin, composites.Composite([("any", rules.Ratio())])).attribute(x, 1))


def test_own_function_may_give_negative_values_to_a_rule():
    """ZPlus after the leaky 'relu' above has to see its negative values."""
    model = sound(Net(lambda m, x: m.b(relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)))
    twin = sound(Net(lambda m, x: m.b(F.leaky_relu(m.a(x), 0.5)), a=model.a, b=model.b))
    x = torch.randn(3, 4).double()
    pick = {"rules": [("any", rules.ZPlus())]}
    R = LRP(model, composites.Composite(**pick, overrides={"relu": rules.Pass()})).attribute(x, 1)
    assert torch.allclose(R, LRP(twin, composites.Composite(**pick)).attribute(x, 1))


def test_an_underscore_at_the_end_of_an_own_function_means_nothing():
    model = sound(Net(lambda m, x: m.b(halve_(m.a(x)) + m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 2)))
    with pytest.raises(UnsupportedOperation, match=r"node `halve_` .*calls halve_"):
        LRP(model)
    x, rule = torch.randn(3, 4).double(), rules.Epsilon(1e-12)
    R = LRP(model, composites.Epsilon(1e-12, addition=rule, overrides={"halve_": rule})).attribute(x, 1)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    assert torch.allclose(R, gradient * x, atol=1e-9)


class Identity(nn.Module):
    """Not torch's identity: it changes the sign."""

    def forward(self, x):
        return -x


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda m, x: m.own(x.relu()), False),
        (lambda m, x: clone(x.relu()), False),
        (lambda m, x: m.torchs(x.relu()), True),
        (lambda m, x: x.relu().clone(), True),
    ],
)
def test_only_torchs_own_operations_are_known_to_keep_the_sign(call, known, monkeypatch):
    """Where the graph says that all inputs are positive, ZPlus does not look for negative ones."""
    monkeypatch.setattr(kinds, "REGISTERED", {Identity: kinds.ACTIVATION})
    model = Net(lambda m, x: m.a(call(m, x)), a=nn.Linear(4, 4), own=Identity(), torchs=nn.Identity())
    (node,) = capture(sound(model)).find("a").inputs
    assert node.nonnegative == known


class Split(nn.Module):
    """Not torch's split: it gives one tensor."""

    def forward(self, x):
        return x.flip(1)


def test_an_own_module_named_like_torchs_function_is_not_taken_for_it(monkeypatch):
    monkeypatch.setattr(kinds, "REGISTERED", {Split: kinds.REARRANGE})
    model, x = sound(nn.Sequential(Split(), nn.Linear(3, 2))), torch.randn(2, 3).double()
    assert torch.allclose(LRP(model, LRP0).attribute(x, 1), model[1].weight[1].flip(0) * x)


class Doubled(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


def test_a_module_of_ones_own_can_be_registered():
    model = sound(nn.Sequential(nn.Linear(3, 3), Doubled()))
    with pytest.raises(UnsupportedOperation, match="cumsum"):
        LRP(model)
    register(Doubled, kinds.ACTIVATION)
    try:
        e = LRP(model).explain(torch.ones(1, 3).double(), 0)
        assert list(e.ledger.kind) == ["activation", "dense"] and list(e.ledger.index) == ["1", "0"]
    finally:
        del kinds.REGISTERED[Doubled]
    with pytest.raises(ValueError, match="registered as"):
        register(Doubled, "magic")


def branch(m, x):
    return m.a(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m, x: m.a(x).exp(),
            UnsupportedOperation,
            ["node `exp` (at test_tracing.py:", "calls exp", "rules.Pass()", "rules.Epsilon()"],
        ),
        (
            lambda m, x: m.a(m.a(x).softmax(1)),
            UnsupportedOperation,
            ["node `softmax` (at test_tracing.py:", "rules.Epsilon()"],
        ),
        (lambda m, x: 1 / m.a(x), UnsupportedOperation, ["truediv", "overrides"]),
        (
            branch,
            CaptureError,
            ["Net could not be traced: at test_tracing.py:", "branches on the values", "torch.where"],
        ),
        (
            lambda m, x: m.inner(m.a(x)),
            CaptureError,
            ["Net could not be traced in module `inner.0`: at test_tr", "torch.where"],
        ),
        (lambda m, x: (m.a(x), x), CaptureError, ["Net returns a tuple", "wrap it"]),
        (lambda m, x: {"a": m.a(x)}, CaptureError, ["Net returns a dict", "wrap it"]),
        (lambda m, x: m.a.weight, CaptureError, ["the output of Net", "depend", "on its input"]),
        (lambda m, x: m.a(x).shape[0], CaptureError, ["Net returns a int", "wrap it"]),
    ],
)
def test_what_cannot_be_captured_says_so(call, error, words):
    with pytest.raises(error) as raised:
        model = sound(Net(call, a=nn.Linear(3, 3), inner=nn.Sequential(Net(branch, a=nn.Linear(3, 3)))))
        LRP(model).attribute(torch.randn(2, 3).double(), 0)
    assert isinstance(raised.value, LRPError)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_optional_inputs_take_their_default():
    class Optional(nn.Module):
        def forward(self, x, mask=None, *, scale=2.0):
            return x * scale if mask is None else x * mask

    x = torch.randn(2, 3)
    assert torch.equal(LRP(Optional().eval()).explain(x).output, 2 * x)


def test_a_graph_that_does_not_reproduce_the_model_is_refused():
    def call(m, x):
        return m.a(x) + torch.rand(1)

    with pytest.raises(CaptureError, match="does not reproduce Net: outputs differ by"):
        LRP(sound(Net(call, a=nn.Linear(3, 3)))).attribute(torch.randn(2, 3).double())


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.a(input=x),
        lambda m, x: F.linear(input=x, weight=m.a.weight, bias=m.a.bias),
        lambda m, x: m.a(m.r(input=x)),
        lambda m, x: m.a(torch.div(input=x, other=2.0)),
        lambda m, x: torch.add(input=m.a(x), alpha=2, other=x),
        lambda m, x: torch.stack([m.a(x)[:, 0], m.a(x).mean(1), x[:, 2]], 1),
    ],
)
def test_other_ways_to_write_it(call):
    """Arguments by keyword, and intermediate values with one number per sample."""
    model, x = sound(Net(call, a=nn.Linear(3, 3), r=nn.ReLU(inplace=True))), torch.randn(2, 3).double()
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf.clone())[:, 1].sum(), leaf)[0]
    assert torch.allclose(LRP(model, LRP0).attribute(x, 1), gradient * x, atol=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.a(x.flatten(0, 1)).view(x.shape[0], -1),  # several images per sample in one batch
        lambda m, x: m.a(x.transpose(0, 1)).transpose(0, 1).flatten(1),  # sequences with the batch in the middle
        lambda m, x: m.n(m.a(x)).flatten(1),  # BatchNorm1d over (N, C, L) after a dense layer on L
        lambda m, x: m.a(torch.cat(x.chunk(2, 1)[::-1], 1)).flatten(1),  # a slice of a tuple of pieces
    ],
)
def test_axes_in_other_places_are_explained_or_refused_by_name(call):
    """Never a bare RuntimeError from somewhere inside, and never a wrong answer."""
    model, x = sound(Net(call, a=nn.Linear(3, 5), n=nn.BatchNorm1d(4))), torch.randn(2, 4, 3).double()
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[:, 7].sum(), leaf)[0]
    try:
        R = LRP(model, LRP0).attribute(x, 7)
    except LRPError:
        return
    assert torch.allclose(R, gradient * x, atol=1e-9)


def test_what_forward_keeps_in_containers_does_not_survive_tracing():
    """As LeViT keeps its position biases: a proxy of fx in there would be read by every later run.

    In a dict, a list, a set or one in another; whether it was added, or took the place of what was there.
    """

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.f = nn.Parameter(torch.randn(3)), nn.Linear(3, 2)
            self.kept, self.seen, self.last, self.deep, self.many = {}, [], [None], {"a": [1]}, set()

        def forward(self, x):
            if "bias" not in self.kept:
                self.kept["bias"] = bias = self.weight[[2, 1, 0]]
                self.seen.append(bias)
                self.last[0] = bias
                self.deep["a"][0] = bias
                self.many.add(bias)
            return self.f(x.view(len(x), -1) + self.kept["bias"])

    model = Keeps().double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    LRP(model)  # traces, and runs nothing
    assert (model.kept, model.seen, model.last, model.deep, model.many) == ({}, [], [None], {"a": [1]}, set())
    R = LRP(model).attribute(x, 1)
    assert torch.equal(LRP(model).attribute(x, 1), R)
