"""The facts of one or several states as one page: no network, no script, light and dark, printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ReadError
from ostate.report import figures, svg
from ostate.report.numbers import StateNumbers
from ostate.report.text import printable, shorten
from ostate.report.verdict_text import TONE, chance_text, meaning

_ORDER = {"error": 0, "warning": 1, "note": 2}
_NO_VERDICT = "this file does not say how its names were settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One state to draw."""

    path: str
    state: NamedState
    numbers: StateNumbers
    matrices: tuple[figures.Matrix, ...] = ()
    """Who matches whom; empty where no adapter was at hand."""
    manifest: str = ""
    """The manifest as indented JSON."""


def html(subjects: Sequence[Subject]) -> str:
    """Return the page. The same subjects give the same bytes.

    Raises:
        ReadError: no subject.
    """
    if not subjects:
        raise ReadError("no state to draw", fix="give at least one file")
    room = resources.files("ostate.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    template = environment.from_string((room / "page.html.j2").read_text(encoding="utf-8"))
    ordered = sorted(subjects, key=_step)
    return (
        template.render(
            style=Markup((room / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file, not anybody's input
            title=" and ".join("/".join(PurePath(subject.path).parts[-2:]) for subject in ordered[:2]) + (" …" if len(ordered) > 2 else ""),
            states=[_state(subject, f"s{i}") for i, subject in enumerate(ordered)],
            changes=_changes(ordered),
        )
        + "\n"
    )


def _step(subject: Subject) -> float:
    return max((one.step for one in subject.numbers.parameters if one.step is not None), default=0.0)


def _changes(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    if len(subjects) < 2:
        return []
    scale, update, moved = figures.changes([subject.numbers for subject in subjects])
    drawn = [(each, svg.lines(each, f"change{i}")) for i, each in enumerate((scale, update))]
    return [_figure(each, picture) for each, picture in drawn] + [_figure(moved, svg.heat(moved, "change2"), _heat_table(moved))]


def _state(subject: Subject, mark: str) -> dict[str, Any]:
    state, numbers = subject.state, subject.numbers
    ordering = state.ordering
    unknown = sorted({one.why_not for one in numbers.parameters if one.why_not})
    return {
        "path": subject.path,
        "verdict": ordering.verdict if ordering else "unknown",
        "meaning": meaning(ordering.verdict, ordering.assumed) if ordering else _NO_VERDICT,
        "tone": TONE[ordering.verdict] if ordering else "warning",
        "facts": _facts(subject),
        "rejected": list(dict.fromkeys((loser["rule"], loser["reason"]) for loser in ordering.rejected)) if ordering else [],
        "matrices": [_figure(each, svg.matrix(each, f"{mark}m{i}")) for i, each in enumerate(subject.matrices)],
        "figures": _figures(numbers, mark),
        "layers": figures.layers(numbers),
        "unknown": unknown,
        "findings": [_finding(finding) for finding in sorted(state.findings, key=lambda one: _ORDER[one.severity])],
        "manifest": subject.manifest,
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    state, numbers = subject.state, subject.numbers
    rows = [("parameters", f"{len(state.parameters):,} with {numbers.elements:,} elements"), ("optimizer", state.optimizer_class)]
    names = shorten(list(state.parameters), 3)
    rows.append(("names", names))
    if state.ordering is not None:
        rows.append(("from", f"{state.ordering.source}{': ' + state.ordering.rule if state.ordering.rule else ''}"))
        if state.ordering.margin is not None:
            rows.append(("chance of any other order", chance_text(state.ordering.margin)))
        if state.ordering.weakest_alternative is not None:
            what, digits = state.ordering.weakest_alternative
            rows.append(("weakest alternative", f"{what}: {chance_text(digits)}"))
        if state.ordering.evidence is not None and state.ordering.evidence.used:
            rows.append(("tests", ", ".join(state.ordering.evidence.used)))
        if state.ordering.undecided:
            rows.append(("proven only as part of the order" if state.ordering.proven else "not proven", shorten(state.ordering.undecided)))
        rows += [("assumed", text) for text in state.ordering.assumed]
        if state.ordering.left_out:
            rows.append(("left out", f"{len(state.ordering.left_out)} positions without a name"))
    if state.adapter.get("base_model"):
        rows.append(("base model", str(state.adapter["base_model"])))
    return rows


def _figures(numbers: StateNumbers, mark: str) -> list[dict[str, Any]]:
    out = []
    for i, ridge in enumerate((figures.scale_ridges(numbers), figures.v_ridges(numbers))):
        if ridge.rows:
            out.append(_figure(ridge, svg.ridges(ridge, f"{mark}r{i}")))
    for i, heat in enumerate((figures.update_size(numbers), figures.scale_heat(numbers), figures.v_heat(numbers))):
        if any(value is not None for row in heat.values for value in row):
            out.append(_figure(heat, svg.heat(heat, f"{mark}h{i}"), _heat_table(heat)))
    return out


def _figure(
    figure: figures.Heat | figures.Ridges | figures.Lines | figures.Matrix, picture: str, table: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "title": figure.title,
        "says": figure.says,
        "picture": Markup(picture),  # noqa: S704 - svg.py escapes every text that it takes
        "table": table,
    }


def _heat_table(heat: figures.Heat) -> dict[str, Any]:
    rows = [(label, ["-" if value is None else f"{value:.3g}" for value in values]) for label, values in zip(heat.rows, heat.values)]
    return {"head": ("layer", *heat.columns), "rows": rows}


def _finding(finding: Finding) -> dict[str, str]:
    return {"severity": finding.severity, "text": finding.text, "fix": finding.fix, "names": shorten(finding.names) if finding.names else ""}
