"""Are the moments of a state those of the LoRA weights in the live model? A randomisation test over the latent dimensions.

The r latent dimensions of a pair W = B A have no names: for a signed permutation g of them, A -> g A and B -> B g^T leave the model, and
peft's default start, as they were, and elementwise optimizers carry m and v along. So moments of another run stand in a g that is uniformly
random relative to the live weights, and moments of this run stand in theirs. Two statistics, each compared with its values under random g
(10,000 draws, fixed seed), summed over pairs:

* displacement: trace(-B^T m_B / sqrt(v_B)); B started at zero, so it is the sum of its own updates. Strong from the first step, fades late.
* balance: <B^T m_B, m_A A^T>; the loss sees A and B through B A alone, so the two are equal step by step. Weak in the first steps, then near exact.

Nothing is fitted, and no name is proven here: this only tells a run from another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ostate.core.naming import NamedState
from ostate.core.state import Finding

from ..precondition.shards import is_sharded

DRAWS = 10_000
SMALLEST_CHANCE = 1e-3
"""A chance below this: this run. Above it, with `ENOUGH_DIGITS`: another one; one in a thousand other runs passes."""
ENOUGH_DIGITS = 5.0
"""Decimal digits of possible g over all pairs, under which chance could look like anything (two pairs of rank 4 have 5.2)."""
_WANTED_DIGITS = 24.0
_FEWEST, _MOST = 6, 48
"""Pairs that are read."""
_DIMENSIONS = 16
"""Latent dimensions that are turned; the others of a larger rank stay: a subgroup is as exact."""
_BALANCED = 1 / 3
"""Median |L - R| / (|L| + |R|) of balance under which no run is called another one: another run has .5 to 1, the own one at step 200 under .1."""
_FIRST_STEPS = 2
"""Updates after which lora_B may still be zero: a warm-up begins with a learning rate of 0."""

_FIX = "load the adapter that was saved with this state: same run, same step; `ostate verify STATE --adapter DIR` says more"


class FactorPair(NamedTuple):
    """One module's factors and their moments, float64 on the CPU: A (r, in), B (out, r)."""

    a: Tensor
    b: Tensor
    m_a: Tensor
    m_b: Tensor
    v_b: Tensor


class RunScore(NamedTuple):
    """What the pairs say together."""

    chance: float
    """Of so good a fit under a random g: twice the smaller of the two tests' chances."""
    digits: float
    """log10 of the number of possible g."""
    residual: float
    """Median over pairs of |L - R| / (|L| + |R|), L = B^T m_B, R = m_A A^T; 0 to 1."""
    untrained: bool
    """True when every lora_B is zero."""


def chosen(state: NamedState, model: nn.Module, parameters: Sequence[tuple[str, Tensor]], entries: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the live names of lora_A and lora_B of the modules to compare: those that both tests apply to, spread over the model.

    Args:
        state: the named state.
        model: the live model.
        parameters: (plain live name, parameter), as matched.
        entries: live name -> name in the state.
    """
    live = {name: parameter for name, parameter in parameters if name in entries}
    names = list(_pairs(state, model, live, entries))
    if not names:
        return []
    rank = min(live[a].shape[0] for a, _ in names)
    each = (math.lgamma(rank + 1) + rank * math.log(2)) / math.log(10)
    count = min(len(names), _MOST, max(_FEWEST, math.ceil(_WANTED_DIGITS / each)))
    return [names[at * len(names) // count] for at in range(count)]


def wanted(names: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Return (live name, slot) of the moments that `findings` asks for."""
    return frozenset((name, slot) for a, b in names for name, slot in ((a, "exp_avg"), (b, "exp_avg"), (b, "exp_avg_sq")))


def findings(
    names: Sequence[tuple[str, str]], parameters: Sequence[tuple[str, Tensor]], moments: Mapping[tuple[str, str], Tensor], *, step: float | None
) -> tuple[Finding, ...]:
    """Return a warning when the moments are of another run than the live weights; nothing where they fit, or where nothing can be said.

    Args:
        names: as `chosen` gives them.
        parameters: (plain live name, parameter).
        moments: (live name, slot) -> numbers, for all that are `wanted`.
        step: the fewest updates that any of these parameters took; None: unknown.
    """
    if not names:
        return ()
    live = dict(parameters)
    found = compare(
        [_pair(live[a].detach(), live[b].detach(), moments[a, "exp_avg"], moments[b, "exp_avg"], moments[b, "exp_avg_sq"]) for a, b in names]
    )
    if found.untrained:
        if step is None or step <= _FIRST_STEPS:
            return ()
        text = "every lora_B of the live model is zero, and the state has taken steps: no trained adapter was loaded"
        return (Finding(rule="state-of-another-run", severity="warning", text=text, fix=_FIX),)
    if found.chance <= SMALLEST_CHANCE or found.digits < ENOUGH_DIGITS or found.residual < _BALANCED:
        return ()
    text = f"the state's moments do not belong to the adapter in the live model: their fit is what chance gives ({found.chance:.2g})"
    return (Finding(rule="state-of-another-run", severity="warning", text=text, fix=_FIX),)


def compare(pairs: Sequence[FactorPair]) -> RunScore:
    """Return how well the moments of all pairs fit the weights, against random turns of their latent dimensions."""
    generator = torch.Generator().manual_seed(0)
    displaced, balanced = torch.zeros(2, DRAWS + 1, dtype=torch.float64)
    digits, residuals = 0.0, []
    for pair in pairs:
        order, sign = _turns(min(pair.a.shape[0], _DIMENSIONS), generator)
        left, right = pair.b.T @ pair.m_b, pair.m_a @ pair.a.T
        displaced += _standard(_displacement(pair, order, sign))
        balanced += _standard(_balance(left, right, order, sign))
        digits += (math.lgamma(order.shape[1] + 1) + order.shape[1] * math.log(2)) / math.log(10)
        size = float(left.norm() + right.norm())
        residuals.append(float((left - right).norm()) / size if size else 1.0)
    chances = [float((total >= total[0]).sum()) / len(total) for total in (displaced, balanced)]
    return RunScore(min(1.0, 2 * min(chances)), digits, sorted(residuals)[len(residuals) // 2], all(not bool(pair.b.any()) for pair in pairs))


def _turns(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return signed permutations, the identity first: order (draws, n) int64 and sign (draws, n) float64."""
    order = torch.rand(DRAWS, n, generator=generator).argsort(dim=1)
    sign = 2.0 * torch.randint(0, 2, (DRAWS, n), generator=generator).to(torch.float64) - 1.0
    return torch.cat([torch.arange(n)[None], order]), torch.cat([torch.ones(1, n, dtype=torch.float64), sign])


def _displacement(pair: FactorPair, order: Tensor, sign: Tensor) -> Tensor:
    update = torch.where(pair.v_b > 0, pair.m_b / pair.v_b.sqrt(), 0.0)
    along = -(pair.b.T @ update)
    return (along[torch.arange(order.shape[1]), order] * sign).sum(1)


def _balance(left: Tensor, right: Tensor, order: Tensor, sign: Tensor) -> Tensor:
    """Return <L g^T, g R> for each g, which turns the first n dimensions and leaves the rest."""
    n = order.shape[1]
    at = torch.arange(n)
    turned_left = left[:n, :n][:, order].movedim(1, 0) * sign[:, None, :]
    turned_right = right[:n, :n][order] * sign[:, :, None]
    inner = (turned_left * turned_right).flatten(1).sum(1)
    below, beside = left[n:, :n].T @ right[n:, :n], left[:n, n:] @ right[:n, n:].T
    return inner + (below[order, at] * sign).sum(1) + (beside[at, order] * sign).sum(1)


def _standard(values: Tensor) -> Tensor:
    """Return the values in units of their own spread; zeros where all are one number (nothing to tell)."""
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 1e-9 * float(values.abs().max()) else torch.zeros_like(values)


def _pairs(state: NamedState, model: nn.Module, live: Mapping[str, Tensor], entries: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the live names of lora_A and lora_B of each module to which balance and displacement both apply."""
    ranks = {id(parameter): _rank(model, name) for name, parameter in model.named_parameters() if ".lora_A." in name}
    for a, parameter in live.items():
        b = a.replace(".lora_A.", ".lora_B.")
        if ".lora_A." not in a or not a.endswith(".weight") or b not in live:
            continue
        both = (parameter, live[b])
        rank = parameter.shape[0]
        if any(is_sharded(p) or p.is_meta for p in both) or live[b].numel() != live[b].shape[0] * rank or (ranks.get(id(parameter)) or rank) != rank:
            continue
        kept = [state.parameters[entries[name]] for name in (a, b)]
        hyper = [state.hyper(entries[name]) for name in (a, b)]
        coupled = state.optimizer == "adam" and any(group.get("weight_decay") for group in hyper)
        if not coupled and hyper[0].get("betas") == hyper[1].get("betas") and all({"exp_avg", "exp_avg_sq"} <= set(entry.slots) for entry in kept):
            yield a, b


def _rank(model: nn.Module, name: str) -> int | None:
    """Return the adapter's r as peft keeps it: experts in one tensor have more rows, block by block, and no common latent dimensions."""
    stem, _, rest = name.partition(".lora_A.")
    ranks = getattr(model.get_submodule(stem), "r", None)
    return ranks.get(rest.removesuffix(".weight")) if isinstance(ranks, Mapping) else None


def _pair(a: Tensor, b: Tensor, m_a: Tensor, m_b: Tensor, v_b: Tensor) -> FactorPair:
    rank = a.shape[0]
    wide, tall = (rank, a.numel() // rank), (b.shape[0], rank)
    return FactorPair(
        *(tensor.to("cpu", torch.float64).reshape(shape) for tensor, shape in ((a, wide), (b, tall), (m_a, wide), (m_b, tall), (v_b, tall)))
    )
