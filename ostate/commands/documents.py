"""What commands print with `--json`: plain values, as the schemas describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostate.core.documents import AlternativeRow, OrderingDocument, OrderingRow
    from ostate.core.naming import Ordering

    from .repair import Repaired


def ordering_document(found: Ordering) -> OrderingRow:
    """Return how the names were settled, as the schemas describe it."""
    evidence = found.evidence
    live = {key: name for key, name in zip(found.keys, found.names) if key is not None and name is not None}
    alternative: AlternativeRow | None = None
    if found.weakest_alternative is not None:
        alternative = {"what": found.weakest_alternative[0], "digits": found.weakest_alternative[1]}
    return {
        "source": found.source,
        "rule": found.rule,
        "verdict": found.verdict,
        "margin": found.margin,
        "proof": found.proof,
        "weakest_alternative": alternative,
        "named": sum(1 for name in found.names if name is not None),
        "undecided": list(found.undecided),
        "assumed": list(found.assumed),
        "left_out": list(found.left_out),
        "rejected": [dict(loser) for loser in found.rejected],
        "tests": list(evidence.used) if evidence else [],
        "silent": dict(evidence.silent) if evidence else {},
        "weakest": [
            {
                "name": pair.name,
                "parameter": live.get(pair.name, pair.name),
                "position": pair.position,
                "score": pair.score,
                "rival": pair.rival,
                "rival_parameter": live.get(pair.rival, pair.rival) if pair.rival is not None else None,
                "margin": pair.margin,
            }
            for pair in (evidence.weakest if evidence else ())
        ],
    }


def verify_document(path: str, found: Ordering) -> OrderingDocument:
    """Return the JSON document that schemas/verify-v1.schema.json describes."""
    return {
        "document": "ostate-verify",
        "version": 1,
        "source": path,
        "ordering": ordering_document(found),
        "findings": [finding.as_dict() for finding in found.findings],
    }


def repair_document(path: str, done: Repaired) -> OrderingDocument:
    """Return the JSON document that schemas/repair-v1.schema.json describes."""
    return {
        "document": "ostate-repair",
        "version": 1,
        "source": path,
        "read": done.read or path,
        "not_read": list(done.not_read),
        "out": list(done.out),
        "optimizer": done.named.optimizer,
        "parameters": len(done.named.parameters),
        "ordering": ordering_document(done.ordering),
        "findings": [finding.as_dict() for finding in (*done.findings, *done.beside)],
    }
