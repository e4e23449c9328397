"""The plans of one model: one for inputs of every shape where the model can be traced so, otherwise one for each shape.

A plan is only used for a kind of input (shape, dtype, device) after graph and model gave the same output for it. Where
the graph that fx traced does not, one is recorded at this input (`lrp.network.recording`) before anything is refused.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from . import checks, edits
from .composites import Composite
from .errors import CaptureError, NeedsExample
from .network.tracing import capture
from .plan import Plan

STORED = 4  # plans for shapes that are kept; each holds the weights that its rules have modified


class Plans:
    """The plans of a model and a composite; `ready` gives the one for an input.

    Raises UnsupportedOperation where relevance would reach a node without a rule: at once where the model can be
    traced without an example, otherwise at the first input.
    """

    def __init__(self, model: nn.Module, composite: Composite):
        self.composite = composite
        self.renew(model)

    def renew(self, model: nn.Module) -> None:
        """Capture the model anew, whatever has happened; after an error nothing has changed."""
        checks.capturable(model)
        checks.mode(model)
        general, trouble = None, None
        try:
            general = self._plan(model)
        except NeedsExample as error:
            trouble = error
        self.model, self.general = model, general
        self.trouble: CaptureError | None = trouble  # why there is no general plan
        self.by_shape: OrderedDict[tuple, Plan] = OrderedDict()  # the last one used stands last
        self.hooked = edits.hooked(model)
        self.watch = edits.Watch(model)

    def follow(self, model: nn.Module) -> None:
        """Capture anew, for all who share these plans, if the structure of the model was edited."""
        checks.same_model(self.model, model)
        if not self.watch.same_structure():
            self.renew(model)

    @property
    def current(self) -> Plan:
        """The plan that was used last; raises CaptureError where there is none before the first input."""
        if self.by_shape:
            return next(reversed(self.by_shape.values()))
        if self.general is None:
            raise CaptureError(f"{self.trouble} (with an input at hand more can be traced: explain one first)")
        return self.general

    def ready(self, xs: tuple[Tensor, ...]) -> Plan:
        """The plan for these inputs, checked against the model on the first of their kind.

        Raises CaptureError, UnsupportedOperation or InputError.
        """
        if not self.watch.same_content():
            for plan in filter(None, (self.general, *self.by_shape.values())):
                plan.forget()
        if self.general is not None and len(xs) == len(self.general.graph.inputs):
            try:
                return self.general.ready(xs, self.hooked)
            except CaptureError as error:
                self.general, self.trouble = None, error
        kind = checks.kind(xs)
        for key in ((kind, None), (kind, len(xs[0]))):
            if key in self.by_shape:
                self.by_shape.move_to_end(key)
                try:
                    return self.by_shape[key].ready(xs, self.hooked)
                except CaptureError:  # what was recorded held for another number of samples
                    if key[1] is not None:
                        raise
        return self._recorded(xs, (kind, len(xs[0]) if (kind, None) in self.by_shape else None))

    def _recorded(self, xs: tuple[Tensor, ...], key: tuple) -> Plan:
        checks.run(self.model, *xs)  # what the model says of an input that it cannot take comes first
        try:
            plan = self._plan(self.model, xs).ready(xs, self.hooked)
        except CaptureError as error:
            raise error from self.trouble
        self.by_shape[key] = plan
        while len(self.by_shape) > STORED:
            self.by_shape.popitem(last=False)
        return plan

    def _plan(self, model: nn.Module, example: tuple[Tensor, ...] | None = None) -> Plan:
        plan = Plan(capture(model, self.composite.fold_batchnorm, example), self.composite)
        plan.home = self
        return plan
