"""`python -m lrp explain`: what it writes is what the package computes, and what goes wrong is said in a sentence."""

import dataclasses
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data

from lrp import LRP, __version__, composites, rules
from lrp.app.answers import Question
from lrp.app.command_line import main, parser
from lrp.app.from_files import OptionError, Preparation, class_names, find_class, read_image
from lrp.data import datasets, models
from lrp.studies.contrastive import UnitContrast

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a scene of two digits in it: scene.png."""
    monkeypatch.chdir(tmp_path)
    image = datasets.scenes(1, digits=2, split="test").images[0]
    Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save("scene.png")
    return tmp_path


def explain(*words):
    return main(["explain", *map(str, words)])


def usage(capsys, *words):
    """The message of a call that ends with status 2, whichever way."""
    try:
        status = explain(*words)
    except SystemExit as end:
        status = end.code
    assert status == 2
    return capsys.readouterr().err


def failure(capsys, *words):
    """The message of a call that ends with status 1."""
    assert explain(*words) == 1
    return capsys.readouterr().err


def scene_input(file="scene.png"):
    return models.normalizer("scene_vgg")(Preparation.of("scene_vgg", None, None, None).read(file))[None]


# ---------------------------------------------------------------- what is written


def test_the_map_is_the_one_of_the_package(here, capsys):
    assert explain("scene.png", "--model", "scene_vgg", "--npy") == 0
    said = capsys.readouterr().out
    low, high = models.normalizer("scene_vgg").bounds()
    e = LRP(models.load("scene_vgg"), composites.EpsilonGammaBox(low, high)).explain(scene_input())
    saved = np.load("scene.lrp.npy")
    assert saved.dtype == np.float32 and saved.shape == (3, 64, 64)
    np.testing.assert_allclose(saved, e.relevance[0], atol=1e-5)
    k = int(e.target)
    assert f"scene.png -> scene.lrp.png: {k}, {e.output.softmax(1)[0, k]:.1%}" in said
    assert f"{e.totals['seed']:+.4g}" in said and f"{e.totals['input']:+.4g}" in said and "stabiliser" in said
    assert all(f"{logit:+.2f}" in said for logit in e.output[0].topk(5).values)


def test_the_picture_holds_the_image_and_the_map(here):
    assert explain("scene.png", "--model", "scene_vgg", "-o", "out/map.png") == 0
    assert [path.name for path in Path("out").iterdir()] == ["map.png"]
    with Image.open("out/map.png") as picture:
        assert picture.width == 1008 and 480 < picture.height < 640
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    left, right = pixels[60:440, 20:420], pixels[60:440, 460:860]
    scene = np.asarray(Image.open("scene.png")).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(left.reshape(-1, 3).mean(0), scene, atol=8)
    assert (right[..., 0] - right[..., 2]).max() > 100  # red: the digit speaks for itself
    assert (right.min(-1) > 235).mean() > 0.5  # white: most of the background says nothing


def test_a_question_can_be_put_from_python(here):
    """With the names and defaults of the options, without the command line."""
    question = Question(model="scene_vgg", target=["3", "8"], composite="epsilon-plus", bias="exclude")
    answer = question.ask(question.preparation.read("scene.png"))
    R = LRP(models.load("scene_vgg"), composites.EpsilonPlus(bias="exclude")).attribute(scene_input(), [3, 8])[:, 0]
    torch.testing.assert_close(answer.relevance, R)
    torch.testing.assert_close(answer.maps, R.sum(1))
    options = vars(parser().parse_args(["explain", "scene.png", "--model", "scene_vgg"]))
    defaults = Question(model="scene_vgg")
    for field in dataclasses.fields(Question):
        assert (options.pop(field.name) or None) == (getattr(defaults, field.name) or None), field.name
    assert options.keys() == {"command", "images", "output", "npy", "force"}
    for option, value in {"composite": "lrp", "contrastive": 3, "bias": "absorbed"}.items():
        with pytest.raises(OptionError, match=f"--{option} {value!r} is unknown: choose .*(epsilon-plus, |2|exclude)"):
            Question(model="scene_vgg", **{option: value})


@pytest.mark.parametrize("kind", [1, 2])
def test_contrasts_start_from_one_and_two_targets_stand_side_by_side(here, kind):
    """Also with epsilon in the last layer, where CLRP2 alone would be zero, and with a negative logit."""
    x, model = scene_input(), models.load("scene_vgg")
    best, worst = (int(i) for i in (model(x)[0].argmax(), model(x)[0].argmin()))
    asked = ["--composite", "epsilon-plus", f"--contrastive={kind}", "-t", best, "-t", worst]
    assert explain("scene.png", "--model", "scene_vgg", *asked, "--npy") == 0
    composite = composites.EpsilonPlus(overrides={"classifier.3": rules.ZPlus()})
    R = LRP(model, composite).attribute(x, [best, worst], UnitContrast(kind, positive=False))[:, 0]
    assert model(x)[0, worst] < 0 and (R < 0).any() and (R > 0).any()
    saved = np.load("scene.lrp.npy")
    assert saved.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(saved, R, atol=1e-7)
    with Image.open("scene.lrp.png") as picture:
        assert picture.width == 1512


@pytest.mark.parametrize(
    "name",
    ["epsilon", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat", "relevance-splitting"],
)
def test_every_composite_has_a_name(here, capsys, name):
    assert explain("scene.png", "--model", "scene_resnet", "--composite", name, "--bias", "exclude") == 0
    books = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(("bias", "seed")))
    assert abs(float(books["biases"])) < 1e-3 * abs(float(books["seed"]))


def test_a_negative_logit_is_said(here, capsys):
    worst = int(models.load("scene_vgg")(scene_input())[0].argmin())
    assert explain("scene.png", "--model", "scene_vgg", "-t", worst) == 0
    assert f"note: the logit of {worst} is negative" in capsys.readouterr().out


def test_nothing_is_computed_twice_or_overwritten(here, capsys):
    call = ("scene.png", "--model", "scene_vgg", "-t", 3)
    assert explain(*call) == 0
    file = here / "scene.lrp.png"
    written = file.stat().st_mtime_ns
    assert explain(*call) == 0 and "there already" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written
    for other in (
        ["-t", 4],
        ["--bias", "exclude"],
        ["--composite", "epsilon-plus"],
        ["--mean=.4,.5,.6", "--std=1,1,1"],
    ):
        assert "answers something else: --force" in failure(capsys, *call, *other)
    assert file.stat().st_mtime_ns == written
    assert explain(*call, "--npy") == 0 and (here / "scene.lrp.npy").exists()  # the picture is the same, and ours
    written = file.stat().st_mtime_ns
    assert explain(*call, "--force") == 0 and file.stat().st_mtime_ns != written
    file.write_bytes(b"somebody's own file")
    assert "answers something else" in failure(capsys, *call)
    assert file.read_bytes() == b"somebody's own file" and not list(here.glob("*.part"))


# ---------------------------------------------------------------- several pictures


def test_a_folder_goes_on_after_a_bad_picture(here, capsys):
    folder = here / "photos"
    folder.mkdir()
    Image.fromarray(data.camera()).save(folder / "b.png")
    Image.fromarray(data.coffee()).save(folder / "a.jpg")
    Image.fromarray(data.coffee()).save(folder / "b.lrp.png")  # as if written here
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes()[:20000])
    (folder / "notes.txt").write_text("no picture")
    said = failure(capsys, folder, "scene.png", "--model", "scene_vgg", "-o", "maps")
    assert f"{folder / 'a.png'}: the picture cannot be read" in said and "1 of 4 pictures failed" in said
    names = ["a.jpg.lrp.png", "b.lrp.png", "scene.lrp.png"]  # a.jpg, for there is an a.png as well
    assert sorted(path.name for path in (here / "maps").iterdir()) == names
    (folder / "a.png").unlink()
    assert explain(folder / "a.jpg", folder, "--model", "scene_vgg", "-o", "maps2") == 0
    assert sorted(path.name for path in (here / "maps2").iterdir()) == ["a.lrp.png", "b.lrp.png"]


def test_outputs_that_make_no_sense(here, capsys):
    (here / "empty").mkdir()
    Image.fromarray(data.camera()).save("other.png")
    model = ("--model", "scene_vgg")
    assert "2 pictures go into a folder" in usage(capsys, "scene.png", "other.png", *model, "-o", "map.png")
    assert "neither a .png nor a folder" in usage(capsys, "scene.png", *model, "-o", "map.jpg")
    assert "no picture in the folder empty" in usage(capsys, "empty", *model)
    assert "is itself to be explained" in usage(capsys, "scene.png", *model, "-o", "scene.png", "--force")
    (here / "empty" / "scene.png").write_bytes(b"")
    assert "two pictures would go to" in usage(capsys, "scene.png", "empty/scene.png", *model)
    assert sorted(path.name for path in here.iterdir()) == ["empty", "other.png", "scene.png"]


# ---------------------------------------------------------------- pictures


def test_pictures_of_all_kinds_become_rgb(tmp_path):
    colour = np.tile(np.array([[[200, 30, 90]]], np.uint8), (6, 8, 1))
    gray, wide = np.full((6, 8), 128, np.uint8), np.full((6, 8), 128 * 257, np.uint16)
    kinds = {
        "gray.png": (Image.fromarray(gray), 128),
        "sixteen.png": (Image.fromarray(wide), 128),
        "sixteen.tif": (Image.fromarray(wide), 128),
        "one_bit.png": (Image.fromarray(gray > 0), 255),
        "palette.gif": (Image.fromarray(colour).quantize(4), (200, 30, 90)),
        "cmyk.tif": (Image.fromarray(colour).convert("CMYK"), (200, 30, 90)),
        "clear.png": (Image.fromarray(np.dstack([colour, np.zeros((6, 8), np.uint8)])), 255),
        "half.png": (Image.fromarray(np.dstack([gray, gray])), (128 + 255) / 2),
    }
    for name, (picture, expected) in kinds.items():
        picture.save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert found.mode == "RGB" and found.size == (8, 6), name
        np.testing.assert_allclose(np.asarray(found).reshape(-1, 3), np.broadcast_to(expected, (48, 3)), atol=2)


def test_a_picture_taken_upright_is_read_upright(tmp_path):
    picture, exif = Image.fromarray(data.chelsea()), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").size == picture.size[::-1]


def test_preparation_is_that_of_torchvision(tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    for name in ("squeezenet1_1", "inception_v3", "efficientnet_v2_l"):
        usual = models.torchvision_weights(name).transforms()
        prepared = Preparation.of(name, None, None, None)
        x = prepared.normalizer(prepared.read(tmp_path / "cat.png"))
        torch.testing.assert_close(x, usual(Image.fromarray(data.chelsea())), atol=1e-6, rtol=1e-5)
    half = Preparation.of("squeezenet1_1", 112, None, None)
    assert (half.resize, half.size) == (128, 112)
    assert Preparation.of("scene_vgg", None, None, None).resize == 64


def test_bad_pictures_are_named(here, capsys):
    model = ("--model", "scene_vgg")
    Image.fromarray(data.chelsea()).save("cat.jpg")
    (here / "cut.jpg").write_bytes((here / "cat.jpg").read_bytes()[:9000])
    (here / "text.png").write_text("hello")
    assert "cut.jpg: the picture cannot be read: image file is truncated" in failure(capsys, "cut.jpg", *model)
    assert "text.png: it is no picture" in failure(capsys, "text.png", *model)
    assert "none.png: there is no such file" in failure(capsys, "none.png", *model)
    assert not list(here.glob("*.lrp.png"))


# ---------------------------------------------------------------- networks and weights

OWN = """
import torch
from torch import nn

def gray():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def scalar():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))

def labels(*end):
    return nn.Sequential(*gray(), *(end or [nn.Sigmoid()]))

def classes():
    return labels(nn.LogSoftmax(1))

def compiled():
    return torch.compile(gray(), backend="eager")

def parallel():
    return nn.DataParallel(labels())

def scripted():
    return torch.jit.script(labels())

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

def decoder():
    return nn.Conv2d(3, 3, 3)

def bare():
    return nn.ReLU()

def number():
    return 3

def broken():
    raise KeyError("oh")
"""


@pytest.fixture
def own(here, monkeypatch):
    """A module `own_networks` in the current folder."""
    (here / "own_networks.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_an_own_network_with_own_classes_and_weights(here, own, capsys):
    sys.path.insert(0, str(here))
    model = __import__(own).gray().eval()
    with torch.no_grad():
        model[4].bias += torch.tensor([0.0, 0.0, 50.0])
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "own.pth")
    safetensors.torch.save_file(model.state_dict(), "own.safetensors")
    (here / "classes.txt").write_text("a cat\nno $cat$\nA Dog\n")
    asked = ["--size", 24, "--mean", 0.5, "--std", 0.25, "--classes", "classes.txt"]
    assert explain("scene.png", "--model", f"{own}:gray", *asked, "-t", "no $CAT$", "-o", "first.png") == 0
    assert "-> first.png: no $cat$, " in capsys.readouterr().out
    for file in ("own.pth", "own.safetensors"):
        assert explain("scene.png", "--model", f"{own}:gray", *asked, "--weights", file, "--npy", "--force") == 0
        assert "scene.lrp.png: A Dog, 100.0%" in capsys.readouterr().out
        assert np.load("scene.lrp.npy").shape == (1, 24, 24)
    assert "has 3 lines" in usage(capsys, "scene.png", "--model", "scene_vgg", "--classes", "classes.txt")


@pytest.mark.parametrize("name", ["gray", "labels", "classes", "parallel"])
def test_a_probability_is_squashed_once(here, own, capsys, name):
    """A network that ends in a sigmoid or softmax prints its own output, and is explained from its logits."""
    sys.path.insert(0, str(here))
    model = __import__(own).gray().eval()
    assert explain("scene.png", "--model", f"{own}:{name}", "--size", 24, "--mean", 0.5, "--std", 0.25, "--npy") == 0
    question = Question(model=f"{own}:gray", size=24, mean=(0.5,), std=(0.25,))
    x = question.preparation.normalizer(question.preparation.read("scene.png"))[None]
    logits = model(x).detach()
    p, k = (logits.softmax(1) if name in ("gray", "classes") else logits.sigmoid())[0], int(logits.argmax())
    said = capsys.readouterr().out
    assert f"scene.lrp.png: class {k}, {p[k]:.1%}" in said and all(f"{one:.1%}" in said for one in p)
    R = LRP(model, question.explainer.composite).attribute(x)
    np.testing.assert_allclose(np.load("scene.lrp.npy"), R[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_networks_that_cannot_be_explained(own, capsys):
    picture = ("scene.png", "--size", 32, "--model")
    assert "gives an output of shape (1, 3, 30, 30), not (N, K)" in failure(capsys, *picture, f"{own}:decoder")
    assert f"{own}:bare() gives a ReLU, not a torch.nn.Module with weights" in usage(capsys, *picture, f"{own}:bare")
    assert f"{own}:number() gives a int" in usage(capsys, *picture, f"{own}:number")
    assert f"{own}:broken cannot be called (KeyError: 'oh')" in usage(capsys, *picture, f"{own}:broken")
    assert "AttributeError" in usage(capsys, *picture, f"{own}:absent")
    assert "ModuleNotFoundError" in usage(capsys, *picture, "no_such_module:net")
    assert "near it: resnet18" in usage(capsys, *picture, "resnet81")
    assert "no other class to contrast with" in usage(capsys, *picture, f"{own}:scalar", "--contrastive")
    assert explain(*picture, f"{own}:scalar", "--contrastive=2") == 0
    assert "it is a TorchScript module" in failure(capsys, *picture, f"{own}:scripted")
    assert "a lazy module has not run yet: call the model once" in failure(capsys, *picture, f"{own}:lazy")


def test_weights_that_are_missing_or_unsound(here, capsys, monkeypatch):
    picture = ("scene.png", "--model", "scene_vgg", "--weights")
    assert "there are no weights at none.pth" in failure(capsys, *picture, "none.pth")
    (here / "half.pth").write_bytes(b"half")
    (here / "half.safetensors").write_bytes(b"half")
    assert "half.pth cannot be read as weights" in failure(capsys, *picture, "half.pth")
    assert "half.safetensors cannot be read as weights" in failure(capsys, *picture, "half.safetensors")
    torch.save(torch.ones(3), "tensor.pth")
    assert "tensor.pth holds no state dict" in failure(capsys, *picture, "tensor.pth")
    state = models.load("scene_vgg").state_dict()
    torch.save({**state, "extra": torch.ones(1)}, "extra.pth")
    assert 'do not fit scene_vgg: Unexpected key(s) in state_dict: "extra"' in failure(capsys, *picture, "extra.pth")
    state["features.0.weight"][0] = torch.nan
    torch.save(state, "nan.pth")
    assert "`features.0.weight` of SceneVGG holds NaN" in failure(capsys, *picture, "nan.pth")
    monkeypatch.setattr(datasets, "DATA", here)
    monkeypatch.delenv("LRP_DATA", raising=False)
    assert "python -m lrp.data.downloads resnet18" in failure(capsys, "scene.png", "--model", "resnet18")
    assert "leave out --weights" in usage(capsys, "scene.png", "--model", "cifar_resnet20", "--weights", "nan.pth")


def test_weights_that_wrappers_and_programs_wrote(here, own, capsys):
    """Names with a wrapper's prefix, a count of averages, options and numbers beside the weights: all are the same."""
    sys.path.insert(0, str(here))
    module = __import__(own)
    with torch.random.fork_rng():
        model = module.gray().eval()
        with torch.no_grad():
            model[4].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.manual_seed(1)
    saved = {
        "compiled": torch.compile(model).state_dict(),
        "averaged": averaged.state_dict(),
        "both": {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, "epoch": 3},
        "options": {"model": model.state_dict(), "args": Namespace(lr=0.1), "best": np.float64(0.7), "n": np.int64(2)},
    }
    assert "n_averaged" in saved["averaged"] and "_orig_mod.0.weight" in saved["compiled"]
    for name, state in saved.items():
        torch.save(state, f"{name}.pth")
        asked = ("--size", 24, "--mean", 0.5, "--std", 0.25, "--weights", f"{name}.pth", "--force")
        for factory in ("gray", "compiled"):
            assert explain("scene.png", "--model", f"{own}:{factory}", *asked) == 0, capsys.readouterr().err
            assert "scene.lrp.png: class 1, 100.0%" in capsys.readouterr().out
    torch.save({f"model.{k}": v for k, v in model.state_dict().items()} | {"loss.weight": torch.ones(1)}, "more.pth")
    assert "do not fit" in failure(capsys, "scene.png", "--model", f"{own}:gray", *asked[:6], "--weights", "more.pth")
    state = {f"module.{k}": v for k, v in models.load("scene_vgg").state_dict().items()}
    torch.save(state, "scene.pth")
    assert explain("scene.png", "--model", "scene_vgg", "--weights", "scene.pth", "--force") == 0


def test_code_in_weights_is_never_run(here, capsys):
    torch.save(Trap(), "trap.pth")
    said = failure(capsys, "scene.png", "--model", "scene_vgg", "--weights", "trap.pth")
    assert "trap.pth cannot be read as weights" in said and "hold code" in said
    assert not (here / "executed").exists()


class Trap:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_fine_tuned_classifier_of_torchvision_has_the_classes_of_its_weights(here, capsys):
    from torchvision.models import get_model

    torch.save(get_model("squeezenet1_1", num_classes=4).state_dict(), "four.pth")
    call = ("scene.png", "--model", "squeezenet1_1", "--weights", "four.pth", "--size", 64)
    assert explain(*call, "-t", 3) == 0
    assert "scene.lrp.png: class 3, " in capsys.readouterr().out
    assert "--target 4 is no class: there are 0 to 3" in usage(capsys, *call, "-t", 4)


# ---------------------------------------------------------------- classes and other options


def test_classes_by_name_and_index():
    names = class_names("squeezenet1_1", 1000)
    assert find_class("egyptian CAT", names) == 285 and find_class("285", names) == 285
    assert (find_class("Cardigan", names), find_class("cardigan", names)) == (264, 474)
    with pytest.raises(OptionError, match="names classes 264, 474: choose one by its index"):
        find_class("CARDIGAN", names)
    with pytest.raises(OptionError, match=r"near it: .*'Egyptian cat'"):
        find_class("Egiptian cat", names)
    with pytest.raises(OptionError, match=r"near it: .*'tiger cat'"):
        find_class("cat", names)
    with pytest.raises(OptionError, match="--target -1 is no class: there are 0 to 999"):
        find_class("-1", names)
    assert class_names("scene_vgg", 10)[7] == "7" and class_names("own:net", 1000)[7] == "class 7"


def test_options_that_make_no_sense(here, capsys):
    call = ("scene.png", "--model", "scene_vgg")
    assert "'seven' is the name of no class; near it: '0', '1'" in usage(capsys, *call, "-t", "seven")
    assert "go together" in usage(capsys, *call, "--mean", "0.5")
    assert "neither one number nor three" in usage(capsys, *call, "--mean", "1,2", "--std", "1,2")
    assert "'0' is no number of pixels" in usage(capsys, *call, "--size", "0")
    assert "'3' is neither 1 nor 2" in usage(capsys, *call, "--contrastive", "3")
    assert "--device tpu is unknown" in usage(capsys, *call, "--device", "tpu")
    assert "invalid choice: 'lrp'" in usage(capsys, *call, "--composite", "lrp")
    assert "cannot take an input of shape (1, 3, 100, 100)" in failure(capsys, *call, "--size", "100")
    assert [path.name for path in here.iterdir()] == ["scene.png"]


def python(*words, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, **options)


def test_help_and_version(tmp_path, capsys):
    said = python("-m", "lrp", "--version", cwd=tmp_path)
    assert (said.returncode, said.stdout.strip()) == (0, f"lrp {__version__}")
    assert main([]) == 0 and "explain" in capsys.readouterr().out
    assert "the following arguments are required: IMAGE, --model" in usage(capsys)


def test_help_waits_for_nothing_but_the_package_itself():
    code = (
        "import sys, lrp; before = set(sys.modules)\n"
        "from lrp.app.command_line import main\n"
        "try: main(['explain', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before}, file=sys.stderr)"
    )
    said = python("-c", code)
    assert "--contrastive" in said.stdout and "examples:" in said.stdout
    assert not {"torch", "torchvision", "matplotlib", "pandas", "PIL", "numpy"} & set(said.stderr.split())


# ---------------------------------------------------------------- a real network


def test_a_mean_image_has_one_size(here, capsys, lrp_data):
    call = ("scene.png", "--model", "caffe_cifar10_full")
    assert explain(*call) == 0
    assert "subtracts a mean image of 32 x 32 pixels" in usage(capsys, *call, "--size", 40)


def test_squeezenet_sees_the_cat(here, capsys, lrp_data):
    Image.fromarray(data.chelsea()).save("cat.png")
    asked = ("-t", "Egyptian cat", "-t", "golden retriever", "--npy")
    assert explain("cat.png", "--model", "squeezenet1_1", *asked) == 0
    heading, first, columns, best, *_ = capsys.readouterr().out.splitlines()
    assert "short side to 256, centre 224 x 224" in heading and "Egyptian cat, " in first
    assert columns.split() == ["class", "p", "logit"] and best.split()[-3] in ("281", "282", "285")
    R = np.load("cat.lrp.npy")
    assert R.shape == (2, 3, 224, 224) and R[0].sum() > R[1].sum() > 0
