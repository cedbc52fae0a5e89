"""Self-normalised importance weights for a batch that an earlier policy sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ostate.core.brief import brief
from ostate.core.state import Finding
from ostate.errors import ProbeError


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ImportanceWeights:
    """Weights that sum to 1, and how far to trust them."""

    weights: Tensor
    """(n,), float64, sum 1."""
    ess: float
    """Effective sample size, 1 / sum(w**2), between 1 and n."""
    ess_share: float
    """ess / n."""
    ess_unclipped: float
    """The same had nothing been clipped."""
    largest: float
    """Largest weight."""
    clipped: int
    """Sequences whose log ratio was clipped."""
    log_ratio_range: tuple[float, float]
    """Smallest and largest log ratio, before clipping."""
    findings: tuple[Finding, ...] = ()
    """What a person should know of the weights."""

    def __repr__(self) -> str:
        return brief(self)


def importance_weights(
    logp_new: Tensor,
    logp_old: Tensor,
    *,
    top_p: float,
    top_k: int | None,
    temperature: float,
    kept_mass: Tensor | None = None,
    logp_old_temperature: float = 1.0,
    clip: float | None = None,
) -> ImportanceWeights:
    """Return w_i proportional to p_new(y_i) / q(y_i), q being what the batch was sampled from.

    Args:
        logp_new: log-probability of each sequence under the new parameters; (n,); nats.
        logp_old: under the old ones, of the full distribution at `logp_old_temperature`; (n,); nats.
        top_p: nucleus that the sampler kept; 1.0: all.
        top_k: tokens that the sampler kept; None or 0: all.
        temperature: of the sampler.
        kept_mass: what truncation kept of the old distribution: (n,) the product over a sequence, or (n, T) token by token (1 where padded).
        logp_old_temperature: the temperature at which logp_old was taken.
        clip: largest |log ratio| let through; None: no clipping.

    Raises:
        ProbeError: truncated sampling without the kept mass; another temperature; shapes that differ; numbers that are not finite.

    Source: a truncated sampler draws from q = p_old / S on the kept tokens, so p_new / q = p_new * S / p_old. S is a product over a sequence's
    positions and differs from sequence to sequence: self-normalisation cancels only what all sequences share.
    """
    if logp_new.shape != logp_old.shape or logp_new.ndim != 1 or logp_new.numel() == 0:
        raise ProbeError(
            f"one log-probability per sequence is expected on both sides, not {tuple(logp_new.shape)} and {tuple(logp_old.shape)}",
            fix="sum over tokens",
        )
    _check_sampler(top_p, top_k, temperature, logp_old_temperature)
    truncated = top_p < 1.0 or bool(top_k)
    log_ratio = logp_new.detach().to(torch.float64) - logp_old.detach().to(torch.float64)
    if truncated:
        log_ratio = log_ratio + _log_kept(kept_mass, log_ratio.numel(), top_p, top_k).to(log_ratio.device)
    if not bool(torch.isfinite(log_ratio).all()):
        raise ProbeError("a log ratio is not finite", fix="a sequence has probability 0 under one of the two: look at its tokens")
    held = log_ratio if clip is None else log_ratio.clamp(-clip, clip)
    weights = torch.softmax(held, 0)
    free = torch.softmax(log_ratio, 0)
    ess, n = 1.0 / float((weights * weights).sum()), weights.numel()
    return ImportanceWeights(
        weights=weights,
        ess=ess,
        ess_share=ess / n,
        ess_unclipped=1.0 / float((free * free).sum()),
        largest=float(weights.max()),
        clipped=int((held != log_ratio).sum()),
        log_ratio_range=(float(log_ratio.min()), float(log_ratio.max())),
        findings=_findings(ess, n, int((held != log_ratio).sum()), truncated),
    )


def _check_sampler(top_p: float, top_k: int | None, temperature: float, logp_old_temperature: float) -> None:
    if temperature != logp_old_temperature:
        raise ProbeError(
            f"the batch was sampled at temperature {temperature:g}, logp_old was taken at {logp_old_temperature:g}: their ratio is not p_new / q",
            fix="take logp_old at the sampler's temperature and say so with logp_old_temperature",
        )
    if not 0 < top_p <= 1 or (top_k is not None and top_k < 0) or not temperature > 0:
        raise ProbeError(f"no sampler has top_p={top_p}, top_k={top_k}, temperature={temperature}")


def _log_kept(kept_mass: Tensor | None, n: int, top_p: float, top_k: int | None) -> Tensor:
    if kept_mass is None:
        raise ProbeError(
            f"the batch was sampled with top_p={top_p:g}, top_k={top_k}, so logp_old is not what it was drawn from: the kept mass S multiplies each "
            "weight, differs by sequence, and does not cancel under self-normalisation",
            fix="sample with top_p=1 and no top_k, or pass kept_mass",
        )
    mass = kept_mass.detach().to(torch.float64)
    if mass.shape[0] != n or mass.ndim not in (1, 2):
        raise ProbeError(f"kept_mass has shape {tuple(mass.shape)}; expected ({n},) or ({n}, tokens)")
    if not bool(((mass > 0) & (mass <= 1 + 1e-6)).all()):
        raise ProbeError("kept_mass must lie in (0, 1]")
    log_mass = mass.log()
    return log_mass.sum(1) if log_mass.ndim == 2 else log_mass


def _findings(ess: float, n: int, clipped: int, truncated: bool) -> tuple[Finding, ...]:
    out = []
    if n > 1 and ess < max(2.0, math.sqrt(n) / 2):
        text = f"the effective sample size is {ess:.1f} of {n}: a few sequences decide the estimate"
        out.append(Finding(rule="few-effective-samples", severity="warning", text=text, fix="a smaller step, or a larger batch"))
    if clipped:
        out.append(Finding(rule="weights-clipped", severity="warning", text=f"{clipped} of {n} log ratios were clipped: the estimate is biased"))
    if truncated:
        text = "the sampler never draws outside what it kept: the estimate is over the kept tokens only"
        out.append(Finding(rule="truncated-support", severity="note", text=text))
    return tuple(out)
