"""The explorer: choose a network, an image, a class and rules by hand, and see the map with its ledger."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from html import escape
from inspect import signature

import ipywidgets as widgets
import matplotlib as mpl
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import composites, rules
from ..composites import Composite
from ..data import models
from ..engine import LRP
from ..explanation import Explanation
from ..seeds import Contrastive, Logit
from . import figures
from .drawings import PARTS

COMPOSITES: dict[str, Callable[..., Composite]] = {  # the arguments of each are the sliders that act on it
    "Epsilon": composites.Epsilon,
    "γ everywhere": lambda gamma: Composite([("any", rules.Gamma(gamma))]),
    "z⁺ everywhere": lambda: Composite([("any", rules.ZPlus())]),
    "EpsilonPlus": composites.EpsilonPlus,
    "EpsilonPlusFlat": composites.EpsilonPlusFlat,
    "EpsilonGammaBox": composites.EpsilonGammaBox,
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1,
    "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat,
}
LEDGER = {"seed": "seed", "input": "pixels", "bias": "biases", "stabiliser": "stabiliser", "lost": "lost"}
ROWS = (("network", "image", "composite"), ("target",), ("epsilon", "gamma", "contrast"))  # of controls
PREDICTED = "predicted"
FALLBACK = "Interactive explorer: run this notebook in JupyterLab (make lab) to move its sliders."

# ---------------------------------------------------------------- the question and the answer


@dataclass(frozen=True)
class State:
    """The question: names of a network, an image and a composite, a class (None: the predicted), the sliders."""

    network: str
    image: str
    target: int | None = None
    composite: str = "EpsilonGammaBox"
    epsilon: float = 1e-3
    gamma: float = 0.25
    contrast: bool = False


@dataclass
class View:
    """The answer: the image (3, H, W) in [0, 1], and its explanation with map, ledger and output."""

    state: State
    image: Tensor
    explanation: Explanation

    def __post_init__(self):
        e = self.explanation
        self.relevance = e.relevance[0].sum(0)  # (H, W)
        self.target = int(e.target[0])
        self.probabilities = e.output[0].softmax(0)


def tunable(composite: str) -> tuple[str, ...]:
    """Which of epsilon and gamma a composite has."""
    return tuple(name for name in ("epsilon", "gamma") if name in signature(COMPOSITES[composite]).parameters)


# ---------------------------------------------------------------- pictures and words


def draw_maps(view: View) -> Figure:
    """The image beside its heat map, with the scale of colours."""
    fig = Figure(figsize=(4.4, 2.1), layout="none")  # a constrained layout would take half of the time
    left, right = (fig.add_axes((x, 0.02, 0.41, 0.86)) for x in (0.005, 0.44))
    figures.show_image(left, view.image, view.state.image)
    contrast = ", contrast" if view.state.contrast else ""
    drawn = figures.show_relevance(right, view.relevance, title=f"relevance for {view.target}{contrast}")
    limit = drawn.norm.vmax
    bar = fig.colorbar(drawn, cax=fig.add_axes((0.865, 0.1, 0.012, 0.7)))
    bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2g}\nagainst", "0", f"{limit:.2g}\nfor"])
    bar.ax.tick_params(length=0)
    return fig


def draw_ledger(view: View) -> Figure:
    """The probabilities of the classes, and the ledger: one bar per entry, the first is the sum of the others."""
    fig = Figure(figsize=(3.2, 2.1), layout="none")
    left, right = (fig.add_axes((x, 0.12, 0.29, 0.76)) for x in (0.06, 0.69))
    p, totals = view.probabilities.tolist(), view.explanation.totals
    colours = ["0.2" if k == view.target else "0.7" for k in range(len(p))]
    left.barh([str(k) for k in range(len(p))], p, color=colours)
    left.set(xlim=(0, 1), xticks=[0, 1], title="probability")
    colours = ["0.35", *(colour for _, colour in PARTS.values())]
    right.barh(range(len(LEDGER)), [totals[part] for part in LEDGER], 0.6, color=colours)
    right.set_yticks(range(len(LEDGER)), _entries(view))
    right.axvline(0, color="0.3", lw=0.6)
    right.tick_params(length=0)
    right.set(title="ledger", xticks=[])
    right.spines[["left", "bottom"]].set_visible(False)
    left.invert_yaxis()
    right.invert_yaxis()
    return fig


def _entries(view: View) -> list[str]:
    """The entries of the ledger in words: `seed +1.25`."""
    return [f"{name} {_amount(view.explanation.totals[part])}" for part, name in LEDGER.items()]


def _amount(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: no minus before a zero


def describe(view: View) -> tuple[str, str]:
    """The heat map and the ledger in words, for those who do not see the pictures."""
    state, R = view.state, view.relevance
    sliders = "".join(f", {name} {getattr(state, name):.2g}" for name in tunable(state.composite))
    y, x = divmod(int(R.argmax()), R.shape[1])
    maps = (
        f"Image {state.image} and its heat map: relevance for class {view.target}"
        f"{' against all others' if state.contrast else ''} in {state.network} by {state.composite}{sliders}. "
        f"Full colour at {float(R.abs().max()):.2g}; most evidence for it in row {y}, column {x}."
    )
    likely = ", ".join(f"{k} {100 * p:.0f} %" for k, p in enumerate(view.probabilities.tolist()) if p >= 0.005)
    return maps, f"Probabilities: {likely}. Ledger: {', '.join(_entries(view))}."


def page(view: View) -> str:
    """A view as HTML: both pictures with their descriptions, and one line that says what they show."""
    with mpl.rc_context(fname=figures.STYLE):
        pictures = "".join(map(_img, (draw_maps(view), draw_ledger(view)), describe(view)))
    output, p = view.explanation.output[0], view.probabilities
    line = (
        f"{view.state.network} says {int(p.argmax())} ({100 * float(p.max()):.0f} %); "
        f"the logit of class {view.target} is {_amount(float(output[view.target]))}."
    )
    return (
        '<figure style="margin: 0"><div style="display: flex; flex-wrap: wrap">'
        f"{pictures}</div><figcaption>{escape(line)}</figcaption></figure>"
    )


def _img(fig: Figure, alt: str) -> str:
    fig.savefig(buffer := io.BytesIO(), format="png")
    source, width = base64.b64encode(buffer.getvalue()).decode(), round(110 * fig.get_figwidth())
    style = "max-width: 100%; height: auto"
    return f'<img src="data:image/png;base64,{source}" alt="{escape(alt)}" width="{width}" style="{style}">'


# ---------------------------------------------------------------- controls


class Panel(widgets.VBox):
    """The explorer's controls above its pictures; `controls` are named as the fields of `State`."""

    def __init__(self, networks: Mapping[str, nn.Module], images: Mapping[str, Tensor]):
        if not networks or not images:
            raise ValueError("the explorer needs at least one network and one image: {name: model}, {name: image}")
        self.networks, self.images = dict(networks), dict(images)
        self.explainer = lru_cache(maxsize=64)(self._explainer)  # captured once, for all images and classes
        self.controls = self._controls()
        self.shown = widgets.HTML()
        for control in self.controls.values():
            control.observe(self.update, "value")
        row = widgets.Layout(display="flex", flex_flow="row wrap")
        rows = [widgets.Box([self.controls[name] for name in names], layout=row) for names in ROWS]
        super().__init__([*rows, self.shown])
        self.update()

    @property
    def state(self) -> State:
        """The question that the controls ask."""
        chosen = {name: control.value for name, control in self.controls.items()}
        return State(**chosen | {"target": None if chosen["target"] == PREDICTED else int(chosen["target"])})

    def view(self, state: State) -> View:
        """Answer a question. Raises what `LRP.explain` raises."""
        sliders = tuple((name, getattr(state, name)) for name in tunable(state.composite))
        model, image = self.networks[state.network], self.images[state.image]
        x = models.normalizer(state.network)(image)[None].to(next(model.parameters()))
        seed = Contrastive(positive=False) if state.contrast else Logit()
        explainer = self.explainer(state.network, state.composite, sliders)
        return View(state, image, explainer.explain(x, state.target, seed))

    def _explainer(self, network: str, composite: str, sliders: tuple[tuple[str, float], ...]) -> LRP:
        make = COMPOSITES[composite]
        box = dict(zip(("low", "high"), models.normalizer(network).bounds(), strict=True))
        given = {name: bound for name, bound in box.items() if name in signature(make).parameters}
        return LRP(self.networks[network], make(**given, **dict(sliders)))

    def update(self, _=None) -> None:
        """Show the answer; an error is shown in place of the pictures, and raised."""
        for name in ("epsilon", "gamma"):
            self.controls[name].disabled = name not in tunable(self.state.composite)
        try:
            self.shown.value = page(self.view(self.state))
        except Exception as error:
            self.shown.value = f'<p role="alert"><b>{type(error).__name__}</b>: {escape(str(error))}</p>'
            raise

    def __repr__(self):
        return FALLBACK

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget; without a kernel, its first pictures and a line that says how to run it."""
        return super()._repr_mimebundle_(**options) | {"text/html": f"{self.shown.value}<p>{FALLBACK}</p>"}

    def _controls(self) -> dict[str, widgets.Widget]:
        """One control per field of `State`, in that order."""
        start = State(next(iter(self.networks)), next(iter(self.images)))
        targets = [PREDICTED, *map(str, range(len(self.view(start).probabilities)))]
        width = {"description_width": "75px"}

        def control(kind: type, name: str, tooltip: str, **options):
            options = {"layout": {"width": "270px"}, "style": width} | options
            return kind(description=name, tooltip=tooltip, **options)

        choose, slide = widgets.Dropdown, partial(widgets.FloatLogSlider, step=0.1, readout_format=".2g")
        return {
            "network": control(choose, "network", "Which network is explained", options=list(self.networks)),
            "image": control(choose, "image", "The input of the network", options=list(self.images)),
            "target": control(
                widgets.ToggleButtons, "class", "Which class the map speaks for", options=targets,
                tooltips=[f"Explain class {name}" for name in targets], style=width | {"button_width": "auto"},
                layout={"width": "auto", "display": "flex"},
            ),
            "composite": control(
                choose, "composite", "Which rule stands in which layer", options=list(COMPOSITES), value=start.composite
            ),
            "epsilon": control(
                slide, "ε", "Stabiliser of the ε-rule, in units of each layer's rms", value=start.epsilon, min=-3, max=0
            ),
            "gamma": control(
                slide, "γ", "How much the γ-rule favours contributions of the unit's own sign",
                value=start.gamma, min=-2, max=2,
            ),
            "contrast": control(widgets.Checkbox, "contrast", "Take away what speaks for all other classes"),
        }  # fmt: skip


def explore(networks: Mapping[str, nn.Module], images: Mapping[str, Tensor]) -> Panel:
    """Controls for networks {name: model} and images {name: (3, H, W) in [0, 1]}, as the last line of a cell.

    The names of networks are those of `lrp.data.models`, which has the normalisation of their input. Raises ValueError
    where there is no network or no image.
    """
    return Panel(networks, images)
