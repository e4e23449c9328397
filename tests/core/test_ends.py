"""Networks that end in a sigmoid or softmax: refused, or explained from their logits, whose signs a map needs."""

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

from lrp import LRP, InputError, LRPError, UnsupportedOperation, composites, rules, seeds
from lrp.network import ends

EPSILON = composites.Epsilon(1e-12)


def body():
    """A linear map whose contributions w x to two classes are [-2, 1] and [3, 4] at x = (2, 1)."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[-1.0, 1.0], [1.5, 4.0]])
    return linear


X = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
CONTRIBUTIONS = torch.tensor([[[-2.0, 1.0]], [[3.0, 4.0]]], dtype=torch.float64)
LOGITS = torch.tensor([[-1.0, 7.0]], dtype=torch.float64)


def ending(call):
    return Net(lambda m, x: call(m.a(x)), a=body()).double().eval()


def modules(*end):
    return nn.Sequential(body(), *end).double().eval()


DIRECT = {
    "module": lambda: modules(nn.Sigmoid()),
    "method": lambda: ending(lambda h: h.sigmoid()),
    "in place": lambda: ending(lambda h: h.sigmoid_()),
    "function": lambda: ending(torch.sigmoid),
    "functional": lambda: ending(F.sigmoid),
    "special": lambda: ending(torch.special.expit),
    "log": lambda: modules(nn.LogSigmoid()),
    "functional log": lambda: ending(F.logsigmoid),
    "log of": lambda: ending(lambda h: h.sigmoid().log()),
    "hard": lambda: modules(nn.Hardsigmoid()),
    "functional hard": lambda: ending(F.hardsigmoid),
    "softmax": lambda: modules(nn.Softmax(1)),
    "softmax method": lambda: ending(lambda h: h.softmax(-1)),
    "functional softmax": lambda: ending(lambda h: F.softmax(h, dim=1)),
    "special softmax": lambda: ending(lambda h: torch.special.softmax(h, 1)),
    "log softmax": lambda: modules(nn.LogSoftmax(1)),
    "functional log softmax": lambda: ending(lambda h: F.log_softmax(h, 1)),
    "log of softmax": lambda: ending(lambda h: torch.log(h.softmax(1))),
    "behind dropout": lambda: modules(nn.Sigmoid(), nn.Dropout(), nn.Identity()),
    "behind views": lambda: ending(lambda h: h.view(1, 2, 1).sigmoid().squeeze(-1).contiguous()),
    "behind a clamp": lambda: ending(lambda h: h.sigmoid().clamp(1e-7, 1 - 1e-7)),
    "behind a slice": lambda: ending(lambda h: h.sigmoid()[:, :2]),
    "behind a cast": lambda: ending(lambda h: h.sigmoid().float()),
}


@pytest.mark.parametrize("name", DIRECT)
def test_an_end_is_refused_or_explained_from_the_logits(name):
    model = DIRECT[name]()
    explainer = LRP(model, EPSILON)
    with pytest.raises(UnsupportedOperation, match=r"ends in a .*(sigmoid|softmax|expit).*logits.*pass start='logits'"):
        explainer.explain(X, 0)
    e = explainer.explain(X, [0, 1], start="logits")
    if name == "behind views":  # each place of (N, 2, 1)
        assert e.output.shape == (1, 2, 1)
    else:
        assert torch.equal(e.output, LOGITS) and e.target.tolist() == [[0], [1]]
        assert ends.probabilities(e.output, explainer.plan.ends)[0, 0] == pytest.approx(_p(name), rel=1e-6)
    assert torch.allclose(e.relevance, CONTRIBUTIONS, rtol=1e-9)


def _p(name):
    """The probability of class 0, whose logit is -1 beside 7."""
    if "softmax" in name:
        return float(LOGITS.softmax(1)[0, 0])
    return (3 - 1) / 6 if "hard" in name else float(LOGITS.sigmoid()[0, 0])


INDIRECT = {
    "the other way round": (lambda: ending(lambda h: 1 - h.sigmoid()), ["a"]),
    "scaled": (lambda: ending(lambda h: 5 * h.sigmoid()), ["a"]),
    "both classes": (lambda: ending(lambda h: torch.cat([1 - h[:, :1].sigmoid(), h[:, :1].sigmoid()], 1)), ["getitem"]),
    "two heads": (lambda: ending(lambda h: torch.cat([h.sigmoid(), h.softmax(1)], 1)), ["a"]),
}


@pytest.mark.parametrize("name", INDIRECT)
def test_where_more_is_computed_the_start_is_named(name):
    make, names = INDIRECT[name]
    explainer = LRP(make(), EPSILON)
    for start in (None, "logits"):
        with pytest.raises(UnsupportedOperation, match=f"ends in a (sigmoid|softmax).*start='{names[0]}'"):
            explainer.explain(X, 0, start=start)
    assert torch.allclose(explainer.attribute(X, 0, start=names[0]), CONTRIBUTIONS[0])


@pytest.mark.parametrize("end", [nn.Identity(), nn.Tanh(), nn.ReLU(), nn.Softplus()])
def test_logits_are_the_output_of_any_other_network(end):
    explainer = LRP(modules(end), EPSILON)
    plain, asked = explainer.explain(X, 1), explainer.explain(X, 1, start="logits")
    assert torch.equal(plain.relevance, asked.relevance) and torch.equal(plain.output, asked.output)


def test_sigmoids_in_the_middle_are_no_ends():
    gate = Net(lambda m, x: m.a(x) * torch.sigmoid(m.a(x)), a=body()).double().eval()
    hidden = modules(nn.Sigmoid(), nn.Linear(2, 2))
    attention = Net(lambda m, x: m.a(x) * m.a(x).softmax(1), a=body()).double().eval()
    for model in (gate, hidden, attention):
        assert LRP(model, EPSILON).explain(X, 0).relevance.shape == X.shape


def test_a_module_of_that_name_comes_first():
    model = Net(lambda m, x: m.last(m.logits(x)).sigmoid(), logits=body(), last=body()).double().eval()
    explainer = LRP(model, EPSILON)
    assert torch.allclose(explainer.attribute(X, 0, start="logits"), CONTRIBUTIONS[0])
    assert torch.allclose(explainer.explain(X, 0, start="last").output, model.last(LOGITS))


def test_an_override_lets_relevance_through():
    """As asked for by name: then it starts as the probability, with its sign."""
    model = modules(nn.Sigmoid())
    R = LRP(model, composites.Epsilon(1e-12, overrides={"1": rules.Pass()})).attribute(X, 0)
    assert torch.allclose(R, model(X)[0, 0] * CONTRIBUTIONS[0] / -1)


def test_the_end_is_not_asked_where_relevance_starts_below():
    model = nn.Sequential(body(), nn.ReLU(), body(), nn.Softmax(1)).double().eval()
    explainer = LRP(model, EPSILON)
    assert torch.allclose(explainer.attribute(X, 1, start="0"), CONTRIBUTIONS[1])
    with pytest.raises(InputError, match="no module or node named `logit`"):
        explainer.attribute(X, 1, start="logit")


def test_a_graph_of_probabilities_in_space():
    """A segmentation network: a class is a channel of the logits, or one place of it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 1, bias=False)
    explainer = LRP(nn.Sequential(conv, nn.Softmax(1)).double().eval(), EPSILON)
    x = torch.randn(2, 2, 4, 4).double()
    place = explainer.attribute(x, (1, 2, 3), start="logits")
    assert torch.allclose(place[:, :, 2, 3], x[:, :, 2, 3] * conv.weight[1, :, 0, 0]) and place.count_nonzero() == 4


@pytest.mark.parametrize("seed", [seeds.Probability, seeds.SoftmaxGradient])
def test_seeds_know_the_end(seed):
    """Through a sigmoid the probability of a class is its own; its slope is p (1 - p), and no other class's matters."""
    many, alone = (LRP(modules(end), EPSILON) for end in (nn.Sigmoid(), nn.Softmax(1)))
    for name in ("logits", "0"):
        e = many.explain(X, 0, seed=seed(), start=name)
        p = float(LOGITS.sigmoid()[0, 0])
        wanted = p if seed is seeds.Probability else p * (1 - p)
        assert float(e.seed) == pytest.approx(wanted, rel=1e-12)
        assert torch.allclose(e.relevance, wanted * CONTRIBUTIONS[0] / -1)
        e = alone.explain(X, 0, seed=seed(), start=name)
        assert torch.equal(e.relevance, LRP(modules(), EPSILON).attribute(X, 0, seed=seed()))


def test_every_seed_and_a_tensor_are_refused_at_the_end():
    explainer = LRP(modules(nn.Sigmoid()), EPSILON)
    for seed in (seeds.OneHot(), seeds.Probability(), seeds.Contrastive(), torch.ones(1, 2).double()):
        with pytest.raises(LRPError, match="start='logits'"):
            explainer.attribute(X, 0, seed=seed)
    one = explainer.attribute(X, seed=torch.tensor([[0.0, 7.0]]).double(), start="logits")
    assert torch.allclose(one, CONTRIBUTIONS[1])
