"""Networks in wrappers, in odd forms and in odd surroundings: the map of the network inside, or one clear sentence."""

import pytest
import torch
import torch.distributed as dist
from torch import fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lrp import LRP, CaptureError, InputError, LRPError, composites
from lrp.walk import forward

PLUS = composites.EpsilonPlus
X = torch.linspace(-4, 4, 2 * 3 * 8 * 8).sin().view(2, 3, 8, 8)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), head).eval().to(dtype)


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2.0


def behind(model):
    return nn.Sequential(Doubled(), model).eval()


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "averaged": AveragedModel,
    "traced by fx": fx.symbolic_trace,
    "parallel and compiled": lambda model: nn.DataParallel(compiled(model)),
    "compiled and averaged": lambda model: compiled(AveragedModel(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("place", [lambda model: model, behind], ids=["whole", "part"])
def test_the_network_in_a_wrapper_is_explained(name, place):
    """A wrapper in training mode does no harm; a part in one keeps its own name, too."""
    layers = ["1"] if place is behind else []
    plain = LRP(place(net()), PLUS()).explain(X, 1, layers=layers)
    e = LRP(place(WRAPPERS[name](net())), PLUS()).explain(X, 1, layers=layers)
    assert torch.equal(e.relevance, plain.relevance) and torch.equal(e.output, plain.output)
    assert all(torch.equal(e.layers[layer], plain.layers[layer]) for layer in layers)


def test_distributed_data_parallel(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        relevance = LRP(DistributedDataParallel(net()), PLUS()).attribute(X, 1)
    finally:
        dist.destroy_process_group()
    assert torch.equal(relevance, LRP(net(), PLUS()).attribute(X, 1))


def test_edits_inside_a_wrapper_are_followed():
    wrapper = nn.DataParallel(net())
    explainer = LRP(wrapper, PLUS())
    shared = LRP(wrapper.module, plan=explainer.plan)
    explainer.attribute(X, 1)
    wrapper.module[2] = nn.Tanh()
    fresh = LRP(wrapper.module, PLUS()).attribute(X, 1)
    assert torch.equal(explainer.attribute(X, 1), fresh) and torch.equal(shared.attribute(X, 1), fresh)
    wrapper.module = net()
    assert torch.equal(explainer.attribute(X, 1), LRP(net(), PLUS()).attribute(X, 1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(192, 3)

    def forward(self, x):
        return self.head((x + self.layer1(x)).flatten(1))


def test_what_torch_fx_makes_is_in_eval_mode_if_its_leaves_are():
    """fx puts parts into bare containers, which are in training mode for ever."""
    torch.manual_seed(0)
    model = Residual().eval()
    traced = fx.symbolic_trace(model)
    assert traced.layer1.training
    assert torch.equal(LRP(traced, PLUS()).attribute(X, 1), LRP(model, PLUS()).attribute(X, 1))
    assert traced.layer1.training


@pytest.mark.parametrize("part", [nn.ReLU(), nn.Linear(3, 3), nn.LayerNorm(3), nn.Sequential(nn.Tanh())])
def test_torch_s_modules_that_do_not_ask_for_training_may_be_in_it(part):
    model, x = nn.Sequential(nn.Linear(3, 3), part).eval(), torch.ones(1, 3)
    expected = LRP(model).attribute(x, 0)
    part.train()
    assert torch.equal(LRP(model).attribute(x, 0), expected)
    with pytest.raises(InputError, match="Sequential is to be explained, but it is in training mode"):
        LRP(model.train())


class Asks(nn.Module):
    def forward(self, x):
        return torch.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("part", [nn.Dropout(), nn.BatchNorm1d(3), nn.RReLU(), nn.InstanceNorm1d(3), Asks()], ids=repr)
def test_what_asks_for_training_is_refused_in_it(part):
    model = nn.Sequential(nn.Linear(3, 3), part).eval()
    part.train()
    with pytest.raises(InputError, match=r"Sequential is to be explained, but its module `1` is in training mode"):
        LRP(model)


# ---------------------------------------------------------------- what cannot be explained


def quantised(_):
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def half_on_meta(model):
    model[4].to("meta")
    return model


FORMS = {
    "scripted": (torch.jit.script, CaptureError, "is a TorchScript module.*the network that torch.jit.trace or"),
    "traced": (lambda model: torch.jit.trace(model, X), CaptureError, "TorchScript"),
    "exported": (
        lambda model: torch.export.export(model, (X,)).module(),
        CaptureError,
        "comes from torch.export.*hand over the network that was exported",
    ),
    "quantised": (quantised, CaptureError, "is quantised.*the network in floating point"),
    "lazy": (
        lambda _: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
        InputError,
        r"`1\.weight` of Sequential is not initialized, because a lazy module has not run yet: call the model once",
    ),
    "on meta": (lambda model: model.to("meta"), InputError, "`0.weight` of Sequential is on the meta device"),
    "half on meta": (half_on_meta, InputError, "`4.weight` of Sequential is on the meta device and has no values"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FORMS)
def test_other_forms_are_refused_with_the_way_out(name):
    make, error, words = FORMS[name]
    with pytest.raises(error, match=words):
        LRP(make(net()))
    if name in ("scripted", "exported", "quantised"):
        number = r"1\.4" if name == "quantised" else "1"
        with pytest.raises(error, match=f"Sequential is to be explained, but its module `{number}` "):
            LRP(nn.Sequential(Doubled(), make(net())))


@pytest.mark.parametrize("what", [None, lambda x: x, net().state_dict(), nn.Linear])
def test_what_is_no_module_is_refused(what):
    with pytest.raises(CaptureError, match=r"is no torch\.nn\.Module: hand over the network itself"):
        LRP(what)


def test_a_lazy_model_that_has_run_is_explained():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval()
    model(X)
    assert torch.allclose(LRP(model).attribute(X, 1).flatten(1), X.flatten(1) * model[1].weight[1], atol=1e-4)


# ---------------------------------------------------------------- precision


class Mixed(nn.Module):
    """Runs itself in half precision; `out` says in what it answers."""

    def __init__(self, out=torch.float32):
        super().__init__()
        self.inner, self.out = net(), out

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x) if self.out is None else self.inner(x).to(self.out)


@pytest.mark.parametrize("out", [torch.float32, None])
def test_autocast_in_forward_has_no_effect_on_an_explanation(out):
    """The map and the output are those in float32, which the model itself only comes near to."""
    model, plain = Mixed(out).eval(), LRP(net(), PLUS()).explain(X, 1)
    e = LRP(model, PLUS()).explain(X, 1)
    assert torch.equal(e.relevance, plain.relevance)
    assert torch.equal(e.output, plain.output) and not torch.equal(plain.output, model(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_has_no_effect_on_an_explanation(dtype):
    expected = LRP(net(), PLUS()).explain(X, 1)
    explainer = LRP(net(), PLUS())
    with torch.autocast("cpu", dtype=dtype):
        e = explainer.explain(X, 1)
        assert torch.is_autocast_enabled("cpu") and (X[0, 0] @ X[0, 0]).dtype == dtype, "it is on again"
    assert torch.equal(e.relevance, expected.relevance) and torch.equal(e.output, expected.output)


def test_a_graph_that_differs_is_still_refused_under_autocast():
    class Odd(Mixed):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    with pytest.raises(CaptureError, match="does not reproduce Odd"):
        LRP(Odd().eval()).attribute(X, 1)


def test_transforms_of_functions_are_refused():
    explainer = LRP(net())
    for transform in (torch.func.grad(lambda x: explainer.attribute(x, 1).sum()), torch.vmap(explainer.attribute)):
        with pytest.raises(InputError, match=r"inside torch\.func.*outside of that"):
            transform(X)


# ---------------------------------------------------------------- what the graph cannot compute


class Sized(nn.Module):
    """Another shape while torch.fx looks."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 2, 3))

    def forward(self, x):
        return self.part(x).view(2 if isinstance(x, torch.Tensor) else 5, -1)


def test_a_graph_that_fails_is_recorded_anew():
    model = Sized().eval()
    e = LRP(model, composites.EpsilonPlus()).explain(X, seed=torch.ones_like(model(X)))
    assert torch.allclose(e.output, model(X)) and e.imbalance < 1e-5


def test_an_error_of_the_graph_names_the_node():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    with pytest.raises(CaptureError, match=r"node `2` calls linear and cannot be computed.*RuntimeError: addmm: mat1"):
        forward(LRP(model).plan, (X[..., :5, :5],))


def test_too_little_memory_is_no_fault_of_the_graph():
    class Huge(nn.Module):
        def forward(self, x):
            return x.repeat(1, 1, 1, 2**44) if not isinstance(x, torch.Tensor) else x

    with pytest.raises(RuntimeError, match="memory") as raised:
        LRP(Huge().eval()).attribute(X, seed=torch.ones_like(X))
    assert not isinstance(raised.value, LRPError)
