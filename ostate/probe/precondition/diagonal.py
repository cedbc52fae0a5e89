"""The guarded diagonal of all parameters at once: measure v, decide what to trust, cap, and say what was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ostate.errors import ProbeError

from .formulas import correction
from .guards import Guards
from .layout import Layout, chunks
from .moments import Moments
from .quantiles import quantiles
from .shards import Ranks

TINY = 2.0**-126
"""The smallest normal float32: a v below it has lost bits (g under 1e-19)."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

_NOTHING = -1.0
"""Marks, while the scale is being built, an element that carries no information."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one parameter's v is like, over all ranks; counts of elements."""

    name: str
    numel: int
    present: bool
    """Whether there is a v at all."""
    zero: int = 0
    tiny: int = 0
    negative: int = 0
    nonfinite: int = 0
    eps_dominated: int = 0
    """sqrt(v_hat) < eps."""
    low: float = math.inf
    """Smallest v."""
    high: float = -math.inf
    """Largest v."""
    clamped: int = 0
    step: float | None = None
    min_denom: float = math.inf
    """Smallest sqrt(v_hat) + eps before any guard; units grad."""
    bad: str = ""
    """Why the whole parameter falls back; empty: it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal:
    """P, and what is known of it."""

    scale: list[Tensor]
    """One flat tensor a buffer; guarded and capped; units 1/grad."""
    nothing: list[Tensor | None]
    """A flat bool tensor a buffer: single elements without information inside trusted parameters; None: there are none."""
    rows: tuple[Row, ...]
    """In the layout's order."""
    cap: float
    """Largest scale let through; infinite where none was asked for."""
    median: float | None
    """Of the scale before the cap, over all elements with information; None: there are none."""
    quantiles: Mapping[float, float] = field(default_factory=dict)
    largest: float
    """Of the scales that come from a v, after the cap; 1 where none does."""
    coverage: float
    """Share of parameters that have a v."""
    coverage_step: float
    """Share of parameters that have a step, their own or the checkpoint's."""
    all_identity: bool
    """True when coverage was too low and every scale is 1."""

    @property
    def step(self) -> tuple[float | None, ...]:
        """Each parameter's step."""
        return tuple(row.step for row in self.rows)

    def is_identity(self, at: int, form: str = "frozen") -> bool:
        """True when the parameter's v is not used. The forms that advance v with the gradient can start from zeros, as Adam does."""
        usable = ("",) if form == "frozen" else ("", "cold", "tiny denominator")
        return self.all_identity or self.rows[at].bad not in usable


def build(items: Sequence[Moments], layout: Layout, ranks: Ranks, guards: Guards, dtype: torch.dtype) -> Diagonal:
    """Compute the diagonal.

    Args:
        items: each parameter's moments, in the layout's order.
        layout: where each lies.
        ranks: who holds the other shards; collective over them.
        guards: the choices.
        dtype: of the kept scale.

    Raises:
        ProbeError: `fallback="raise"` and a v that cannot be trusted; moments of another shape.
    """
    scale = layout.zeros(dtype)
    marked = [False] * len(layout.buffers)
    measured = []
    for item, member in zip(items, layout.members):
        v = item.second()
        part = scale[member.buffer][member.start : member.stop]
        if v is None:
            part.fill_(_NOTHING)
        measured.append(_measure(v, item, part, guards))
    rows = _join(items, measured, ranks, guards)
    coverage = sum(row.present for row in rows) / len(rows)
    all_identity = coverage < guards.identity_if_coverage_below
    if guards.fallback == "raise":
        _refuse(rows, coverage, guards)
    for row, member in zip(rows, layout.members):
        if row.bad or all_identity:
            scale[member.buffer][member.start : member.stop] = _NOTHING
        elif row.zero and guards.zero_elements == "fallback":
            marked[member.buffer] = True
    pieces = (
        [(scale[m.buffer][m.start : m.stop], ranks.copies(i.place)) for m, i in zip(layout.members, items)]
        if ranks.groups
        else [(s, 1.0) for s in scale]
    )
    found = quantiles(pieces, QUANTILES, ranks)
    median = None if found is None else found[0]
    cap = min(
        [math.inf if guards.max_scale is None else guards.max_scale] + ([median * guards.relative_cap] if median and guards.relative_cap else [])
    )
    clamped, largest = _cap(scale, layout, rows, cap, [ranks.copies(item.place) for item in items], ranks)
    nothing: list[Tensor | None] = [flat < 0 if there else None for flat, there in zip(scale, marked)]
    plain = 1.0 if all_identity else guards.fallback_scale
    for flat in scale:
        flat.masked_fill_(flat < 0, plain)
    return Diagonal(
        scale=scale,
        nothing=nothing,
        rows=tuple(replace(row, clamped=count) for row, count in zip(rows, clamped)),
        cap=cap,
        median=median,
        quantiles=dict(zip(QUANTILES, found[1] if found else ())),
        largest=largest,
        coverage=coverage,
        coverage_step=sum(row.step is not None for row in rows) / len(rows),
        all_identity=all_identity,
    )


def bias_correction(item: Moments) -> float:
    """Return 1 - beta2**t, or 1 where the step is unknown, the state never stepped, or the optimizer corrects nothing."""
    return correction(item.betas[1], item.step) if item.corrected and item.step is not None and item.step >= 1 else 1.0


def _measure(v: Tensor | None, item: Moments, out: Tensor, guards: Guards) -> _Counts:
    """Write the uncapped scale of one shard into `out`; return its counts."""
    if v is None or v.numel() == 0:
        return _Counts(present=float(v is not None))
    v = v.reshape(-1)
    corrected = bias_correction(item)
    counts = _counts(v, item.eps, corrected)
    if not guards.infinite_is_bad and counts.nonfinite:
        counts = counts._replace(nonfinite=float(torch.isnan(v).sum()))
    hide = guards.zero_elements == "fallback" and counts.zero > 0
    for part in chunks(v.numel(), v.device):
        block = v[part].to(torch.float64, copy=True)
        empty = block == 0 if hide else None
        block.div_(corrected).sqrt_().add_(item.eps).reciprocal_()
        if empty is not None:
            block.masked_fill_(empty, _NOTHING)
        out[part].copy_(block)
    return counts


class _Counts(NamedTuple):
    """One rank's count of a parameter's elements, in the order in which they travel between ranks."""

    present: float = 0.0
    zero: float = 0.0
    tiny: float = 0.0
    negative: float = 0.0
    nonfinite: float = 0.0
    eps_dominated: float = 0.0
    low: float = math.inf
    high: float = -math.inf


def _counts(v: Tensor, eps: float, corrected: float) -> _Counts:
    """Count in one pass where nothing is odd."""
    low, high = torch.stack(torch.aminmax(v)).tolist()
    edge = eps * eps * corrected
    odd = not (low > 0 and math.isfinite(high))
    zero = float((v == 0).sum()) if odd else 0.0
    negative = float((v < 0).sum()) if odd else 0.0
    nonfinite = float((~torch.isfinite(v)).sum()) if odd else 0.0
    tiny = float(((v > 0) & (v < TINY)).sum()) if odd or low < TINY else 0.0
    dominated = float((v < edge).sum()) if odd or low < edge else 0.0
    if nonfinite:
        rest = v[torch.isfinite(v)]
        low, high = torch.stack(torch.aminmax(rest)).tolist() if rest.numel() else (math.inf, -math.inf)
    return _Counts(1.0, zero, tiny, negative, nonfinite, dominated, low, high)


def _join(items: Sequence[Moments], measured: list[_Counts], ranks: Ranks, guards: Guards) -> list[Row]:
    """Bring all ranks' counts together, and judge each parameter. The same on every rank: sums run in rank order."""
    device = items[0].device
    every = ranks.gather(torch.tensor(measured, dtype=torch.float64, device=device)).tolist()
    rows = []
    for at, item in enumerate(items):
        mine = [_Counts(*table[at]) for table in every]
        copies = ranks.copies(item.place)
        present = any(line.present for line in mine)
        zero, tiny, negative, nonfinite, dominated = (round(sum(column) / copies) for column in zip(*(line[1:6] for line in mine)))
        low, high = min(line.low for line in mine), max(line.high for line in mine)
        step = item.step if item.step is not None and item.step > 0 and math.isfinite(item.step) else None
        row = Row(
            name=item.name,
            numel=math.prod(item.place.whole),
            present=present,
            zero=zero,
            tiny=tiny,
            negative=negative,
            nonfinite=nonfinite,
            eps_dominated=dominated,
            low=low,
            high=high,
            step=step,
            min_denom=math.sqrt(max(low, 0.0) / bias_correction(item)) + item.eps if present and math.isfinite(low) else math.inf,
        )
        rows.append(replace(row, bad=_verdict(row, item, guards)))
    return rows


def _verdict(row: Row, item: Moments, guards: Guards) -> str:
    if not row.present:
        return "missing"
    if row.nonfinite:
        return "not finite"
    if row.negative:
        return "negative"
    if row.numel == 0:
        return ""
    if row.high <= 0 and guards.cold_is_bad:
        return "cold"
    if math.isfinite(row.high) and math.sqrt(max(row.high, 0.0) / bias_correction(item)) + item.eps < guards.smallest_denominator:
        return "tiny denominator"
    return ""


def _refuse(rows: Sequence[Row], coverage: float, guards: Guards) -> None:
    bad = [row for row in rows if row.bad]
    if bad:
        raise ProbeError(
            f"{len(bad)} of {len(rows)} parameters have a second moment that cannot be trusted ({bad[0].bad})",
            where=", ".join(row.name for row in bad[:3]),
            fix='fallback="identity" or "zero" goes on without them, and counts',
        )
    if coverage < guards.identity_if_coverage_below:
        raise ProbeError(f"coverage {coverage:.1%} is below {guards.identity_if_coverage_below:.1%}")


def _cap(scale: list[Tensor], layout: Layout, rows: Sequence[Row], cap: float, copies: Sequence[float], ranks: Ranks) -> tuple[list[int], float]:
    """Clamp in place; return how many elements of each parameter it touched, and the largest scale that is left."""
    counts = [0.0] * len(rows)
    for at, (row, member) in enumerate(zip(rows, layout.members)):
        # The scale is largest where the denominator is smallest: most parameters need no look. A v of 0 inside has no scale, or 1/eps.
        if not row.bad and (row.min_denom * cap < 1.0 + 1e-6 or row.min_denom == 0):
            counts[at] = float((scale[member.buffer][member.start : member.stop] > cap).sum()) / copies[at]
    tops = [float(flat.clamp_(max=cap).max()) for flat in scale if flat.numel()]
    top = max(tops, default=_NOTHING)
    if ranks.groups:
        every = ranks.gather(torch.tensor([*counts, top], dtype=torch.float64, device=scale[0].device))
        counts, top = every[:, :-1].sum(0).tolist(), float(every[:, -1].max())
    return [round(count) for count in counts], top if top >= 0 else 1.0
