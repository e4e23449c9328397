"""What an explanation holds: relevance, output, and the ledger that says where every unit of relevance went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import TOLERANCE
from .errors import LRPError, warn

if TYPE_CHECKING:
    import pandas as pd

AMOUNTS = ("relevance_out", "relevance_in", "bias", "stabiliser", "lost")


@dataclass
class Row:
    """One node's row of the ledger. Amounts are (T, N): what arrived, what was handed down, what stayed there."""

    name: str
    kind: str
    rule: str
    relevance_out: Tensor
    relevance_in: Tensor | float = 0.0
    bias: Tensor | float = 0.0
    stabiliser: Tensor | float = 0.0

    @property
    def lost(self) -> Tensor:
        """What arrived, less all that is accounted for."""
        return self.relevance_out - self.relevance_in - self.bias - self.stabiliser

    @property
    def finite(self) -> bool:
        """Are all amounts numbers?"""
        return all(bool(torch.isfinite(torch.as_tensor(getattr(self, amount))).all()) for amount in AMOUNTS)

    @classmethod
    def joined(cls, rows: Sequence[Row]) -> Row:
        """One node's row from those of walks with targets of their own."""

        def join(amount: str) -> Tensor:
            return torch.cat([r.relevance_out * 0 + getattr(r, amount) for r in rows])

        return cls(rows[0].name, rows[0].kind, rows[0].rule, *(join(amount) for amount in AMOUNTS[:-1]))


@dataclass
class Explanation:
    """Relevance of the input and the account of it.

    Attributes:
        relevance: shaped like x, (N, ...); with T targets (T, N, ...). A tuple where the inputs were a tuple.
        output: the network's output (N, K), or that of the module at which relevance started.
        target: the classes that were explained, (N,) or (T, N); None where a tensor was the seed or a unit in space.
        layers: {name: relevance at the output of that module}, (N, ...) or (T, N, ...).
        rows: the ledger's rows, from the output to the input, with amounts per target and sample.
        seed: relevance at the start, (T, N).
        received: relevance that arrived at the input, (T, N).
        magnitude: sum of `|relevance|` at the start, the yardstick for what is lost, (T, N).
    """

    relevance: Tensor | tuple[Tensor, ...]
    output: Tensor
    target: Tensor | None
    layers: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list, repr=False)
    seed: Tensor | None = None
    received: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def ledger(self) -> pd.DataFrame:
        """One row per node, from output to input, summed over targets and samples; `ledger_of` takes them apart.

        Columns: kind, rule, relevance_out (arrived from above), relevance_in (handed down), bias and stabiliser
        (what they keep), lost (the rest). Seed = input + all biases + all stabilisers + lost.
        """
        return self.ledger_of()

    def ledger_of(self, target: int | None = None, sample: int | None = None) -> pd.DataFrame:
        """The ledger of one target and sample (None: summed over all)."""
        import pandas as pd

        def amount(value: Tensor | float, row: Row) -> float:
            value = torch.as_tensor(value, device=row.relevance_out.device).expand_as(row.relevance_out)
            value = value if target is None else value[target : target + 1]
            return float((value if sample is None else value[:, sample]).sum())

        table = [
            {"node": r.name, "kind": r.kind, "rule": r.rule} | {a: amount(getattr(r, a), r) for a in AMOUNTS}
            for r in self.rows
        ]
        return pd.DataFrame(table, columns=["node", "kind", "rule", *AMOUNTS]).set_index("node")

    def books(self, target: int | None = None, sample: int | None = None) -> pd.DataFrame:
        """The old name of `ledger_of`."""
        warn("Explanation.books is now ledger_of", DeprecationWarning)
        return self.ledger_of(target, sample)

    def sum_of(self, part: str) -> Tensor:
        """What "bias", "stabiliser" or "lost" took on the whole way, (T, N).

        Lost is seed - input - biases - stabilisers: what nodes lost, and what cancelled between them. Where parts of
        opposite sign, far larger than the seed, meet, the seed drowns in their rounding, and no node lost it.
        """
        if part == "lost":
            return self.seed - self.received - self.sum_of("bias") - self.sum_of("stabiliser")
        return sum((getattr(row, part) for row in self.rows), self.seed * 0)

    def share(self, part: str) -> Tensor:
        """The same as a share of the seed."""
        return self.sum_of(part) / self.seed

    @property
    def totals(self) -> dict[str, float]:
        """Where the seed went: {"seed", "input", "bias", "stabiliser", "lost"}, over all targets and samples."""
        ends = {"seed": float(self.seed.sum()), "input": float(self.received.sum())}
        return ends | {part: float(self.sum_of(part).sum()) for part in ("bias", "stabiliser", "lost")}

    @property
    def imbalance(self) -> float:
        """Largest loss of a target and sample as a share of its seed: by the nodes, each by magnitude, or in all."""
        lost = [torch.as_tensor(row.lost, device=self.seed.device).expand_as(self.seed) for row in self.rows]
        by_nodes = self.as_share(torch.stack(lost).abs().sum(0)) if lost else self.seed * 0
        return float(torch.maximum(by_nodes, self.as_share(self.sum_of("lost"))).max())

    def as_share(self, amount: Tensor | float) -> Tensor:
        """An amount, whatever its sign, as a share of the seed's magnitude: (T, N)."""
        amount = torch.as_tensor(amount, device=self.magnitude.device)
        return amount.abs() / self.magnitude.clamp(min=torch.finfo(self.magnitude.dtype).tiny)

    def audit(self, dtype: torch.dtype) -> None:
        """Raise LRPError for a result that is not finite; warn where the ledger does not balance."""
        imbalance = self.imbalance
        maps = self.relevance if isinstance(self.relevance, tuple) else (self.relevance,)
        if not (all(bool(torch.isfinite(R).all()) for R in maps) and math.isfinite(imbalance)):
            first = next((row.name for row in self.rows if not row.finite), "input")
            wider = torch.float32 if dtype in (torch.float16, torch.bfloat16) else torch.float64
            raise LRPError(
                f"relevance is not finite from node `{first}` on: give its layer a stabler rule (a larger epsilon, "
                f"ZPlus, or Gamma) by overrides={{'{first}': ...}}; or the values there are too large or too small for "
                f"{dtype}, so scale the input, or use {str(wider).removeprefix('torch.')}"
            )
        if imbalance > TOLERANCE[dtype]:
            warn(f"{100 * imbalance:.2g} % of the relevance is unaccounted for, {self._where_lost()}; see .ledger")

    def _where_lost(self) -> str:
        worst = max(self.rows, key=lambda row: float(self.as_share(row.lost).max()))
        if 2 * float(self.as_share(worst.lost).max()) >= float(self.as_share(self.sum_of("lost")).max()):
            return f"most of it at node `{worst.name}` ({worst.rule})"
        signed = max(self.rows, key=lambda row: float(self.as_share(row.stabiliser).max()))
        return (
            "at no single node: parts of opposite sign, far larger than the seed, cancel where paths meet, as behind "
            f"node `{signed.name}` ({signed.rule}); a rule without signs there keeps it"
        )

    def __repr__(self):
        t = self.totals
        share = "" if not t["seed"] else f" ({100 * t['input'] / t['seed']:.1f} % of the seed)"
        maps = self.relevance if isinstance(self.relevance, tuple) else (self.relevance,)
        lines = [
            f"Explanation of {', '.join(str(tuple(R.shape)) for R in maps)}, output {tuple(self.output.shape)}",
            f"  seed        {t['seed']:+.6g}",
            f"  input       {t['input']:+.6g}{share}",
            f"  biases      {t['bias']:+.6g}",
            f"  stabiliser  {t['stabiliser']:+.6g}",
            f"  lost        {t['lost']:+.6g}",
        ]
        return "\n".join(lines)
