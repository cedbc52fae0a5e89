"""Figures as inline SVG: no script, no network, colours from the page, a title and a description for those who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ostate.report.figures import Heat, Lines, Matrix, Ridges
from ostate.report.text import printable

RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""viridis (Smith & van der Walt 2015): its order survives grey print and the common colour blindnesses."""
SERIES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#8a8a8a")
"""Tol's bright scheme: seven colours that the colour-blind tell apart; dashes and hollow dots tell further series."""
_CELL = 20
_WIDE = 26
"""Width of a heat map's cell, px; its height is _CELL."""
_LETTER = 6.6
"""Width of a character of the labels, px."""
_TITLED = 4000
"""Cells up to which each tells its value on hover."""


def heat(figure: Heat, mark: str, span: tuple[float, float] | None = None) -> str:
    """Return a heat map; `mark` makes the ids of this figure unique on its page, `span` is the range of its colours where other figures share it."""
    low, high = span or span_of([figure])
    left, top = _label(figure.rows) + 12, _slanted(figure.columns) + 8
    width, height = left + _WIDE * len(figure.columns) + _slanted(figure.columns), top + _CELL * len(figure.rows) + 44
    parts = [_text(left - 6, top + _CELL * i + 14, row, "end") for i, row in enumerate(figure.rows)]
    parts += [_slant(left + _WIDE * j + 18, top - 5, column) for j, column in enumerate(figure.columns)]
    titled = len(figure.rows) * len(figure.columns) <= _TITLED
    for i, (row, line) in enumerate(zip(figure.rows, figure.values)):
        for j, (column, value) in enumerate(zip(figure.columns, line)):
            says = f"{row} {column}: {'none' if value is None else f'{value:.3g}'}" if titled else ""
            fill = 'class="none"' if value is None else f'fill="{_colour(value, low, high)}"'
            parts.append(_rect(left + _WIDE * j, top + _CELL * i, _WIDE - 1, _CELL - 1, fill, says))
    legend, needs = _legend(left, top + _CELL * len(figure.rows) + 12, low, high, figure.unit)
    parts.append(legend)
    return _svg(figure.title, figure.says, mark, max(width, needs), height, parts)


def span_of(figures: Sequence[Heat]) -> tuple[float, float]:
    """Return the smallest and the largest value of some heat maps."""
    known = [value for figure in figures for row in figure.values for value in row if value is not None and math.isfinite(value)]
    return (min(known), max(known)) if known else (0.0, 1.0)


def matrix(figure: Matrix, mark: str) -> str:
    """Return the evidence matrix: the order taken on the diagonal, bright where the numbers say `these belong together`."""
    known = [value for row in figure.scores for value in row if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    size = max(2.0, min(float(_CELL), 420 / max(len(figure.keys), 1)))
    named = size >= 12
    labels = _apart(figure.keys)
    left, top = _label(labels) + 30, 42.0
    side, tall = size * len(figure.positions), size * len(figure.keys)
    width, height = max(left + side + 12, left + _label(["position of the state"])), top + tall + 60
    parts = [_rect(left, top, side, tall, f'fill="{RAMP[0]}"', "")]
    across, down = _every(_label([str(max(figure.positions))]) + _LETTER, size), _every(14.0, size)
    parts += [_text(left - 6, top + size * (i + 0.5) + 4, label, "end") for i, label in enumerate(labels) if i % down == 0]
    parts += [_text(left + size * (j + 0.5), top - 6, str(at), "middle") for j, at in enumerate(figure.positions) if j % across == 0]
    parts += [_text(left, 14, "position of the state", "start"), _upright(12, top, "adapter tensor")]
    gap = 1 if named else 0
    for i, (key, line) in enumerate(zip(figure.keys, figure.scores)):
        for j, (position, value) in enumerate(zip(figure.positions, line)):
            fill = RAMP[0] if value is None else _colour(value, low, high)
            if fill != RAMP[0]:  # the rest is the ground
                says = f"{key} at position {position}: {value:.3g}" if named else ""
                parts.append(_rect(left + size * j, top + size * i, size - gap, size - gap, f'fill="{fill}"', says))
    legend, needs = _legend(left, top + tall + 12, low, high, "", figure.proven)
    said = [_text(left, top + tall + 54, f"line: a million to one ({figure.proven:.3g})", "start")] if _within(low, figure.proven, high) else []
    return _svg(figure.title, figure.says, mark, max(width, needs), height, [*parts, legend, *said])


def ridges(figure: Ridges, mark: str) -> str:
    """Return distributions below each other, over one axis."""
    bins = len(figure.rows[0][1]) if figure.rows else 1
    left, top, step, wide = _label([label for label, _ in figure.rows]) + 12, 24, 30, 380
    per_bin = wide / max(bins, 1)
    height = top + step * len(figure.rows) + 46
    highest = max((share for _, shares in figure.rows for share in shares), default=1.0)
    base = top + step * len(figure.rows)
    parts = _axis(figure.start, figure.start + bins * figure.width, left, wide, top - 8, base, figure.unit)
    if figure.mark is not None and figure.start <= figure.mark <= figure.start + bins * figure.width:
        at = left + (figure.mark - figure.start) / figure.width * per_bin
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 8}" y2="{base}"/>')
        parts.append(_text(at - 4, top - 10, figure.mark_says, "end"))
    for i, (label, shares) in enumerate(figure.rows):
        floor = top + step * (i + 1)
        points = [(left + per_bin * (j + 0.5), floor - 1.2 * step * share / highest) for j, share in enumerate(shares)]
        path = f"M{left:.1f},{floor} " + " ".join(f"L{x:.1f},{y:.1f}" for x, y in points) + f" L{left + wide:.1f},{floor} Z"
        look = "ridge b" if "_B" in label else "ridge"
        parts.append(f'<path class="{look}" d="{path}"><title>{escape(printable(label))}</title></path>')
        parts.append(_text(left - 6, floor - 2, label, "end"))
    return _svg(figure.title, figure.says, mark, left + wide + 20, height, parts)


def lines(figure: Lines, mark: str) -> str:
    """Return series over steps, each named in a legend to the right."""
    known = [value for _, row in figure.series for value in row if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low - 0.05 * (high - low), high + 0.05 * (high - low))
    left, top, wide, tall = 52, 14, 360, max(200, 18 * len(figure.series))
    first, last = figure.x[0], figure.x[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return left + wide * ((x - first) / (last - first) if last > first else 0.5), top + tall * (1 - (y - low) / (high - low))

    parts = [f'<line class="axis" x1="{left}" x2="{left + wide}" y1="{top + tall}" y2="{top + tall}"/>']
    for value in _ticks(low, high, 5):
        y = at(first, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", "end"))
    parts += [_text(at(x, low)[0], top + tall + 18, f"{x:g}", "middle") for x in figure.x]
    parts.append(_text(left + wide / 2, top + tall + 36, "step", "middle"))
    for i, (label, row) in enumerate(figure.series):
        colour, dash = SERIES[i % len(SERIES)], ("", "6 3", "2 3")[i // len(SERIES) % 3]
        points = [at(x, value) for x, value in zip(figure.x, row) if value is not None and math.isfinite(value)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if len(points) > 2:  # between two points a line would only claim what nobody measured
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" points="{drawn}"/>')
        look = (f'r="3.5" fill="{colour}"', f'r="3.2" fill="none" stroke="{colour}" stroke-width="1.6"', f'r="2" fill="{colour}"')[
            i // len(SERIES) % 3
        ]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {look}/>' for x, y in points]
        y = top + 10 + 18 * i
        x1, x2 = left + wide + 14, left + wide + 38
        if len(points) > 2:
            parts.append(f'<line x1="{x1}" x2="{x2}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        parts.append(f'<circle cx="{(x1 + x2) / 2:.1f}" cy="{y - 4}" {look}/>')
        parts.append(_text(left + wide + 44, y, label, "start"))
    return _svg(figure.title, figure.says, mark, left + wide + 54 + _label([label for label, _ in figure.series]), top + tall + 46, parts)


def _svg(title: str, says: str, mark: str, width: float, height: float, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return (
        f'<svg role="img" aria-labelledby="{mark}-title {mark}-says" {size}>'
        f'<title id="{mark}-title">{escape(printable(title))}</title><desc id="{mark}-says">{escape(printable(says))}</desc>{"".join(parts)}</svg>'
    )


def _rect(x: float, y: float, width: float, height: float, look: str, says: str) -> str:
    said = f"<title>{escape(printable(says))}</title>" if says else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {look}>{said}</rect>'


def _apart(names: Sequence[str]) -> list[str]:
    """Return names without the dotted components that all of them share at either end."""
    split = [name.split(".") for name in names]
    shortest = min((len(parts) for parts in split), default=1)
    head = next((i for i in range(shortest - 1) if len({parts[i] for parts in split}) > 1), shortest - 1)
    tail = next((i for i in range(shortest - head - 1) if len({parts[-1 - i] for parts in split}) > 1), shortest - head - 1)
    return [".".join(parts[head : len(parts) - tail]) for parts in split]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(printable(text))}</text>'


def _slant(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" transform="rotate(-40 {x:.1f} {y:.1f})">{escape(printable(text))}</text>'


def _upright(x: float, y: float, text: str) -> str:
    """Return text that is read from below, its end at the top."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="end" transform="rotate(-90 {x:.1f} {y:.1f})">{escape(printable(text))}</text>'


def _label(labels: Sequence[str]) -> float:
    return max((len(printable(label)) for label in labels), default=0) * _LETTER


def _slanted(labels: Sequence[str]) -> float:
    return _label(labels) * 0.68


def _colour(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return RAMP[0]
    share = (value - low) / (high - low) if high > low else 0.5
    return _blend(share * (len(RAMP) - 1))


def _blend(at: float) -> str:
    """Return the ramp's colour, in 33 steps so that like cells share one colour."""
    at = round(at * 4) / 4
    i = min(int(at), len(RAMP) - 2)
    one, two = (tuple(int(RAMP[k][c : c + 2], 16) for c in (1, 3, 5)) for k in (i, i + 1))
    return "#" + "".join(f"{round(a + (b - a) * (at - i)):02x}" for a, b in zip(one, two))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most so many round numbers between two, in steps of 1, 2 or 5 times a power of ten; the value itself where both are one."""
    if not high > low:
        return [float(f"{low:.3g}")]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50)):
        start, stop = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if stop - start < most:
            return [float(f"{step * k:.6g}") for k in range(start, stop + 1)]
    return []


def _every(needs: float, size: float) -> int:
    """Return how many cells of a size lie between two labels that need so much room: 1, 2, 5, 10, …"""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6) if step * size >= needs or step == 10**6)


def _within(low: float, value: float | None, high: float) -> bool:
    return value is not None and low < value < high


def _legend(x: float, y: float, low: float, high: float, unit: str, line: float | None = None) -> tuple[str, float]:
    """Return the colour bar with its range below and a line across it where one is asked for, and the width that all need."""
    bar = "".join(f'<rect x="{x + 8 * i:g}" y="{y:g}" width="8" height="8" fill="{_blend(i / 16 * (len(RAMP) - 1))}"/>' for i in range(17))
    marks = [((value - low) / (high - low) if high > low else 0.5, f"{value:g}") for value in _ticks(low, high, 3)]
    ticks = "".join(
        f'<line class="axis" x1="{x + 136 * at:.1f}" x2="{x + 136 * at:.1f}" y1="{y + 8:g}" y2="{y + 12:g}"/>'
        + _text(x + 136 * at, y + 24, says, "middle")
        for at, says in marks
    )
    if line is not None and _within(low, line, high):
        at = x + 136 * (line - low) / (high - low)
        ticks += f'<line class="bar-mark" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 4:g}" y2="{y + 12:g}"/>'
    return bar + ticks + _text(x + 144, y + 8, unit, "start"), x + 144 + _label([unit]) + 8


def _axis(start: float, stop: float, left: float, wide: float, top: float, base: float, unit: str) -> list[str]:
    every = next(step for step in (1, 2, 5, 10, 20) if (stop - start) / step <= 12 or step == 20)
    parts = [f'<line class="axis" x1="{left:g}" x2="{left + wide:g}" y1="{base:g}" y2="{base:g}"/>']
    for tick in range(math.ceil(start / every) * every, math.floor(stop) + 1, every):
        x = left + (tick - start) / (stop - start) * wide
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{base:g}"/>')
        parts.append(_text(x, base + 16, str(tick), "middle"))
    parts.append(_text(left + wide / 2, base + 34, unit, "middle"))
    return parts
