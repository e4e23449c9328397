"""A question put to a network, picture after picture, and the answer as a figure and in words.

`python -m lrp explain` makes a `Question` of its options and calls `write_answer` for each picture.
"""

import hashlib
import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import __version__, checks, composites
from ..engine import LRP
from ..errors import DataError
from ..explanation import Explanation
from ..network.ends import LOGITS, probabilities
from ..rules import ZPlus
from ..seeds import Logit, UnitContrast
from ..teach.figures import STYLE, WIDTH, colorbar, show_image, show_relevance
from ..teach.records import write
from . import COMPOSITES
from .from_files import OptionError, Preparation, class_names, device, find_class, network

BOXED = ("epsilon-gamma-box", "relevance-splitting")  # composites that ask for the bounds of the input
CHOICES = {"composite": COMPOSITES, "contrastive": (None, 1, 2), "bias": (None, "absorb", "exclude")}
SATURATED = 0.998  # quantile of |relevance| from which on colours are full: single pixels would pale all others
NEGLIGIBLE = 1e-6  # fraction of the seed below which an amount is shown as zero


@dataclass
class Answer:
    """A picture (C, H, W) explained: `relevance` (T, C, H, W), `maps` (T, H, W) to look at, and all in words."""

    image: Tensor
    relevance: Tensor
    maps: Tensor
    titles: list[str]
    best: pd.DataFrame
    ledger: pd.DataFrame
    notes: list[str]


@dataclass(kw_only=True, eq=False, repr=False)
class Question:
    """A network, its rules and the classes asked for, with the names and meanings of the command line's options.

    Raises OptionError or another LRPError for what does not exist or does not fit.
    """

    model: str
    weights: str | None = None
    classes: str | None = None
    device: str = "cpu"
    target: Sequence[str] = ()
    composite: str = "epsilon-gamma-box"
    contrastive: Literal[1, 2] | None = None
    bias: Literal["absorb", "exclude"] | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self):
        for option, allowed in CHOICES.items():
            if (value := getattr(self, option)) not in allowed:
                raise OptionError(f"--{option} {value!r} is unknown: choose {', '.join(map(str, allowed))}")
        self.network = network(self.model, self.weights, device(self.device))
        self.preparation = Preparation.of(self.model, self.size, self.mean, self.std)
        self.like = next(self.network.parameters())
        checks.finite_weights(self.network)
        with torch.no_grad():
            black = (self._input(torch.zeros(self.preparation.shape)),)
            logits = checks.run(self.network, *black)
        checks.logits(logits, self.network)
        self.names = class_names(self.model, logits.shape[1], self.classes)
        self.targets = [find_class(text, self.names) for text in self.target] or [None]
        if self.contrastive == 1 and len(self.names) == 1:
            raise OptionError("the network has one output, and no other class to contrast with: --contrastive 2 works")
        self.seed = UnitContrast(self.contrastive, positive=False) if self.contrastive else Logit()
        self.explainer = LRP(self.network, self._composite())
        self.explainer.plans.ready(black)
        last = [node for node in self.explainer.graph.last if not self.explainer.rules[node].sign_selective]
        if self.contrastive and last:  # epsilon and gamma divide by every logit, and its sign would invert a contrast
            self.explainer = LRP(self.network, self._composite(overrides={node.name: ZPlus() for node in last}))
        self._state = _digest([*self.network.parameters(), *self.network.buffers()])

    def _composite(self, **given) -> composites.Composite:
        given |= {"bias": self.bias} if self.bias else {}
        given |= {"faithful": False} if self.composite == "relevance-splitting" else {}
        if self.composite in BOXED:
            given["low"], given["high"] = self.preparation.normalizer.bounds(self.like)
        return getattr(composites, self.composite.title().replace("-", ""))(**given)

    def _input(self, image: Tensor) -> Tensor:
        return self.preparation.normalizer(image.to(self.like))[None]

    def __str__(self):
        contrast = f" contrastive {self.contrastive}" if self.contrastive else ""
        bias = f" bias {self.bias}" if self.bias else ""
        return f"{self.model}, {self.composite}{contrast}{bias}; {self.preparation}"

    def mark(self, image: Tensor) -> str:
        """Tells this question about this image from any other."""
        question = (__version__, str(self), self.preparation, str(self.explainer.composite), self.targets, self.names)
        return _digest([image], f"{self._state} {self.network} {question}")

    def ask(self, image: Tensor) -> Answer:
        """Explain an image (C, H, W) in [0, 1]."""
        with warnings.catch_warnings(record=True) as caught:
            e = self.explainer.explain(self._input(image), self.targets, self.seed, start=LOGITS)
        p = probabilities(e.output, self.explainer.plan.ends)[0].double().cpu()
        logits, asked = e.output[0].double().cpu(), e.target[:, 0].tolist()
        best = logits.topk(min(5, len(logits))).indices.tolist()
        rows = {"class": best, "p": [f"{p[k]:.1%}" for k in best], "logit": [f"{logits[k]:+.2f}" for k in best]}
        relevance = e.relevance[:, 0].float().cpu()
        maps = relevance.sum(1)
        below = [self.names[k] for k in asked if logits[k] < 0 and not self.contrastive]
        return Answer(
            image=image,
            relevance=relevance,
            maps=maps.clamp(min=0) if self.contrastive else maps,  # of a contrast, what is left above zero
            titles=[f"{self.names[k]}, {p[k]:.1%}" for k in asked],
            best=pd.DataFrame(rows, index=[self.names[k] for k in best]),
            ledger=pd.DataFrame([_amounts(e, t) for t in range(len(asked))], index=[self.names[k] for k in asked]).T,
            notes=[
                *(str(one.message) for one in caught),
                *(f"the logit of {name} is negative, and so is the sum of its relevance" for name in below),
            ],
        )


def _amounts(e: Explanation, t: int) -> dict[str, str]:
    """Where the relevance of one target went, in words."""
    inside = e.ledger_of(t).rename(columns={"bias": "biases"})[["biases", "stabiliser", "lost"]].sum()
    amounts = {"seed": float(e.seed[t, 0]), "input": float(e.received[t, 0]), **inside}
    return {part: f"{x:+.4g}" if abs(x) > NEGLIGIBLE * e.magnitude[t, 0] else "0" for part, x in amounts.items()}


# ---------------------------------------------------------------- what is written


def write_answer(
    question: Question, file: Path, target: Path, *, npy: bool = False, force: bool = False
) -> Answer | None:
    """Explain the picture in a file and write the result to `target`; None if exactly that is there already.

    With `npy`, the map goes beside it. Raises DataError for a picture that cannot be read, and, unless `force` is
    set, rather than overwrite anything else.
    """
    image, array = question.preparation.read(file), target.with_suffix(".npy")
    mark, wanted = question.mark(image), [target, array] if npy else [target]
    there = [path for path in wanted if path.exists()]
    if there and not force:
        if _mark(target) != mark:
            raise DataError(f"{there[0]} is there and answers something else: --force overwrites it")
        if there == wanted:
            return None
    answer = question.ask(image)
    if npy:
        buffer = io.BytesIO()
        np.save(buffer, answer.relevance.squeeze(0))  # without the axis of targets where there is one target
        write(array, buffer.getvalue())
    buffer = io.BytesIO()
    _figure(question, answer, file.name).savefig(buffer, metadata={"Software": f"lrp {__version__}", "lrp": mark})
    write(target, buffer.getvalue())
    return answer


def _mark(path: Path) -> str | None:
    """The mark of the question that a picture of ours answers; None for any other file, or none."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("lrp")
    except OSError:
        return None


def _figure(question: Question, answer: Answer, name: str) -> Figure:
    """The picture beside the map of each target, each on its own scale; below, the best classes and the ledger."""
    width = WIDTH * (1 + len(answer.maps)) / 2
    best = f"top {len(answer.best)}: " + ", ".join(f"{label} {p}" for label, p in answer.best["p"].items())
    ledger = [f"{of}: {', '.join(map(' '.join, amounts.items()))}" for of, amounts in answer.ledger.items()]
    signs = "and not for others" if question.contrastive else "blue against it"
    scale = f"red speaks for the class, {signs}; full colour from the {SATURATED:.1%} quantile of |relevance| on"
    paragraphs = (best, *ledger, str(question), scale)
    lines = [line for text in paragraphs for line in textwrap.wrap(text, int(20 * width))]
    with mpl.style.context(STYLE, after_reset=True):  # a reader's own matplotlibrc must not change a figure
        fig = Figure((width, 3 + 0.12 * len(lines)), dpi=mpl.rcParams["savefig.dpi"])
        axes = fig.subplots(1, 1 + len(answer.maps))
        show_image(axes[0], answer.image, _plain(textwrap.shorten(name, 40)))
        for ax, R, title in zip(axes[1:], answer.maps, answer.titles, strict=True):
            full = float(np.quantile(R.abs(), SATURATED)) or None
            drawn = show_relevance(ax, R, full, _plain(textwrap.fill(title, 40)))
            ends = (-drawn.norm.vmax, 0, drawn.norm.vmax)
            colorbar(drawn, ax, label="").set_ticks(ends, labels=[f"{x:+.2g}" if x else "0" for x in ends])
        fig.supxlabel(_plain("\n".join(lines)), x=0.01, ha="left", fontsize=6.5, color="0.35")
    return fig


def _plain(text: str) -> str:
    """Text in which a dollar starts no formula."""
    return text.replace("$", r"\$")


def _digest(tensors: Iterable[Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
