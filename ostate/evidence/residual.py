"""Residuals of balance, as the gauge tests rank them, and balance where L2 decay acts through the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PROJECTED = 2
"""In blocks up to this size the four drift directions would leave nothing of L and R."""
FLOOR = 1e-3
"""Smallest residual that counts as above zero, and smallest spread of a statistic over the group that counts as any: far above rounding."""
RIDGE = 1e-9
"""Added to the Gram matrix of the drift directions, each of norm 1: directions that depend on each other add nothing."""
TINY = 1e-300


class Products(NamedTuple):
    """What one look at B modules of one rank leaves, float64; zeros for what is not known.

    The first index of L and D belongs to the weight, the second to the moment; of R the other way round.
    """

    displacement: Array
    """D = -B^T u_B, (B, r, r); zeros where the start of the zero factor is not known."""
    left: Array
    """L = B^T m_B, (B, r, r)."""
    right: Array
    """R = m_A A^T, (B, r, r)."""
    zero_drift: Array
    """u_B^T m_B, (B, r, r), both indices the moment's."""
    other_drift: Array
    """m_A u_A^T, (B, r, r), both indices the moment's."""
    zero_noise: Array
    """Column sums of sqrt(v_B), (B, r)."""
    other_noise: Array
    """Row sums of sqrt(v_A), (B, r)."""
    zero_decay: Array | None = None
    """What L2 decay inside the gradient adds to L where the moments are the module's own: d B^T B, (B, r, r). None, of both: there is none."""
    other_decay: Array | None = None
    """The same of R: d A A^T, (B, r, r)."""

    def block(self, chosen: slice, modules: slice) -> Products:
        """Return the (chosen, chosen) parts of some modules."""
        cut = (None if part is None else part[modules, chosen] if part.ndim == 2 else part[modules, chosen, chosen] for part in self)
        return Products(*cut)  # type: ignore[arg-type]


def standardised(values: Array) -> Array:
    """Return values (B, |group|) less their mean, in standard deviations, near zero where they hardly differ."""
    centred = values - values.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + FLOOR**2))


def log_residual(lefts: Array, rights: Array, cross: Array, nothing: Array) -> Array:
    """Return -log |l - r| / (|l| + |r|) from |l|^2, |r|^2 and <l, r>, with floors: what is as small as `nothing` is as good as unrelated."""
    lefts, rights = np.maximum(lefts, 0) + nothing, np.maximum(rights, 0) + nothing
    size = lefts + rights + 2 * np.sqrt(lefts * rights)
    apart = np.maximum(lefts + rights - 2 * cross, 0) + FLOOR**2 * size + 2 * nothing
    return np.asarray(0.5 * np.log((size + TINY) / (apart + TINY)))


def diagonal(noise: Array) -> Array:
    """Return (B, r) as diagonal matrices (B, r, r)."""
    return np.asarray(noise[:, :, None] * np.eye(noise.shape[1]))


def beside_decay(parts: Products, half: Array, *, zero: bool, other: bool) -> Array:
    """Return balance (B, |group|) of L g^T - d B^T B and g R - d A A^T, as `gauge` has it without decay, every g written out.

    What decay adds is the weights' own and stays as it is where the moments are turned. Subtracted before, it would be turned with them, and where
    gradients are small beside it the identity would fit best whosever moments they are.

    Args:
        parts: scaled.
        half: g_ab, (|group| / 2, b * b), one of each pair (g, -g).
        zero: the zero factor's moments are turned.
        other: the other one's are.
    """
    assert parts.zero_decay is not None
    assert parts.other_decay is not None
    count, size = parts.left.shape[:2]
    elements = np.concatenate([half, -half]).reshape(-1, size, size)
    back = elements.swapaxes(1, 2)
    left, right = parts.left[:, None] @ back if zero else parts.left[:, None], elements @ parts.right[:, None] if other else parts.right[:, None]
    both = (left - parts.zero_decay[:, None], right - parts.other_decay[:, None])
    one, two = (np.broadcast_to(side, (count, *elements.shape)).reshape(count, len(elements), -1) for side in both)
    forms = [((one * one).sum(axis=2), (two * two).sum(axis=2), (one * two).sum(axis=2))]
    nothing = FLOOR**2 * (forms[0][0] + forms[0][1])
    if size > PROJECTED:
        drifts = ((parts.zero_drift, zero), (diagonal(parts.zero_noise), zero), (parts.other_drift, other), (diagonal(parts.other_noise), other))
        turned = [elements @ each[:, None] @ back if turn else each[:, None] for each, turn in drifts]
        spans = np.stack([np.broadcast_to(each, (count, *elements.shape)) for each in turned], axis=2).reshape(count, len(elements), len(drifts), -1)
        gram = spans @ spans.swapaxes(2, 3) + RIDGE * np.eye(len(drifts))
        ones, twos = ((spans @ side[..., None])[..., 0] for side in (one, two))
        first, second = (np.linalg.solve(gram, each[..., None])[..., 0] for each in (ones, twos))
        lost = ((ones * first).sum(axis=2), (twos * second).sum(axis=2), (ones * second).sum(axis=2))
        forms.append((forms[0][0] - lost[0], forms[0][1] - lost[1], forms[0][2] - lost[2]))
    return np.asarray(sum(standardised(log_residual(*form, nothing)) for form in forms))
