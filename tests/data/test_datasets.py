"""Scenes are exact, repeatable and do not leak; photographs need no network; boxes follow the crop."""

import os

import numpy as np
import pytest
import torch

from lrp.data import datasets
from lrp.data import scenes as scenes_module
from lrp.data.datasets import (
    CAFFE,
    CIFAR10_CLASSES,
    IMAGENET,
    SCENE,
    SCENE_255,
    Normalizer,
    cifar10,
    find,
    imagenet_classes,
    imagenet_val,
    photographs,
    scenes,
)
from lrp.errors import DataError

has_imagenet = os.path.isdir(os.path.join(os.environ.get("LRP_DATA", ""), "imagenet", "val"))
needs_imagenet = pytest.mark.skipif(not has_imagenet, reason="no imagenet/val under LRP_DATA")
has_cifar10 = os.path.isdir(os.path.join(os.environ.get("LRP_DATA", ""), "cifar10", "test"))
needs_cifar10 = pytest.mark.skipif(not has_cifar10, reason="no cifar10/test under LRP_DATA")


@pytest.fixture(scope="module")
def three():
    return scenes(200, digits=3, split="test")


def test_shapes_types_and_range(three):
    assert three.images.shape == (200, 3, 64, 64) and three.images.dtype == torch.float32
    assert three.images.min() >= 0 and three.images.max() <= 1
    assert three.labels.shape == (200, 3) and three.labels.dtype == torch.long
    assert three.boxes.shape == (200, 3, 4) and three.masks.shape == (200, 3, 64, 64)
    assert three.masks.dtype == torch.bool and len(three) == 200
    assert all(len(set(row)) == 3 for row in three.labels.tolist())


def test_boxes_hold_exactly_the_ink(three):
    for masks, boxes in zip(three.masks, three.boxes, strict=True):
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
            inside = mask[y0:y1, x0:x1]
            assert mask.sum() == inside.sum() >= 30
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            assert 0 < x0 < x1 < 64 and 0 < y0 < y1 < 64


def test_digits_do_not_overlap(three):
    for boxes in three.boxes:
        covered = torch.zeros(64, 64)
        for x0, y0, x1, y1 in boxes.tolist():
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1
    assert three.masks.sum(1).max() == 1


def test_a_scene_depends_only_on_its_number_seed_split_and_options():
    few, many = scenes(3, digits=2, seed=5), scenes(9, digits=2, seed=5)
    shifted = scenes(2, digits=2, seed=5, start=1)
    for part in ("images", "labels", "boxes", "masks"):
        assert torch.equal(getattr(few, part), getattr(many, part)[:3])
        assert torch.equal(getattr(shifted, part), getattr(few, part)[1:])
    assert not torch.equal(few.images, scenes(3, digits=2, seed=6).images)
    assert not torch.equal(few.images, scenes(3, digits=2, seed=5, split="test").images)


def test_drawing_scenes_leaves_the_users_random_numbers_alone():
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002 (what is tested)
    expected = np.random.rand(), torch.rand(())  # noqa: NPY002
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    scenes(2)
    assert (np.random.rand(), torch.rand(())) == expected  # noqa: NPY002


def test_size_changes_only_the_resolution():
    small, large = scenes(4, seed=1, size=64), scenes(4, seed=1, size=192)
    assert torch.equal(small.labels, large.labels)
    assert (small.boxes - large.boxes / 3).abs().max() <= 2
    assert (torch.nn.functional.avg_pool2d(large.images, 3) - small.images).abs().mean() < 0.02


def test_fewer_digits_than_places_are_marked():
    mixed = scenes(40, digits=(1, 3))
    counts = (mixed.labels >= 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    empty = mixed.labels < 0
    assert not mixed.masks[empty].any() and not mixed.boxes[empty].any()


def test_options():
    assert set(scenes(20, digits=2, classes=(3, 8)).labels.flatten().tolist()) == {3, 8}
    assert scenes(3, digits=3, classes=(4,), distinct=False).labels.eq(4).all()


@pytest.mark.parametrize(
    "options",
    [
        {"split": "val"},
        {"digits": 0},
        {"digits": 3, "classes": (1, 2)},
        {"classes": (11,)},
        {"seed": -1},
        {"size": 8},
        {"textures": ("sand",)},
        {"digits": (3, 1)},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(DataError):
        scenes(1, **options)


def test_an_index_gives_scenes(three):
    assert len(three[4]) == 1 and torch.equal(three[4].images[0], three.images[4])
    assert len(three[-1]) == 1 and len(three[2:5]) == 3 and len(three[[1, 7]]) == 2
    assert len(three[three.labels[:, 0] == 3]) == (three.labels[:, 0] == 3).sum()
    assert torch.equal(three[torch.tensor(4)].images, three[4].images)
    assert sum(1 for _ in three) == len(three)


def test_no_digit_and_no_texture_is_in_both_splits():
    train, test = (
        torch.tensor(np.concatenate(scenes_module._digits(split))).flatten(1) for split in scenes_module.SPLITS
    )
    assert len(train) + len(test) == 1797
    assert torch.cdist(train, test).min() > 0
    for name in scenes_module.TEXTURES:
        widths = [scenes_module._texture(name, split).shape[1] for split in scenes_module.SPLITS]
        assert sum(widths) <= 512 - 16


def test_brightness_alone_does_not_find_the_ink():
    """Ink is as often darker as brighter: over many scenes, brightness ranks ink no better than chance."""
    many = scenes(300)
    gray, ink = many.images.mean(1), many.masks[:, 0]
    brighter = torch.stack([g[i].mean() > g[~i].mean() for g, i in zip(gray, ink, strict=True)]).float().mean()
    assert 0.4 < brighter < 0.6


def test_every_digit_stands_out_from_its_ground():
    many = scenes(300)
    contrast = [(g[i].mean() - g[~i].mean()).abs() for g, i in zip(many.images.mean(1), many.masks[:, 0], strict=True)]
    assert min(contrast) > 0.1


def test_scenes_are_those_of_this_version():
    """A coarse fingerprint: when it changes, raise VERSION and run `make train`."""
    assert scenes_module.VERSION == 1
    means = scenes(4, digits=2, seed=0).images.mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor(FINGERPRINT), atol=2e-3, rtol=0)


FINGERPRINT = [0.5816, 0.3427, 0.5487, 0.3518]


@pytest.mark.parametrize("normalizer", [SCENE, IMAGENET, CAFFE, SCENE_255])
def test_normalizers_are_undone_and_bounded(normalizer):
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    inputs = normalizer(images)
    torch.testing.assert_close(normalizer.inverse(inputs), images)
    torch.testing.assert_close(normalizer(images[0]), inputs[0])
    low, high = normalizer.bounds(inputs)
    assert low.shape == high.shape == (1, 3, 1, 1) and low.dtype == torch.float64
    assert (low <= inputs).all() and (inputs <= high).all()
    torch.testing.assert_close(normalizer(torch.zeros(1, 3, 1, 1)), normalizer.bounds()[0])


def test_caffe_input_is_bgr_in_255_minus_the_mean():
    red = torch.tensor([1.0, 0, 0])[:, None, None]
    torch.testing.assert_close(CAFFE(red).flatten(), torch.tensor([-104.0, -117.0, 132.0]))


def test_scene_255_is_caffes_scale_about_the_middle():
    torch.testing.assert_close(SCENE_255.bounds()[0].flatten(), torch.full((3,), -127.5))
    torch.testing.assert_close(SCENE_255.bounds()[1].flatten(), torch.full((3,), 127.5))


def test_a_mean_can_be_an_image():
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    normalizer = Normalizer(torch.rand(3, 4, 5, dtype=torch.float64), (1 / 255,) * 3, order=(2, 1, 0))
    inputs = normalizer(images)
    torch.testing.assert_close(inputs, 255 * (images.flip(1) - normalizer.mean))
    torch.testing.assert_close(normalizer(images[0]), inputs[0])
    torch.testing.assert_close(normalizer.inverse(inputs), images)
    low, high = normalizer.bounds(inputs)
    assert low.shape == high.shape == (1, 3, 4, 5) and (low <= inputs).all() and (inputs <= high).all()
    assert normalizer(images.float()).dtype == torch.float32


def test_photographs_ship_with_the_dependencies(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a photograph was asked from the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    pictures = photographs(size=64)
    assert {"astronaut", "cat", "coffee", "china", "flower"} <= set(pictures)
    assert all(p.shape == (3, 64, 64) and 0 <= p.min() and p.max() <= 1 and p.std() > 0.05 for p in pictures.values())
    assert list(photographs("cat")) == ["cat"] and photographs(["cat"])["cat"].shape == (3, 224, 224)


def test_an_unknown_photograph_lists_what_there_is():
    with pytest.raises(DataError, match=r"no photograph is called dog: there are astronaut.*flower"):
        photographs(["cat", "dog"])


def test_find_looks_under_lrp_data_first(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    monkeypatch.delenv("LRP_DATA", raising=False)
    with pytest.raises(DataError, match=r"x\.txt .*not set.*make data"):
        find("x.txt")
    (tmp_path / "data" / "raw" / "x.txt").touch()
    assert find("x.txt") == tmp_path / "data" / "raw" / "x.txt"
    monkeypatch.setenv("LRP_DATA", str(tmp_path / "mine"))
    assert find("x.txt") == tmp_path / "data" / "raw" / "x.txt"
    (tmp_path / "mine" / "x.txt").touch()
    assert find("x.txt") == tmp_path / "mine" / "x.txt"


def _imagenet(folder, n=2):
    """An ImageNet of n plain pictures of 100 x 50 pixels, white where the box is."""
    from PIL import Image

    (folder / "val").mkdir(parents=True)
    rows = ["ImageId,PredictionString"]
    for i in range(n):
        pixels = np.zeros((50, 100, 3), np.uint8)
        pixels[10:30, 40:60] = 255
        Image.fromarray(pixels).save(folder / "val" / f"img{i}.JPEG", format="PNG")
        rows.append(f"img{i},n02 40 10 60 30 n02 0 0 10 10 ")
    (folder / "LOC_val_solution.csv").write_text("\n".join([*rows, "absent,n01 0 0 1 1 "]) + "\n")
    (folder / "LOC_synset_mapping.txt").write_text("n02 second, two\nn01 first\n")


def test_imagenet_boxes_follow_the_crop(tmp_path):
    _imagenet(tmp_path)
    photos = imagenet_val(tmp_path, size=224)
    assert len(photos) == 2 and photos.names == ["img0", "img1"] and photos.labels.tolist() == [1, 1]
    ((x0, y0, x1, y1),) = photos.boxes[0].round().int().tolist()  # the box at the left edge is cut away
    assert photos.images[0, :, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 0.9
    outside = photos.images[0].clone()
    outside[:, y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = 0
    assert outside.max() < 0.1
    assert len(imagenet_val(tmp_path, n=1)) == 1


def test_missing_imagenet_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv is missing"):
        imagenet_val(tmp_path)
    _imagenet(tmp_path / "x", 0)
    with pytest.raises(DataError, match="no image of"):
        imagenet_val(tmp_path / "x")


def test_imagenet_class_names():
    assert len(imagenet_classes()) == 1000 and imagenet_classes()[340] == "zebra"


@needs_imagenet
def test_real_imagenet():
    photos = imagenet_val(n=20)
    assert photos.images.shape == (20, 3, 224, 224) and len(photos.boxes) == 20
    assert all((box[:, :2] < box[:, 2:]).all() and box.max() <= 224 for box in photos.boxes)
    assert (photos.labels >= 0).all() and photos.labels.max() < 1000


def _cifar10(folder, n=2, side=32):
    """A CIFAR-10 of n plain pictures per class, gray of 10 times the label."""
    from PIL import Image

    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (side, side), 10 * label).save(folder / name / f"{i:04}.png")


def test_cifar10_takes_the_classes_in_turn(tmp_path):
    _cifar10(tmp_path)
    photos = cifar10(tmp_path, n=13)
    assert photos.images.shape == (13, 3, 32, 32) and photos.images.dtype == torch.float32
    assert photos.labels.tolist() == [*range(10), 0, 1, 2]
    assert photos.names[2] == "bird/0000" and photos.names[12] == "bird/0001"
    torch.testing.assert_close(photos.images.mean((1, 2, 3)), photos.labels * 10 / 255)
    assert len(photos.boxes) == 13 and photos.boxes[0].shape == (0, 4)
    (tmp_path / "airplane" / "0000.png").unlink()
    assert len(cifar10(tmp_path)) == 19


def test_missing_or_wrong_cifar10_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    monkeypatch.delenv("LRP_DATA", raising=False)
    with pytest.raises(DataError, match=r"cifar10/test .*not set.*: set LRP_DATA to a folder with CIFAR-10"):
        cifar10()
    with pytest.raises(DataError, match=r"no picture in .*airplane: CIFAR-10's test images go there"):
        cifar10(tmp_path)
    _cifar10(tmp_path, n=1, side=33)
    with pytest.raises(DataError, match=r"0000\.png is not 32 x 32 pixels"):
        cifar10(tmp_path)


@needs_cifar10
def test_real_cifar10():
    photos = cifar10(n=25)
    assert photos.images.shape == (25, 3, 32, 32) and photos.images.std() > 0.1
    assert photos.labels.bincount().tolist() == [3] * 5 + [2] * 5
