"""Moments and weights as the laws want them: float32, finite, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.model import Adapter, Hyper, RawState
from ostate.optimizers import OPTIMIZERS
from ostate.ordering import laws
from ostate.ordering.modules import Module, canonical

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Moments:
    """First moment, root of the second, update direction; one shape, float32."""

    m: Array
    root: Array
    u: Array


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads moments under the shape of the key that they are compared with."""

    raw: RawState
    adapter: Adapter
    thin: bool = False
    """True when wide factors are compared by a few mixtures of their rows."""

    def moments(self, position: int, like: str, module: Module | None, *, zero: bool = False) -> Moments:
        """Return the moments of a position as if it belonged to the key `like`; zeros where they are not finite."""
        shape = self.adapter.tensors[like].shape
        entry = self.raw.entries[position]
        m, v = (np.asarray(entry.slots[slot].with_shape(shape).read(), np.float32) for slot in ("exp_avg", "exp_avg_sq"))
        if not (_finite(m) and _finite(v)):
            m, v = np.zeros_like(m), np.zeros_like(v)
        hyper = self.raw.groups[entry.group].hyper
        root = np.maximum(v, 0)
        np.sqrt(root, out=root)
        u = laws.update_direction(m, root, step=entry.step, betas=betas_of(hyper), eps=float(hyper.get("eps") or 1e-8))
        if module is None:
            return Moments(m, root, u)
        return Moments(*(canonical(array, zero=zero, flipped=module.flipped) for array in (m, root, u)))

    def second_moment(self, position: int) -> Array:
        """Return v of a position, float32."""
        return np.asarray(self.raw.entries[position].slots["exp_avg_sq"].read(), np.float32)

    def weight(self, key: str, module: Module, *, zero: bool) -> Array:
        """Return a factor of the adapter in canonical form, (w, n), float32; zeros where it is not finite."""
        values = np.asarray(self.adapter.tensors[key].read(), np.float32)
        return canonical(values if _finite(values) else np.zeros_like(values), zero=zero, flipped=module.flipped)

    def decay(self, position: int) -> float:
        """Return the weight of the parameter itself in its first moment: wd * (1 - beta1^t) where decay acts through the gradient, else 0."""
        entry = self.raw.entries[position]
        hyper = self.raw.groups[entry.group].hyper
        spec = OPTIMIZERS.get(self.raw.optimizer)
        if spec is None or spec.decay != "l2" or hyper.get("decoupled_weight_decay") is True:
            return 0.0
        remembered = 1.0 - betas_of(hyper)[0] ** entry.step if entry.step else 1.0
        return float(hyper.get("weight_decay") or 0.0) * float(remembered)


def _finite(values: Array) -> bool:
    """True when all are; NaN and infinities show in the smallest or the largest, which cost a tenth of asking each element."""
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def betas_of(hyper: Hyper) -> tuple[float, float]:
    """Return (beta1, beta2) of a group, torch's defaults where it says nothing: the tests need them roughly, for the bias corrections."""
    betas = hyper.get("betas") or (hyper.get("beta1", 0.9), hyper.get("beta2", 0.999))
    return float(betas[0]), float(betas[1])
