"""Recurrent layers of torch: the map is that of the same cells written step by step, in which gates get nothing."""

import time

import numpy as np
import pytest
import torch
from networks import Net
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lrp import LRP, InputError, LRPError, composites, rules

RULES = {
    "AttnLRP": composites.AttnLRP(),
    "CP-LRP": composites.CPLRP(),
    "epsilon, plus": composites.EpsilonPlus(),
    "LRP-0": composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12)),
}
LRP_0 = RULES["LRP-0"]
SIZE, WIDTH, LENGTH = 3, 4, 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(2, LENGTH, SIZE)  # samples, steps, values


class Several(Net):
    """A network of several inputs."""

    def forward(self, x, *states):
        return self.call(self, x, *states)


def same(found, expected, rtol=1e-9):
    return torch.allclose(found, expected, rtol=0, atol=rtol * float(expected.detach().abs().max()))


def assert_same_maps(one, other, *xs):
    given = xs if len(xs) > 1 else xs[0]
    for name, rule in RULES.items():
        found, expected = LRP(one, rule).explain(given, 1), LRP(other, rule).explain(given, 1)
        pairs = [(found.relevance, expected.relevance)]
        if len(xs) > 1:
            pairs = list(zip(found.relevance, expected.relevance, strict=True))
        assert all(b.abs().max() > 0 and same(a, b) for a, b in pairs), name
        assert found.imbalance < 1e-9


# ---------------------------------------------------------------- cells by hand


def held(x, size, value=0.0):
    """A constant state beside the samples of x (N, ...), which carries as any other signal does, and keeps its share.

    Times a constant, a gate would be the only thing that depends on the input, and no gate.
    """
    return x.flatten(1)[:, :1].masked_fill(torch.tensor(True), value).expand(-1, size)


def linear_of_both(m, x, h, end, rows=slice(None)):
    """One linear layer of [x, h]."""
    w = torch.cat([getattr(m, f"weight_{part}{end}")[rows] for part in ("ih", "hh")], 1)
    b = [getattr(m, f"bias_{part}{end}")[rows] for part in ("ih", "hh")] if m.bias else None
    return torch.nn.functional.linear(torch.cat([x, h], -1), w, None if b is None else b[0] + b[1])


def lstm(m, x, state, end=""):
    h, c = state
    i, f, g, o = linear_of_both(m, x, h, end).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    projection = getattr(m, f"weight_hr{end}", None)
    return (h if projection is None else h @ projection.T), c


def gru(m, x, state, end=""):
    (h,), n = state, m.hidden_size
    r, z = torch.sigmoid(linear_of_both(m, x, h, end, slice(0, 2 * n))).chunk(2, -1)
    of_x, of_h = (
        torch.nn.functional.linear(
            t,
            getattr(m, f"weight_{part}{end}")[2 * n :],
            getattr(m, f"bias_{part}{end}")[2 * n :] if m.bias else None,
        )
        for t, part in ((x, "ih"), (h, "hh"))
    )
    return ((1 - z) * torch.tanh(of_x + r * of_h) + z * h,)


def plain(m, x, state, end=""):
    return (getattr(torch, m.nonlinearity)(linear_of_both(m, x, state[0], end)),)


STEPS = {nn.LSTM: lstm, nn.GRU: gru, nn.RNN: plain, nn.LSTMCell: lstm, nn.GRUCell: gru, nn.RNNCell: plain}


def series(m, x, states=None):
    """A recurrent layer of torch on x (N, L, ...) by its cells: the output, and h_n (and c_n) of (layers, N, ...)."""
    xs, ends, ways, number = x.unbind(1), [], 1 + m.bidirectional, 2 if isinstance(m, nn.LSTM) else 1
    sizes = [m.proj_size or m.hidden_size, m.hidden_size]
    for layer in range(m.num_layers):
        both = []
        for way in range(ways):
            k = layer * ways + way
            state = [s[k] for s in states] if states else [held(x, s) for s in sizes[:number]]
            hs = []
            for one in xs[::-1] if way else xs:
                state = STEPS[type(m)](m, one, state, f"_l{layer}" + "_reverse" * way)
                hs.append(state[0])
            both.append(hs[::-1] if way else hs)
            ends.append(state)
        xs = both[0] if ways == 1 else [torch.cat(pair, -1) for pair in zip(*both, strict=True)]
    return torch.stack(list(xs), 1), [torch.stack(list(same), 0) for same in zip(*ends, strict=True)]


def networks(fused, hand, layer, head, kind=Net):
    """Two networks of one recurrent layer and a head, with biases that count."""
    torch.manual_seed(0)
    layer.reset_parameters()
    parts = {"r": layer, "head": nn.Linear(head, 3)}
    return kind(fused, **parts).double().eval(), kind(hand, **parts).double().eval()


def whole(of_layer, used="output"):
    """The network's forward: what it takes from the layer's output, h_n or c_n."""

    def run(m, x):
        output, *ends = of_layer(m, x)
        if used == "output":
            return m.head(output.flatten(1))
        return m.head(ends["hc".index(used[0])].transpose(0, 1).flatten(1))

    return run


def fused(m, x):
    output, ends = m.r(x if m.r.batch_first else x.transpose(0, 1))
    return (output if m.r.batch_first else output.transpose(0, 1), *(ends if isinstance(ends, tuple) else (ends,)))


def by_hand(m, x):
    output, ends = series(m.r, x)
    return (output, *ends)


LAYERS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM of two layers, both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "GRU of two layers, both ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "tanh of two layers, both ways": (nn.RNN, {"num_layers": 2, "bidirectional": True}),
    "LSTM without bias": (nn.LSTM, {"bias": False}),
    "GRU without bias": (nn.GRU, {"bias": False}),
    "tanh without bias": (nn.RNN, {"bias": False, "num_layers": 2}),
    "LSTM with a projection": (nn.LSTM, {"proj_size": 2, "num_layers": 2}),
    "LSTM with a projection, both ways": (nn.LSTM, {"proj_size": 2, "bidirectional": True}),
    "LSTM with dropout": (nn.LSTM, {"dropout": 0.5, "num_layers": 2}),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, batch_first):
    kind, options = LAYERS[name]
    layer = kind(SIZE, WIDTH, batch_first=batch_first, **options)
    size = (layer.proj_size or WIDTH) * (1 + layer.bidirectional)
    assert_same_maps(*networks(whole(fused), whole(by_hand), layer, LENGTH * size), X)


@pytest.mark.parametrize("used", ["h_n", "c_n"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "two layers" in name or "projection" in name])
def test_the_last_state_instead_of_the_output(name, used):
    kind, options = LAYERS[name]
    if used == "c_n" and kind is not nn.LSTM:
        return
    layer = kind(SIZE, WIDTH, **options)
    size = (layer.proj_size or WIDTH) if used == "h_n" else WIDTH
    size *= layer.num_layers * (1 + layer.bidirectional)
    assert_same_maps(*networks(whole(fused, used), whole(by_hand, used), layer, size), X)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_that_is_given(kind):
    """As an input of the network's it gets relevance; as a constant it keeps as much."""
    layer, number = kind(SIZE, WIDTH, num_layers=2, batch_first=True), 2 if kind is nn.LSTM else 1
    states = [drawn(2, 2, WIDTH, seed=7 + k) for k in range(number)]  # samples, layers, values

    def run(of_layer):
        def forward(m, x, *given):
            given = [s.transpose(0, 1).contiguous() for s in (given or states)]
            return m.head(of_layer(m, x, given)[0].flatten(1))

        return forward

    def fused(m, x, given):
        return m.r(x, tuple(given) if number == 2 else given[0])

    one, other = networks(run(fused), run(lambda m, x, s: series(m.r, x, s)), layer, LENGTH * WIDTH, Several)
    assert_same_maps(one, other, X, *states)
    for rule in RULES.values():
        with_constants, with_inputs = LRP(one, rule).explain(X, 1), LRP(one, rule).explain((X, *states), 1)
        assert same(with_constants.relevance, with_inputs.relevance[0])
        amounts = with_inputs.received - with_constants.received
        assert torch.allclose(with_constants.sum_of("bias") - with_inputs.sum_of("bias"), amounts, atol=1e-9)


CELLS = {
    "LSTM": (nn.LSTMCell, {}),
    "GRU": (nn.GRUCell, {}),
    "tanh": (nn.RNNCell, {}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu"}),
    "LSTM without bias": (nn.LSTMCell, {"bias": False}),
    "GRU without bias": (nn.GRUCell, {"bias": False}),
    "tanh without bias": (nn.RNNCell, {"bias": False}),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("start", ["none", "constant", "the first step"])
def test_cells_in_a_loop(name, start):
    kind, options = CELLS[name]
    number = 2 if kind is nn.LSTMCell else 1

    def run(cell, constant):
        def forward(m, x):
            state, steps = None, list(x.unbind(1))
            if start == "constant":
                state = tuple(constant(x) for _ in range(number))
            if start == "the first step":
                state = tuple(torch.cat([steps[0], steps[0][:, :1]], 1) for _ in range(number))
                steps = steps[1:]
            for one in steps:
                state = cell(m, one, state)
            return m.head(torch.cat(state, 1))

        return forward

    def fused(m, x, state):
        found = m.r(x, state if state is None or number == 2 else state[0])
        return found if number == 2 else (found,)

    def hand(m, x, state):
        return STEPS[kind](m.r, x, state or [held(x, WIDTH)] * number)

    ways = (
        run(fused, lambda x: x.new_full((x.shape[0], WIDTH), 0.3)),
        run(hand, lambda x: held(x, WIDTH, 0.3)),
    )
    assert_same_maps(*networks(*ways, kind(SIZE, WIDTH, **options), number * WIDTH), X)


@pytest.mark.parametrize("name", LAYERS)
def test_a_class_of_ones_own_that_calls_torch(name):
    """Its forward is looked into, and what it calls there, torch.lstm and the like, is opened as the layer is."""
    kind, options = LAYERS[name]
    found = []
    for cls in (kind, type("Own", (kind,), {})):
        layer = cls(SIZE, WIDTH, batch_first=True, **options)
        size = (layer.proj_size or WIDTH) * (1 + layer.bidirectional)
        found.append(LRP(networks(whole(fused), None, layer, LENGTH * size)[0]).attribute(X, 1))
    assert same(found[1], found[0])


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_ones_own_that_calls_torch(name):
    kind, options = CELLS[name]

    def run(m, x):
        state = None
        for one in x.unbind(1):
            state = m.r(one, state)
        return m.head(state[0] if kind is nn.LSTMCell else state)

    layers = (cls(SIZE, WIDTH, **options) for cls in (kind, type("Own", (kind,), {})))
    found = [LRP(networks(run, None, layer, WIDTH)[0]).attribute(X, 1) for layer in layers]
    assert same(found[1], found[0])


def test_a_series_without_an_axis_of_samples():
    layer = nn.LSTM(SIZE, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
    one, other = networks(lambda m, x: m.head(m.r(x[0])[0].flatten()[None]), whole(by_hand), layer, LENGTH * 2 * WIDTH)
    assert_same_maps(one, other, X[:1])


# ---------------------------------------------------------------- derived a second time


def last_of(layer, **options):
    """A network that reads the last step, of one layer."""
    return networks(lambda m, x: m.head(m.r(x)[0][:, -1]), None, layer(SIZE, WIDTH, batch_first=True), WIDTH)[0]


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


def test_lstm_by_a_loop_over_its_steps():
    """Signal takes all, by hand (arras2017explaining): R of c_t goes to c_t-1 and to the candidate by their summands,
    that of the candidate to x_t and h_t-1 by LRP-0, none of it to a gate."""
    model = last_of(nn.LSTM)
    wx, wh, bx, bh = (p.detach().numpy() for p in model.r.parameters())
    head, found = model.head.weight.detach().numpy(), LRP(model, LRP_0).attribute(X, 1).numpy()
    for x, R_found in zip(X.numpy(), found, strict=True):
        h, c, tape = np.zeros(WIDTH), np.zeros(WIDTH), []
        for xt in x:
            z = wx @ xt + bx + wh @ h + bh
            i, f, g, o = np.split(z, 4)
            kept, new = sigmoid(f) * c, sigmoid(i) * np.tanh(g)
            tape.append((xt, h, kept, new, g))
            c = kept + new
            h = sigmoid(o) * np.tanh(c)
        R_h, R_c, R_x = head[1] * h, np.zeros(WIDTH), np.zeros_like(x)
        candidate = slice(2 * WIDTH, 3 * WIDTH)
        for t in reversed(range(LENGTH)):
            xt, h, kept, new, g = tape[t]
            R_c = R_c + R_h
            R_g, R_c = new / (kept + new) * R_c, kept / (kept + new) * R_c
            R_x[t], R_h = xt * (wx[candidate].T @ (R_g / g)), h * (wh[candidate].T @ (R_g / g))
        assert np.allclose(R_found, R_x, rtol=0, atol=1e-9 * np.abs(R_x).max())


def fixed(value, base):
    """An activation as a fixed factor."""
    return base * (value / base).detach()


def test_epsilon_0_is_x_times_the_gradient_with_gates_detached():
    for layer in (nn.LSTM, nn.GRU, nn.RNN):
        model, x = last_of(layer), X.clone().requires_grad_()
        m, h, c = model.r, torch.zeros(2, WIDTH).double(), torch.zeros(2, WIDTH).double()
        for xt in x.unbind(1):
            of_x, of_h = xt @ m.weight_ih_l0.T + m.bias_ih_l0, h @ m.weight_hh_l0.T + m.bias_hh_l0
            if layer is nn.LSTM:
                i, f, g, o = (of_x + of_h).chunk(4, -1)
                c = f.sigmoid().detach() * c + i.sigmoid().detach() * fixed(g.tanh(), g)
                h = o.sigmoid().detach() * fixed(c.tanh(), c)
            elif layer is nn.GRU:
                (r, z, n), (r_h, z_h, n_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
                r, z = (r + r_h).sigmoid().detach(), (z + z_h).sigmoid().detach()
                n = n + r * n_h
                h = (1 - z) * fixed(n.tanh(), n) + z * h
            else:
                h = fixed((of_x + of_h).tanh(), of_x + of_h)
        expected = torch.autograd.grad(model.head(h)[:, 1].sum(), x)[0] * X
        assert same(LRP(model, LRP_0).attribute(X, 1), expected, 1e-8)


@pytest.mark.parametrize("name", [name for name in LAYERS if "without" not in name])
def test_conservation_without_biases(name):
    kind, options = LAYERS[name]
    layer = kind(SIZE, WIDTH, batch_first=True, **options)
    size = (layer.proj_size or WIDTH) * (1 + layer.bidirectional)
    model = networks(whole(fused), None, layer, LENGTH * size)[0]
    e = LRP(model, composites.Epsilon(0.0, addition=rules.Epsilon(0.0), bias="exclude")).explain(X, 1)
    at_zeros = e.sum_of("stabiliser")  # of a GRU's candidate at the first step: the layer of h = 0 is its bias alone
    assert torch.allclose(e.received + at_zeros, e.seed, rtol=1e-6) and e.imbalance < 1e-6
    assert kind is nn.GRU or torch.allclose(e.received, e.seed, rtol=1e-6)


def test_each_sample_alone():
    for layer in (nn.LSTM, nn.GRU):
        for first in (True, False):
            parts = layer(SIZE, WIDTH, num_layers=2, bidirectional=True, batch_first=first)
            model = networks(whole(fused), None, parts, LENGTH * 2 * WIDTH)[0]
            explainer, x = LRP(model), X * torch.tensor([1.0, 100.0])[:, None, None]
            alone = [explainer.attribute(one[None], 1)[0] for one in x]
            assert all(same(a, b) for a, b in zip(explainer.attribute(x, 1), alone, strict=True))


def test_a_long_series_and_another_length():
    """Time grows with the number of steps; each length has a plan of its own."""
    explainer, found = LRP(last_of(nn.LSTM)), []
    began = time.perf_counter()
    for length in (200, LENGTH, 7, 200, LENGTH):
        x = drawn(2, length, SIZE)
        e = explainer.explain(x, 1)
        assert e.relevance.shape == x.shape and e.imbalance < 1e-8
        found.append(e.relevance)
    assert found[0].equal(found[3]) and found[1].equal(found[4])
    assert time.perf_counter() - began < 60, "seconds, where about three are usual"


# ---------------------------------------------------------------- what is refused, by name


def test_packed_series():
    def run(m, x):
        packed = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        return m.head(pad_packed_sequence(m.r(packed)[0], batch_first=True)[0][:, -1])

    model = networks(run, None, nn.LSTM(SIZE, WIDTH, batch_first=True), WIDTH)[0]
    with pytest.raises(LRPError, match=r"packed sequence.*pass a tensor"):
        LRP(model).attribute(X, 1)


def test_training_mode():
    with pytest.raises(InputError, match="training mode"):
        LRP(last_of(nn.LSTM).train()).attribute(X, 1)
