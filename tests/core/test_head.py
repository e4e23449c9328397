"""Which dense layers are the last ones: those behind all convolutions and places. They take the rule of "dense"."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Net
from torch import nn

from lrp import LRP, composites, rules
from lrp.network.tracing import capture


def dense(*names, width=8, **others):
    return {name: nn.Linear(width, width) for name in names} | others


def gated_unit(m, x):
    a, b = m.b(torch.relu(m.a(x))).chunk(2, 1)
    return m.c(torch.cat([a * torch.sigmoid(b), a], 1))


def mixer(m, x):
    x = m.patches(x).flatten(2).transpose(1, 2)
    for norm, tokens, channels in zip(m.norms, m.tokens, m.channels, strict=True):
        x = x + tokens(norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + channels(norm(x))
    return m.head(x.mean(1))


def squeezed(m, x):
    x = F.relu(m.conv(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3))))))
    return m.head(m.last(x * gate[:, :, None, None]).flatten(1))


def recurrent(m, x):
    h = torch.tanh(m.a(x[:, 0]))
    h = torch.tanh(m.a(x[:, 1]) + m.b(h))
    return m.c(torch.stack([h, torch.tanh(m.b(h))], 1)[:, -1])


SERIES, IMAGE, FLAT = (2, 5, 8), (2, 3, 8, 8), (2, 8)
# call, parts, shape of the input, names of the last dense layers
NETWORKS = {
    "one layer": (lambda m, x: m.a(x), dense("a"), FLAT, "a"),
    "MLP": (lambda m, x: m.c(F.gelu(m.b(torch.relu(m.a(x))))), dense("a", "b", "c"), FLAT, "a b c"),
    "MLP on pictures": (lambda m, x: m.b(F.relu(m.a(x.flatten(1)))), dense("a", "b", width=192), IMAGE, "a b"),
    "residual": (
        lambda m, x: m.c(m.n(x + m.b(torch.relu(m.a(x))))), dense("a", "b", "c", n=nn.LayerNorm(8)), FLAT, "a b c",
    ),
    "norms": (
        lambda m, x: m.b(m.n(m.a(x)).relu()), dense("a", "b", n=nn.BatchNorm1d(8)), FLAT, "a b",
    ),
    "gated": (gated_unit, dense("a", "b", "c"), FLAT, "a b c"),
    "maxout": (lambda m, x: m.b(m.a(x).view(-1, 4, 2).amax(2).repeat(1, 2)), dense("a", "b"), FLAT, "b"),
    "maxout of halves": (lambda m, x: m.b(torch.max(m.a(x), m.c(x))), dense("a", "b", "c"), FLAT, "a b c"),
    "maxout of a view": (
        lambda m, x: m.b(m.a(x).view(-1, 4, 2).max(-1).values), dense("a", b=nn.Linear(4, 3)), FLAT, "a b",
    ),
    "maxout of a stack": (
        lambda m, x: m.b(torch.stack([m.a(x), m.c(x)], 1).amax(1)), dense("a", "b", "c"), FLAT, "a b c",
    ),
    "autoencoder": (
        lambda m, x: m.b(F.relu(m.a(x.flatten(1)))).view(-1, 3, 8, 8), dense("a", "b", width=192), IMAGE, "a b",
    ),
    "decoder": (
        lambda m, x: m.up(m.a(x).view(-1, 2, 2, 2)).flatten(1), dense("a", up=nn.ConvTranspose2d(2, 1, 2)), FLAT, "",
    ),
    "two heads": (lambda m, x: m.a(x) + 0.5 * m.b(x), dense("a", "b"), FLAT, "a b"),
    "steps of a series": (lambda m, x: m.b(F.relu(m.a(x)).mean(1)), dense("a", "b"), SERIES, "b"),
    "last step of a series": (lambda m, x: m.b(F.relu(m.a(x))[:, -1]), dense("a", "b"), SERIES, "b"),
    "steps and convolution": (
        lambda m, x: m.b(m.c(m.a(x).transpose(1, 2)).amax(2)), dense("a", "b", c=nn.Conv1d(8, 8, 3)), SERIES, "b",
    ),
    "mean at the end": (lambda m, x: m.b(F.relu(m.a(x))).mean(1), dense("a", "b"), SERIES, "a b"),
    "tokens mixed from the left": (lambda m, x: m.b(F.relu(m.a.weight[:5, :5] @ x)), dense("a", "b"), SERIES, "b"),
    "features from the left": (
        lambda m, x: m.b((m.a.weight @ x.mT).relu().transpose(1, 2)), dense("a", "b"), SERIES, "b matmul",
    ),
    "recurrent": (recurrent, dense("a", "b", "c"), SERIES, "a b c"),
    "mixer": (
        mixer,
        {
            "patches": nn.Conv2d(3, 6, 4, 4), "norms": nn.ModuleList(nn.LayerNorm(6) for _ in "12"),
            "tokens": nn.ModuleList(nn.Linear(4, 4) for _ in "12"),
            "channels": nn.ModuleList(nn.Linear(6, 6) for _ in "12"), "head": nn.Linear(6, 3),
        },
        IMAGE,
        "head",
    ),
    "squeeze and excitation": (
        squeezed,
        {
            "conv": nn.Conv2d(3, 6, 3), "down": nn.Linear(6, 2), "up": nn.Linear(2, 6), "last": nn.Conv2d(6, 2, 3),
            "head": nn.Linear(32, 3),
        },
        IMAGE,
        "head",
    ),
}  # fmt: skip


def last(model):
    return [node.name for node in capture(model.eval()).nodes if node.head]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_dense_layers(name):
    call, parts, shape, expected = NETWORKS[name]
    model = Net(call, **parts).double().eval()
    assert sorted(set(n.split("#")[0] for n in last(model))) == expected.split()
    e = LRP(model, composites.EpsilonPlus()).explain(
        torch.randn(*shape).double(), seed=torch.ones_like(model(torch.randn(*shape).double()))
    )
    table = e.ledger
    for node, kind, rule in zip(table.index, table.kind, table.rule, strict=True):
        if kind in ("dense", "convolution"):
            assert rule.startswith("Epsilon" if node.split("#")[0] in expected.split() else "ZPlus"), node


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (torchvision.models.vgg11, ["classifier.0", "classifier.3", "classifier.6"]),
        (torchvision.models.resnet18, ["fc"]),
        (torchvision.models.mobilenet_v3_small, ["classifier.0", "classifier.3"]),
        (torchvision.models.convnext_tiny, ["classifier.2"]),
        (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=True), ["fc"]),
        (torchvision.models.squeezenet1_1, []),
    ],
)
def test_the_last_dense_layers_of_known_networks(make, expected):
    with torch.device("meta"):
        model = make().to_empty(device="cpu")
    assert last(model) == expected


def test_a_dense_layer_at_many_places_is_a_convolution_of_one_pixel():
    """The same network with nn.Linear on the last axis and with 1 x 1 convolutions, under every preset that tells."""
    a, b, head = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 3)
    inner = Net(lambda m, x: m.head(m.b(F.gelu(m.a(x.permute(0, 2, 3, 1)))).mean((1, 2))), a=a, b=b, head=head)
    outer = Net(
        lambda m, x: m.head(m.b(F.gelu(m.a(x))).mean((2, 3))), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 1), head=head
    )
    inner, outer, x = inner.double().eval(), outer.double().eval(), torch.randn(2, 3, 4, 4).double()
    for conv, linear in ((outer.a, a), (outer.b, b)):
        conv.weight.data, conv.bias.data = linear.weight.data[:, :, None, None].clone(), linear.bias.data.clone()
    for composite in (composites.EpsilonPlus(), composites.EpsilonAlpha2Beta1Flat(), composites.EpsilonGammaBox(-5, 5)):
        assert torch.allclose(LRP(inner, composite).attribute(x, 1), LRP(outer, composite).attribute(x, 1), rtol=1e-9)


def test_every_dense_layer_has_a_word_of_its_own():
    model = Net(NETWORKS["steps of a series"][0], **dense("a", "b")).eval()
    for word, expected in (("linear", ["Epsilon", "Epsilon"]), ("dense", ["ZPlus", "Epsilon"])):
        plan = LRP(model, composites.Composite([(word, rules.Epsilon()), ("any", rules.ZPlus())])).plan
        assert [type(plan.rules[plan.graph.find(n)]).__name__ for n in "ab"] == expected
