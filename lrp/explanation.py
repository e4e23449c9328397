"""What an explanation holds: relevance, output, and the ledger that says where every unit of relevance went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("relevance_out", "relevance_in", "bias", "stabiliser", "lost")


@dataclass
class Entry:
    """The books of one node; amounts are (T, N): what arrived from above, was handed down, and was kept."""

    name: str
    kind: str
    rule: str
    relevance_out: Tensor
    relevance_in: Tensor
    bias: Tensor | float = 0.0
    stabiliser: Tensor | float = 0.0

    @property
    def lost(self) -> Tensor:
        """What is left when everything known is accounted for."""
        return self.relevance_out - self.relevance_in - self.bias - self.stabiliser

    @property
    def finite(self) -> bool:
        """Are all amounts numbers?"""
        return all(bool(torch.isfinite(torch.as_tensor(getattr(self, amount))).all()) for amount in COLUMNS)

    @classmethod
    def joined(cls, entries: Sequence[Entry]) -> Entry:
        """The books of one node from those of walks with targets of their own."""
        first, *others = entries
        if not others:
            return first

        def join(amount: str) -> Tensor:
            return torch.cat(
                [e.relevance_out.new_zeros(()) + getattr(e, amount) + e.relevance_out * 0 for e in entries]
            )

        return cls(first.name, first.kind, first.rule, *(join(amount) for amount in COLUMNS[:-1]))


@dataclass
class Explanation:
    """Relevance of the input and the account of it.

    Attributes:
        relevance: shaped like x, (N, ...); with T targets (T, N, ...).
        output: the network's output (N, K), or that of the module at which relevance started.
        target: the classes that were explained, (N,) or (T, N); None where a tensor was the seed or a unit in space.
        layers: {name: relevance at the output of that module}, (N, ...) or (T, N, ...).
        entries: the books, node by node from the output to the input, with amounts per target and sample.
        seed: relevance at the start, (T, N).
        received: relevance that arrived at the input, (T, N).
        magnitude: sum of |relevance| at the start, the yardstick for what is lost, (T, N).
    """

    relevance: Tensor
    output: Tensor
    target: Tensor | None
    layers: dict[str, Tensor] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list, repr=False)
    seed: Tensor | None = None
    received: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def ledger(self) -> pd.DataFrame:
        """One row per node, from output to input, summed over targets and samples; `books` keeps them apart.

        Columns: kind, rule, relevance_out (arrived from above), relevance_in (handed down), bias and stabiliser
        (kept by them), lost (what is left). Seed = input + all biases + all stabilisers + lost.
        """
        return self.books()

    def books(self, target: int | None = None, sample: int | None = None) -> pd.DataFrame:
        """The ledger of one target and sample (None: summed over all)."""
        import pandas as pd

        def amount(value: Tensor | float, entry: Entry) -> float:
            value = torch.as_tensor(value, device=entry.relevance_out.device).expand_as(entry.relevance_out)
            value = value if target is None else value[target : target + 1]
            return float((value if sample is None else value[:, sample]).sum())

        rows = [
            {"node": e.name, "kind": e.kind, "rule": e.rule} | {c: amount(getattr(e, c), e) for c in COLUMNS}
            for e in self.entries
        ]
        return pd.DataFrame(rows, columns=["node", "kind", "rule", *COLUMNS]).set_index("node")

    def share(self, part: str) -> Tensor:
        """Share of the seed that "bias", "stabiliser" or "lost" kept on the whole way, (T, N)."""
        whole = self.missing if part == "lost" else sum(torch.as_tensor(getattr(e, part)) for e in self.entries)
        return whole / self.seed

    @property
    def totals(self) -> dict[str, float]:
        """Where the seed went: {"seed", "input", "bias", "stabiliser", "lost"}, over all targets and samples."""
        bias, stabiliser = (
            float(sum(torch.as_tensor(getattr(e, part)).sum() for e in self.entries)) for part in ("bias", "stabiliser")
        )
        ends = {"seed": float(self.seed.sum()), "input": float(self.received.sum())}
        return ends | {"bias": bias, "stabiliser": stabiliser, "lost": float(self.missing.sum())}

    @property
    def missing(self) -> Tensor:
        """What reached neither the input nor a bias nor a stabiliser: seed - input - biases - stabilisers, (T, N).

        It is the sum of what the nodes lost, and what cancelled between them: where parts of opposite sign, far larger
        than the seed, meet at a node with several readers, the seed drowns in their rounding and no node lost it.
        """
        return self.seed - self.received - sum(entry.bias + entry.stabiliser for entry in self.entries)

    @property
    def imbalance(self) -> float:
        """Largest loss of a target and sample as a share of its seed: by the nodes, each by magnitude, or in all."""
        losses = sum((self.loss(entry) for entry in self.entries), self.as_share(self.missing) * 0)
        return float(torch.maximum(losses, self.as_share(self.missing)).max())

    def loss(self, entry: Entry) -> Tensor:
        """|lost| of a node as a share of the seed's magnitude: (T, N)."""
        return self.as_share(entry.lost)

    def as_share(self, amount: Tensor | float) -> Tensor:
        """An amount, whatever its sign, as a share of the seed's magnitude: (T, N)."""
        return torch.as_tensor(amount, device=self.magnitude.device).abs() / self.magnitude.clamp(
            min=torch.finfo(self.magnitude.dtype).tiny
        )

    def __repr__(self):
        t = self.totals
        share = "" if not t["seed"] else f" ({100 * t['input'] / t['seed']:.1f} % of the seed)"
        lines = [
            f"Explanation of {tuple(self.relevance.shape)}, output {tuple(self.output.shape)}",
            f"  seed        {t['seed']:+.6g}",
            f"  input       {t['input']:+.6g}{share}",
            f"  biases      {t['bias']:+.6g}",
            f"  stabiliser  {t['stabiliser']:+.6g}",
            f"  lost        {t['lost']:+.6g}",
        ]
        return "\n".join(lines)
