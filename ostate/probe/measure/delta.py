"""delta-H1 = eta * <Xbar, P Ybar>: the first-order change of what Xbar is the gradient of, and whether to believe it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from ostate.core.brief import brief
from ostate.core.state import Finding
from ostate.errors import ProbeError, ProbeTypeError

from ..precondition.guards import FILL_OR_FREEZE
from ..precondition.layout import Gradients, Key, Key2, chunks
from ..precondition.preconditioner import AdamPreconditioner
from ..precondition.usable import number

Verdict = Literal["healthy", "healthy, with warnings", "suspect", "identity", "empty"]

SPREAD = 30.0
"""How far from the plausible ratio is still healthy: gradients of one batch differ from the run's average."""

_SUMS = ("raw", "done", "raw_mass", "mass", "identity", "clamped", "raw_identity", "raw_clamped", "yy", "pp", "yp")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeltaH1:
    """The result of one probe. Masses are sums of |x_i p_i|, which cannot cancel."""

    value: float
    """eta * bars_dot."""
    eta: float
    """The learning rate that was passed."""
    bars_dot: float
    """<Xbar, P Ybar>."""
    bars_dot_identity: float
    """<Xbar, Ybar>."""
    ratio: float
    """bars_dot / bars_dot_identity; large also where the plain product cancels."""
    mass_ratio: float
    """The same of the masses: what preconditioning does to the size of the terms."""
    plausible_ratio: float
    """What this state's own v makes of gradients like those of its run."""
    verdict: Verdict
    """`healthy`, `healthy, with warnings`, or what keeps the number from being trusted."""
    shares: Mapping[str, float]
    """Share of the preconditioned mass by bucket: preconditioned, identity, clamped."""
    raw_shares: Mapping[str, float]
    """Share of the raw mass in the same buckets: identity terms keep other units and may vanish beside the others."""
    cosine: float
    """Between Ybar and P Ybar: near 1, the preconditioner is a constant."""
    findings: tuple[Finding, ...] = ()
    """What a person should know, the worst first in print."""

    def __repr__(self) -> str:
        return brief(self)

    def as_dict(self) -> dict[str, object]:
        """Return plain values, for a logger or JSON."""
        return {**asdict(self), "findings": [finding.as_dict() for finding in self.findings]}


def delta_h1(xbar: Gradients[Key], ybar: Gradients[Key2], eta: float, preconditioner: AdamPreconditioner) -> DeltaH1:
    """Compute delta-H1 with its own sanity check.

    Args:
        xbar: mean gradient of the quantity watched (the entropy), by name or flat.
        ybar: mean gradient of the objective that the update climbs, likewise.
        eta: learning rate; never 0. A saved group's lr is 0.0 at the end of many schedules: give the one that is meant.
        preconditioner: gives P.

    Returns:
        The value and what supports or contradicts it. Sums are float64; on a sharded model collective, and the same on every rank.

    Raises:
        ProbeError: eta 0 or not finite; gradients that are not finite, with their names; another set of parameters.
    """
    _check_kind(preconditioner)
    rate = number(eta)
    if not rate:
        raise ProbeError(f"eta is {eta}, so delta-H1 would be {eta} too", fix="pass the learning rate that is meant: initial_lr, or the scheduler's")
    eta = rate
    sums = _sums(preconditioner, xbar, ybar)
    raw, done = sums["raw"], sums["done"]
    plausible = preconditioner.stats()["plausible_ratio"]
    ratio = done / raw if raw else (math.copysign(math.inf, done) if done else 1.0)
    mass_ratio = sums["mass"] / sums["raw_mass"] if sums["raw_mass"] else 1.0
    length = math.sqrt(sums["yy"]) * math.sqrt(sums["pp"])
    shares, raw_shares = _shares(sums, "mass", ""), _shares(sums, "raw_mass", "raw_")
    verdict = _verdict(preconditioner, sums, ratio, mass_ratio, plausible)
    findings = _findings(preconditioner, verdict, ratio, mass_ratio, plausible, shares, raw_shares)
    return DeltaH1(
        value=eta * done,
        eta=eta,
        bars_dot=done,
        bars_dot_identity=raw,
        ratio=ratio,
        mass_ratio=mass_ratio,
        plausible_ratio=plausible,
        verdict=with_warnings(verdict, (*preconditioner.findings, *findings)),
        shares=shares,
        raw_shares=raw_shares,
        cosine=sums["yp"] / length if length else 0.0,
        findings=findings,
    )


def _check_kind(preconditioner: object) -> None:
    if not isinstance(preconditioner, AdamPreconditioner):
        what = f"an AdamPreconditioner is expected, not a {type(preconditioner).__name__}"
        raise ProbeTypeError(what, where="delta_h1", fix="delta_h1(xbar, ybar, eta, preconditioner)")


def with_warnings(verdict: Verdict, findings: Iterable[Finding]) -> Verdict:
    """Return the verdict; `healthy, with warnings` where the numbers are healthy and a finding is more than a note."""
    return "healthy, with warnings" if verdict == "healthy" and any(finding.severity != "note" for finding in findings) else verdict


def _sums(pre: AdamPreconditioner, xbar: Gradients[Key], ybar: Gradients[Key2]) -> dict[str, float]:
    layout, ranks, diagonal = pre.layout, pre.ranks, pre.diagonal
    xs, ys = layout.flatten(xbar, what="xbar"), layout.flatten(ybar, what="ybar")
    if any(flat.ndim != 1 for flat in (*xs, *ys)):
        raise ProbeError("delta_h1 takes one gradient on each side, not a batch", where="xbar or ybar", fix="average over the samples first")
    device = layout.buffers[0].device
    total = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
    broken = torch.zeros(len(layout.members), dtype=torch.float64, device=device)
    for at, (member, item) in enumerate(zip(layout.members, pre.items)):
        start, size = member.start, member.stop - member.start
        whole = pre.updated(member, ys[member.buffer][start : member.stop]) if pre.form != "frozen" else None
        out = diagonal.is_identity(at, pre.form)
        here = torch.zeros(len(_SUMS), dtype=torch.float64, device=ys[member.buffer].device)
        for part in chunks(size, here.device):
            run = slice(start + part.start, start + part.stop)
            x, y = xs[member.buffer][run].to(torch.float64), ys[member.buffer][run].to(torch.float64)
            scale = diagonal.scale[member.buffer][run]
            nothing = diagonal.nothing[member.buffer]
            aside = torch.full_like(scale, out, dtype=torch.bool) if nothing is None or out or pre.form != "frozen" else nothing[run]
            here += _terms(x, y, y * scale if whole is None else whole[part], aside, _at_cap(scale, diagonal.rows[at].cap, pre.form) & ~aside)
        broken[at] = (~torch.isfinite(here[_SUMS.index("raw")] + here[_SUMS.index("yy")])).to(torch.float64)
        total += here.to(device) / ranks.copies(item.place)
    joined = ranks.total(torch.cat([total, broken])).tolist()
    bad = [member.name for member, flag in zip(layout.members, joined[len(_SUMS) :]) if flag]
    if bad:
        raise ProbeError(
            f"xbar or ybar is not finite in {len(bad)} parameters", where=", ".join(bad[:3]), fix="look at the losses that they came from"
        )
    return dict(zip(_SUMS, joined))


def _terms(x: Tensor, y: Tensor, p: Tensor, aside: Tensor, capped: Tensor) -> Tensor:
    raw, done = x * y, x * p
    raw_mass, mass = raw.abs(), done.abs()
    nought = torch.zeros((), dtype=torch.float64, device=x.device)
    return torch.stack(
        [
            raw.sum(),
            done.sum(),
            raw_mass.sum(),
            mass.sum(),
            torch.where(aside, mass, nought).sum(),
            torch.where(capped, mass, nought).sum(),
            torch.where(aside, raw_mass, nought).sum(),
            torch.where(capped, raw_mass, nought).sum(),
            torch.dot(y, y),
            torch.dot(p, p),
            torch.dot(y, p),
        ]
    )


def _at_cap(scale: Tensor, cap: float, form: str) -> Tensor:
    if math.isinf(cap) or form != "frozen":
        return torch.zeros_like(scale, dtype=torch.bool)
    return scale >= torch.tensor(cap, dtype=scale.dtype, device=scale.device)


def _shares(sums: Mapping[str, float], mass: str, prefix: str) -> dict[str, float]:
    total = sums[mass]
    identity, clamped = (sums[prefix + bucket] / total if total else 0.0 for bucket in ("identity", "clamped"))
    return {"preconditioned": 1.0 - identity - clamped if total else 0.0, "identity": identity, "clamped": clamped}


def _verdict(pre: AdamPreconditioner, sums: Mapping[str, float], ratio: float, mass_ratio: float, plausible: float) -> Verdict:
    if pre.diagonal.all_identity:
        return "identity"
    if sums["raw_mass"] == 0:
        return "empty"
    if pre.guards.healthy_ratio is not None:
        return "suspect" if abs(ratio) > pre.guards.healthy_ratio else "healthy"
    # Judged by mass: where the plain product cancels, its ratio to the preconditioned one says nothing of the preconditioner.
    within = mass_ratio > 0 and 1 / SPREAD <= mass_ratio / plausible <= SPREAD
    return "healthy" if within or pre.form == "less" else "suspect"


def _findings(
    pre: AdamPreconditioner,
    verdict: Verdict,
    ratio: float,
    mass_ratio: float,
    plausible: float,
    shares: Mapping[str, float],
    raw_shares: Mapping[str, float],
) -> tuple[Finding, ...]:
    out = []
    if verdict == "suspect":
        bound = (
            f"at most {pre.guards.healthy_ratio:g}"
            if pre.guards.healthy_ratio is not None
            else f"{plausible / SPREAD:.3g} to {plausible * SPREAD:.3g}"
        )
        text = f"preconditioning multiplies bars_dot by {ratio:.3g} and the size of its terms by {mass_ratio:.3g}; this state makes {bound} plausible"
        out.append(
            Finding(rule="ratio-implausible", severity="warning", text=text, fix="check with `ostate verify` that the state belongs to this adapter")
        )
    if verdict == "identity":
        text = "bars_dot is not preconditioned: too few parameters have a second moment"
        out.append(Finding(rule="coverage-too-low", severity="error", text=text, fix=FILL_OR_FREEZE))
    if verdict == "empty":
        out.append(
            Finding(
                rule="nothing-to-compare",
                severity="warning",
                text="no term of <Xbar, Ybar> is different from 0",
                fix="check whether lora_B is still zero",
            )
        )
    if verdict != "identity" and raw_shares["identity"] > 0.1 and shares["identity"] < 0.1 * raw_shares["identity"]:
        before, after = raw_shares["identity"], shares["identity"]
        text = f"parameters without a usable second moment make up {before:.0%} of the plain product, and {after:.2%} of the preconditioned one"
        out.append(
            Finding(
                rule="identity-vanishes",
                severity="warning",
                text=text,
                fix="their plain gradients are in other units: fill those parameters, or leave them out (fallback='zero')",
            )
        )
    return tuple(out)
