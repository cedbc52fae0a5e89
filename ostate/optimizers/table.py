"""The tables of `docs/optimizers.md`, from the rows themselves: `python -m ostate.optimizers.table docs/optimizers.md` writes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

from .moments import SECOND_MOMENTS
from .packings import PACKINGS
from .rows import OPTIMIZERS
from .spec import OptimizerSpec

BEGIN, END = "<!-- the tables: begin -->", "<!-- the tables: end -->"


def tables() -> str:
    """Return both tables as Markdown."""
    rows = "\n".join(_optimizer(name, spec) for name, spec in OPTIMIZERS.items())
    packings = "\n".join(
        f"| `{name}` | {packing.text} | {packing.bits} | {packing.block or 'the tensor'} | {packing.relative_error:.0%} | {packing.caution} |"
        for name, packing in PACKINGS.items()
    )
    return f"{_OPTIMIZERS_HEAD}\n{rows}\n\n{_PACKINGS_HEAD}\n{packings}\n"


_OPTIMIZERS_HEAD = """| recognised as | written by | slots | step | repaired | probed | divides by |
|---|---|---|---|---|---|---|"""
_PACKINGS_HEAD = """| packing | of | bits | block | v off by | beside |
|---|---|---|---|---|---|"""


def _optimizer(name: str, spec: OptimizerSpec) -> str:
    form = SECOND_MOMENTS[spec.moment]
    slots = ", ".join(f"`{slot}`" for slot in spec.slots) or "none"
    notes = "; ".join(text for text in (form.approximate, spec.caution, spec.assumed and f"asked about first: {spec.assumed}") if text)
    probed = "no: " + form.why_not if form.v is None else "yes" + (f" ({notes})" if notes else "")
    repaired = f"no: {spec.refuse}" if spec.refuse else "yes"
    if spec.refuse:
        probed = "no"
    cells = (f"`{name}`", spec.classes, slots, _step(spec), repaired, probed, _formula(form.formula))
    return "| " + " | ".join(cells) + " |"


def _step(spec: OptimizerSpec) -> str:
    entry, _, keys = spec.step.partition("group:")
    places = ["entry"] * entry.startswith("entry") + [f"group `{key}`" for key in keys.split(",") if key]
    return " or ".join(places) or "not kept"


def _formula(text: str) -> str:
    return text if text == "-" else "; ".join(f"`{part}`" if index == 0 else part for index, part in enumerate(text.split("; ")))


def renewed(page: str) -> str:
    """Return the page with its tables replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
