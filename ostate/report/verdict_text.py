"""What `ostate repair` and `ostate verify` say: their documents as blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ostate.core.naming import ALL_TESTS, first_rule
from ostate.report.blocks import Block, Facts, Line, Table, Tone, cells, found, read_rows
from ostate.report.text import plain

if TYPE_CHECKING:
    from ostate.core.documents import OrderingDocument, OrderingRow, PairRow

MEANING = {
    "verified": "the tensor values rule out every other order a program could make",
    "recovered": "no source proves the order; the tensor values alone give all of it",
    "partial": "the tensor values prove some names; the others are listed below",
    "unverified": "nothing confirms the names: treat them as an assumption",
}
MEANING_ASSUMED = {
    **MEANING,
    "verified": "the tensor values rule out every other order of the adapter's keys; part of the live names is assumed",
    "recovered": "the tensor values alone give each position's key in the adapter; part of the live names is assumed",
}
"""As `MEANING`, where something of the names was guessed and not read."""
SOURCES = {
    "recorded": "the file",
    "given": "--order",
    "skeleton": "the rebuilt model",
    "adapter-order": "the adapter file",
    "convention": "a convention",
    "content": "tensor values",
}
"""Where names come from, as people say it."""
TONE: dict[str, Tone] = {"verified": "good", "recovered": "good", "partial": "warning", "unverified": "warning"}
GAUGE = "gauge"
"""The test whose silence says which other order it leaves open."""
OTHER_GROUPS = ("it makes ", "its groups hold ")
"""How the reasons against rules begin whose groups are not the file's (ostate.ordering.grouping)."""
_TELLS = 0.5
"""Digits from which a chance is said as a number; less is no evidence."""
_LOSERS = 4
"""Orders that lost, shown unless all are asked for."""
_WEAKEST = 5
"""Pairs with the smallest margins, shown unless all are asked for."""


def lines(document: OrderingDocument) -> list[str]:
    """Return the plain lines for one repair or verify document."""
    return plain(blocks(document))


def blocks(document: OrderingDocument, *, full: bool = False) -> list[Block]:
    """Return what one repair or verify document says; `full` leaves nothing out."""
    ordering = document["ordering"]
    verdict = ordering["verdict"]
    out: list[Block] = [Line(f"{verdict}: {meaning(verdict, ordering.get('assumed', ()))}", TONE[verdict])]
    if document["findings"]:
        out += [*found(document["findings"]), Line()]
    out.append(Facts((*read_rows(document.get("read"), document.get("not_read", ())), *_origin(ordering, full))))
    if ordering["weakest"] and (full or document["document"] == "ostate-verify"):
        shown = ordering["weakest"][: None if full else _WEAKEST]
        rows = [_weak(pair) for pair in shown]
        out += [Line(), Line("  weakest pairs"), Table(("name", "position", "score", "best rival", "margin"), tuple(rows))]
    if document.get("out"):
        out += [Line(), *(Line(f"wrote {file}: {document['parameters']} parameters by name", "good") for file in document["out"])]
    elif document["document"] == "ostate-repair":
        out += [Line(), Line("nothing written (--dry-run)", "dim")]
    return out


def meaning(verdict: str, assumed: Sequence[str]) -> str:
    """Return what a verdict says of the names; where part of them was assumed, that the numbers prove places in the adapter and not that part."""
    return (MEANING_ASSUMED if assumed else MEANING)[verdict]


def _origin(ordering: OrderingRow, full: bool) -> list[tuple[str, str]]:
    alternative = ordering.get("weakest_alternative")
    weakest = (alternative["what"], alternative["digits"]) if alternative is not None else None
    rows = [("names", f"{ordering['named']} from {origin(ordering['source'], ordering['rule'], full)}")]
    rows += chances(ordering["margin"], weakest, recovered=ordering["verdict"] == "recovered", full=full)
    if ordering["tests"]:
        rows.append(("tests", ", ".join(ordering["tests"])))
    rows += [("assumed", text) for text in ordering.get("assumed", ())]
    rows += _losers(() if ordering["verdict"] == "verified" and not full else ordering["rejected"], full)
    silent = {test: why for test, why in ordering["silent"].items() if test != GAUGE or weakest is None}  # what it leaves open is the closest order
    rows += [("not tested", why if test == ALL_TESTS else f"{test}: {why}") for test, why in silent.items()]
    return rows


def chances(margin: float | None, weakest: tuple[str, float] | None, *, recovered: bool = False, full: bool = False) -> list[tuple[str, str]]:
    """Return the chance of all other orders where they are excluded, and which one comes closest; its own chance where that says more.

    Args:
        margin: digits against all other orders together; None: not all are excluded.
        weakest: the other order with the fewest digits against it, and these.
        recovered: each name was found by its own values, so that what the whole does not exclude they do.
        full: say the chance of the closest anyway.
    """
    rows = []
    if margin is not None:
        rows.append(("chance", f"{chance_text(margin)} of such numbers under any other order"))
    if weakest is not None:
        what, digits = weakest
        own = f": {chance_text(digits)}" if full or margin is None else ""
        if margin is None and recovered:
            own += " as a whole order, excluded name by name"
        elif margin is None:
            own = f"{own}, not excluded by the tests" if digits >= _TELLS else ": the tests cannot tell it from this one"
        rows.append(("closest", what + own))
    return rows


def _losers(losers: Sequence[Mapping[str, str]], full: bool) -> list[tuple[str, str]]:
    """Return the orders that lost, each with its reason; those whose groups are not the file's in one row, unless all are asked for."""
    losers = list({(loser["rule"], loser["reason"]): loser for loser in losers}.values())  # the model's order and the convention's lose alike
    cut = [loser for loser in losers if loser["reason"].startswith(OTHER_GROUPS)] if not full else []
    rest = [loser for loser in losers if loser not in cut]
    shown = rest if full else rest[:_LOSERS]
    rows = [("rejected", f"{loser['rule'] if full else first_rule(loser['rule'])}: {loser['reason']}") for loser in shown]
    if len(shown) < len(rest):
        rows.append(("", f"({len(rest) - len(shown)} more: -v shows all)"))
    if cut:
        rules = {rule for loser in cut for rule in loser["rule"].split("; ")}
        rows.append(("rejected", f"{len(rules)} rule{'s' * (len(rules) != 1)} of other programs, whose groups are not the file's (-v lists them)"))
    return rows


def origin(source: str, rule: str, full: bool = False) -> str:
    """Return where names come from: the source, and the rule that made them."""
    if rule == "named":
        return "the file, which ostate wrote"
    said = SOURCES.get(source, source)
    return said if source == "content" or not rule else f"{said}: {rule_text(rule, full)}"


def rule_text(rule: str, full: bool = False) -> str:
    """Return the first of several rules that give the same order and how many others there are, or all of them."""
    first, *others = rule.split("; ")
    if full or not others:
        return rule
    return f"{first}; {'1 other rule gives' if len(others) == 1 else f'{len(others)} other rules give'} the same order"


def chance_text(digits: float) -> str:
    """Return a chance as people say it: `1 in 10^12`, `1 in 40`."""
    return f"1 in 10^{int(digits)}" if digits >= 4 else f"1 in {10**digits:,.0f}"


def _weak(pair: PairRow) -> tuple[str, ...]:
    rival = pair.get("rival_parameter") or pair["rival"] or "-"
    return cells(pair.get("parameter") or pair["name"], pair["position"], _short(pair["score"]), rival, _short(pair["margin"]))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
