"""A trial keeps the images that its network gets right, and treats all methods alike."""

import pytest
import torch

from lrp import LRP, DataError, composites
from lrp.data import datasets, models
from lrp.studies.trials import Trial


def test_a_trial_keeps_what_the_network_gets_right():
    scenes = datasets.scenes(40, seed=3, split="test")
    labels = scenes.labels[:, 0].clone()
    labels[::2] = (labels[::2] + 1) % 10  # wrong on purpose
    trial = Trial.of("scene_vgg", scenes.images, labels, steps=3, region=16, seed=1)
    with torch.no_grad():
        right = models.load("scene_vgg")(scenes.inputs).argmax(1) == labels
    assert 10 <= len(trial) == int(right.sum()) <= 20
    assert torch.equal(trial.x, scenes.inputs[right]) and torch.equal(trial.labels, labels[right])
    maps = trial.maps(composites.EpsilonPlus(), batch=7)
    expected = LRP(trial.model, composites.EpsilonPlus()).attribute(trial.x, trial.labels).sum(1)
    assert torch.allclose(maps, expected, rtol=1e-4, atol=1e-6)
    curves = trial.flip(maps)
    assert curves.scores.shape == (len(trial), 4) and curves.order == "morf" and curves.region == 16
    assert torch.equal(curves.scores, trial.flip(maps).scores)  # the same noise again
    logits = trial.model(trial.x).detach().gather(1, trial.labels[:, None])[:, 0].double()
    assert torch.allclose(curves.scores[:, 0], logits, atol=1e-5)


def test_nothing_right_is_an_error():
    scenes = datasets.scenes(3, seed=3, split="test")
    with torch.no_grad():
        wrong = (models.load("scene_vgg")(scenes.inputs).argmax(1) + 1) % 10
    with pytest.raises(DataError, match="scene_vgg gets none of the 3 images right"):
        Trial.of("scene_vgg", scenes.images, wrong)
