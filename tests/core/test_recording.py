"""Networks that ask for sizes and types, that move samples off the first axis, or take several inputs."""

import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrp import LRP, CaptureError, LRPError, UnsupportedOperation, capture, composites, rules
from tests.networks import Net, sound

LRP0 = composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12))
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(call, head=196, **parts):
    torch.manual_seed(0)
    parts = {"c": nn.Conv2d(3, 4, 3, bias=False), "l": nn.Linear(3, 5, bias=False)} | parts
    return sound(Net(call, head=nn.Linear(head, 3, bias=False), **parts))


def gradient_x_input(model, x, target=1):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0] * x


def same_padding(m, x):  # as TensorFlow pads
    h, w = x.shape[-2:]
    down, right = (max((math.ceil(s / 2) - 1) * 2 + 3 - s, 0) for s in (h, w))
    if down > 0 or right > 0:
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
    return m.head(F.relu(F.conv2d(x, m.c.weight, stride=2)).flatten(1))


def asserts(m, x):
    n, c, *_ = x.shape
    assert isinstance(x, torch.Tensor) and x.dim() == 4 and x.dtype == torch.float64
    if c != 3:
        raise ValueError("three channels")
    return m.head(F.relu(m.c(x)).view(n, -1))


def loop(m, x):
    columns = [F.relu(m.l(x[..., i].mean(2))) for i in range(x.shape[-1])]
    return m.head(torch.stack(columns, 1).flatten(1))


def asks_for_a_tensor(m, x):
    """Under fx a value is no Tensor, and the other branch would be traced."""
    y, skip = F.relu(m.c(x)), m.c(x.flip(3))
    return m.head(torch.cat([y, skip if isinstance(skip, torch.Tensor) else y], 1).flatten(1))


def writes(m, x):
    y = F.relu(m.c(x))
    out = torch.zeros_like(y)
    out[:, :2] = y[:, 1:3]
    out[:, 2:] = y[:, 2:]
    return m.head(out.flatten(1))


def tokens(m, x):
    n = x.shape[0]
    h = m.c(x).flatten(2).transpose(1, 2)
    h = torch.cat([m.cls.expand(n, -1, -1), h], 1)
    return m.head(F.relu(h)[:, 1:].flatten(1)) if h.shape[1] == 50 else h


class Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.relu(x)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


def shaped_like(m, x):
    """What only gives a shape carries nothing."""
    h = m.c(x)
    return m.head(F.relu(h + m.cls[..., None].expand_as(h)).flatten(1))


def own_function(m, x):
    return m.head(Rectify.apply(m.c(x)).flatten(1)) if x.size(1) == 3 else x


def fused_pieces(m, x):
    """The permutation of a fused q, k, v: pieces first, samples second."""
    n, places = x.shape[0], 49
    pieces = F.relu(m.c(x)).flatten(2).transpose(1, 2).reshape(n, places, 2, 2).permute(2, 0, 1, 3)
    a, b = pieces.unbind(0)
    return m.head(torch.cat([a, b], -1).flatten(1)) if places == pieces.shape[2] else x


def windows(m, x):
    parts = x.view(x.shape[0], 3, 3, 3, 3, 3).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 3, 3)
    return m.head(F.relu(m.c(parts)).view(x.shape[0], -1))


def sequence_first(m, x):
    s = x.flatten(2).permute(2, 0, 1)
    return m.head(F.relu(m.l(s)).mean(0))


def samples_as_the_minor_axis(m, x):
    s = x.flatten(2).permute(2, 0, 1)
    length, n, c = s.shape
    return m.head(F.relu(m.l(s.reshape(length * n, c))).reshape(length, n, -1).sum(0))


WAYS = {
    "tensorflow's padding": (same_padding, 100, True),
    "assertions": (asserts, 196, True),
    "loop over a size": (loop, 45, True),
    "asks for a tensor": (asks_for_a_tensor, 392, True),
    "writes into a part": (writes, 196, True),
    "class token": (tokens, 196, True),
    "shaped like another": (shaped_like, 196, False),
    "autograd function": (own_function, 196, True),
    "pieces before samples": (fused_pieces, 196, True),
    "windows": (windows, 36, False),
    "sequence first": (sequence_first, 5, False),
    "samples last of two": (samples_as_the_minor_axis, 5, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_lrp_0_is_gradient_x_input_for_any_number_of_samples(way):
    call, head, recorded = WAYS[way]
    model = net(call, head, cls=nn.Parameter(torch.randn(1, 1, 4) if way == "class token" else torch.zeros(1, 1, 1)))
    explainer = LRP(model, LRP0)
    for x in (X, X[:1], torch.cat([X, -X, X])):
        e = explainer.explain(x, 1)
        assert torch.allclose(e.relevance, gradient_x_input(model, x), rtol=1e-6, atol=1e-9)
        assert torch.allclose(e.output, model(x), rtol=1e-12) and e.imbalance < 1e-9
        assert e.received.shape == (1, len(x)), "one amount for each sample"
    assert explainer.graph.recorded == recorded and len(explainer.plans.by_shape) <= 1


@pytest.mark.parametrize("way", ["windows", "sequence first", "samples last of two", "pieces before samples"])
@pytest.mark.parametrize("make", [composites.EpsilonPlus, composites.EpsilonAlpha2Beta1, LRP0.__class__])
def test_each_sample_has_its_own_scale_and_its_own_books(way, make):
    """Stabilisers are relative to a sample's size: one a million times larger must not change the others' maps."""
    call, head, _ = WAYS[way]
    model, x = net(call, head), X * torch.tensor([1.0, 1e6]).double()[:, None, None, None]
    e = LRP(model, make(epsilon=0.1)).explain(x, 1)
    for i in range(2):
        alone = LRP(model, make(epsilon=0.1)).explain(x[i : i + 1], 1)
        assert torch.allclose(e.relevance[i : i + 1], alone.relevance, rtol=1e-9, atol=1e-12)
        assert e.ledger_of(sample=i).bias.sum() == pytest.approx(alone.ledger.bias.sum(), abs=1e-9)
        for a, b in zip(e.rows, alone.rows, strict=True):
            kept, amount = torch.as_tensor(a.stabiliser).expand(1, 2)[0, i], torch.as_tensor(b.stabiliser).sum()
            assert float(kept) == pytest.approx(float(amount), rel=1e-9)


def test_samples_that_mix_are_refused_by_name():
    with pytest.raises(
        UnsupportedOperation, match=r"`mean` \(at test_recording.py:\d+\) gives \(3, 9, 9\), in which the samples"
    ):
        LRP(net(lambda m, x: m.head((F.relu(m.c(x)) - x.mean(0)[:1, :7, :7]).flatten(1)))).attribute(X, 0)


def test_a_new_shape_is_captured_anew_and_stored():
    def call(m, x):
        return m.head(F.relu(m.c(x)).mean(2 if x.shape[2] > x.shape[3] else 3).flatten(1))

    model = net(call, head=28)
    explainer = LRP(model, LRP0)
    with pytest.raises(CaptureError, match="with an input at hand more can be traced"):
        _ = explainer.graph
    tall, wide = torch.randn(2, 3, 11, 9).double(), torch.randn(2, 3, 9, 11).double()
    for x in (tall, wide, tall):
        assert torch.allclose(explainer.attribute(x, 1), gradient_x_input(model, x), atol=1e-9)
    assert len(explainer.plans.by_shape) == 2
    assert len(capture(model, example=tall).nodes) > 4


def test_a_decision_by_the_number_of_samples_is_taken_anew():
    def call(m, x):
        h = m.c(x)
        return m.head((F.relu(h) if len(x) > 1 else torch.tanh(h) * 0 + h).flatten(1))

    model = net(call)
    explainer = LRP(model, LRP0)
    for x in (X, X[:1], X):
        assert torch.allclose(explainer.explain(x, 1).output, model(x), rtol=1e-12)


def branches(m, x):
    h = m.c(x)
    return m.head(h.flatten(1)) if h.sum() > 0 else m.head(-h.flatten(1))


def counts(m, x):
    return m.head(m.c(x).flatten(1)) * round(x.sum().item())


def leaves(m, x):
    return m.head(torch.from_numpy(m.c(x).detach().numpy()).flatten(1))


@pytest.mark.parametrize(
    ("call", "words"), [(branches, "branches on"), (counts, "takes a number from"), (leaves, "hands to Python")]
)
def test_what_depends_on_values_is_an_error_with_its_line(call, words):
    with pytest.raises(CaptureError, match=rf"Net could not be traced: at test_recording.py:\d+ the network {words}"):
        LRP(net(call)).attribute(X, 1)


def test_all_nodes_without_a_rule_are_named_at_once_with_their_places():
    def call(m, x):
        return m.head(m.c(torch.exp(x)).flatten(1).cumprod(1).exp())

    with pytest.raises(UnsupportedOperation) as raised:
        LRP(net(call))
    text = str(raised.value)
    assert "would reach 3 nodes" in text and "`exp` (at test_recording.py:" in text and "`exp#2`" in text
    assert "cumprod" in text


def test_a_size_that_the_network_has_stored_is_a_number_in_the_next_record():
    @lru_cache
    def rows(height):
        return height - 2

    def call(m, x):
        n, c, h, _ = x.shape
        return m.head(F.relu(m.c(x)).reshape(n, 4, rows(h), -1).mean(3).flatten(1)) if c == 3 else x

    model = net(call, head=28)
    for x in (X, torch.randn(3, 3, 9, 12).double(), X):
        assert torch.allclose(LRP(model, LRP0).attribute(x, 1), gradient_x_input(model, x), atol=1e-9)


def test_a_recorded_model_stays_as_it_was():
    model = net(asserts)
    before = {k: v.clone() for k, v in model.state_dict().items()}, set(vars(model)), torch.get_rng_state()
    LRP(model).attribute(X, 0)
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert set(vars(model)) == before[1] and torch.equal(torch.get_rng_state(), before[2])
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(10, 3)

    def forward(self, x, y):
        return self.out(F.relu(torch.cat([self.a(x), self.b(y)], 1)))


def test_several_inputs_have_a_map_each_and_one_ledger():
    model = sound(Two())
    xs = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    leaves = [x.clone().requires_grad_() for x in xs]
    gradients = torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)
    e = LRP(model, LRP0).explain(xs, 1)
    assert isinstance(e.relevance, tuple) and e.imbalance < 1e-9
    for R, g, x in zip(e.relevance, gradients, xs, strict=True):
        assert torch.allclose(R, g * x, atol=1e-9)
    assert e.ledger.relevance_in["y"] == pytest.approx(float(e.relevance[1].sum())), "a line for each input"
    t = e.totals
    assert t["seed"] == pytest.approx(sum(float(R.sum()) for R in e.relevance) + t["bias"] + t["stabiliser"])
    several = LRP(model, LRP0).attribute(xs, [0, 1])
    assert [R.shape for R in several] == [(2, 2, 4), (2, 2, 3)] and torch.allclose(several[1][1], e.relevance[1])
    with pytest.raises(LRPError, match=r"missing 1 required positional argument"):
        LRP(model, LRP0).attribute(xs[0], 1)


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.table, self.out = nn.Linear(4, 5, bias=False), nn.Embedding(7, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x, index, mask=None):
        h = F.relu(self.a(x) + self.table(index))
        return self.out(h if mask is None else h * mask[:, None])


def test_an_input_without_floats_is_a_constant_with_a_line_of_its_own():
    model, x, index = sound(Indexed()), torch.randn(2, 4).double(), torch.tensor([1, 5])
    explainer = LRP(model, LRP0)
    e = explainer.explain((x, index), 1)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf, index)[:, 1].sum(), leaf)[0]
    assert torch.allclose(e.relevance[0], gradient * x, atol=1e-9) and not e.relevance[1].any()
    rest = model(x, index)[:, 1].sum() - (gradient * x).sum()
    assert e.ledger.bias["add"] == pytest.approx(float(rest.detach()), abs=1e-9), "what the table added"
    masked = explainer.explain((x, index, torch.tensor([True, False])), 1)
    assert torch.allclose(masked.relevance[0][0], e.relevance[0][0]) and not masked.relevance[0][1].any()


# ---------------------------------------------------------------- changes in place through views


def _rectified_part(x):
    x[:, :2].relu_()
    return x


def _pieces(x):
    a, b = x.chunk(2, 1)
    a.relu_()
    b.mul_(2.0)
    return x


def _whole_behind_a_view(x):
    v = x.view(x.shape[0], -1)
    x.relu_()
    return v.view(x.shape)


def _view_of_a_view(x):
    v = x.transpose(1, 2)
    v[:, 1:3].relu_()
    return x + v.transpose(1, 2)


def _written(x):
    x[:, 1] = x[:, 0]
    x[:, 2].add_(x[:, 3])
    return x


def _copied(x):
    y = torch.zeros_like(x)
    y[:, 1:].copy_(x[:, :3])
    return y


IN_PLACE = {  # beside each the same function without a change in place
    "a part": (_rectified_part, lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1)),
    "pieces": (_pieces, lambda x: torch.cat([F.relu(x[:, :2]), 2 * x[:, 2:]], 1)),
    "the whole": (_whole_behind_a_view, F.relu),
    "a view of a view": (_view_of_a_view, lambda x: 2 * torch.cat([x[:, :, :1], F.relu(x[:, :, 1:3]), x[:, :, 3:]], 2)),
    "written": (_written, lambda x: torch.stack([x[:, 0], x[:, 0], x[:, 2] + x[:, 3], x[:, 3]], 1)),
    "copied": (_copied, lambda x: F.pad(x[:, :3], (0, 0, 0, 0, 1, 0))),
}


@pytest.mark.parametrize("way", IN_PLACE)
@pytest.mark.parametrize("make", [lambda: LRP0, composites.EpsilonPlus, composites.EpsilonAlpha2Beta1])
def test_a_change_in_place_reaches_all_views_of_the_same_memory(way, make):
    """fx sees one name change; the output's bias may drown what the other views make of it."""
    changed, plain = (net(lambda m, x, f=f: m.head(f(m.c(x)).flatten(1)) * 1e-6 + 10) for f in IN_PLACE[way])
    with torch.no_grad():  # autograd refuses some of these
        assert torch.equal(changed(X), plain(X))
    for x in (X, X[:1]):
        want, got = (LRP(model, make()).explain(x, 1).relevance for model in (plain, changed))
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-8 * float(want.abs().max()))
