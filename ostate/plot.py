"""The report's pictures from code: `page` writes the same file as `ostate report`, the others return matplotlib figures.

matplotlib (of the `plot` extra) is imported inside the functions that draw, without pyplot: nothing global is touched.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.commands.choosing import order_among
from ostate.commands.inspect import stored_bytes
from ostate.commands.options import Options
from ostate.commands.repair import opened, read, repair
from ostate.core.extras import needed
from ostate.core.files import announce, watched
from ostate.core.naming import Adapter, NamedState
from ostate.core.state import RawState
from ostate.errors import OstateError
from ostate.evidence.ask import Compared, compare
from ostate.evidence.judge import MAX_FALSE_NAME_ODDS
from ostate.ordering.join import as_raw
from ostate.read import named_file
from ostate.report import figures
from ostate.report.numbers import measure
from ostate.report.page import Subject, html
from ostate.report.parts import places
from ostate.report.text import ranges, shorten
from ostate.store import load
from ostate.store.loading import find, open_heads, parsed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Step = Callable[[int, int], None]


def page(paths: Sequence[str], *, options: Options | None = None, progress: Step | None = None) -> str:
    """Return the HTML page of `ostate report` for one or several states.

    Args:
        paths: named files, or checkpoints in any layout, which are named first as `ostate repair` would.
        options: as for `ostate.repair`; an adapter in it adds the matrix of evidence.
        progress: called with (bytes read, about how many there are).

    Raises:
        OstateError: a path cannot be read, or its names cannot be settled.
    """
    with watched(progress):
        return html([subject(path, options=options) for path in paths])


def subject(path: str, *, options: Options | None = None) -> Subject:
    """Return the numbers and verdict of one path, for the page.

    Raises:
        OstateError: it cannot be read, or its names cannot be settled.
    """
    options = options or Options()
    if named_file.is_named(path):
        state = load(path)
        manifest = _manifest(path)
        raw, adapter, keys = as_raw(state), None, []
        if options.adapter is not None:
            raw, beside = opened(path, options, named_too=True)
            adapter, order = order_among(raw, beside, options)
            keys = list(order.keys)
    else:
        done = repair(path, None, options=options)
        state, manifest = done.named, ""
        raw, adapter = read(path, options)
        keys = list(done.ordering.keys)
    announce(lambda: stored_bytes(state))
    matrices = evidence_matrices(raw, adapter, keys) if adapter is not None and options.evidence else ()
    return Subject(path=path, state=state, numbers=measure(state), matrices=matrices, manifest=manifest)


def evidence_matrices(raw: RawState, adapter: Adapter, keys: Sequence[str | None]) -> tuple[figures.Matrix, ...]:
    """Return, for each kind, how well each adapter key and position belong together; the order given is put on the diagonal.

    Kinds that have one tensor of a shape each are put together.

    Args:
        raw: the state, by position.
        adapter: the trained weights.
        keys: adapter key by position.

    Raises:
        ReadError: a tensor cannot be read.
    """
    out = []
    for each in compare(keys, raw, adapter):
        where = places(_bare(key) for key in each.keys)
        rows_of: dict[str, list[int]] = {}
        for row, key in enumerate(each.keys):
            rows_of.setdefault(where[_bare(key)].kind, []).append(row)
        alone = [rows[0] for rows in rows_of.values() if len(rows) == 1]
        out += [_matrix(each, rows) for rows in (*rows_of.values(), alone) if len(rows) > 1]
    return tuple(sorted(out, key=lambda one: min(one.positions)))


def _matrix(each: Compared, rows: Sequence[int]) -> figures.Matrix:
    """Return the matrix of some keys of a shape, and say how the best other place of any of them compares."""
    own = [float(each.scores[row, row]) for row in rows]
    other = [float(score) for row in rows for column, score in enumerate(each.scores[row]) if column != row]
    keys = tuple(each.keys[row] for row in rows)
    says = f"On the diagonal {min(own):.3g} and more; in any other place of this shape {max(other):.3g} at most."
    return figures.Matrix(
        title=_kinds(keys),
        says=says if any(own) or any(other) else "No test could compare these tensors: 0 in every place.",
        keys=keys,
        positions=tuple(each.positions[row] for row in rows),
        scores=tuple(tuple(float(each.scores[row, column]) for column in rows) for row in rows),
        proven=-math.log(MAX_FALSE_NAME_ODDS),
    )


def _bare(key: str) -> str:
    return key.removesuffix(".weight")


def _kinds(keys: Sequence[str]) -> str:
    """Return what a matrix is of: `q_proj.lora_A, layers 0-11`."""
    where = places(map(_bare, keys))
    kinds = shorten(sorted({place.kind for place in where.values()}), 3)
    layers = sorted({int(found[1]) for key in keys if (found := re.search(r"\.(\d+)\.", key))})
    return f"{kinds}, layers {ranges(layers)}" if len(layers) > 1 else kinds


def second_moment(state: NamedState) -> Figure:
    """Draw the distribution of log10 v by kind."""
    return _ridges(figures.v_ridges(measure(state)))


def scale(state: NamedState) -> Figure:
    """Draw the distribution of log10 of 1 / (sqrt(v_hat) + eps) by kind, and where the probe clamps it."""
    return _ridges(figures.scale_ridges(measure(state)))


def update_size(state: NamedState) -> Figure:
    """Draw the root mean square of the step by layer and kind, in learning rates."""
    return _heat(figures.update_size(measure(state)))


def scale_by_layer(state: NamedState) -> Figure:
    """Draw the median of log10 scale by layer and kind."""
    return _heat(figures.scale_heat(measure(state)))


def coverage(state: NamedState) -> Figure:
    """Draw the share of elements that have a scale, and of those below eps and clamped, by layer."""
    rows = figures.layers(measure(state))
    figure, axes = _canvas(6.4, 1.2 + 0.26 * len(rows))
    at = range(len(rows))
    for offset, (label, shares) in enumerate(
        (
            ("coverage", [row.coverage for row in rows]),
            ("below eps", [row.eps_dominated for row in rows]),
            ("clamped", [row.clamped for row in rows]),
        )
    ):
        axes.barh([y + 0.27 * (offset - 1) for y in at], shares, height=0.26, label=label)
    axes.set_yticks(list(at), [row.layer for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of elements")
    axes.set_title("Coverage by layer")
    axes.legend(loc="lower right")
    return figure


def over_training(states: Sequence[NamedState]) -> Figure:
    """Draw the median scale and the update size of several states of a run over their steps, by kind."""
    scale_lines, update_lines, _ = figures.changes([measure(state) for state in states])
    figure, _ = _canvas(9.6, 4.2, axes=False)
    for i, drawn in enumerate((scale_lines, update_lines)):
        axes = figure.add_subplot(1, 2, i + 1)
        for label, row in drawn.series:
            axes.plot(drawn.x, [float("nan") if value is None else value for value in row], marker="o", label=label)
        axes.set_title(drawn.title)
        axes.set_xlabel("step")
        axes.set_ylabel(drawn.unit)
    figure.axes[-1].legend(fontsize="x-small")
    return figure


def evidence(raw: RawState, adapter: Adapter, keys: Sequence[str | None]) -> Figure:
    """Draw adapter tensor against position, one panel a kind; arguments as for `evidence_matrices`.

    Raises:
        OstateError: the adapter and the state have no two tensors of one shape.
    """
    matrices = evidence_matrices(raw, adapter, keys)
    if not matrices:
        raise OstateError("nothing to compare: no two tensors of one shape", where=adapter.file, fix="pass the adapter of this state")
    across = min(4, len(matrices))
    down = -(-len(matrices) // across)
    figure, _ = _canvas(4.2 * across, 4.2 * down, axes=False)
    for i, one in enumerate(matrices):
        axes = figure.add_subplot(down, across, i + 1)
        drawn = axes.imshow(_filled(one.scores), cmap="viridis")
        axes.set_title(one.title, fontsize="small")
        axes.set_xlabel("position, in the chosen order")
        axes.set_ylabel("adapter key")
        figure.colorbar(drawn, ax=axes, shrink=0.7)
    return figure


def _ridges(data: figures.Ridges) -> Figure:
    figure, axes = _canvas(7.2, 1.2 + 0.5 * len(data.rows))
    highest = max((share for _, shares in data.rows for share in shares), default=1.0)
    for i, (_, shares) in enumerate(data.rows):
        x = [data.start + data.width * (j + 0.5) for j in range(len(shares))]
        axes.fill_between(x, [-float(i)] * len(x), [-i + 1.1 * share / highest for share in shares], alpha=0.6)
    if data.mark is not None:
        axes.axvline(data.mark, linestyle="--", color="tab:red", label=data.mark_says)
        axes.legend(loc="upper right")
    axes.set_yticks([-i for i in range(len(data.rows))], [label for label, _ in data.rows])
    axes.set_xlabel(data.unit)
    axes.set_title(data.title)
    return figure


def _heat(data: figures.Heat) -> Figure:
    figure, axes = _canvas(2.4 + 0.5 * len(data.columns), 1.8 + 0.26 * len(data.rows))
    drawn = axes.imshow(_filled(data.values), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(data.columns)), list(data.columns), rotation=40, ha="right", fontsize="small")
    axes.set_yticks(range(len(data.rows)), list(data.rows), fontsize="small")
    axes.set_title(data.title)
    figure.colorbar(drawn, ax=axes, label=data.unit)
    return figure


def _filled(rows: Sequence[figures.Row]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)


def _canvas(width: float, height: float, *, axes: bool = True) -> tuple[Figure, Axes]:
    with needed("a figure (`ostate report` draws without it)"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot() if axes else None  # type: ignore[return-value]


def _manifest(path: str) -> str:
    found = [parsed(head) for head in open_heads(find(os.fsdecode(path)))]
    return json.dumps(found[0] if len(found) == 1 else found, indent=1)
