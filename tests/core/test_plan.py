"""Plan and steps: which step at which node, kinds of one's own, and one walk for relevance and for gradients."""

import gc

import pytest
import torch
import torch.nn.functional as F
from networks import Net, Small, small
from torch import nn

from lrp import LRP, InputError, LRPError, UnsupportedOperation, composites, plan, rules, seeds
from lrp.network import kinds
from lrp.network.tracing import capture
from lrp.nodes import steps
from lrp.nodes.propagate import Shares
from lrp.walk import forward


class Gradient(composites.Composite):
    """The vector-Jacobian product at every node."""

    def __init__(self, **options):
        super().__init__([("any", rules.Adjoint())], addition=rules.Adjoint(), lrn=rules.Adjoint(), **options)

    def rule(self, node, first):
        return super().rule(node, first) or rules.Adjoint()


@pytest.fixture
def own_kinds(monkeypatch):
    """Kinds that a test adds go with it."""
    monkeypatch.setattr(plan, "AT", dict(plan.AT))
    monkeypatch.setattr(kinds, "KIND_OF_NAME", dict(kinds.KIND_OF_NAME))
    monkeypatch.setattr(kinds, "REGISTERED", dict(kinds.REGISTERED))


def test_every_node_has_a_rule_and_a_step():
    model, x = small()
    explainer = LRP(model)
    carrying = {node for node in explainer.graph.nodes if node.carries} - {explainer.graph.input}
    assert set(explainer.rules) == carrying and all(isinstance(r, rules.Rule) for r in explainer.rules.values())
    run = forward(explainer.plan, (x,))
    gate = {explainer.graph.find(name) for name in ("gate", "sigmoid", "adaptive_avg_pool2d")}
    assert set(run.steps) == carrying - gate, "a gate gets no relevance, so it needs no step"
    assert torch.allclose(run.output, model(x), rtol=1e-12)


@pytest.mark.parametrize("folded", [True, False])
def test_with_the_adjoint_everywhere_the_walk_is_backpropagation(folded):
    """Through convolutions, folded and unfolded norms, pools, sums, gates, concatenations: d f_t / d x by autograd."""
    model, x = small()
    targets = torch.tensor([1, 4, 2])
    with pytest.warns(UserWarning, match="unaccounted"):
        R = LRP(model, Gradient(fold_batchnorm=folded)).attribute(x, targets, seeds.OneHot())
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)[0]
    assert torch.allclose(R, expected, rtol=1e-9, atol=1e-12)


def test_steps_of_the_adjoint_are_linear_maps_with_their_transpose_and_constant():
    """<R, J t> = <J^T R, t>, and y = J x + constant, at every step of a piecewise linear network."""
    x = small()[1][:, :, :7]
    network = Net(
        lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(F.pad(x, (1, 0, 0, 1), value=0.5))) - m.b(x).flip(3), 2).flatten(1)),
        a=nn.Conv2d(3, 4, 2), b=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), fc=nn.Linear(48, 3),
    ).double().eval()  # fmt: skip
    graph = capture(network)
    values = {}
    made = plan.Plan(graph, Gradient())
    for node in graph.nodes:
        if node is graph.input:
            values[node] = x
        elif not node.carries:
            values[node] = node.run(values)
        else:
            step = made.step(node)
            values[node] = y = step.forward(values)
            ts = [torch.randn_like(values[n]) for n in step.sources]
            R = torch.randn_like(y)[None]
            back = step.back(R).relevance
            one, two = (R[0] * step.forth(ts)).sum(), sum((b[0] * t).sum() for b, t in zip(back, ts, strict=True))
            assert torch.allclose(one, two, rtol=1e-9, atol=1e-12), node
            constant = step.constant(R)
            linear = (R[0] * step.forth([values[n] for n in step.sources])).flatten(1).sum(1)
            rest = torch.zeros(3).double() if constant is None else constant[0]
            assert torch.allclose(linear + rest, (R[0] * y).flatten(1).sum(1), rtol=1e-9, atol=1e-12), node


# ---------------------------------------------------------------- a kind of one's own


def test_a_new_kind_of_node_is_added_in_one_place(own_kinds):
    """As CONTRIBUTING shows it: cosine similarity to a fixed vector, whose relevance goes by the products x_i w_i."""

    class Cosine(steps.Step):
        def forward(self, values):
            self.x, self.w = (values[n] for n in self.node.args[:2])
            return self.node.run(values)

        def back(self, R, last=True):
            parts = self.x * self.w
            return Shares([R[..., None] * parts / parts.sum(-1, keepdim=True)])

    plan.add_kind("cosine", Cosine, names="cosine_similarity")
    anchor = torch.tensor([1.0, 2.0, -1.0]).double()
    model = Net(lambda m, x: torch.stack([F.cosine_similarity(m.a(x), m.anchor), m.b(x)[:, 0]], 1),
                a=nn.Linear(4, 3), b=nn.Linear(4, 1), anchor=nn.Parameter(anchor)).double().eval()  # fmt: skip
    x = torch.randn(2, 4).double()
    e = LRP(model, composites.Epsilon()).explain(x, 0)
    h = model.a(x).detach()
    shares = e.output[:, :1] * h * anchor / (h * anchor).sum(1, keepdim=True)
    expected = (shares / h) @ model.a.weight.detach() * x
    assert torch.allclose(e.relevance, expected, rtol=1e-4) and e.imbalance < 1e-9
    assert e.ledger.rule["cosine_similarity"] == "cosine"


def test_kinds_that_cannot_be(own_kinds):
    class Forgetful(steps.Step):
        pass

    with pytest.raises(TypeError, match=r"Forgetful.*is no step: derive a class .* and define back\(self, R, last\)"):
        plan.add_kind("odd", Forgetful)
    with pytest.raises(TypeError, match="is no step"):
        plan.add_kind("odd", "back")
    for kind, names in (("dense", ""), ("first", ""), ("input", ""), ("odd", "erf relu")):
        with pytest.raises(ValueError, match="there is such a kind already, or a kind of such functions"):
            plan.add_kind(kind, steps.Local, names)
    for wrong in ({"names": ["erf"]}, {"modules": [nn.ReLU()]}):
        with pytest.raises(TypeError, match="names are words in one string, and modules are classes"):
            plan.add_kind("odd", steps.Local, **wrong)
    assert "odd" not in plan.AT and "erf" not in kinds.KIND_OF_NAME, "a call that fails leaves nothing behind"
    plan.AT["activation"] = plan.At(rules.Own("activation"), Forgetful, steps.Local)
    with pytest.raises(LRPError, match=r"the step Forgetful at `stem.2` has no `back`"):
        LRP(Small().eval())


def test_a_plan_is_shared_by_explainers_of_its_model_and_refused_to_others():
    model, x = small()
    first = LRP(model, composites.EpsilonAlpha2Beta1())
    second = LRP(model, plan=first.plan)
    assert second.composite is first.composite and torch.equal(first.attribute(x, 1), second.attribute(x, 1))
    other, _ = small(seed=1)
    with pytest.raises(InputError, match=r"made for another model \(Small\), not for this Small: make a new one"):
        LRP(other, plan=first.plan)
    second.plans = LRP(other).plans
    with pytest.raises(InputError, match="made for another model"):
        second.attribute(x, 1)
    with pytest.raises(LRPError, match="has a composite of its own"):
        LRP(model, composites.Epsilon(), plan=first.plan)
    with pytest.raises(LRPError, match="belongs to no explainer"):
        LRP(model, plan=plan.Plan(capture(model), composites.Epsilon()))
    with pytest.raises(LRPError, match="'x' is no plan"):
        LRP(model, plan="x")


def test_a_function_named_like_a_relu_is_not_overwritten():
    """In place of torch's own ReLU its in-place form may run; a class of the same name is another function."""

    class ReLU(nn.Module):
        def forward(self, x):
            return x.abs()

    from lrp import register

    before = dict(kinds.REGISTERED)
    register(ReLU, kinds.ACTIVATION)
    try:
        model = nn.Sequential(nn.Linear(3, 4), ReLU(), nn.Linear(4, 2)).double().eval()
        x = torch.randn(2, 3).double()
        assert torch.allclose(LRP(model).explain(x, 0).output, model(x))
    finally:
        kinds.REGISTERED.clear()
        kinds.REGISTERED.update(before)


def test_an_unknown_operation_is_refused_before_anything_runs():
    with pytest.raises(UnsupportedOperation, match=r"node `erf` .*calls erf, which has no rule: pass overrides="):
        LRP(Net(lambda m, x: m.a(torch.erf(x)), a=nn.Linear(2, 2)).eval())


def test_an_unknown_function_may_read_its_input_twice():
    """hypot(x, x) = sqrt(2) |x| is linear where x keeps its sign: with the epsilon rule it hands on what it gets."""
    model = Net(lambda m, x: m.a(torch.hypot(x, x)), a=nn.Linear(3, 2, bias=False)).double().eval()
    x = torch.randn(2, 3).double()
    R = LRP(model, composites.Epsilon(overrides={"hypot": rules.Epsilon()})).attribute(x, 1)
    assert torch.allclose(R, 2**0.5 * x.abs() * model.a.weight[1], rtol=1e-4)


@pytest.mark.parametrize("overrides", [{"0": rules.Pass()}, {"1": rules.Pass()}])
def test_relevance_may_pass_a_layer_into_which_a_norm_is_folded(overrides):
    """The node's value is that of layer and BatchNorm, whatever its rule; by the layer's name or the norm's."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    model(torch.randn(8, 3, 4, 4) + 1)
    model.double().eval()
    x = torch.randn(2, 3, 4, 4).double()
    e = LRP(model, composites.Epsilon(overrides=overrides)).explain(x, 0, layers=["2"])
    assert torch.allclose(e.output, model(x)) and torch.equal(e.relevance, e.layers["2"])


def test_a_product_that_passes_relevance_does_not_ask_its_gate():
    model = Net(lambda m, x: m.c(x) * torch.softmax(m.d(x), 1), c=nn.Linear(3, 2), d=nn.Linear(3, 2)).double().eval()
    x = torch.randn(2, 3).double()
    passed = LRP(model, composites.Epsilon(overrides={"mul": rules.Pass()})).attribute(x, 1)
    assert torch.equal(passed, LRP(model, composites.Epsilon()).attribute(x, 1))


def test_memory_is_free_without_the_garbage_collector():
    """No step stands in a circle of references: what an explanation held goes with it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2),
                          nn.Flatten(), nn.Linear(16, 3)).double().eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8).double()
    explainer = LRP(model, composites.EpsilonGammaBox(-5.0, 5.0))
    explainer.attribute(x, 0)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
        for _ in range(5):
            explainer.attribute(x, 0)
        assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before
    finally:
        gc.enable()
