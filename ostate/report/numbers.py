"""One pass over a state's numbers: what the pictures show, a parameter at a time. numpy is imported inside functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.hyper import all_betas
from ostate.core.names import kind_of
from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Hyper
from ostate.core.tensors import TensorRef
from ostate.errors import ProbeError
from ostate.optimizers import OPTIMIZERS, step_of
from ostate.optimizers.moments import SECOND_MOMENTS, second_moment
from ostate.report.parts import GridPlace, places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

BIN = 0.05
"""Width of a bin, in decades."""
V_FROM, V_TO = -46.0, 12.0
SCALE_FROM, SCALE_TO = -8.0, 46.0
CAP = 1e3
"""The probe's clamp: this many times the median scale of a parameter's kind."""
_MOST = 1 << 20
"""Elements taken at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterNumbers:
    """What one parameter's state says, counted over its elements."""

    name: str
    place: GridPlace
    shape: tuple[int, ...]
    step: float | None
    elements: int = 0
    v: Counts
    """Elements by log10 of the second moment as stored; zeros are not among them."""
    scale: Counts
    """Elements by log10 of 1 / (sqrt(v_hat) + eps), units 1/grad; zeros and bad ones are not among them."""
    zeros: int = 0
    """Elements whose second moment is exactly zero."""
    bad: int = 0
    """Elements whose second moment is negative, or with a moment that is not finite."""
    eps_dominated: int = 0
    """Elements with 0 < sqrt(v_hat) < eps: the scale says more of eps than of v."""
    update: float | None = None
    """Root mean square of m_hat / (sqrt(v_hat) + eps): the step in units of the learning rate."""
    why_not: str = ""
    """Why there is no scale; empty: there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateNumbers:
    """The numbers of a whole state."""

    parameters: tuple[ParameterNumbers, ...]
    caps: Mapping[str, float]
    """Kind (`lora_A`, `head`, …) -> log10 of the clamp that the probe would use; a kind of which no scale is known has none."""

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(one.elements for one in self.parameters)

    def clamped(self, one: ParameterNumbers) -> int:
        """Return how many of the parameter's elements the clamp would touch, to a bin's width."""
        cap = self.caps.get(kind_of(one.name, len(one.shape)))
        return 0 if cap is None else int(one.scale[max(0, math.ceil((cap - SCALE_FROM) / BIN)) :].sum())


def measure(state: NamedState) -> StateNumbers:
    """Read every number of a state once.

    Args:
        state: the named state.

    Raises:
        ReadError: a tensor cannot be read.
    """
    where = places(state.parameters)
    out = [_of(state, parameter, where[name]) for name, parameter in state.parameters.items()]
    return StateNumbers(parameters=tuple(out), caps=_caps(out))


def _caps(numbers: Sequence[ParameterNumbers]) -> dict[str, float]:
    scales: dict[str, Counts] = {}
    for one in numbers:
        kind = kind_of(one.name, len(one.shape))
        scales[kind] = scales[kind] + one.scale if kind in scales else one.scale
    middles = {kind: median(counts, SCALE_FROM) for kind, counts in scales.items()}
    return {kind: middle + math.log10(CAP) for kind, middle in middles.items() if middle is not None}


def median(counts: Counts, start: float) -> float | None:
    """Return the median of counted decades, to a bin's width; None: nothing was counted."""
    return quantile(counts, start, 0.5)


def quantile(counts: Counts, start: float, share: float) -> float | None:
    """Return the decade below which `share` of the elements lie, to a bin's width; None: nothing was counted."""
    total = int(counts.sum())
    if not total:
        return None
    at = int((counts.cumsum() < share * total).sum())
    return start + (at + 0.5) * BIN


def _empty(start: float, stop: float) -> Counts:
    return np.zeros(round((stop - start) / BIN), np.int64)


def _of(state: NamedState, parameter: NamedParameter, place: GridPlace) -> ParameterNumbers:
    hyper = state.hyper(parameter.name)
    spec = OPTIMIZERS.get(state.optimizer)
    step = parameter.step if spec is None else step_of(spec, parameter.step, hyper)
    v_counts, scale_counts = _empty(V_FROM, V_TO), _empty(SCALE_FROM, SCALE_TO)
    zeros = bad = tiny = elements = 0
    squares, why_not, moved = 0.0, "", True
    for tensors, shape in _pieces(parameter, whole=spec is None or not SECOND_MOMENTS[spec.moment].elementwise):
        count = math.prod(shape)
        elements += count
        try:
            moment = second_moment(state.optimizer, tensors, hyper, step=step, shape=shape, dtype=parameter.dtype)
        except ProbeError as error:
            why_not, moved = error.what, False
            continue
        sound = np.isfinite(moment.v) & (moment.v >= 0)
        if "exp_avg" in tensors:
            sound &= np.isfinite(tensors["exp_avg"]).reshape(sound.shape)
        v = moment.v[sound]
        bad += count - v.size
        positive = v > 0
        zeros += v.size - int(positive.sum())
        root = np.sqrt(v / moment.correction)
        tiny += int((positive & (root < moment.eps)).sum())
        _count(v_counts, v[positive], V_FROM)
        _count(scale_counts, 1.0 / (root[positive] + moment.eps), SCALE_FROM)
        size = _update(tensors, sound, root, moment.eps, hyper, step)
        moved = moved and size is not None
        squares += size or 0.0
    return ParameterNumbers(
        name=parameter.name,
        place=place,
        shape=parameter.shape,
        step=step,
        elements=elements,
        v=v_counts,
        scale=scale_counts,
        zeros=zeros,
        bad=bad,
        eps_dominated=tiny,
        update=math.sqrt(squares / (elements - bad)) if moved and elements > bad else None,
        why_not=why_not,
    )


def _pieces(parameter: NamedParameter, *, whole: bool) -> Iterator[tuple[Mapping[str, np.ndarray], tuple[int, ...]]]:
    """Yield (slots, shape) over the whole parameter; in chunks where it is long and every slot lies in one run."""
    alone = all(isinstance(slot, TensorRef) and slot.run is not None and slot.shape == parameter.shape for slot in parameter.slots.values())
    if whole or not alone or math.prod(parameter.shape) <= _MOST:
        yield {name: slot.read() for name, slot in parameter.slots.items()}, parameter.shape
        return
    names = list(parameter.slots)
    for chunks in zip(*(slot.chunks(_MOST) for slot in parameter.slots.values())):
        yield dict(zip(names, chunks)), (chunks[0].size,)


def _count(counts: Counts, values: np.ndarray, start: float) -> None:
    bins = np.clip(((np.log10(values) - start) / BIN).astype(np.int64), 0, counts.size - 1)
    counts += np.bincount(bins.reshape(-1), minlength=counts.size)


def _update(tensors: Mapping[str, np.ndarray], sound: np.ndarray, root: np.ndarray, eps: float, hyper: Hyper, step: float | None) -> float | None:
    """Return the sum of squares of m_hat / (sqrt(v_hat) + eps); an element without gradient ever (0/0) does not move."""
    beta1 = (*all_betas(hyper), None)[0]
    if "exp_avg" not in tensors or beta1 is None or step is None or step < 1:
        return None
    m = tensors["exp_avg"].astype(np.float64).reshape(sound.shape)[sound] / (1.0 - beta1**step)
    denominator = root + eps
    moved = np.divide(m, denominator, out=np.zeros_like(m), where=denominator > 0)
    return float(np.dot(moved, moved))
