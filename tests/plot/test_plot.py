"""The same pictures on matplotlib."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

import ostate.plot as plot
from ostate.errors import OstateError
from ostate.report import figures
from ostate.report.numbers import measure
from tests.report.states import real


def drawn(figure):
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert out.getvalue().startswith(b"\x89PNG")
    return figure


@pytest.mark.parametrize("draw", [plot.second_moment, plot.scale, plot.update_size, plot.scale_by_layer, plot.coverage])
def test_one_state_can_be_drawn(draw):
    figure = drawn(draw(real("long_opt_step60")[3]))
    axes = figure.axes[0]
    assert axes.get_title()
    assert axes.get_xlabel() or [label.get_text() for label in axes.get_xticklabels()]


def test_the_heat_map_holds_the_numbers_of_the_page():
    state = real("long_opt_step60")[3]
    shown = plot.update_size(state).axes[0].get_images()[0].get_array()
    expected = figures.update_size(measure(state))
    assert shown.shape == (len(expected.rows), len(expected.columns))
    assert shown[3][2] == pytest.approx(expected.values[3][2])


def test_a_run_can_be_drawn():
    figure = drawn(plot.over_training([real(f"long_opt_step{step}")[3] for step in (300, 2, 60)]))
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[2.0, 60.0, 300.0]] * 8


def test_the_evidence_has_its_brightest_cells_on_the_diagonal():
    raw, adapter, keys, _ = real("long_opt_step60")
    drawn(plot.evidence(raw, adapter, keys))
    matrices = plot.evidence_matrices(raw, adapter, keys)
    assert [len(one.keys) for one in matrices] == [11] * 8
    assert [one.title for one in matrices[:2]] == ["k_proj.lora_A, layers 0-10", "k_proj.lora_B, layers 0-10"]
    for one in matrices:
        assert re.fullmatch(r"On the diagonal \d+(\.\d+)? and more; in any other place of this shape -?\d+(\.\d+)? at most\.", one.says)
        for i, row in enumerate(one.scores):
            assert row[i] == max(row)


def test_kinds_of_one_tensor_each_share_a_matrix():
    raw, adapter, keys, _ = real("long_opt_step60")
    one_layer = [key if key is not None and ".layers.0." in key else None for key in keys]
    matrices = plot.evidence_matrices(raw, adapter, one_layer)
    assert sorted(one.title for one in matrices) == ["{k,out,q,v}_proj.lora_A", "{k,out,q,v}_proj.lora_B"]


def test_another_order_shows_its_rivals_off_the_diagonal():
    raw, adapter, keys, _ = real("long_opt_step60")
    swapped = list(keys)
    swapped[1], swapped[3] = swapped[3], swapped[1]
    matrices = plot.evidence_matrices(raw, adapter, swapped)
    assert any(row[i] < max(row) for one in matrices for i, row in enumerate(one.scores))


def test_an_adapter_of_nothing_alike_is_refused():
    raw, adapter, keys, _ = real("long_opt_step60")
    with pytest.raises(OstateError, match="nothing to compare"):
        plot.evidence(raw, adapter, [None] * len(keys))


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = "import sys, ostate.plot; print(sorted({'matplotlib', 'jinja2', 'torch', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
