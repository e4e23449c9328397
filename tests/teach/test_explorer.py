"""The explorer: what its pictures are made of, and that its controls lead to them."""

import base64
import io
import re
import statistics
import time
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from lrp import LRP, InputError, LRPError, composites, rules, seeds
from lrp.data import datasets, models
from lrp.teach import explorer
from lrp.teach.explorer import Panel, State

LOW, HIGH = datasets.SCENE.bounds()


@pytest.fixture(scope="module")
def made() -> Panel:
    scenes, pair = datasets.scenes(2, split="test"), datasets.scenes(1, digits=2, split="test")
    images = {"one": scenes.images[0], "other": scenes.images[1], "two & more": pair.images[0]}
    return explorer.explore({name: models.load(name) for name in ("scene_vgg", "scene_resnet")}, images)


def pictures(html: str) -> list[tuple[str, np.ndarray]]:
    """The pictures of a page, with what their descriptions say."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    return [(unescape(alt), np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))) for png, alt in found]


CASES = {
    "Epsilon": composites.Epsilon(0.1),
    "γ everywhere": composites.Composite([("any", rules.Gamma(0.7))]),
    "z⁺ everywhere": composites.Composite([("any", rules.ZPlus())]),
    "EpsilonPlus": composites.EpsilonPlus(0.1),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(0.1),
    "EpsilonGammaBox": composites.EpsilonGammaBox(LOW, HIGH, gamma=0.7, epsilon=0.1),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(0.1),
    "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat(0.1),
}


@pytest.mark.parametrize("network", ["scene_vgg", "scene_resnet"])
@pytest.mark.parametrize("composite", explorer.COMPOSITES)
def test_a_view_is_what_lrp_says(made, network, composite):
    view = made.view(State(network, "one", 3, composite, epsilon=0.1, gamma=0.7))
    x = datasets.normalize(made.images["one"])[None]
    R = LRP(made.networks[network], CASES[composite]).attribute(x, target=3)
    assert torch.equal(view.relevance, R[0].sum(0))
    assert view.target == 3
    assert torch.allclose(view.probabilities, made.networks[network](x)[0].softmax(0))
    totals = view.explanation.totals
    assert totals["seed"] == pytest.approx(sum(totals[part] for part in ("input", "bias", "stabiliser", "lost")))
    assert totals["input"] == pytest.approx(float(R.sum()), rel=1e-4)
    assert abs(totals["lost"]) < 1e-3 * abs(totals["seed"])


@pytest.mark.parametrize("composite", explorer.COMPOSITES)
def test_a_slider_acts_where_it_says_so(made, composite):
    one = made.view(State("scene_vgg", "one", None, composite, epsilon=0.01, gamma=0.1)).relevance
    for knob, value in (("epsilon", 0.5), ("gamma", 2.0)):
        changed = State("scene_vgg", "one", None, composite, **{"epsilon": 0.01, "gamma": 0.1, knob: value})
        same = torch.equal(one, made.view(changed).relevance)
        assert same == (knob not in explorer.tunable(composite))


def test_the_class_the_image_and_the_network_matter(made):
    start = made.view(State("scene_vgg", "one"))
    assert start.target == int(start.probabilities.argmax())
    rival = (start.target + 1) % 10
    others = State("scene_vgg", "one", rival), State("scene_vgg", "other"), State("scene_resnet", "one")
    assert not any(torch.allclose(start.relevance, made.view(state).relevance) for state in others)


def test_contrast_takes_away_what_speaks_for_the_other_classes(made):
    state = State("scene_vgg", "one", 3, "z⁺ everywhere")
    contrast = made.view(State(**vars(state) | {"contrast": True}))
    x = datasets.normalize(made.images["one"])[None]
    explainer = LRP(made.networks["scene_vgg"], CASES["z⁺ everywhere"])
    expected = explainer.attribute(x, 3, seeds.Contrastive(positive=False))
    assert torch.equal(contrast.relevance, expected[0].sum(0))
    assert contrast.explanation.totals["seed"] == pytest.approx(0, abs=1e-5)
    assert float(contrast.relevance.abs().sum()) < 0.5 * float(made.view(state).relevance.abs().sum())
    assert "against all others" in pictures(explorer.page(contrast))[0][0]


def test_networks_are_captured_once_per_rule(made):
    before = made.explainer.cache_info().misses
    for image in made.images:
        for target in range(5):
            made.view(State("scene_vgg", image, target, "EpsilonPlus", epsilon=0.123))
    assert made.explainer.cache_info().misses == before + 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"gamma": -1.0}, "gamma"),
        ({"target": 10}, "10"),
    ],
    ids=str,
)
def test_bad_states(made, wrong, message):
    with pytest.raises((ValueError, LRPError), match=message):
        made.view(State(**{"network": "scene_vgg", "image": "one"} | wrong))


def test_nothing_to_explore(made):
    with pytest.raises(ValueError, match="at least one network and one image"):
        explorer.explore(made.networks, {})


def test_a_page_has_two_pictures_and_says_what_they_show(made):
    view = made.view(State("scene_vgg", "two & more", 7, "EpsilonPlus", epsilon=0.2))
    html = explorer.page(view)
    (maps, drawn), (books, _) = pictures(html)
    assert "two & more" in maps and "class 7" in maps and "EpsilonPlus, epsilon 0.2." in maps
    assert f"Full colour at {float(view.relevance.abs().max()):.2g}" in maps
    assert f"seed {view.explanation.totals['seed']:+.2f}" in books
    assert "two &amp; more" in html and "<figcaption>scene_vgg says" in html
    assert np.ptp(drawn[..., :3]) > 200, "neither empty nor of one colour"


# ---------------------------------------------------------------- controls


@pytest.fixture
def panel(made) -> Panel:
    return explorer.explore(made.networks, made.images)


def test_every_control_leads_to_its_picture(panel, made):
    chosen = {
        "network": "scene_resnet",
        "image": "other",
        "target": "4",
        "composite": "EpsilonPlus",
        "epsilon": 0.3,
        "contrast": True,
    }
    seen = [panel.shown.value]
    for name, value in chosen.items():
        panel.controls[name].value = value
        assert panel.shown.value not in seen, name
        seen.append(panel.shown.value)
    assert panel.state == State("scene_resnet", "other", 4, "EpsilonPlus", 0.3, 0.25, True)
    assert pictures(panel.shown.value)[0][0] == explorer.describe(made.view(panel.state))[0]
    panel.controls["target"].value = "predicted"
    assert panel.state.target is None


def test_sliders_rest_where_the_composite_has_no_such_parameter(panel):
    for composite in explorer.COMPOSITES:
        panel.controls["composite"].value = composite
        acting = {name for name in ("epsilon", "gamma") if not panel.controls[name].disabled}
        assert acting == set(explorer.tunable(composite))


def test_every_control_says_what_it_is(panel):
    for control in panel.controls.values():
        assert control.description and control.tooltip


def test_an_error_is_shown_in_place_of_the_map_and_raised(panel):
    panel.images["broken"] = torch.full((3, 64, 64), torch.nan)
    panel.controls["image"].options = ["one", "broken"]
    with pytest.raises(InputError):
        panel.controls["image"].value = "broken"
    assert 'role="alert"' in panel.shown.value and "NaN" in panel.shown.value and "<img" not in panel.shown.value
    panel.controls["image"].value = "one"
    assert len(pictures(panel.shown.value)) == 2


def test_without_a_kernel_there_is_a_picture_and_a_line(panel):
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == explorer.FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert len(pictures(bundle["text/html"])) == 2 and explorer.FALLBACK in bundle["text/html"]


def test_an_update_is_quick(panel):
    """Half a second at most on one thread, of processor time, which other programs do not lengthen much."""
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        panel.controls["network"].value = "scene_resnet"
        for exponent in range(7):
            start = time.process_time()
            panel.controls["gamma"].value = 10.0 ** (exponent / 4 - 1)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert statistics.median(seconds) < 0.5
