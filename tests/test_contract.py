"""The API as an outside caller uses it: names, shapes, defaults; then real networks with trained weights."""

import inspect
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lrp
from lrp import LRP, composites, rules, seeds


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.features(x)
        return self.fc((self.layer3(x) + x).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


def test_the_example_of_the_contract(model):
    explainer = LRP(model, composites.EpsilonPlus())
    relevance = explainer.attribute(X, target=3)
    assert relevance.shape == X.shape and relevance.dtype == X.dtype and not relevance.requires_grad
    e = explainer.explain(X, target=[4, 6], layers=["layer3"])
    assert e.relevance.shape == (2, 5, 3, 8, 8)
    assert torch.allclose(e.output, model(X)) and e.output.shape == (5, 10)
    assert e.target.tolist() == [[4] * 5, [6] * 5]
    assert isinstance(e.ledger, pd.DataFrame)
    assert list(e.ledger.columns) == ["kind", "rule", "relevance_out", "relevance_in", "bias", "stabiliser", "lost"]
    assert list(e.ledger.index) == ["fc", "mean", "add", "layer3.1", "layer3.0", "features.3", "features.2",
                                    "features.1", "features.0"]  # fmt: skip
    assert e.layers["layer3"].shape == (2, 5, 4, 4, 4)
    assert isinstance(e, lrp.Explanation)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (3, [3] * 5),
        (np.int64(3), [3] * 5),
        (torch.tensor(3), [3] * 5),
        (torch.tensor([0, 1, 2, 3, 4]), [0, 1, 2, 3, 4]),
        (torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32), [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_forms_of_a_target(model, target, classes):
    e = LRP(model).explain(X, target)
    assert e.target.tolist() == classes and e.target.dtype == torch.long
    one_by_one = torch.cat([LRP(model).attribute(X[n : n + 1], c) for n, c in enumerate(classes)])
    assert torch.allclose(e.relevance, one_by_one, rtol=1e-4, atol=1e-6)


def test_no_target_is_the_predicted_class_and_lists_are_several(model):
    explainer = LRP(model)
    predicted = model(X).argmax(1)
    assert torch.equal(explainer.explain(X).target, predicted)
    assert torch.equal(explainer.attribute(X), explainer.attribute(X, predicted))
    for several in ([1], (1,), [1, None, torch.tensor([0, 1, 2, 3, 4])], (2, 3)):
        e = explainer.explain(X, several)
        assert e.relevance.shape == (len(several), *X.shape) and e.target.shape == (len(several), 5)
    assert LRP(model).attribute(X, target=[0, 1]).shape == (2, *X.shape)


def test_defaults(model):
    """EpsilonPlus, the predicted class, the logit, absorbed biases, ratio at additions, folded norms."""
    R = LRP(model).attribute(X)
    spelt_out = composites.EpsilonPlus(1e-6, bias="absorb", addition=rules.Ratio(), lrn=rules.Pass(), overrides={},
                                       fold_batchnorm=True)  # fmt: skip
    assert torch.equal(R, LRP(model, spelt_out).attribute(X, None, seed=seeds.Logit()))
    assert (rules.Epsilon(), rules.Gamma()) == (rules.Epsilon(1e-6, True), rules.Gamma(0.25, 1e-6))
    assert (rules.AlphaBeta(), rules.ZBox()) == (rules.AlphaBeta(2.0, 1.0), rules.ZBox(0.0, 1.0))
    assert seeds.Contrastive() == seeds.Contrastive(kind=1, others="uniform", positive=True)
    assert list(inspect.signature(LRP.attribute).parameters)[1:] == ["x", "target", "seed", "start"]
    assert list(inspect.signature(LRP.explain).parameters)[1:] == ["x", "target", "seed", "layers", "start"]


def test_names_of_the_field_are_there():
    for name in ("Epsilon", "Gamma", "AlphaBeta", "ZPlus", "ZBox", "WSquare", "Flat", "Pass", "Ratio", "Symmetric"):
        assert issubclass(getattr(rules, name), rules.Rule)
    for name in (
        "Epsilon",
        *(f"Epsilon{n}" for n in ("Plus", "PlusFlat", "GammaBox", "Alpha2Beta1", "Alpha2Beta1Flat")),
    ):
        assert issubclass(getattr(composites, name), composites.Composite)
    for name in ("Logit", "OneHot", "Probability", "SoftmaxGradient", "Contrastive"):
        assert issubclass(getattr(seeds, name), seeds.Seed)
    for name in ("CaptureError", "UnsupportedOperation", "InputError", "TargetError", "DataError"):
        assert issubclass(getattr(lrp, name), lrp.LRPError)
    assert issubclass(lrp.LRPWarning, UserWarning) and lrp.__version__
    assert all(hasattr(lrp, name) for name in lrp.__all__)


def rules_of(composite, model):
    """{node: rule} where relevance is shared."""
    table = LRP(model, composite).explain(X, 0).ledger
    return {n: r for n, r in table.rule.items() if table.kind[n] in ("convolution", "dense", "average", "add")}


def test_presets_put_each_rule_in_its_place(model):
    """first, other convolutions, dense: as in the field; an average goes by the rule of the convolutions."""
    expected = {
        composites.Epsilon(): ["Epsilon"] * 5,
        composites.EpsilonPlus(): ["ZPlus", "ZPlus", "ZPlus", "ZPlus", "Epsilon"],
        composites.EpsilonPlusFlat(): ["Flat", "ZPlus", "ZPlus", "ZPlus", "Epsilon"],
        composites.EpsilonGammaBox(-3.0, 3.0): ["ZBox", "Gamma", "Gamma", "Gamma", "Epsilon"],
        composites.EpsilonAlpha2Beta1(): ["AlphaBeta"] * 4 + ["Epsilon"],
        composites.EpsilonAlpha2Beta1Flat(): ["Flat"] + ["AlphaBeta"] * 3 + ["Epsilon"],
    }
    for composite, names in expected.items():
        found = rules_of(composite, model)
        order = ("features.0", "features.2", "layer3.0", "mean", "fc")
        assert [found[n].split("(")[0] for n in order] == names, composite
        assert found["add"] == "Ratio()"


def test_a_composite_is_a_short_list_that_can_be_edited(model):
    composite = composites.EpsilonPlus(
        bias="exclude", addition=rules.Flat(), overrides={"features.0": rules.WSquare(), "layer3.*": rules.Gamma(0.5)}
    )
    found = rules_of(composite, model)
    assert found["features.0"] == "WSquare()" and found["layer3.0"] == "Gamma(gamma=0.5, epsilon=1e-06)"
    assert found["features.2"] == "ZPlus()" and found["add"] == "Flat()"
    for line in ("EpsilonPlus(bias='exclude')", "features.0   WSquare()", "dense        Epsilon(epsilon=1e-06"):
        assert line in str(composite)
    composite.rules.insert(0, (lambda node: node.name == "features.2", rules.Flat()))
    assert rules_of(composite, model)["features.2"] == "Flat()"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_come_back_in_the_models_dtype(model, dtype):
    for composite in (composites.EpsilonPlus(), composites.EpsilonAlpha2Beta1(), composites.EpsilonGammaBox(-3.0, 3.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lrp.LRPWarning)
            e = LRP(model.to(dtype), composite).explain(X.to(dtype), [0, 1], layers=["layer3"])
        assert {e.relevance.dtype, e.output.dtype, e.layers["layer3"].dtype} == {dtype}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_come_back_on_the_models_device(model):
    here = LRP(model).attribute(X, [0, 1])
    there = LRP(model.cuda()).attribute(X.cuda(), [0, 1])
    assert there.is_cuda and torch.allclose(there.cpu(), here, rtol=1e-3, atol=1e-5)


def test_errors_name_the_node_and_the_way_out():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.erf(x)

    with pytest.raises(
        lrp.UnsupportedOperation, match=r"node `erf` \(at .*\) calls erf, which has no rule: pass overrides=\{'erf'"
    ):
        LRP(Odd().eval())
    R = LRP(Odd().eval(), composites.EpsilonPlus(overrides={"erf": rules.Pass()})).attribute(torch.ones(1, 3), 1)
    assert R.tolist() == [[0.0, pytest.approx(float(torch.erf(torch.ones(())))), 0.0]]


# ---------------------------------------------------------------- trained networks


def data():
    folder = Path(os.environ.get("LRP_DATA", ""), "weights", "imagenet")
    if not os.environ.get("LRP_DATA") or not folder.is_dir():
        pytest.skip("needs trained weights: set LRP_DATA to the folder that holds weights/imagenet")
    return folder.parents[1]


def image():
    """A validation photograph as torchvision's networks want it, and the box that such inputs live in."""
    image_module = pytest.importorskip("PIL.Image")
    path = sorted((data() / "imagenet" / "val").glob("*.JPEG"))[0]
    picture = image_module.open(path).convert("RGB").resize((160, 160))
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = ((v - mean) / std for v in (0.0, 1.0))
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1), low.view(3, 1, 1), high.view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "file"), [("squeezenet1_1", "squeezenet1_1_tvnorm.pth"), ("mobilenet_v2", "mobilenet_v2_coral_tvnorm.pth")]
)
@pytest.mark.parametrize("bias", ["absorb", "exclude"])
def test_trained_networks_are_explained_and_the_books_balance(name, file, bias):
    """Float32, real weights: nothing lost under any preset, and every class has a map of its own.

    LRP-epsilon without biases stays out: its shares are not bounded where z - b is small, by its definition.
    MobileNetV2 has a channel whose filter is zero: only its bias lets it be active.
    """
    models = pytest.importorskip("torchvision.models")
    weights = data() / "weights" / "imagenet" / file
    net = getattr(models, name)(weights=None).eval()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    x, low, high = image()
    top = net(x).topk(3).indices[0].tolist()
    presets = [
        composites.EpsilonPlus,
        composites.EpsilonPlusFlat,
        lambda **o: composites.EpsilonGammaBox(low, high, **o),
    ]
    presets += [composites.EpsilonAlpha2Beta1, composites.EpsilonAlpha2Beta1Flat]
    presets += [composites.Epsilon] if bias == "absorb" else []
    for preset in presets:
        with warnings.catch_warnings():
            warnings.simplefilter("error", lrp.LRPWarning)
            e = LRP(net, preset(bias=bias)).explain(x, top)
        assert e.imbalance < 1e-4, (preset, e)
        t = e.totals
        assert t["seed"] == pytest.approx(float(e.output[0, top].sum()), rel=1e-5)
        assert t["seed"] == pytest.approx(t["input"] + t["bias"] + t["stabiliser"] + t["lost"], rel=1e-4)
        maps = e.relevance[:, 0].flatten(1)
        assert all(not torch.allclose(maps[i], maps[j], rtol=0.01) for i, j in ((0, 1), (0, 2), (1, 2)))
