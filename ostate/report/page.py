"""The facts of one or several states as one page: no network, no script, light and dark, printable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib import resources
from pathlib import PurePath
from typing import TypeAlias

from ostate import __version__
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ReadError
from ostate.report import figures, svg
from ostate.report.markup import Markup, breakable, joined, tag
from ostate.report.numbers import StateNumbers
from ostate.report.text import number, shorten
from ostate.report.verdict_text import TONE, chance_text, chances, meaning, origin

_ORDER = {"error": 0, "warning": 1, "note": 2}
_LEGEND = (
    "Coverage: elements whose second moment is positive and finite. Below eps: sqrt(v_hat) < eps, so the scale depends on eps alone. "
    "Clamped: scale above 1000 times the median, the probe's default limit."
)
MOST_MATRICES = 6
"""Matrices of evidence that are shown before the others are folded."""
_MATRIX = (
    "Log-likelihood ratio (natural log) that an adapter tensor (down) and a position (across) belong together, a matrix for each kind. The chosen "
    "order is the diagonal; a bright cell elsewhere would be an alternative. A proof needs a million to one (13.8), from one pair or from many."
)
_NO_VERDICT = "this file does not record how its names were determined"

Figure: TypeAlias = figures.Heat | figures.Ridges | figures.Lines | figures.Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One state to draw."""

    path: str
    state: NamedState
    numbers: StateNumbers
    matrices: tuple[figures.Matrix, ...] = ()
    """Adapter tensor against position, a matrix for each kind; empty where no adapter was found."""
    manifest: str = ""
    """The manifest as indented JSON."""


def html(subjects: Sequence[Subject]) -> str:
    """Return the page. The same subjects give the same bytes.

    Raises:
        ReadError: no subject.
    """
    if not subjects:
        raise ReadError("no state to draw", fix="pass at least one file")
    ordered = sorted(subjects, key=_step)
    title = " and ".join("/".join(PurePath(subject.path).parts[-2:]) for subject in ordered[:2]) + (" …" if len(ordered) > 2 else "")
    style = Markup((resources.files("ostate.report") / "page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} – ostate report"),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), _verdicts(ordered) if len(ordered) > 1 else None),
        tag(
            "main",
            *([_changes(ordered), _side_by_side(ordered)] if len(ordered) > 1 else []),
            *(_article(subject, n, alone=len(ordered) == 1) for n, subject in enumerate(ordered, 1)),
        ),
        tag("footer", tag("p", "Made by ostate. This page needs no network and runs no script.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _step(subject: Subject) -> float:
    return max((one.step for one in subject.numbers.parameters if one.step is not None), default=0.0)


def _verdict(state: NamedState) -> str:
    return state.ordering.verdict if state.ordering else "unknown"


def _tone(state: NamedState) -> str:
    return TONE[state.ordering.verdict] if state.ordering else "warning"


def _verdicts(subjects: Sequence[Subject]) -> Markup:
    """Return the table that leads to each state, with what is compared first, for a page of several."""
    rows = []
    for n, one in enumerate(subjects, 1):
        facts, margin = dict(_facts(one)), one.state.ordering.margin if one.state.ordering is not None else None
        worst = sum(finding.severity != "note" for finding in one.state.findings)
        cells = [facts["step"], facts["lr"], "-" if margin is None else chance_text(margin), str(worst or "none")]
        badge = tag("span", _verdict(one.state), class_=f"badge {_tone(one.state)}")
        rows.append((tag("a", one.path, href=f"#state-{n}"), [tag("td", badge), *(tag("td", cell) for cell in cells)]))
    return _scroll("Verdicts", _table(("state", "verdict", "step", "lr", "chance", "warnings"), rows))


def _changes(subjects: Sequence[Subject]) -> Markup:
    scale, update, moved = figures.changes([subject.numbers for subject in subjects])
    drawn = [_figure(each, svg.lines(each, f"change{i}")) for i, each in enumerate((scale, update))]
    drawn.append(_figure(moved, svg.heat(moved, "change2"), _heat_table(moved)))
    return tag("section", tag("h2", "Over training", id="changes"), tag("div", *drawn, class_="figures"), aria_labelledby="changes")


def _side_by_side(subjects: Sequence[Subject]) -> Markup:
    """Return each heat map once a state, small and in the same colours."""
    drawn = []
    for i, made in enumerate((figures.update_size, figures.scale_heat, figures.v_heat)):
        each = [made(subject.numbers) for subject in subjects]
        if not any(value is not None for one in each for row in one.values for value in row):
            continue
        span = svg.span_of(each)
        small = []
        for k, (one, subject) in enumerate(zip(each, subjects)):
            labelled = replace(one, title=f"{one.title}, step {_step(subject):g}")
            small.append(tag("div", tag("h4", f"step {_step(subject):g}"), Markup(svg.heat(labelled, f"side{i}-{k}", span))))
        caption = tag("figcaption", tag("h3", each[0].title), tag("p", f"{each[0].says} The same colours in all."))
        drawn.append(tag("figure", caption, _scroll(f"{each[0].title}, state by state", tag("div", *small, class_="multiples"))))
    columns = "figures" if len(subjects) == 2 else "rows"  # of two the maps stand one under the other; of more, side by side over the whole width
    return tag("section", tag("h2", "State by state", id="side-by-side"), tag("div", *drawn, class_=columns), aria_labelledby="side-by-side")


def _article(subject: Subject, n: int, *, alone: bool) -> Markup:
    """Return one state's part of the page, the verdict first; where there are several states, all of it is folded."""
    state, numbers, mark = subject.state, subject.numbers, f"s{n - 1}"
    unknown = sorted({one.why_not for one in numbers.parameters if one.why_not})
    sections = {
        "findings": ("Findings", [tag("ul", *_findings(state.findings), class_="findings")] if state.findings else []),
        "evidence": ("Evidence: adapter tensor against position", _matrices(subject.matrices, mark)),
        "numbers": (
            "The numbers",
            [
                *(tag("p", f"Some parameters have no scale: {why}", class_="unknown") for why in unknown),
                tag("div", *_figures(numbers, mark), class_="figures"),
            ],
        ),
        "coverage": ("Step and coverage by layer", [_coverage(numbers), tag("p", _LEGEND, class_="legend")]),
    }
    shown = {f"{key}-{n}": (title, inner) for key, (title, inner) in sections.items() if inner}
    parts = [_section(title, mark_, *inner, landmark=alone) for mark_, (title, inner) in shown.items()]
    parts += [_manifest(subject.manifest)] if subject.manifest else []
    head = _head(subject, n, alone=alone)
    if alone:
        inner = [head, _contents({mark_: title for mark_, (title, _) in shown.items()}), *parts]
    else:
        label = f"step {_step(subject):g}: {subject.path}"
        inner = [tag("h2", label, id=f"head-{n}"), _folded("Summary, findings and plots", joined([head, *parts], ""), label=f"{label}, folded")]
    return tag("article", *inner, id=f"state-{n}", aria_labelledby=f"head-{n}")


def _contents(titles: Mapping[str, str]) -> Markup:
    """Return links to the sections."""
    return tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{mark}")) for mark, title in titles.items())), aria_label="Contents")


def _matrices(matrices: Sequence[figures.Matrix], mark: str) -> list[Markup]:
    """Return the matrices of evidence; those beyond the first `MOST_MATRICES` folded."""
    drawn = [_figure(each, svg.matrix(each, f"{mark}m{i}")) for i, each in enumerate(matrices)]
    out = [tag("p", _MATRIX), tag("div", *drawn[:MOST_MATRICES], class_="figures small")] if drawn else []
    if drawn[MOST_MATRICES:]:
        more = f"{len(drawn) - MOST_MATRICES} more matrices"
        out.append(_folded(more, tag("div", *drawn[MOST_MATRICES:], class_="figures small"), label=f"{more}, {mark}"))
    return out


def _head(subject: Subject, n: int, *, alone: bool) -> Markup:
    ordering = subject.state.ordering
    says = meaning(ordering.verdict, ordering.assumed) if ordering else _NO_VERDICT
    rejected = list(dict.fromkeys((loser.get("rule", ""), loser.get("reason", "")) for loser in ordering.rejected)) if ordering else []
    return tag(
        "section",
        tag("h2", "Summary", id=f"head-{n}") if alone else None,
        tag("p", tag("strong", _verdict(subject.state)), f": {says}", class_="says"),
        tag("dl", *(tag("div", tag("dt", title), tag("dd", breakable(text))) for title, text in _facts(subject))),
        _folded(
            f"Rejected orders, and why: {len(rejected)}",
            tag("ul", *(tag("li", f"{rule}: {reason}") for rule, reason in rejected)),
            label="Rejected orders",
        )
        if rejected
        else None,
        class_=f"verdict {_tone(subject.state)}",
    )


def _clamped(numbers: StateNumbers) -> list[Markup]:
    """Say beside the plot of scales which kinds the probe would clamp."""
    kinds = figures.clamped_kinds(numbers)
    if not kinds:
        return []
    listed = ", ".join(f"{kind} {100 * share:.3g} %" for kind, share in kinds[:4]) + (f" and {len(kinds) - 4} more kinds" if kinds[4:] else "")
    text = f" the probe clamps {listed} of the elements: their v is small against the rest of their kind"
    return [tag("p", tag("span", "warning", class_="badge warning"), text)]


def _facts(subject: Subject) -> list[tuple[str, str]]:
    state, numbers = subject.state, subject.numbers
    steps = sorted({one.step for one in numbers.parameters if one.step is not None})
    rates = sorted({number(group.hyper[key]) for group in state.groups for key in ("lr",) if group.names and group.hyper.get(key) is not None})
    began = sorted({number(group.hyper["initial_lr"]) for group in state.groups if group.names and group.hyper.get("initial_lr") is not None})
    rows = [
        ("step", "not recorded" if not steps else f"{steps[0]:g}" if len(steps) == 1 else f"{steps[0]:g} to {steps[-1]:g}"),
        ("lr", (", ".join(rates) or "not recorded") + (f" (initial_lr {', '.join(began)})" if began and began != rates else "")),
        ("parameters", f"{len(state.parameters):,} with {numbers.elements:,} elements"),
        ("optimizer", state.optimizer_class),
        ("ostate", __version__),
    ]
    names = shorten(list(state.parameters), 3)
    rows.append(("names", names))
    if state.ordering is not None:
        rows.append(("from", origin(state.ordering.source, state.ordering.rule)))
        rows += chances(state.ordering.margin, state.ordering.weakest_alternative, recovered=state.ordering.verdict == "recovered")
        if state.ordering.evidence is not None and state.ordering.evidence.used:
            rows.append(("tests", ", ".join(state.ordering.evidence.used)))
        if state.ordering.undecided:
            title = "proven only as part of the order" if state.ordering.proven else "not proven"
            whole = len(state.ordering.undecided) == len(state.parameters) > 1
            rows.append((title, f"all {len(state.parameters):,} names" if whole else shorten(state.ordering.undecided)))
        rows += [("assumed", text) for text in state.ordering.assumed]
        if state.ordering.left_out:
            rows.append(("left out", f"{len(state.ordering.left_out)} positions without a name"))
    if state.adapter.get("base_model"):
        rows.append(("base model", str(state.adapter["base_model"])))
    return rows


def _figures(numbers: StateNumbers, mark: str) -> list[Markup]:
    out = []
    for i, ridge in enumerate((figures.scale_ridges(numbers), figures.v_ridges(numbers))):
        if ridge.rows:
            out.append(_figure(ridge, svg.ridges(ridge, f"{mark}r{i}"), notes=_clamped(numbers) if i == 0 else []))
    for i, heat in enumerate((figures.update_size(numbers), figures.scale_heat(numbers), figures.v_heat(numbers))):
        if any(value is not None for row in heat.values for value in row):
            out.append(_figure(heat, svg.heat(heat, f"{mark}h{i}"), _heat_table(heat)))
    return out


def _figure(figure: Figure, picture: str, table: Markup | None = None, notes: Sequence[Markup] = ()) -> Markup:
    """Return a picture with its caption, and its numbers folded under it. `picture` is SVG of ours, which escapes every text that it takes."""
    title = figure.title
    caption = tag("figcaption", tag("h3", title), tag("p", figure.says), *notes)
    numbers = None
    if table is not None:
        numbers = _folded(f"{title} as numbers", _scroll(f"{title}, numbers", table), label=f"{title}, as numbers")
    return tag("figure", caption, _scroll(f"{title}, picture", Markup(picture)), numbers)


def _heat_table(heat: figures.Heat) -> Markup:
    cells = ([tag("td", "-" if value is None else f"{value:.3g}") for value in values] for values in heat.values)
    return _table(("layer", *heat.columns), zip(heat.rows, cells))


def _findings(findings: Sequence[Finding]) -> Iterator[Markup]:
    for one in sorted(findings, key=lambda one: _ORDER[one.severity]):
        yield tag(
            "li",
            tag("span", one.severity, class_=f"badge {one.severity}"),
            f" {one.text}",
            joined((tag("br"), tag("code", breakable(shorten(one.names, further=one.more)))), "") if one.names else None,
            joined((tag("br"), tag("span", f"What to do: {one.fix}", class_="fix")), "") if one.fix else None,
            class_=one.severity,
        )


def _coverage(numbers: StateNumbers) -> Markup:
    head = ("layer", "parameters", "elements", "step", "coverage", "zero", "bad", "below eps", "clamped")
    rows = []
    for row in figures.layers(numbers):
        counts = [tag("td", text) for text in (str(row.parameters), f"{row.elements:,}", row.step)]
        bar = tag("td", tag("span", f"{100 * row.coverage:.4g} %", style=f"--share:{row.coverage:.4f}"), class_="bar")
        shares = (row.zeros, row.bad, row.eps_dominated, row.clamped)
        rows.append((row.layer, [*counts, bar, *(_share(share) for share in shares)]))
    return _scroll("Step and coverage by layer", _table(head, rows))


def _share(share: float) -> Markup:
    text = f"{100 * share:.3g} %"
    return tag("td", text, class_="much") if share > 0.01 else tag("td", text)


def _manifest(text: str) -> Markup:
    whole = tag("pre", Markup(escape(text)), tabindex="0", role="group", aria_label="Manifest")
    return tag("details", tag("summary", "Manifest"), whole, class_="manifest", aria_label="Manifest, folded")


def _section(title: str, mark: str, *children: Markup, landmark: bool = True) -> Markup:
    """Return a part of a state; a landmark, by which a screen reader jumps, only where no other state has one of that name."""
    return (
        tag("section", tag("h2", title, id=mark), *children, aria_labelledby=mark) if landmark else tag("div", tag("h3", title, id=mark), *children)
    )


def _folded(summary: str, inner: Markup, *, label: str) -> Markup:
    return tag("details", tag("summary", summary), inner, aria_label=label)


def _scroll(label: str, inner: Markup) -> Markup:
    """Return what may be wider than the page in a part that a keyboard can scroll."""
    return tag("div", inner, class_="scroll", tabindex="0", role="group", aria_label=label)


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[Markup]]]) -> Markup:
    """Return a table whose first column heads its rows; `rows` gives that column's text and the other cells."""
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    return tag("table", top, tag("tbody", *(tag("tr", tag("th", first, scope="row"), *cells) for first, cells in rows)))
