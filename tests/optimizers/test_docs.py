"""The page about optimizers says what the rows say."""

from __future__ import annotations

from pathlib import Path

from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.moments import SECOND_MOMENTS
from ostate.optimizers.packings import PACKINGS
from ostate.optimizers.table import renewed

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


def test_the_tables_on_the_page_are_those_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run: python -m ostate.optimizers.table docs/optimizers.md"
    assert all(f"`{name}`" in page for name in (*OPTIMIZERS, *PACKINGS))


def test_every_form_of_second_moment_belongs_to_an_optimizer():
    assert {spec.moment for spec in OPTIMIZERS.values()} == set(SECOND_MOMENTS)


def test_every_row_names_its_source_and_what_must_be_there_is_among_its_slots():
    for name, spec in OPTIMIZERS.items():
        assert spec.source, name
        assert set(spec.always) <= set(spec.slots), name
        assert not set(spec.marks) & set(spec.lacks), name
