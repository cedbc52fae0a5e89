"""What the pictures show, as plain data: drawn as SVG by `svg.py`, with matplotlib by `ostate.plot`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.report.numbers import BIN, SCALE_FROM, V_FROM, ParameterNumbers, StateNumbers, median

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = tuple[float | None, ...]
MUCH = 0.01
"""A share of elements that deserves a word: `ostate.probe` warns of as many."""
_STEP = 5
"""Bins joined for a drawn distribution: a quarter of a decade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A number for each row and column; None: there is none."""

    title: str
    says: str
    unit: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridges:
    """A distribution for each row, over shared bins."""

    title: str
    says: str
    unit: str
    start: float
    """Left edge of the first bin."""
    width: float
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    """Label, share of the row's elements by bin."""
    mark: float | None = None
    """A value worth a line."""
    mark_says: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Series over the steps of a run."""

    title: str
    says: str
    unit: str
    x: tuple[float, ...]
    series: tuple[tuple[str, Row], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A score for each adapter key and position of one kind; the chosen order lies on the diagonal."""

    title: str
    says: str
    keys: tuple[str, ...]
    positions: tuple[int, ...]
    scores: tuple[Row, ...]
    proven: float | None = None
    """The score of a million to one, which a proof needs, for a mark on the colour bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer in the table of coverage; shares are of its elements."""

    layer: str
    parameters: int
    elements: int
    step: str
    coverage: float
    """Elements that have a scale of their own."""
    zeros: float
    bad: float
    eps_dominated: float
    clamped: float


def update_size(numbers: StateNumbers) -> Heat:
    """Return the size of the next step (without its gradient) by layer and kind, in units of the learning rate."""
    return _heat(
        numbers,
        title="Update size",
        says="Root mean square of m_hat / (sqrt(v_hat) + eps): near 1 where gradients agree in sign, near 0 where they cancel.",
        unit="learning rates",
        value=_mean_update,
    )


def scale_heat(numbers: StateNumbers) -> Heat:
    """Return the median of log10 scale by layer and kind."""
    return _heat(
        numbers,
        title="Scale by layer",
        says="Median of log10 of 1 / (sqrt(v_hat) + eps). A wrong name shows as a cell unlike its row and its column.",
        unit="log10, 1/gradient",
        value=lambda some: median(_joined(some, "scale"), SCALE_FROM),
    )


def v_heat(numbers: StateNumbers) -> Heat:
    """Return the median of log10 v by layer and kind."""
    return _heat(
        numbers,
        title="Second moment by layer",
        says="Median of log10 v as stored.",
        unit="log10, gradient squared",
        value=lambda some: median(_joined(some, "v"), V_FROM),
    )


def v_ridges(numbers: StateNumbers) -> Ridges:
    """Return the distribution of log10 v by kind."""
    return _ridges(numbers, "v", V_FROM, title="Second moment", says="Distribution of log10 v as stored, by kind.", unit="log10, gradient squared")


def scale_ridges(numbers: StateNumbers) -> Ridges:
    """Return the distribution of log10 scale by kind, and where the probe clamps it: a line where it is one place."""
    caps = sorted(numbers.caps.items(), key=lambda pair: -pair[1])
    listed = f"{caps[0][1]:.1f}" if len(caps) == 1 else ", ".join(f"{cap:.1f} ({kind})" for kind, cap in caps)
    return _ridges(
        numbers,
        "scale",
        SCALE_FROM,
        title="Scale",
        says="Distribution of log10 of 1 / (sqrt(v_hat) + eps), by kind: what the preconditioner multiplies a gradient with."
        + (f" The probe clamps above {listed}: 1000 times the median of the kind." if caps else ""),
        unit="log10, 1/gradient",
        mark=caps[0][1] if len(caps) == 1 else None,
        mark_says="clamp: 1000 x the median",
    )


def layers(numbers: StateNumbers) -> tuple[LayerRow, ...]:
    """Return step, coverage and shares by layer."""
    out = []
    for layer, some in _by_layer(numbers).items():
        elements = sum(one.elements for one in some)
        share = _share(elements)
        steps = sorted({one.step for one in some if one.step is not None})
        out.append(
            LayerRow(
                layer=layer,
                parameters=len(some),
                elements=elements,
                step="unknown" if not steps else f"{steps[0]:g}" if len(steps) == 1 else f"{steps[0]:g} to {steps[-1]:g}",
                coverage=share(sum(int(one.scale.sum()) for one in some)),
                zeros=share(sum(one.zeros for one in some)),
                bad=share(sum(one.bad for one in some)),
                eps_dominated=share(sum(one.eps_dominated for one in some)),
                clamped=share(sum(numbers.clamped(one) for one in some)),
            )
        )
    return tuple(out)


def clamped_kinds(numbers: StateNumbers) -> tuple[tuple[str, float], ...]:
    """Return (kind, share of its elements) of the kinds of which the probe would clamp more than `MUCH`, the most clamped first."""
    found = []
    for kind in _kinds(numbers.parameters):
        some = [one for one in numbers.parameters if one.place.kind == kind]
        share = _share(sum(one.elements for one in some))(sum(numbers.clamped(one) for one in some))
        found += [(kind, share)] * (share > MUCH)
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def changes(states: Sequence[StateNumbers]) -> tuple[Lines, Lines, Heat]:
    """Return how the median scale and the update size move over the steps, and where v changed most from first to last."""
    ordered = sorted(states, key=_step)
    x = tuple(_step(state) for state in ordered)
    kinds = _kinds([one for state in ordered for one in state.parameters])

    def over(value: Callable[[Sequence[ParameterNumbers]], float | None]) -> tuple[tuple[str, Row], ...]:
        return tuple((kind, tuple(value([one for one in state.parameters if one.place.kind == kind]) for state in ordered)) for kind in kinds)

    first, last = v_heat(ordered[0]), v_heat(ordered[-1])
    return (
        Lines(
            title="Scale over training",
            says="Median of log10 scale by kind.",
            unit="log10, 1/gradient",
            x=x,
            series=over(lambda some: median(_joined(some, "scale"), SCALE_FROM)),
        ),
        Lines(
            title="Update size over training", says="Root mean square of the step, by kind.", unit="learning rates", x=x, series=over(_mean_update)
        ),
        _difference(first, last, x),
    )


def _difference(first: Heat, last: Heat, x: Sequence[float]) -> Heat:
    before = {(row, column): value for row, line in zip(first.rows, first.values) for column, value in zip(first.columns, line)}

    def moved(row: str, column: str, value: float | None) -> float | None:
        old = before.get((row, column))
        return None if old is None or value is None else value - old

    return Heat(
        title="Change of the second moment",
        says=f"Median of log10 v at step {x[-1]:g} less that at step {x[0]:g}.",
        unit="decades",
        rows=last.rows,
        columns=last.columns,
        values=tuple(tuple(moved(row, column, value) for column, value in zip(last.columns, line)) for row, line in zip(last.rows, last.values)),
    )


def _step(state: StateNumbers) -> float:
    return max((one.step for one in state.parameters if one.step is not None), default=0.0)


def _heat(numbers: StateNumbers, *, title: str, says: str, unit: str, value: Callable[[Sequence[ParameterNumbers]], float | None]) -> Heat:
    kinds = _kinds(numbers.parameters)
    by_layer = _by_layer(numbers)
    values = tuple(tuple(value([one for one in some if one.place.kind == kind]) for kind in kinds) for some in by_layer.values())
    return Heat(title=title, says=says, unit=unit, rows=tuple(by_layer), columns=tuple(kinds), values=values)


def _kinds(parameters: Iterable[ParameterNumbers]) -> tuple[str, ...]:
    """Return the kinds in the model's order: that in which the parameters stand."""
    return tuple(dict.fromkeys(one.place.kind for one in parameters))


def _by_layer(numbers: StateNumbers) -> dict[str, list[ParameterNumbers]]:
    out: dict[str, list[ParameterNumbers]] = {}
    for one in sorted(numbers.parameters, key=lambda one: one.place.order):
        out.setdefault(one.place.layer, []).append(one)
    return out


def _ridges(
    numbers: StateNumbers, what: str, start: float, *, title: str, says: str, unit: str, mark: float | None = None, mark_says: str = ""
) -> Ridges:
    rows = []
    for kind in _kinds(numbers.parameters):
        counts = _joined([one for one in numbers.parameters if one.place.kind == kind], what)
        coarse = counts[: counts.size // _STEP * _STEP].reshape(-1, _STEP).sum(axis=1)
        total = int(coarse.sum())
        if total:
            rows.append((kind, tuple(float(count) / total for count in coarse)))
    first, last = _span(rows)
    return Ridges(
        title=title,
        says=says,
        unit=unit,
        start=start + first * _STEP * BIN,
        width=_STEP * BIN,
        rows=tuple((kind, shares[first:last]) for kind, shares in rows),
        mark=mark,
        mark_says=mark_says,
    )


def _span(rows: Sequence[tuple[str, tuple[float, ...]]]) -> tuple[int, int]:
    filled = [i for _, shares in rows for i, share in enumerate(shares) if share > 0]
    return (max(min(filled) - 1, 0), max(filled) + 2) if filled else (0, 0)


def _joined(some: Sequence[ParameterNumbers], what: str) -> NDArray[np.int64]:
    return np.asarray(sum((getattr(one, what) for one in some), np.zeros(1, np.int64)))


def _mean_update(some: Sequence[ParameterNumbers]) -> float | None:
    known = [(one.update, one.elements) for one in some if one.update is not None]
    elements = sum(count for _, count in known)
    return (sum(update * update * count for update, count in known) / elements) ** 0.5 if elements else None


def _share(whole: int) -> Callable[[int], float]:
    return lambda part: part / whole if whole else 0.0
