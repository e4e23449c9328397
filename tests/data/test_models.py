"""Our networks are as good as they say, training repeats bit by bit, and the weights of others fit."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from lrp import LRP
from lrp.data import datasets, models, training
from lrp.errors import DataError

SCENE_NAMES = list(models.SCENE_NETWORKS)
LRP_DATA = Path(os.environ.get("LRP_DATA", "/nowhere"))
FLOOR = {"scene_vgg": 0.97, "scene_resnet": 0.97, "scene_vit": 0.95}
FLOOR |= {"scene_lrn": 0.93}  # it sees a quarter of the pixels
PUBLISHED = {
    "squeezenet1_1": 0.558,
    "mobilenet_v2": 0.661,
    "bvlc_googlenet": 0.668,
    "bvlc_googlenet_rgb": 0.648,
}
has_weights = (LRP_DATA / "weights" / "imagenet").is_dir() and (LRP_DATA / "imagenet" / "val").is_dir()
needs_data = pytest.mark.skipif(not has_weights, reason="no weights/imagenet and imagenet/val under LRP_DATA")
has_cifar10 = (LRP_DATA / "weights" / "cifar10").is_dir() and (LRP_DATA / "cifar10" / "test").is_dir()
needs_cifar10 = pytest.mark.skipif(not has_cifar10, reason="no weights/cifar10 and cifar10/test under LRP_DATA")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As `python -m lrp.data.training` has it; small networks gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(training.THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in the place of the committed checkpoints."""
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SCENE_NAMES)
def test_committed_network_is_as_good_as_its_index_says(name):
    entry = models.index()[name]
    scenes = datasets.scenes(400, size=models.side(name), split="test", start=5000)
    model = models.load(name)
    row = models.report(model, models.normalizer(name)(scenes.images), scenes.labels[:, 0], name).loc[name]
    assert entry["accuracy"] >= FLOOR[name] and row.low < entry["accuracy"] < row.high and row.n == 400
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"] <= 300_000
    assert entry["recipe"] == training.recipe(name, entry["recipe"]["seed"]), "another recipe now: run `make train`"


def test_committed_checkpoints_are_small():
    assert sum(file.stat().st_size for file in models.CHECKPOINTS.iterdir()) < 3.5e6


@pytest.mark.parametrize("name", SCENE_NAMES)
def test_load_gives_a_fresh_network_and_leaves_random_numbers_alone(name):
    state = torch.get_rng_state()
    one, two = models.load(name), models.load(name, dtype=torch.float64)
    assert torch.equal(state, torch.get_rng_state())
    assert not one.training and next(one.parameters()).dtype == torch.float32
    x = models.normalizer(name)(datasets.scenes(4, size=models.side(name)).images)
    torch.testing.assert_close(one(x).double(), two(x.double()), atol=1e-4, rtol=1e-4)
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}


def test_scene_networks_are_what_they_say():
    vgg, resnet = models.load("scene_vgg"), models.load("scene_resnet")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in vgg.modules())
    assert [name for name, _ in vgg.named_children()] == ["features", "classifier"]
    assert isinstance(resnet, ResNet) and sum(isinstance(m, BasicBlock) for m in resnet.modules()) == 8
    assert resnet.forward.__func__ is ResNet.forward
    names = [name for name, _ in resnet.named_children()]
    assert names == "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool fc".split()


def test_lrn_of_scene_lrn_is_not_decoration():
    """Denominators of active units at both layers, and what becomes of the network without them."""
    model, scenes = models.load("scene_lrn"), datasets.scenes(200, size=32, split="test")
    inputs, seen = models.normalizer("scene_lrn")(scenes.images), []
    assert inputs.min() >= -127.5 and inputs.max() <= 127.5 and inputs.std() > 40
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.LocalResponseNorm)}
    assert len(layers) == 2 and all((m.size, m.alpha, m.beta, m.k) == (5, 1e-4, 0.75, 1.0) for m in layers.values())
    for layer in layers.values():
        layer.register_forward_hook(lambda m, i, o: seen.append((i[0] / o)[i[0] > 0].median().item()))
    before = models.report(model, inputs, scenes.labels[:, 0]).accuracy.item()
    assert max(seen) > 1.3 and min(seen) > 1.1
    for name in layers:
        model.set_submodule(name, torch.nn.Identity())
    assert models.report(model, inputs, scenes.labels[:, 0]).accuracy.item() < before


def vit_on_scenes(n=400):
    """The Vision Transformer, inputs from test scenes, their labels."""
    scenes = datasets.scenes(n, split="test", start=7000)
    return models.load("scene_vit"), models.normalizer("scene_vit")(scenes.images), scenes.labels[:, 0]


def test_scene_vit_is_torchvisions():
    model, inputs, _ = vit_on_scenes(2)
    assert isinstance(model, VisionTransformer) and type(model).forward is VisionTransformer.forward
    blocks = list(model.encoder.layers)
    assert len(blocks) == 3 and all(type(block) is EncoderBlock for block in blocks)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * len(blocks) + 1 and all(m.eps == 1e-6 for m in norms)
    assert model.class_token.shape == (1, 1, 64) and model.encoder.pos_embedding.shape == (1, 17, 64)
    assert model(inputs).shape == (2, 10)


@torch.no_grad()
def test_scene_vit_needs_its_positions():
    model, inputs, labels = vit_on_scenes()
    accuracy = models.report(model, inputs, labels).accuracy.item()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    tokens = model._process_input(inputs[:4])
    both = [torch.cat([model.class_token.expand(4, -1, -1), t], 1) for t in (tokens, tokens[:, order])]
    straight, mixed = (model.heads(model.encoder(t)[:, 0]) for t in both)
    torch.testing.assert_close(straight, model(inputs[:4]))
    assert (straight - mixed).abs().max() > 0.1  # the same tokens in other places
    model.encoder.pos_embedding.zero_()
    assert models.report(model, inputs, labels).accuracy.item() < accuracy


def test_untrained_networks_depend_on_the_seed_alone():
    for name in SCENE_NAMES:
        state = torch.get_rng_state()
        one = models.untrained(name, 3).state_dict()
        torch.rand(5)
        two, other = models.untrained(name, 3).state_dict(), models.untrained(name, 4).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)
        torch.set_rng_state(state)


def test_a_changed_checkpoint_is_refused(folder):
    model = models.untrained("scene_vgg")
    training.save("scene_vgg", model, {"accuracy": 0.5})
    assert torch.equal(models.load("scene_vgg").features[0].weight, model.features[0].weight)
    file = folder / "scene_vgg.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"scene_vgg\.safetensors is not the file that .*index\.json"):
        models.load("scene_vgg")


def test_missing_things_are_named_with_the_fix(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    monkeypatch.delenv("LRP_DATA", raising=False)
    with pytest.raises(DataError, match=r"no checkpoint of scene_vgg in .*: run `make train`"):
        models.load("scene_vgg")
    with pytest.raises(DataError, match=r"weights/resnet18-f37072fd\.pth .*: run `python -m lrp"):
        models.load("resnet18")
    with pytest.raises(DataError, match=r"bvlc_googlenet_caffe\.pth .*LRP_DATA"):
        models.load("bvlc_googlenet")
    with pytest.raises(DataError, match=r"caffe_cifar10_full_70000\.pth .*LRP_DATA"):
        models.load("caffe_cifar10_full")
    with pytest.raises(DataError, match=r"cifar10_train_mean_hwc_rgb\.npy .*LRP_DATA"):
        models.normalizer("caffe_cifar10_full")
    with pytest.raises(DataError, match="no network is called 'resnet_scene': there are scene_vgg, scene_resnet"):
        models.load("resnet_scene")


def test_torchvision_weights_in_data_raw_are_used(monkeypatch, tmp_path):
    from torchvision.models import get_model

    monkeypatch.setattr(datasets, "DATA", tmp_path)
    monkeypatch.delenv("LRP_DATA", raising=False)
    (tmp_path / "raw" / "weights").mkdir(parents=True)
    file = tmp_path / "raw" / "weights" / "squeezenet1_1-b8a52dc0.pth"
    state = get_model("squeezenet1_1", weights=None).state_dict()
    torch.save(state, file)
    assert torch.equal(models.load("squeezenet1_1").features[0].weight, state["features.0.weight"])
    torch.save({"other": torch.ones(1)}, file)
    with pytest.raises(DataError, match="weights found for squeezenet1_1 belong to another network"):
        models.load("squeezenet1_1")
    file.write_bytes(b"half")
    with pytest.raises(
        DataError, match=r"b8a52dc0\.pth cannot be read .* run `python -m lrp.data.downloads squeezenet1_1`"
    ):
        models.load("squeezenet1_1")


def test_googlenet_of_torchvision_loads_without_its_training_heads(monkeypatch, tmp_path):
    from torchvision.models import get_model

    monkeypatch.setattr(datasets, "DATA", tmp_path)
    monkeypatch.delenv("LRP_DATA", raising=False)
    (tmp_path / "raw" / "weights").mkdir(parents=True)
    state = get_model("googlenet", weights=None, init_weights=False).state_dict()
    torch.save(state, tmp_path / "raw" / "weights" / "googlenet-1378be20.pth")
    model = models.load("googlenet")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000) and model.aux1 is None and model.transform_input


def test_weights_say_how_many_classes_a_classifier_has():
    """Also with the heads that only training uses, whose classes are not those of the network."""
    from torchvision.models import get_model

    state = get_model("googlenet", weights=None, init_weights=False, num_classes=4).state_dict()
    assert any(key.startswith("aux2.") for key in state)
    model = models.build("googlenet", state, "no")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4) and not model.training
    assert torch.equal(model.fc.weight, state["fc.weight"])
    del state["fc.bias"]
    with pytest.raises(DataError, match=r'^these do not fit: Missing key\(s\) in state_dict: "fc.bias"'):
        models.build("googlenet", state, "these do not fit")


def test_class_names():
    for name, count, known in (
        ("scene_lrn", 10, {7: "7"}),
        ("cifar_resnet20", 10, {0: "airplane", 9: "truck"}),
        ("bvlc_googlenet", 1000, {340: "zebra"}),
        ("resnet18", 4, {3: "class 3"}),
        ("own:net", 1000, {340: "class 340"}),
    ):
        names = models.class_names(name, count)
        assert len(names) == count and {k: names[k] for k in known} == known
        assert models.class_name(name, torch.eye(count)[[max(known)]]) == names[max(known)]


def test_report_is_right_and_leaves_the_model_as_it_was():
    logits = torch.eye(4).repeat(5, 1) * 10
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Dropout(0.9)).train()
    torch.nn.init.eye_(model[0].weight)
    labels = torch.arange(4).repeat(5)
    labels[0] = 3
    row = models.report(model, logits, labels, batch=7).loc["model"]
    assert row.n == 20 and row.accuracy == 0.95 and row.confidence > 0.99 and model.training
    assert (row.low, row.high) == pytest.approx((0.7639, 0.9911), abs=1e-4)


def test_wilson_interval_against_published_values():
    assert models.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert models.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert models.wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=1e-4)
    low, high = models.wilson(7, 50)  # the ends solve (7 / 50 - p)^2 = z^2 p (1 - p) / 50
    for p in (low, high):
        assert abs(7 / 50 - p) == pytest.approx(1.959964 * (p * (1 - p) / 50) ** 0.5, rel=1e-6)


def test_bvlc_googlenet_has_two_lrn_layers():
    with torch.random.fork_rng():
        model = models.BVLCGoogLeNet()
    assert sum(isinstance(m, torch.nn.LocalResponseNorm) for m in model.modules()) == 2
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: shapes.update({name: tuple(o.shape[1:])}))
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert shapes["pool2"] == (192, 28, 28) and shapes["inception4e"] == (832, 14, 14)
    assert shapes["inception5b"] == (1024, 7, 7)


def test_caffe_cifar10_full_has_the_shapes_of_caffe():
    with torch.random.fork_rng():
        model = models.CaffeCIFAR10Full()
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: shapes.update({name: tuple(o.shape[1:])}))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10) == (1, *shapes["ip1"])
    assert [shapes[f"pool{k}"] for k in (1, 2, 3)] == [(32, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert shapes["norm1"] == (32, 16, 16) and shapes["norm2"] == (32, 8, 8) and shapes["conv3"] == (64, 8, 8)
    corner = model.pool2(torch.ones(1, 1, 16, 16))  # Caffe divides by what of a window lies inside
    assert torch.equal(corner, torch.ones(1, 1, 8, 8))


@needs_cifar10
def test_caffe_cifar10_full_on_real_images():
    photos, name = datasets.cifar10(n=500), "caffe_cifar10_full"
    inputs = models.normalizer(name)(photos.images)
    model = models.load(name)
    assert models.report(model, inputs, photos.labels).accuracy.item() >= 0.75
    word = models.class_name(name, model(inputs[:1]))
    assert word in datasets.CIFAR10_CLASSES
    explanation = LRP(model).explain(inputs[:2])
    kinds = {node.name: node.kind for node in LRP(model).graph.nodes}
    assert kinds["norm1"] == kinds["norm2"] == "lrn"
    assert explanation.relevance.shape == (2, 3, 32, 32)


@needs_cifar10
@pytest.mark.slow
def test_caffe_cifar10_full_on_all_images():
    """79.1 % of 3000 JPEG copies."""
    photos, name = datasets.cifar10(), "caffe_cifar10_full"
    row = models.report(models.load(name), models.normalizer(name)(photos.images), photos.labels).iloc[0]
    assert row.n == 3000 and row.accuracy == pytest.approx(0.7913, abs=0.003)


@needs_cifar10
@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet32"])
def test_cifar_resnets_on_real_images(name):
    """80 to 82 % of the JPEG copies; BatchNorm is there, as trained."""
    photos = datasets.cifar10(n=500)
    model, inputs = models.load(name), models.normalizer(name)(photos.images)
    assert inputs.shape[2:] == (models.side(name),) * 2
    assert models.report(model, inputs, photos.labels).accuracy.item() >= 0.75
    assert models.class_name(name, model(inputs[:1])) in datasets.CIFAR10_CLASSES
    assert model.bn1.running_var.std() > 0
    e = LRP(model).explain(inputs[:2])
    assert e.imbalance < 1e-4


TINY = {"epochs": 1, "pool": 64, "batch": 32, "rate": 1e-3, "decay": 0.0}


@pytest.mark.parametrize("name", SCENE_NAMES)
def test_training_is_deterministic_and_leaves_random_numbers_alone(name):
    state = torch.get_rng_state()
    one, two, other = (training.train(name, seed, **TINY).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_ink_is_asked_of_the_token_that_stands_there():
    """Tokens that hold the ink of their squares are right; in other places, or at first, they are not."""
    reader = training.Ink(models.untrained("scene_vit"))
    cover = F.adaptive_avg_pool2d(datasets.scenes(4).masks.float(), 16).round()
    masks = F.interpolate(cover, 64) > 0
    reader.tokens = torch.zeros(4, 16, 64)
    assert reader.loss(masks).item() == pytest.approx(np.log(2))
    reader.weight.data, reader.bias.data = 40 * torch.eye(16, 64), torch.full((16,), -20.0)
    reader.tokens[..., :16] = F.pixel_unshuffle(cover, 4).flatten(2).transpose(1, 2)
    assert reader.loss(masks) < 1e-6 < 0.5 < reader.loss(masks.mT)


def test_the_second_task_leaves_nothing_but_other_weights():
    one, two = training.train("scene_vit", **TINY), training.train("scene_vit", **TINY, ink=1.0)
    assert not two.encoder._forward_hooks and one.state_dict().keys() == two.state_dict().keys()
    assert not torch.equal(one.encoder.pos_embedding, two.encoder.pos_embedding)


def test_make_trains_once_and_keeps_the_better(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, "RECIPES", {"scene_vgg": TINY})
    monkeypatch.setattr(training, "TEST", 50)
    assert training.main([]) == 0
    first = (folder / "scene_vgg.safetensors").read_bytes()
    assert training.main([]) == 0 and "already trained with this recipe" in capsys.readouterr().out
    known = models.index()
    known["scene_vgg"]["accuracy"] = 0.9
    (folder / "index.json").write_text(json.dumps(known))
    assert training.main(["--seed", "1"]) == 1
    assert "the one in" in capsys.readouterr().err
    assert (folder / "scene_vgg.safetensors").read_bytes() == first
    assert training.main(["--seed", "1", "--force"]) == 0
    assert models.index()["scene_vgg"]["recipe"]["seed"] == 1
    assert sorted(file.name for file in folder.iterdir()) == ["index.json", "scene_vgg.safetensors"]


def test_other_units_give_the_same_network():
    model, scenes = models.load("scene_lrn", dtype=torch.float64), datasets.scenes(4, size=32)
    inputs = models.normalizer("scene_lrn")(scenes.images).double()
    logits, alpha = model(inputs), model.features[5].alpha
    assert training.in_units(model, 1) is model and model.features[5].alpha == alpha
    training.in_units(model, 100)
    assert model.features[5].alpha == pytest.approx(1.0)
    torch.testing.assert_close(model(inputs / 100), logits)
    torch.testing.assert_close(training.in_units(model, 1 / 100)(inputs), logits)


def test_standardize_starts_every_layer_with_mean_0_and_deviation_1():
    model, inputs = models.untrained("scene_vgg"), datasets.scenes(64).inputs
    training.standardize(model, inputs)
    seen = []
    for layer in model.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    model.eval()(inputs)
    for out in seen:
        assert out.mean((0, 2, 3)).abs().max() < 1e-3 and (out.std((0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.fixture(scope="module")
def photos():
    return datasets.imagenet_val()


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_networks_on_real_images(name, photos):
    """The interval of 125 images holds the top-1 accuracy known from 1000."""
    row = models.report(models.load(name), models.normalizer(name)(photos.images), photos.labels, name, batch=25).loc[
        name
    ]
    assert row.low < PUBLISHED[name] < row.high, row.to_string()
    assert np.isfinite(row.confidence)


def test_networks_are_calibrated_and_leave_the_random_state_alone():
    state, x = torch.get_rng_state(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = models.calibrated("mobilenet_v2", x)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    features = model.features(x)
    assert 1e-2 < float(features.detach().abs().mean()) < 1e2
