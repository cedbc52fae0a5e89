"""What a preconditioner is like, as numbers for a logger, as findings, and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

import torch
from rich.table import Table

from ostate.core.state import Finding

from .diagonal import QUANTILES, Diagonal, DiagonalRow, bias_correction
from .guards import FILL_OR_FREEZE, Guards
from .layout import FlatBuffers, chunks
from .moments import Moments
from .shards import Ranks

_WORST = 5
_MUCH = 0.01
"""A share of capped elements above this changes the preconditioner, not only its outliers."""


_Column = Literal[
    "parameters", "elements", "with_v", "min_denom", "max_scale", "median_scale", "cap", "zero", "tiny",
    "clamped_share", "identity_share", "eps_dominated_share",
]  # fmt: skip
_COLUMNS: tuple[_Column, ...] = (
    "parameters", "elements", "with_v", "min_denom", "max_scale", "median_scale", "cap", "zero", "tiny",
    "clamped_share", "identity_share", "eps_dominated_share",
)  # fmt: skip


class ScaleCounts(TypedDict):
    """What some parameters are like together; counts are of elements, but for `parameters`, `with_v` and `identity`."""

    parameters: int
    elements: int
    with_v: int
    min_denom: float
    max_scale: float
    zero: int
    tiny: int
    negative: int
    nonfinite: int
    clamped: int
    clamped_share: float
    identity: int
    identity_share: float
    eps_dominated_share: float


class KindStats(ScaleCounts):
    """The same of all parameters of one kind."""

    median_scale: float
    cap: float


class ParameterStats(TypedDict):
    """A parameter that needs a look."""

    why: str
    zero: int
    clamped: int
    elements: int
    min_denom: float


class Quantiles(TypedDict, total=False):
    """Of the scale, over all elements that have one; nothing where none has."""

    scale_q01: float
    scale_q25: float
    scale_q50: float
    scale_q75: float
    scale_q99: float


class Stats(KindStats, Quantiles):
    """What a preconditioner is like, over all its parameters. `docs/performance-probe.md` says what each number tells."""

    coverage: float
    coverage_step: float
    max_scale_applied: float
    all_identity: int
    plausible_ratio: float
    by_kind: dict[str, KindStats]
    worst: dict[str, ParameterStats]
    overflowed: int


def describe(diagonal: Diagonal, items: Sequence[Moments], layout: FlatBuffers, ranks: Ranks, overflowed: int) -> Stats:
    """Return the statistics; `min_denom` and `max_scale` are those of the state as it is, before any guard. Collective over ranks."""
    rows = diagonal.rows
    return {
        **_of(rows, diagonal),
        "coverage": diagonal.coverage,
        "coverage_step": diagonal.coverage_step,
        "median_scale": diagonal.median if diagonal.median is not None else 1.0,
        "cap": diagonal.cap,
        "max_scale_applied": diagonal.largest,
        "all_identity": int(diagonal.all_identity),
        "plausible_ratio": plausible_ratio(diagonal, items, layout, ranks),
        **_quantiles(diagonal),
        "by_kind": {kind: _of_kind(kind, some, diagonal) for kind, some in sorted(_by_kind(rows).items())},
        "worst": _worst(rows),
        "overflowed": overflowed,
    }


def _quantiles(diagonal: Diagonal) -> Quantiles:
    if not diagonal.quantiles:
        return {}
    q01, q25, q50, q75, q99 = (diagonal.quantiles[q] for q in QUANTILES)
    return {"scale_q01": q01, "scale_q25": q25, "scale_q50": q50, "scale_q75": q75, "scale_q99": q99}


def _by_kind(rows: Sequence[DiagonalRow]) -> dict[str, list[DiagonalRow]]:
    out: dict[str, list[DiagonalRow]] = {}
    for row in rows:
        out.setdefault(row.kind, []).append(row)
    return out


def _of_kind(kind: str, rows: Sequence[DiagonalRow], diagonal: Diagonal) -> KindStats:
    return {**_of(rows, diagonal), "median_scale": diagonal.medians.get(kind, 1.0), "cap": max(row.cap for row in rows)}


def _of(rows: Sequence[DiagonalRow], diagonal: Diagonal) -> ScaleCounts:
    numel = sum(row.numel for row in rows)
    share = 1.0 / max(numel, 1)
    min_denom = min((row.min_denom for row in rows), default=math.inf)
    identity = sum(row.numel if row.bad or diagonal.all_identity else 0 for row in rows)
    return {
        "parameters": len(rows),
        "elements": numel,
        "with_v": sum(row.present for row in rows),
        "min_denom": min_denom,
        "max_scale": 0.0 if math.isinf(min_denom) else 1.0 / min_denom if min_denom > 0 else math.inf,
        "zero": sum(row.zero for row in rows),
        "tiny": sum(row.tiny for row in rows),
        "negative": sum(row.negative for row in rows),
        "nonfinite": sum(row.nonfinite for row in rows),
        "clamped": sum(row.clamped for row in rows),
        "clamped_share": share * sum(row.clamped for row in rows),
        "identity": sum(bool(row.bad) or diagonal.all_identity for row in rows),
        "identity_share": share * identity,
        "eps_dominated_share": share * sum(row.eps_dominated for row in rows),
    }


def _worst(rows: Sequence[DiagonalRow]) -> dict[str, ParameterStats]:
    """Return the parameters that need a look, worst first: those that fall back, then those with most capped or empty elements."""

    def badness(row: DiagonalRow) -> tuple[float, float]:
        return (1.0 if row.bad else 0.0, (row.clamped + row.zero) / max(row.numel, 1))

    listed = sorted((row for row in rows if badness(row) > (0.0, 0.0)), key=badness, reverse=True)[:_WORST]
    return {
        row.name: {
            "why": row.bad or "capped or zero elements",
            "zero": row.zero,
            "clamped": row.clamped,
            "elements": row.numel,
            "min_denom": row.min_denom,
        }
        for row in listed
    }


def plausible_ratio(diagonal: Diagonal, items: Sequence[Moments], layout: FlatBuffers, ranks: Ranks) -> float:
    """Return sum(v_hat * scale) / sum(v_hat): what preconditioning multiplies <X, Y> by when both are like this run's own gradients."""
    sums = torch.zeros(2, dtype=torch.float64)
    for at, (item, member) in enumerate(zip(items, layout.members)):
        v = None if diagonal.is_identity(at) else item.second()
        if v is None:
            continue
        v, scale = v.reshape(-1), diagonal.scale[member.buffer][member.start : member.stop]
        here = torch.zeros(2, dtype=torch.float64, device=v.device)
        for part in chunks(v.numel(), v.device):
            block = v[part].to(torch.float64)
            here += torch.stack([torch.dot(block, scale[part].to(torch.float64)), block.sum()])
        sums += here.cpu() / (bias_correction(item) * ranks.copies(item.place))
    if ranks.groups:
        sums = ranks.total(sums.to(items[0].device)).cpu()
    weighted, plain = sums.tolist()
    return weighted / plain if plain > 0 else 1.0


def findings_of(diagonal: Diagonal, guards: Guards) -> tuple[Finding, ...]:
    """Return what a person should know of this diagonal, in plain words."""
    rows = diagonal.rows
    total = len(rows)
    out = []
    if diagonal.all_identity:
        text = f"exp_avg_sq covers {diagonal.coverage:.1%}, below {guards.identity_if_coverage_below:.0%}: gradients are not preconditioned"
        out.append(Finding(rule="coverage-too-low", severity="error", text=text, fix=FILL_OR_FREEZE))
    for why in sorted({row.bad for row in rows if row.bad}):
        names = tuple(row.name for row in rows if row.bad == why)
        verb = "scale 1" if guards.fallback == "identity" or diagonal.all_identity else "scale 0"
        text = f"{len(names)} of {total} parameters have a second moment that is {why}: {verb} for them"
        out.append(
            Finding(
                rule=f"second-moment-{why.replace(' ', '-')}",
                severity="warning",
                text=text,
                fix="their share of bars_dot is reported by bucket",
                names=names,
            )
        )
    unstepped = tuple(row.name for row in rows if row.step is None and not row.bad)
    if unstepped:
        text = (
            f"{len(unstepped)} of {total} parameters have no step: no bias correction for them, their scale is too small by up to sqrt(1 - beta2^t)"
        )
        out.append(Finding(rule="step-missing", severity="warning", text=text, fix="pass checkpoint_step", names=unstepped))
    out += _capped(rows, guards)
    zeros = sum(row.zero for row in rows if not row.bad)
    if zeros and guards.zero_elements == "fallback" and not diagonal.all_identity:
        text = f"{zeros} single elements have v == 0 (no information): they get scale {guards.fallback_scale:g}"
        out.append(Finding(rule="zero-elements", severity="note", text=text, names=_names(row for row in rows if row.zero and not row.bad)))
    return tuple(out)


def _capped(rows: Sequence[DiagonalRow], guards: Guards) -> list[Finding]:
    """Name each kind whose cap touches more than outliers, the most touched first; all of them at once where they share one cap."""
    fix = "use the relative cap" if guards.max_scale is not None else "look at stats()['by_kind'] and stats()['worst']"

    def share(some: Sequence[DiagonalRow]) -> float:
        return sum(row.clamped for row in some) / max(sum(row.numel for row in some), 1)

    def found(of: str, some: Sequence[DiagonalRow]) -> Finding:
        cap = max(row.cap for row in some)
        text = f"the cap {cap:.3g} clips {share(some):.1%} of {of}: there the preconditioner is a constant, not Adam's"
        return Finding(rule="cap-touches-much", severity="warning", text=text, fix=fix, names=_names(row for row in some if row.clamped))

    if len({row.cap for row in rows}) == 1 and share(rows) > _MUCH:
        return [found("all elements", rows)]
    much = [(kind, some) for kind, some in _by_kind(rows).items() if share(some) > _MUCH]
    return [found(f"the elements of {kind}", some) for kind, some in sorted(much, key=lambda pair: -share(pair[1]))]


def _names(rows: Iterable[DiagonalRow]) -> tuple[str, ...]:
    return tuple(row.name for row in rows)


def table(stats: Stats, findings: Sequence[Finding]) -> Table:
    """Return the statistics as a rich table: all parameters, then each kind."""
    out = Table(
        title=f"coverage {stats['coverage']:.1%}, step {stats['coverage_step']:.1%}, median scale {stats['median_scale']:.3g}, cap {stats['cap']:.3g}"
    )
    out.add_column("")
    kinds: dict[str, KindStats] = {"all": stats, **stats["by_kind"]}
    for kind in kinds:
        out.add_column(kind, justify="right")
    for column in _COLUMNS:
        cells = [line[column] for line in kinds.values()]
        out.add_row(column.replace("_", " "), *(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    if findings:
        out.caption = "\n".join(f"{finding.severity}: {finding.text}" for finding in findings)
    return out
