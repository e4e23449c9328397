"""The graph: it computes what the model computes, whatever the model is written like, or it says what is wrong."""

import pytest
import torch
import torch.nn.functional as F
from networks import Net, sound
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from lrp import LRP, capture, composites, rules
from lrp.network import kinds as kinds

LRP0 = composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12))
ZOO = {}


def wiring(function):
    """Register a function that makes (forward, parts); inputs are (N, 4, 6, 6), outputs are flattened."""
    ZOO[function.__name__] = function
    return function


def make(name):
    torch.manual_seed(0)
    call, parts = ZOO[name]()
    return sound(Net(lambda m, x: call(m, x).flatten(1), **parts))


def C(i=4, o=4, k=3, **options):
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def B(n=4):
    return nn.BatchNorm2d(n)


@wiring
def plain():
    return lambda m, x: m.b(m.r(m.a(x))), {"a": C(), "b": C(), "r": nn.ReLU()}


@wiring
def skip():
    return lambda m, x: F.relu(x + m.n(m.a(x))), {"a": C(bias=False), "n": B()}


@wiring
def preactivation_skip():
    return lambda m, x: x + m.a(F.relu(m.n(x))), {"a": C(), "n": B()}


@wiring
def dense_concat():
    def call(m, x):
        y = torch.cat([x, m.a(F.relu(m.n(x)))], 1)
        return torch.cat([y, m.b(F.relu(m.o(y)))], 1)

    return call, {"a": C(4, 2), "b": C(6, 2), "n": B(4), "o": B(6)}


@wiring
def gate():
    def call(m, x):
        y = m.a(x)
        return y * torch.sigmoid(m.e(F.relu(m.s(F.adaptive_avg_pool2d(y, 1)))))

    return call, {"a": C(), "s": C(4, 2, 1), "e": C(2, 4, 1)}


@wiring
def inverted_residual():
    parts = {"p": C(4, 8, 1), "d": C(8, 8, groups=8), "q": C(8, 4, 1), "n": B(8), "o": B(8), "l": B(4)}
    return lambda m, x: x + m.l(m.q(m.r(m.o(m.d(m.r(m.n(m.p(x)))))))), parts | {"r": nn.ReLU6(inplace=True)}


@wiring
def grouped():
    return lambda m, x: m.b(m.a(x).relu()), {"a": C(4, 6, groups=2), "b": C(6, 4, 1)}


@wiring
def norm_before_convolution():
    return lambda m, x: m.a(m.n(x)), {"n": B(), "a": C()}


@wiring
def convolution_feeds_two_norms():
    def call(m, x):
        y = m.a(x)
        return m.n(y).relu() - m.o(y)

    return call, {"a": C(), "n": B(), "o": B()}


@wiring
def reused_convolution():
    return lambda m, x: m.o(m.a(m.r(m.n(m.a(x))))), {"a": C(), "n": B(), "o": B(), "r": nn.ReLU()}


@wiring
def inplace_relu_whose_input_is_used_again():
    def call(m, x):
        y = m.a(x)
        z = m.r(y)
        return z - 2 * y  # y is what the ReLU left in it

    return call, {"a": C(), "r": nn.ReLU(inplace=True)}


@wiring
def inplace_sum_that_is_used_later():
    def call(m, x):
        y = m.a(x)
        y += x
        z = m.b(y)
        z -= y
        z *= 2
        return z + y

    return call, {"a": C(), "b": C()}


@wiring
def inplace_methods_and_functions():
    def call(m, x):
        y = m.a(x)
        y.relu_()
        z = m.b(y)
        F.relu(z, inplace=True)
        w = m.a(z)
        v = w
        w.mul_(0.5).add_(y).sub_(1)
        F.leaky_relu_(w, 0.2)
        return v + torch.relu_(m.b(w)) + z

    return call, {"a": C(), "b": C()}


@wiring
def channel_shuffle():
    def call(m, x):
        n, c, h, w = x.size()
        a, b = x.chunk(2, dim=1)
        y = torch.cat((a, m.a(b)), dim=1)
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(x.shape[0], -1, h, w)

    return call, {"a": C(2, 2)}


@wiring
def pieces():
    def call(m, x):
        a, b, c = torch.split(m.a(x), [1, 2, 1], 1)
        return torch.cat([c, b * 2, x[:, 1:3], torch.stack([x.unbind(1)[3], x[:, 0]], 1), a], 1)

    return call, {"a": C()}


@wiring
def padding_nodes():
    def call(m, x):
        y = F.pad(m.r(m.a(F.pad(x, (1, 0, 2, 1)))), (1, 1, 1, 1), mode="circular")
        return m.c(m.z(y))

    parts = {"a": nn.Conv2d(4, 4, 3), "r": nn.ReflectionPad2d(1), "z": nn.ConstantPad2d(1, 0.3)}
    return call, parts | {"c": nn.Conv2d(4, 2, 2, padding="same", padding_mode="replicate")}


@wiring
def transposed_with_norm():
    parts = {"t": nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), "n": B(6)}
    return lambda m, x: F.relu6(m.n(m.t(x))), parts


@wiring
def dense_with_norm():
    parts = {"a": nn.Linear(4, 5), "n": nn.BatchNorm1d(5), "b": nn.Linear(5, 3)}
    return lambda m, x: m.b(m.n(m.a(x.mean((2, 3)))).tanh()), parts


@wiring
def functional_layers():
    def call(m, x):
        y = F.conv2d(x, m.a.weight, m.a.bias, 1, "same")
        y = F.conv_transpose2d(y, m.t.weight, None, stride=2, output_padding=1, groups=2)
        y = F.batch_norm(y, m.n.running_mean, m.n.running_var, m.n.weight, bias=m.n.bias, eps=m.n.eps)
        return F.linear(y.mean((2, 3)), m.f.weight) @ m.f.weight + m.f.bias[0]

    return call, {"a": C(), "t": nn.ConvTranspose2d(4, 6, 2, groups=2), "n": B(6), "f": nn.Linear(6, 5)}


@wiring
def frozen_norm():
    return lambda m, x: m.n(m.a(x)), {"a": C(), "n": FrozenBatchNorm2d(4)}


@wiring
def pools_and_sizes():
    def call(m, x):
        y = F.max_pool2d(m.a(x), 3, 2, 1) + F.avg_pool2d(x, 2)
        y = F.interpolate(y, scale_factor=2, mode="nearest") + m.u(m.p(x))
        return y.view(y.size(0), -1)[:, : y.shape[2] * 3].amax(1, keepdim=True) + y.sum((1, 2))

    return call, {"a": C(), "u": nn.Upsample(scale_factor=2), "p": nn.AdaptiveMaxPool2d((3, 3))}


@pytest.mark.parametrize("name", ZOO)
def test_graph_computes_what_the_model_computes(name):
    """LRP-0 with signed additions on all of it: the output is the model's, and no relevance is unaccounted for."""
    model, x = make(name), torch.randn(3, 4, 6, 6).double()
    untouched = x.clone()
    for fold in (True, False):
        composite = composites.Composite([("any", rules.Epsilon())], fold_batchnorm=fold)
        e = LRP(model, composite).explain(x, [0, 1])
        assert torch.allclose(e.output, model(x.clone()), rtol=1e-10, atol=1e-12)
        assert e.imbalance < 1e-9
        assert torch.equal(x, untouched)


LOCALLY_LINEAR = [name for name in ZOO if name not in ("gate", "dense_with_norm")]


@pytest.mark.parametrize("name", LOCALLY_LINEAR)
def test_walk_follows_the_models_own_gradient(name):
    """Where all is linear or ReLU, LRP-0 (absorb) is gradient x input of the model itself, wiring and all."""
    model, x = make(name), torch.randn(3, 4, 6, 6).double()
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf.clone())[:, 1].sum(), leaf)[0]
    for fold in (True, False):
        signed = rules.Epsilon(1e-12)  # "any" does not mean a norm of the input itself, which passes
        rows = [("batchnorm", signed), ("any", signed)]
        composite = composites.Composite(rows, addition=signed, fold_batchnorm=fold)
        R = LRP(model, composite).attribute(x, 1)
        assert torch.allclose(R, gradient * x, rtol=1e-6, atol=1e-8 * float(R.abs().max()))


def test_gate_passes_everything_to_the_signal():
    """y * sigmoid(...): as if the gate were a constant."""
    model, x = make("gate"), torch.randn(2, 4, 6, 6).double()
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        y = model.a(x)
        constant = torch.sigmoid(model.e(F.relu(model.s(y.mean((2, 3), keepdim=True)))))
    gradient = torch.autograd.grad((model.a(leaf) * constant).flatten(1)[:, 5].sum(), leaf)[0]
    assert torch.allclose(LRP(model, LRP0).attribute(x, 5), gradient * x, atol=1e-9)


def nodes(model, **options):
    return {node.name: node for node in capture(model, **options).nodes if node.carries}


def test_norms_are_folded_by_data_flow():
    folded = {name: {n for n, k in nodes(make(name)).items() if k.kind == kinds.BATCHNORM} for name in ZOO}
    assert folded["skip"] == folded["inverted_residual"] == folded["transposed_with_norm"] == set()
    assert folded["dense_with_norm"] == folded["reused_convolution"] == set()
    assert folded["preactivation_skip"] == folded["norm_before_convolution"] == {"n"}
    assert folded["convolution_feeds_two_norms"] == folded["dense_concat"] == {"n", "o"}
    kept = nodes(make("inverted_residual"), fold_batchnorm=False)
    assert [n for n, node in kept.items() if node.kind == kinds.BATCHNORM] == ["n", "o", "l"]


def test_folded_convolution_keeps_both_names():
    model, x = make("skip"), torch.randn(2, 4, 6, 6).double()
    e = LRP(model).explain(x, 0, layers=["a", "n"])
    assert torch.equal(e.layers["a"], e.layers["n"])
    assert list(e.ledger.index) == ["flatten", "relu", "add", "a"]
    by_norm = LRP(model, composites.EpsilonPlus(overrides={"n": rules.Flat()}))
    assert by_norm.explain(x, 0).ledger.rule["a"] == "Flat()"


def test_order_of_registration_does_not_matter():
    """The norms are registered before the convolutions, and in the wrong order."""
    torch.manual_seed(0)
    parts = {"a": C(4, 6), "b": C(6, 6), "n": B(6), "o": B(6)}

    def call(m, x):
        return m.o(m.b(m.n(m.a(x)).relu())).flatten(1)

    right = sound(Net(call, **parts))
    wrong = Net(call, **{k: parts[k] for k in ("o", "b", "n", "a")}).eval()
    x = torch.randn(2, 4, 6, 6).double()
    expected, got = (LRP(m, composites.EpsilonPlus()).explain(x, 3) for m in (right, wrong))
    assert torch.equal(expected.relevance, got.relevance)
    assert torch.allclose(got.output, wrong(x))


def modules(m, x):
    y = m.r(m.n(m.a(x)))
    y = m.p(m.b(y))
    return m.f(m.d(m.l(m.g(m.s(y)))))


def functions(m, x):
    n = m.n
    y = F.conv2d(x, m.a.weight, m.a.bias, padding=1)
    y = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)
    y = F.max_pool2d(F.conv2d(y.relu(), m.b.weight, m.b.bias, padding=1), 2)
    y = F.adaptive_avg_pool2d(torch.sigmoid(y), 1)
    return F.linear(F.dropout(torch.flatten(y, 1), 0.5, m.training), m.f.weight, m.f.bias)


def test_functional_form_gives_the_same_relevance():
    torch.manual_seed(0)
    parts = {"a": C(), "n": B(), "r": nn.ReLU(), "b": C(), "p": nn.MaxPool2d(2), "s": nn.Sigmoid()}
    parts |= {"g": nn.AdaptiveAvgPool2d(1), "l": nn.Flatten(), "d": nn.Dropout(), "f": nn.Linear(4, 3)}
    one, two = sound(Net(modules, **parts)), Net(functions, **parts).eval()
    x = torch.randn(2, 4, 6, 6).double()
    for preset in (composites.Epsilon, composites.EpsilonPlusFlat, composites.EpsilonAlpha2Beta1):
        R = [LRP(m, preset(fold_batchnorm=False)).attribute(x, 2) for m in (one, two)]
        assert torch.allclose(*R, rtol=1e-10, atol=1e-14)
