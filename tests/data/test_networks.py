"""Caffe's within-channel LRN: its definition, its edges, its place in a captured graph."""

import pytest
import torch
from torch import nn

from lrp import LRP
from lrp.data.networks import WithinChannelLRN
from lrp.network import kinds


def slow(x, size, alpha, beta, k):
    """The formula, value by value, for (N, C, H, W): the window starts size // 2 before, and always counts size²."""
    y, (n, c, height, width) = torch.empty_like(x), x.shape
    for row in range(height):
        for column in range(width):
            total = x.new_zeros(n, c)
            for r in range(row - size // 2, row - size // 2 + size):
                for s in range(column - size // 2, column - size // 2 + size):
                    if 0 <= r < height and 0 <= s < width:
                        total += x[:, :, r, s] ** 2
            y[:, :, row, column] = x[:, :, row, column] * (k + alpha * total / size**2) ** -beta
    return y


@pytest.fixture
def x():
    return 100 * torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("k", [1.0, 2.0, 0.5])
def test_equals_the_loop(x, size, k):
    torch.testing.assert_close(WithinChannelLRN(size, 1e-3, 0.75, k)(x), slow(x, size, 1e-3, 0.75, k))


def test_a_window_of_one_is_torchs_own(x):
    torch.testing.assert_close(
        WithinChannelLRN(1, 1e-3, 0.6, 1.5)(x), nn.LocalResponseNorm(1, alpha=1e-3, beta=0.6, k=1.5)(x)
    )


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_window_lies_as_torchs_does_across_channels(size):
    """Channels laid out as columns: the same neighbours, 1/size² of their squares in place of 1/size."""
    x = torch.randn(2, 7, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = WithinChannelLRN(size, 0.5 * size, 0.75)(x.reshape(2, 1, 1, 7))
    torch.testing.assert_close(ours.reshape(2, 7, 1, 1), nn.LocalResponseNorm(size, 0.5, 0.75, 1.0)(x))


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_types(x, dtype, rtol, size):
    x = (x / 100 * size).to(dtype)
    y = WithinChannelLRN(3, 5e-5, 0.75)(x)
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y.double(), slow(x.double(), 3, 5e-5, 0.75, 1.0), rtol=rtol, atol=0)


def test_one_image_without_batch(x):
    layer = WithinChannelLRN(3, 1e-3, 0.75)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_gradient(x):
    layer = WithinChannelLRN(2, 1e-3, 0.75)
    assert torch.autograd.gradcheck(layer, (x[:1, :1].clone().requires_grad_(),))
    zero = torch.zeros(1, 1, 3, 3, requires_grad=True)
    layer(zero).sum().backward()
    assert torch.equal(zero.grad, torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be a positive integer.* got 0"),
        ({"size": 2.0}, "size must be a positive integer.* got 2.0"),
        ({"size": True}, "size must be a positive integer"),
        ({"size": 3, "alpha": -1e-4}, "alpha must be at least 0 .* got alpha=-0.0001"),
        ({"size": 3, "alpha": float("nan")}, "alpha must be at least 0"),
        ({"size": 3, "k": 0.0}, r"k above 0.* k=0\.0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WithinChannelLRN(**arguments)


def test_prints_its_arguments():
    assert str(WithinChannelLRN(3, 5e-5, 0.75)) == "WithinChannelLRN(3, alpha=5e-05, beta=0.75, k=1.0)"


def test_is_one_node_of_kind_lrn_in_a_graph(x):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        WithinChannelLRN(3, 1e-3, 0.75),
        nn.Flatten(),
        nn.Linear(120, 5, bias=False),
    )
    model = model.double().eval()
    explainer = LRP(model)
    (node,) = [node for node in explainer.graph.nodes if node.kind == kinds.LRN]
    assert node.name == "2" and node.op == "withinchannellrn" and node.nonnegative
    passed = explainer.explain(x, target=1, layers=["1", "2"])
    assert torch.equal(passed.layers["1"], passed.layers["2"])  # by default relevance passes
    torch.testing.assert_close(passed.relevance.sum((1, 2, 3)), model(x)[:, 1], rtol=1e-5, atol=0)
