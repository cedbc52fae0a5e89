"""What `ostate repair` and `ostate verify` print: their documents as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostate.report.text import document_findings, number, printable, shorten, table

_MEANING = {
    "verified": "the numbers prove every name",
    "recovered": "no source of names stood; the numbers alone give the whole order",
    "partial": "the numbers prove some names; the others are listed below",
    "unverified": "nothing confirms the names: treat them as an assumption",
}


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return the lines for one repair or verify document."""
    found = document["ordering"]
    out = [f"{found['verdict']}: {_MEANING[found['verdict']]}"]
    margin = "" if found["margin"] is None else f", smallest margin {found['margin']:.3g}"
    tests = f" (tests: {', '.join(found['tests'])}{margin})" if found["tests"] else ""
    out.append(f"  names      {found['named']} from {found['source']}: {printable(found['rule'])}{tests}")
    out += [f"  not taken  {printable(loser['rule'])}: {printable(loser['reason'])}" for loser in found["rejected"][:4]]
    out += [f"  silent     {test}: {printable(why)}" for test, why in found["silent"].items()]
    if document["document"] == "ostate-verify" and found["weakest"]:
        rows = [
            (printable(shorten([pair["name"]])), pair["position"], number(pair["score"]), printable(pair["rival"] or "-"), number(pair["margin"]))
            for pair in found["weakest"]
        ]
        out += ["", "  weakest pairs", *table(rows, ("name", "position", "score", "best rival", "margin"))]
    if document["findings"]:
        out += ["", *document_findings(document["findings"])]
    if document.get("out"):
        out += ["", *(f"wrote {printable(file)}: {document['parameters']} parameters by name" for file in document["out"])]
    elif document["document"] == "ostate-repair":
        out += ["", "nothing written (--dry-run)"]
    return out
