"""Bad input of every kind: the right error, a message with the name and the way out, and an unchanged model."""

import pytest
import torch
from torch import nn

from lrp import LRP, CaptureError, InputError, LRPError, TargetError, composites, rules, seeds


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.linspace(-1, 1, 3 * 2 * 4 * 4).view(3, 2, 4, 4)


@pytest.fixture
def model():
    """A model that has to leave the test as it came."""
    made = net()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    modules = [(n, sorted(vars(m))) for n, m in made.named_modules()]
    yield made
    assert [(n, sorted(vars(m))) for n, m in made.named_modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in made.modules())
    assert torch.equal(made(X), net()(X))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (4, ["target 4", "4 classes 0..3"]),
        (-1, ["target -1", "0..3"]),
        (1.0, ["None, an int, or a LongTensor (3,)", "1.0"]),
        ("cat", ["'cat'", "LongTensor"]),
        (True, ["True"]),
        (torch.tensor([0.0, 1.0, 2.0]), ["torch.float32"]),
        (torch.tensor([True, False, True]), ["torch.bool"]),
        (torch.tensor([0, 1]), ["one class per sample, (3,)", "(2,)"]),
        (torch.tensor([0]), ["(3,)", "(1,)"]),
        (torch.tensor([[0], [1], [2]]), ["(3, 1)"]),
        (torch.tensor([0, 1, 9]), ["target 9"]),
        ([], ["list of targets is empty"]),
        ([0, 7], ["target 7"]),
        ([0, None, "dog"], ["'dog'"]),
        ([[0, 1, 2]], ["[0, 1, 2]"]),
    ],
    ids=str,
)
def test_targets_that_name_no_class(model, target, words):
    with pytest.raises(TargetError) as raised:
        LRP(model).attribute(X, target)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def spoilt(where, value):
    x = X.clone()
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (spoilt((1, 0, 2, 3), float("nan")), ["1 values that are NaN or infinite", "(1, 0, 2, 3)"]),
        (spoilt((2, 1), float("inf")), ["16 values", "(2, 1, 0, 0)"]),
        (X[:0], ["batch", "(0, 2, 4, 4)"]),
        (X[:, :1], ["Net cannot take an input of shape (3, 1, 4, 4)"]),
        (X[:, :, :3], ["cannot take", "(3, 2, 3, 4)"]),
        (X.flatten(), ["batch (N, ...)", "(96,)"]),
        (X.double(), ["torch.float64", "torch.float32", "x.to("]),
        (X.half(), ["torch.float16", "x.to("]),
        (X.long(), ["floating point", "torch.int64"]),
        (X.to("meta"), ["meta", "cpu", "x.to("]),
        (X.numpy(), ["must be a tensor", "ndarray"]),
        (None, ["must be a tensor", "NoneType"]),
        ([X, X], ["must be a tensor", "list"]),
        ((X, X), ["cannot take", "(3, 2, 4, 4), (3, 2, 4, 4)", "2 positional arguments but 3"]),
        ((X, X[:2]), ["different numbers of samples"]),
    ],
    ids=lambda v: str(getattr(v, "shape", "")),
)
def test_inputs_that_cannot_be_explained(model, x, words):
    for call in (LRP(model).explain, LRP(model).attribute):
        with pytest.raises(InputError) as raised:
            call(x, 0)
        assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (torch.ones(3, 5), ["(3, 5)", "shaped like the output (3, 4)"]),
        (torch.ones(2, 2, 4), ["(2, 2, 4)", "(3, 4)"]),
        (torch.full((3, 4), float("nan")), ["seed", "NaN"]),
    ],
    ids=["classes", "samples", "nan"],
)
def test_seeds_that_do_not_fit(model, seed, words):
    with pytest.raises(InputError) as raised:
        LRP(model).attribute(X, seed=seed)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("wrong", ["logit", 1.0, seeds.Logit])
def test_what_is_no_seed_is_refused(model, wrong):
    with pytest.raises((LRPError, TypeError), match=r"seed"):
        LRP(model).attribute(X, 0, seed=wrong)


def test_contrast_of_kind_1_needs_two_classes():
    with pytest.raises((LRPError, ValueError), match=r"at least two classes; kind=2"):
        LRP(nn.Linear(3, 1).eval()).attribute(torch.ones(1, 3), 0, seed=seeds.Contrastive())
    for wrong in ({"kind": 3}, {"others": "all"}):
        with pytest.raises(ValueError, match="must be"):
            seeds.Contrastive(**wrong)


@pytest.mark.parametrize("name", ["conv.weight", "norm.running_var", "head.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(name, value):
    bad = net()
    early = LRP(bad)
    bad.state_dict()[name].view(-1)[-1] = value
    for explainer in (early, LRP(bad)):
        with pytest.raises(InputError, match=f"`{name}` of Net holds NaN or infinite values: load sound weights"):
            explainer.attribute(X, 0)


def test_training_mode_whole_part_and_later():
    whole = net().train()
    with pytest.raises(InputError, match=r"Net .* it is in training mode: call model\.eval\(\)"):
        LRP(whole)
    assert whole.training
    part = net()
    part.norm.train()
    with pytest.raises(InputError, match=r"its module `norm` is in training mode: call model\.eval\(\)"):
        LRP(part)
    later = net()
    explainer = LRP(later)
    later.train()
    with pytest.raises(InputError, match="training mode"):
        explainer.attribute(X, 0)
    assert later.training and int(later.norm.num_batches_tracked) == 0
    later.eval()
    assert explainer.attribute(X, 0).shape == X.shape


@pytest.mark.parametrize(
    ("made", "word"), [(lambda y: (y, y), "tuple"), (lambda y: {"y": y}, "dict"), (lambda y: [y], "list")]
)
def test_outputs_that_are_no_tensor(made, word):
    class Several(Net):
        def forward(self, x):
            return made(super().forward(x))

    with pytest.raises(CaptureError, match=f"Several returns a {word}, not one tensor: wrap it in a module"):
        LRP(Several().eval())


def test_outputs_that_are_no_logits():
    conv = nn.Conv2d(2, 3, 1).eval()
    with pytest.raises(InputError, match=r"Conv2d gives an output of shape \(3, 3, 4, 4\), not \(N, K\).*seed tensor"):
        LRP(conv).attribute(X, 0)
    assert LRP(conv).attribute(X, seed=torch.ones(3, 3, 4, 4)).shape == X.shape


def test_unknown_layer_names(model):
    with pytest.raises(InputError, match=r"no module or node named `cnv`.*similar names: .*conv"):
        LRP(model).explain(X, 0, layers=["cnv"])
    with pytest.raises(InputError, match="no module or node named `qqq`"):
        LRP(model).explain(X, 0, layers="qqq")


def test_no_rule_for_a_kind_of_node(model):
    with pytest.raises(LRPError, match=r"no rule for node `conv` of kind 'convolution'.*rules\.append") as raised:
        LRP(model, composites.Composite([("dense", rules.Epsilon())]))
    assert "dense        Epsilon" in str(raised.value)


def test_pass_needs_the_same_shape(model):
    with pytest.raises(
        LRPError, match=r"Pass\(\) at node `head` needs one input shaped like its output \(4,\)|\(3, 4\)"
    ):
        LRP(model, composites.EpsilonPlus(overrides={"head": rules.Pass()})).attribute(X, 0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: composites.EpsilonPlus(bias="zero"), ValueError, "'absorb' or 'exclude', not 'zero'"),
        (lambda: composites.Composite([("conv", rules.Flat())]), ValueError, "unknown condition 'conv'; .*convolution"),
        (
            lambda: composites.Composite([("any", rules.Flat)]),
            TypeError,
            r"is no rule: make one, as in rules\.ZPlus\(\)",
        ),
        (lambda: composites.Epsilon(addition="ratio"), TypeError, "'ratio' is no rule"),
        (lambda: composites.Epsilon(lrn=rules.Pass), TypeError, "no rule"),
        (lambda: composites.Epsilon(overrides={"a": None}), TypeError, "None is no rule"),
        (lambda: composites.Epsilon(epsilon=-1.0), ValueError, "epsilon must be >= 0"),
        (lambda: composites.EpsilonGammaBox(1.0, -1.0), ValueError, "low must be below high"),
        (lambda: LRP(net(), rules.Flat()), (LRPError, TypeError), "is no composite: make one"),
        (lambda: LRP(net(), composites.EpsilonPlus), (LRPError, TypeError), "is no composite: make one"),
    ],
)
def test_composites_that_make_no_sense(make, error, words):
    with pytest.raises(error, match=words):
        make()
