"""The guarded diagonal of all parameters at once: measure v, decide what to trust, cap, and say what was done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ostate.errors import ProbeError

from .formulas import correction
from .guards import FILL_OR_FREEZE, Guards
from .layout import FlatBuffers, Member, chunks
from .moments import Moments
from .quantiles import Piece, medians
from .segments import counts, extremes
from .shards import Ranks

TINY = 2.0**-126
"""The smallest normal float32: a v below it has lost bits (g under 1e-19)."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

_AT_ONCE = 1 << 26
"""Elements of v that may wait for one copy: a state read from a file is never whole in memory."""

_NOTHING = -1.0
"""Marks, while the scale is being built, an element that carries no information."""


class DiagonalRow(NamedTuple):
    """What one parameter's v is like, over all ranks; counts of elements."""

    name: str
    kind: str
    """`lora_A`, `lora_B`, `head`, `norm`, …: whose median the cap is measured by."""
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
    cap: float = math.inf
    """Largest scale let through here."""
    step: float | None = None
    min_denom: float = math.inf
    """Smallest sqrt(v_hat) + eps before any guard; units grad."""
    bad: str = ""
    """Why the whole parameter falls back; empty: it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal:
    """P, and what is known of it."""

    scale: list[Tensor]
    """One flat tensor a buffer; guarded and capped; units 1/grad. The preconditioner's own: its next refresh writes into them."""
    nothing: list[Tensor | None]
    """A flat bool tensor a buffer: single elements without information inside trusted parameters; None: there are none."""
    rows: tuple[DiagonalRow, ...]
    """In the layout's order."""
    cap: float
    """Largest scale let through anywhere; infinite where none was asked for. Each row has its own."""
    median: float | None
    """Of the scale before the cap, over all elements with information; None: there are none."""
    medians: Mapping[str, float] = field(default_factory=dict)
    """The same by kind, for kinds that have any."""
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


def build(
    items: Sequence[Moments], layout: FlatBuffers, ranks: Ranks, guards: Guards, dtype: torch.dtype, into: Sequence[Tensor] | None = None
) -> Diagonal:
    """Compute the diagonal.

    Args:
        items: each parameter's moments, in the layout's order.
        layout: where each lies.
        ranks: who holds the other shards; collective over them.
        guards: the choices.
        dtype: of the kept scale.
        into: buffers of that dtype to write the scale into, as an earlier diagonal has them; None: new ones.

    Raises:
        ProbeError: `fallback="raise"` and a v that cannot be trusted; moments of another shape.
    """
    scale = list(into) if into is not None else layout.zeros(dtype)
    parts = layout.parts(scale)
    corrections = _corrections(items)
    rows = _join(items, corrections, layout, _measure(items, corrections, layout, scale, guards), ranks, guards)
    coverage = sum(row.present for row in rows) / len(rows)
    all_identity = coverage < guards.identity_if_coverage_below
    if guards.fallback == "raise":
        _refuse(rows, coverage, guards)
    marked = _mark(parts, layout, rows, all_identity, guards)
    copies = [ranks.copies(item.place) for item in items]
    pieces: dict[str, list[Piece]] = {}
    for row, part, share in zip(rows, parts, copies):
        pieces.setdefault(row.kind, []).append((part, share))
    found = medians(pieces, QUANTILES, ranks)
    caps = {kind: _cap_of(found.by_kind.get(kind), guards) for kind in pieces}
    touched, largest = _clamp(scale, parts, layout, rows, [caps[row.kind] for row in rows], copies, ranks)
    nothing: list[Tensor | None] = [flat < 0 if there else None for flat, there in zip(scale, marked)]
    if all_identity or any(row.bad or row.zero for row in rows):
        for flat in scale:
            flat.masked_fill_(flat < 0, 1.0 if all_identity else guards.fallback_scale)
    return Diagonal(
        scale=scale,
        nothing=nothing,
        rows=tuple(row._replace(clamped=count, cap=caps[row.kind]) for row, count in zip(rows, touched)),
        cap=max(caps.values()),
        median=found.median,
        medians=found.by_kind,
        quantiles=dict(zip(QUANTILES, found.quantiles)),
        largest=largest,
        coverage=coverage,
        coverage_step=sum(row.step is not None for row in rows) / len(rows),
        all_identity=all_identity,
    )


def bias_correction(item: Moments) -> float:
    """Return 1 - beta2**t, or 1 where the step is unknown, the state never stepped, or the optimizer corrects nothing."""
    return correction(item.betas[1], item.step) if item.corrected and item.step is not None and item.step >= 1 else 1.0


def _corrections(items: Sequence[Moments]) -> list[float]:
    known: dict[tuple[float, float | None, str], float] = {}
    out = []
    for item in items:
        key = (item.betas[1], item.step, item.optimizer)
        if key not in known:
            try:
                known[key] = bias_correction(item)
            except ProbeError as error:
                raise error.at(item.name) from error
        out.append(known[key])
    return out


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


def _measure(items: Sequence[Moments], corrections: Sequence[float], layout: FlatBuffers, scale: Sequence[Tensor], guards: Guards) -> list[_Counts]:
    """Write the uncapped scale of every parameter into `scale`; return what this rank's v are like."""
    out = [_Counts()] * len(items)
    for buffer, flat in enumerate(scale):
        members = [(at, member) for at, member in enumerate(layout.members) if member.buffer == buffer]
        v, present = _gather([items[at] for at, _ in members], [m.stop - m.start for _, m in members], flat)
        edges = [items[at].eps * items[at].eps * corrections[at] for at, _ in members]
        for (at, _), there, counted in zip(members, present, _count(v, edges, [m.stop - m.start for _, m in members], guards)):
            out[at] = counted if there else _Counts()
        for run, eps, corrected, hide in _runs(items, corrections, members, out, guards):
            _invert(v, flat, run, eps, corrected, hide=hide)
        for (_, member), there in zip(members, present):
            if not there:
                flat[member.start : member.stop] = _NOTHING
    return out


def _gather(items: Sequence[Moments], sizes: Sequence[int], flat: Tensor) -> tuple[Tensor, list[bool]]:
    """Return all v of a buffer in one flat tensor, and which there are; the scale's own memory where it holds every v exactly."""
    v, present = flat, []
    parts = torch.split(v, list(sizes))
    waiting: list[tuple[Tensor, Tensor]] = []
    held = 0
    for at, item in enumerate(items):
        own = item.second()
        present.append(own is not None)
        if own is None:
            parts[at].fill_(1.0)
            continue
        if own.dtype == torch.float64 and v.dtype != torch.float64:
            _copy(waiting)
            v, waiting, held = v.to(torch.float64), [], 0
            parts = torch.split(v, list(sizes))
        waiting.append((parts[at], own.reshape(-1)))
        held += sizes[at]
        if held > _AT_ONCE:
            _copy(waiting)
            waiting, held = [], 0
    _copy(waiting)
    return v, present


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        torch._foreach_copy_([into for into, _ in pairs], [own for _, own in pairs])


def _count(v: Tensor, edges: Sequence[float], sizes: Sequence[int], guards: Guards) -> list[_Counts]:
    """Count in one pass where nothing is odd; `edges` are the v at which sqrt(v_hat) is eps."""
    lows, highs = extremes(v, sizes)
    odd = [at for at, (low, high) in enumerate(zip(lows, highs)) if sizes[at] and not (low > 0 and math.isfinite(high))]
    unsure = set(odd)
    zero, negative = counts(v, sizes, odd, lambda x: x == 0), counts(v, sizes, odd, lambda x: x < 0)
    nonfinite = counts(v, sizes, odd, lambda x: ~torch.isfinite(x))
    tiny = counts(v, sizes, [at for at, low in enumerate(lows) if at in unsure or low < TINY], lambda x: (x > 0) & (x < TINY))
    dominated = [0.0] * len(sizes)
    for edge in set(edges):
        below = [at for at, low in enumerate(lows) if edges[at] == edge and (at in unsure or low < edge)]
        dominated = [a + b for a, b in zip(dominated, counts(v, sizes, below, lambda x, edge=edge: x < edge))]  # type: ignore[misc]
    parts = torch.split(v, list(sizes))
    for at in odd:
        if nonfinite[at]:
            rest = parts[at][torch.isfinite(parts[at])]
            lows[at], highs[at] = torch.stack(torch.aminmax(rest)).tolist() if rest.numel() else (math.inf, -math.inf)
    if not guards.infinite_is_bad:
        nonfinite = counts(v, sizes, [at for at in odd if nonfinite[at]], torch.isnan)
    return [_Counts(1.0, *row) for row in zip(zero, tiny, negative, nonfinite, dominated, lows, highs)]


def _runs(
    items: Sequence[Moments], corrections: Sequence[float], members: Sequence[tuple[int, Member]], counted: Sequence[_Counts], guards: Guards
) -> Iterator[tuple[slice, float, float, bool]]:
    """Yield (run, eps, correction, whether elements of 0 are hidden) of neighbours that share one formula."""
    start, stop, formula, hide = 0, 0, (0.0, 0.0), False
    for at, member in members:
        own = (items[at].eps, corrections[at])
        if own != formula:
            if stop > start:
                yield slice(start, stop), *formula, hide
            start, formula, hide = member.start, own, False
        stop = member.stop
        hide = hide or (guards.zero_elements == "fallback" and counted[at].zero > 0)
    if stop > start:
        yield slice(start, stop), *formula, hide


def _invert(v: Tensor, out: Tensor, run: slice, eps: float, corrected: float, *, hide: bool) -> None:
    """Write 1 / (sqrt(v / corrected) + eps) of a run of elements, in float64 inside; `v` may be `out`."""
    source, into = v[run], out[run]
    for part in chunks(source.numel(), source.device):
        block = source[part].to(torch.float64, copy=True)
        empty = block == 0 if hide else None
        block.div_(corrected).sqrt_().add_(eps).reciprocal_()
        if empty is not None:
            block.masked_fill_(empty, _NOTHING)
        into[part].copy_(block)


def _join(
    items: Sequence[Moments], corrections: Sequence[float], layout: FlatBuffers, measured: list[_Counts], ranks: Ranks, guards: Guards
) -> list[DiagonalRow]:
    """Bring all ranks' counts together, and judge each parameter. The same on every rank: sums run in rank order."""
    if ranks.groups:
        every = ranks.gather(torch.tensor(measured, dtype=torch.float64, device=items[0].device)).tolist()
        measured = [_of_all([_Counts(*table[at]) for table in every], ranks.copies(item.place)) for at, item in enumerate(items)]
    rows = []
    for item, member, corrected, (present, *numbers, low, high) in zip(items, layout.members, corrections, measured):
        zero, tiny, negative, nonfinite, dominated = map(int, numbers)
        numel = math.prod(item.place.whole)
        step = item.step if item.step is not None and item.step >= 1 and math.isfinite(item.step) else None
        low_denom = math.sqrt(max(low, 0.0) / corrected) + item.eps if present and math.isfinite(low) else math.inf
        high_denom = math.sqrt(max(high, 0.0) / corrected) + item.eps if math.isfinite(high) else math.inf
        bad = "missing" if not present else "not finite" if nonfinite else "negative" if negative else ""
        if not bad and numel:
            bad = "cold" if high <= 0 and guards.cold_is_bad else "tiny denominator" if high_denom < guards.smallest_denominator else ""
        counted = (numel, bool(present), zero, tiny, negative, nonfinite, dominated, low, high)
        rows.append(DiagonalRow(item.name, member.kind, *counted, 0, math.inf, step, low_denom, bad))
    return rows


def _of_all(mine: Sequence[_Counts], copies: float) -> _Counts:
    """Return the counts of one parameter over all ranks, each of whose elements `copies` ranks hold."""
    zero, tiny, negative, nonfinite, dominated = (float(round(sum(column) / copies)) for column in zip(*(line[1:6] for line in mine)))
    low, high = min(line.low for line in mine), max(line.high for line in mine)
    return _Counts(float(any(line.present for line in mine)), zero, tiny, negative, nonfinite, dominated, low, high)


def _refuse(rows: Sequence[DiagonalRow], coverage: float, guards: Guards) -> None:
    bad = [row for row in rows if row.bad]
    if bad:
        raise ProbeError(
            f"{len(bad)} of {len(rows)} parameters have a second moment that cannot be trusted ({bad[0].bad})",
            where=", ".join(row.name for row in bad[:3]),
            fix='fallback="identity" or "zero" goes on without them, and counts',
        )
    if coverage < guards.identity_if_coverage_below:
        raise ProbeError(
            f"coverage {coverage:.1%} is below {guards.identity_if_coverage_below:.1%}: too few parameters have a second moment",
            fix=FILL_OR_FREEZE,
        )


def _mark(parts: Sequence[Tensor], layout: FlatBuffers, rows: Sequence[DiagonalRow], all_identity: bool, guards: Guards) -> list[bool]:
    """Mark parameters without a v to trust; return which buffers hold single elements without information."""
    marked = [False] * len(layout.buffers)
    for row, member, part in zip(rows, layout.members, parts):
        if row.bad or all_identity:
            part.fill_(_NOTHING)
        elif row.zero and guards.zero_elements == "fallback":
            marked[member.buffer] = True
    return marked


def _cap_of(median: float | None, guards: Guards) -> float:
    relative = median * guards.relative_cap if median and guards.relative_cap else math.inf
    return min(relative, math.inf if guards.max_scale is None else guards.max_scale)


def _clamp(
    scale: Sequence[Tensor],
    parts: Sequence[Tensor],
    layout: FlatBuffers,
    rows: Sequence[DiagonalRow],
    caps: Sequence[float],
    copies: Sequence[float],
    ranks: Ranks,
) -> tuple[list[int], float]:
    """Clamp in place; return how many elements of each parameter it touched, and the largest scale that is left."""
    touched = [0.0] * len(rows)
    # The scale is largest where the denominator is smallest: most parameters need no look. A v of 0 inside has no scale, or 1/eps.
    look = {at for at, row in enumerate(rows) if not row.bad and (row.min_denom * caps[at] < 1.0 + 1e-6 or row.min_denom == 0)}
    for buffer, flat in enumerate(scale if look else ()):
        members = [at for at, member in enumerate(layout.members) if member.buffer == buffer]
        sizes = [parts[at].numel() for at in members]
        for cap in {caps[at] for at in members if at in look}:
            here = [k for k, at in enumerate(members) if at in look and caps[at] == cap]
            found = counts(flat, sizes, here, lambda x, cap=cap: x > cap)  # type: ignore[misc]
            for k in here:
                touched[members[k]] = found[k] / copies[members[k]]
    if look:
        torch._foreach_clamp_max_([parts[at] for at in sorted(look)], [caps[at] for at in sorted(look)])
    top = max((float(flat.max()) for flat in scale if flat.numel()), default=_NOTHING)
    if ranks.groups:
        every = ranks.gather(torch.tensor([*touched, top], dtype=torch.float64, device=scale[0].device))
        touched, top = every[:, :-1].sum(0).tolist(), float(every[:, -1].max())
    return [round(count) for count in touched], top if top >= 0 else 1.0
