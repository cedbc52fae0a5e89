"""What `ostate probe` says: its document as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ostate.report.blocks import Block, Line, Table, cells, found

if TYPE_CHECKING:
    from ostate.core.documents import ProbeCounts, ProbeDocument

_Count = Literal[
    "parameters", "elements", "with_v", "min_denom", "max_scale", "median_scale", "cap", "zero", "tiny", "negative", "nonfinite",
    "clamped_share", "identity_share", "eps_dominated_share",
]  # fmt: skip

_ROWS: tuple[_Count, ...] = ("parameters", "elements", "with_v", "min_denom", "max_scale", "median_scale", "cap", "zero", "tiny")
_SHARES: tuple[_Count, ...] = ("clamped_share", "identity_share", "eps_dominated_share")
_ODD: tuple[_Count, ...] = ("zero", "tiny", "negative", "nonfinite")


def blocks(document: ProbeDocument, *, full: bool = False) -> list[Block]:  # noqa: ARG001
    """Return what one probe document says."""
    result, stats = document["result"], document["stats"]
    kinds: dict[str, ProbeCounts] = {"all": stats, **stats["by_kind"]}
    rows = tuple(cells(row.replace("_", " "), *(_short(line[row]) for line in kinds.values())) for row in (*_ROWS, *_SHARES))
    shares = ", ".join(f"{bucket} {share:.1%}" for bucket, share in result["shares"].items())
    healthy = result["verdict"] == "healthy"
    return [
        Line(f"coverage: exp_avg_sq {document['coverage']:.1%}, step {document['coverage_step']:.1%}"),
        Line(f"exp_avg_sq, elements: {', '.join(f'{stats[key]} {key}' for key in _ODD)}, of {stats['elements']}"),
        Line(f"scale: median {_short(stats['median_scale'])}, cap {_short(stats['cap'])}"),
        Line(),
        Table(("", *kinds), rows),
        Line(),
        Line(f"bars_dot, identity:        {_long(result['bars_dot_identity'])}"),
        Line(f"bars_dot, preconditioned:  {_long(result['bars_dot'])}"),
        Line(
            f"ratio {_short(result['ratio'])}, of the terms' size {_short(result['mass_ratio'])};"
            f" plausible for this state: about {_short(result['plausible_ratio'])}"
        ),
        Line(f"share of the product: {shares}"),
        Line(f"delta-H1 = {result['eta']:g} ({document['eta_from']}) x bars_dot = {_long(result['value'])}"),
        *found(document["findings"]),
        Line(f"verdict: {result['verdict']}", "good" if healthy else "warning"),
    ]


def _long(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6e}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
