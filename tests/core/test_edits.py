"""Edits of a model between two calls: whatever the edit, the next map is that of a fresh explainer."""

import copy
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import Small
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lrp import LRP, CaptureError, InputError, LRPError, composites, edits, rules

PLUS = composites.EpsilonPlus


class Plain(nn.Module):
    """Reads a number, a tuple, a nested list, a string and a plain tensor; parts can be replaced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.act, self.pool = nn.LeakyReLU(), nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Identity())
        self.head = nn.Linear(54, 4)
        self.factor, self.axes, self.nested, self.how = 2.0, (1, 3), [[1, 1]], "leaky_relu"
        self.config = SimpleNamespace(scale=1.0, start=0)
        self.plain, self.table = torch.full((6, 1, 1), 1.5), {"shift": torch.ones(1)}

    def forward(self, x):
        h = self.pool(self.act(self.norm(self.conv(x)))) * self.factor * self.plain + self.table["shift"]
        h = getattr(F, self.how)(self.body(h)) * self.nested[0][0]
        return self.head(h.flatten(*self.axes)) * self.config.scale


def plain():
    torch.manual_seed(0)
    model = Plain().double().eval()
    model.plain, model.table["shift"] = model.plain.double(), model.table["shift"].double()
    nn.init.normal_(model.norm.weight, 1, 0.3), nn.init.normal_(model.norm.bias)
    return model, torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Halved(nn.ReLU):
    def forward(self, x):
        return super().forward(x) / 2


def as_class(m):
    m.body[1].__class__ = Halved


def patched(m):
    m.body[1].forward = lambda x: torch.relu(x) / 2


def nested_list(m):
    m.nested[0][0] = 3


def stride(m):
    m.body[0].stride, m.body[0].padding = (2, 2), (2, 2)


def opposite_edits(m):
    m.head.weight.data[2, 0] += 1
    m.head.weight.data[2, 1] -= 1


def parametrized(m):
    parametrizations.weight_norm(m.head).parametrizations.weight.original0.data.mul_(2)


def through_numpy(m):
    w = m.head.weight.detach().numpy()
    w[2, 3], w[2, 40] = w[2, 40] - 2, w[2, 3] + 2


def signs_through_data(m):
    m.head.weight.data[2] *= -1


def plain_tensor_through_data(m):
    m.plain.data[2] = 7.0


def other_memory(m):
    m.head.weight.data = m.head.weight.data.flip(1)


EDITS = {
    "activation replaced": lambda m: setattr(m, "act", nn.ReLU()),
    "pooling replaced": lambda m: setattr(m, "pool", nn.AvgPool2d(2)),
    "inserted without parameters": lambda m: m.body.append(nn.Tanh()),
    "inserted with parameters": lambda m: m.body.append(nn.Conv2d(6, 6, 1).double().eval()),
    "deleted": lambda m: m.body.__delitem__(1),
    "swapped": lambda m: m.body.insert(0, m.body.pop(1)),
    "order of keys": lambda m: m.body._modules.__setitem__("0", m.body._modules.pop("0")),
    "patched forward": patched,
    "another class": as_class,
    "eps": lambda m: setattr(m.norm, "eps", 1.0),
    "kernel of the pooling": lambda m: setattr(m.pool, "kernel_size", 1),
    "stride and padding": stride,
    "slope": lambda m: setattr(m.act, "negative_slope", 0.7),
    "in place": lambda m: setattr(m.act, "inplace", True),
    "number": lambda m: setattr(m, "factor", -3.0),
    "string": lambda m: setattr(m, "how", "softplus"),
    "nested list": nested_list,
    "configuration": lambda m: setattr(m.config, "scale", -2.0),
    "plain tensor": lambda m: setattr(m, "plain", m.plain + 1),
    "plain tensor in place": lambda m: m.plain.mul_(-1),
    "plain tensor through data": plain_tensor_through_data,
    "tensor in a dictionary": lambda m: m.table.update(shift=m.table["shift"] + 2),
    "parametrization": parametrized,
    "bias removed": lambda m: m.head.register_parameter("bias", None),
    "bias replaced by an equal one": lambda m: setattr(m.head, "bias", nn.Parameter(m.head.bias.detach() * 1.0)),
    "+1 and -1": opposite_edits,
    "through NumPy": through_numpy,
    "signs": signs_through_data,
    "other memory": other_memory,
}
UNCHANGED = {"in place", "bias replaced by an equal one"}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_an_edit_is_followed(name, shared):
    model, x = plain()
    explainer = LRP(model, PLUS())
    other = LRP(model, plan=explainer.plan) if shared else explainer
    before = explainer.explain(x, 2)
    with torch.no_grad():
        EDITS[name](model)
    e, again = explainer.explain(x, 2), other.explain(x, 2)
    fresh = LRP(copy.deepcopy(model), PLUS()).attribute(x, 2)
    assert torch.allclose(e.output, model(x), rtol=1e-12)
    assert torch.equal(e.relevance, fresh) and torch.equal(again.relevance, fresh)
    pairs = (before.relevance, fresh), (before.output, e.output)
    unchanged = all(torch.allclose(a, b, rtol=1e-3) for a, b in pairs)
    assert unchanged == (name in UNCHANGED)


def test_an_edit_that_cannot_be_captured_says_so_until_it_is_undone():
    model, x = plain()
    explainer, act = LRP(model, PLUS()), model.act
    before = explainer.attribute(x, 0)
    model.act = nn.Softmax(1)
    for _ in range(2):
        with pytest.raises(LRPError, match=r"`act` .*calls softmax"):
            explainer.attribute(x, 0)
    model.act = act
    assert torch.equal(explainer.attribute(x, 0), before)
    model.norm.train()
    with pytest.raises(InputError, match=r"its module `norm` is in training mode"):
        explainer.attribute(x, 0)
    model.eval()
    assert torch.equal(explainer.attribute(x, 0), before)


def test_new_names_are_known_and_old_ones_are_not():
    model, x = plain()
    explainer = LRP(model, PLUS())
    explainer.attribute(x, 0)
    model.extra = model.act
    model.act = nn.Sequential(nn.ReLU(), nn.Tanh())
    e = explainer.explain(x, 0, layers=["act.1"], start=None)
    assert e.layers["act.1"].shape == (2, 6, 6, 6) and explainer.rules[explainer.graph.find("act.1")] == rules.Pass()


def test_nothing_is_made_anew_without_an_edit(monkeypatch):
    """Same plan, same stored weights; neither an optimizer's step nor other inputs ask for another capture."""
    model, x = plain()
    explainer = LRP(model, composites.EpsilonAlpha2Beta1())
    explainer.attribute(x, 0)
    graph, stored = explainer.graph, dict(explainer.plan._weights)
    explainer.attribute(x[:1], [0, 1])
    model(x), model.state_dict(), copy.deepcopy(model), list(model.named_modules())
    explainer.attribute(torch.randn(1, 3, 8, 8).double(), 0)
    assert explainer.graph is graph and explainer.plan._weights == stored
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).sum().backward()
    optimizer.step()
    e = explainer.explain(x, 0)
    assert explainer.graph is graph and torch.allclose(e.output, model(x), rtol=1e-12)


class Remembers(Small):
    """Counts its calls and keeps what it has seen, as networks with taps do."""

    calls, seen = 0, None

    def forward(self, x):
        self.calls, self.seen = self.calls + 1, x
        return super().forward(x)


def test_what_forward_itself_writes_is_no_edit():
    torch.manual_seed(0)
    model, x = Remembers().double().eval(), torch.randn(2, 3, 8, 8).double()
    explainer = LRP(model, PLUS())
    explainer.attribute(x, 0)
    graph, calls = explainer.graph, model.calls
    for _ in range(3):
        model(x + 1)
        explainer.attribute(x, 0)
    assert explainer.graph is graph and model.calls == calls + 3, "neither captured again nor run again"
    model.relu = nn.Tanh()
    assert torch.allclose(explainer.explain(x, 0).output, model(x)) and explainer.graph is not graph


def test_large_tensors_are_read_in_part():
    """A run of 4096 values is always seen; `refresh` is for less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2**12, 1100, bias=False), nn.ReLU(), nn.Linear(1100, 2, bias=False)).eval()
    watch = edits.Watch(model)
    assert not watch.same_content() and watch.same_content()
    for row in range(0, 1100, 97):
        model[0].weight.data[row] += 0.01
        assert not watch.same_content() and watch.same_content()
    x = torch.rand(1, 2**12)
    explainer = LRP(model, composites.EpsilonAlpha2Beta1())
    explainer.attribute(x, 0)
    model[0].weight.data[5, 1024:2048] -= 5.0
    explainer.refresh()
    assert torch.equal(explainer.attribute(x, 0), LRP(model, composites.EpsilonAlpha2Beta1()).attribute(x, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_tensors_of_every_type_are_read(dtype):
    module = nn.Module()
    module.register_buffer("table", torch.ones(3000).to(dtype))
    module.register_buffer("part", torch.arange(40.0).view(5, 8)[1:4, ::2].T)
    watch = edits.Watch(module)
    assert not watch.same_content() and watch.same_content()
    for where in (0, 1500, 2999):
        module.table.data[where] = 0
        assert not watch.same_content() and watch.same_content()
    module.part.data[3, 2] = -1.0
    assert not watch.same_content() and watch.same_content()


def test_threads_share_an_explainer_while_the_model_is_edited():
    model, x = plain()
    explainer, found = LRP(model, PLUS()), []
    expected = explainer.attribute(x, 1)
    for act in (model.act, nn.ReLU()):
        model.act, found[:] = act, []
        threads = [threading.Thread(target=lambda: found.append(explainer.attribute(x, 1))) for _ in range(4)]
        explainer.refresh()
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        fresh = LRP(model, PLUS()).attribute(x, 1)
        assert len(found) == 4 and all(torch.equal(one, fresh) for one in found)
    assert not torch.equal(fresh, expected)


def test_reading_leaves_the_random_state_alone():
    model, x = plain()
    state = torch.get_rng_state()
    LRP(model, PLUS()).attribute(x, 0)
    assert torch.equal(torch.get_rng_state(), state)


def functional(m, x):
    return F.relu(m.conv(x + torch.ones(1, dtype=torch.float64))).chunk(2, 1)[1].flatten(1) @ m.weight


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(72, 3))

    def forward(self, x):
        return functional(self, x)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copy", "pickle"])
def test_explainers_are_copied_and_pickled_with_their_model(again):
    torch.manual_seed(0)
    model, x = Functional().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = LRP(model, composites.EpsilonPlus(overrides={"relu": rules.Pass()}))
    expected = explainer.attribute(x, 1)
    copied = again(explainer)
    assert copied.model is not model and copied.graph.model is copied.model
    assert torch.equal(copied.attribute(x, 1), expected)
    with torch.no_grad():
        copied.model.weight.mul_(-1)
    assert torch.equal(explainer.attribute(x, 1), expected)
    assert torch.equal(copied.attribute(x, 1), LRP(copied.model, explainer.composite).attribute(x, 1))


# ---------------------------------------------------------------- hooks


def pool_net():
    torch.manual_seed(0)
    conv, pool = nn.Conv2d(3, 4, 3), nn.Sequential(nn.MaxPool2d(2))
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 3)).double().eval()


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).sin().view(2, 3, 8, 8)


@pytest.mark.parametrize("name", ["0", "1", "2", "2.0", "3", "4", ""])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after capture"])
def test_a_hook_that_changes_values_is_refused_by_name(name, late):
    model = pool_net()
    explainer = LRP(model, PLUS()) if late else None
    expected = explainer.attribute(X, 1) if late else LRP(pool_net(), PLUS()).attribute(X, 1)
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, out: out / 2)
    explainer = explainer or LRP(model, PLUS())
    with pytest.raises(CaptureError, match=f"a forward hook at {f'`{name}`' if name else 'Sequential'} changes what"):
        explainer.attribute(X, 1)
    handle.remove()
    assert torch.equal(explainer.attribute(X, 1), expected)
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    with pytest.raises(CaptureError, match=r"forward hook.*handle\.remove\(\)"):
        explainer.attribute(X, 1)
    handle.remove()


def test_a_hook_that_changes_values_of_some_inputs_only_is_seen_at_these():
    model = pool_net()
    model[2].register_forward_hook(lambda module, args, out: out.clamp(max=0.1) if len(out) == 1 else None)
    explainer = LRP(model, PLUS())
    assert torch.equal(explainer.attribute(X, 1), LRP(pool_net(), PLUS()).attribute(X, 1))
    with pytest.raises(CaptureError, match="hook at `2`"):
        explainer.attribute(X[:1], 1)


def test_hooks_that_only_look_do_no_harm_and_meet_tensors_only():
    model, seen = pool_net(), []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
        module.register_forward_pre_hook(lambda module, args: seen.append(args))
    assert torch.equal(LRP(model, PLUS()).attribute(X, 1), LRP(pool_net(), PLUS()).attribute(X, 1))
    assert len(seen) == 14 and all(isinstance(t, torch.Tensor) for ts in seen for t in ts)


def test_hooks_on_all_modules():
    model = pool_net()
    explainer = LRP(model, PLUS())
    expected = explainer.attribute(X, 1)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 1.5)
    try:
        with pytest.raises(CaptureError, match="hook at every module changes"):
            explainer.attribute(X, 1)
    finally:
        handle.remove()
    assert torch.equal(explainer.attribute(X, 1), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_torch_s_hooks_that_make_weights_anew_are_followed(norm):
    model = pool_net()
    norm(model[0]), norm(model[4])
    model.eval()
    explainer = LRP(model, PLUS())
    explainer.attribute(X, 1)
    graph = explainer.graph
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "weight" in name:
                p.copy_(torch.randn_like(p))
    e = explainer.explain(X, 1)
    assert torch.allclose(e.output, model(X), rtol=1e-12) and explainer.graph is graph
    plain = pool_net()
    plain.load_state_dict({f"{k}.{name}": getattr(model[k], name) for k in (0, 4) for name in ("weight", "bias")})
    assert torch.allclose(e.relevance, LRP(plain, PLUS()).attribute(X, 1), rtol=1e-9)


def test_a_parametrization_removed():
    model = pool_net()
    parametrizations.weight_norm(model[4])
    explainer = LRP(model, PLUS())
    before = explainer.attribute(X, 1)
    parametrize.remove_parametrizations(model[4], "weight")
    assert torch.allclose(explainer.attribute(X, 1), before, rtol=1e-9)
