"""Exact tests of whether moments and weights share one gauge (docs/evidence.md).

The r latent dimensions of a LoRA pair have no names of their own: for a signed permutation g the model stays the same under A -> g A,
B -> B g^T, elementwise optimizers carry the change along, and a start with independent symmetric rows (B zero) has the same law before and
after. So each module has a gauge of its own, drawn at its start. Moments of another module stand in a gauge that is uniformly random relative
to this one's; moments of this module stand in this one's. Let g act on the moments, and ask how many g fit better than none: under
"another's moments" the answer is uniform over 1 … |group|. Nothing is fitted.

Blocks. A group of 2^r r! elements is too large from r = 6 on, so g acts within blocks of latent dimensions. Write the relative gauge as h = x c
with x block diagonal and c a fixed choice from x's coset: given c, x is uniform, its blocks x_b independent. The (b, b) parts of D h^T, L h^T,
h R and h (.) h^T are those of D c^T, L c^T, c R and c (.) c^T, turned by x_b alone. So a statistic of the (b, b) parts has a rank that depends on
x_b alone: uniform, and independent from block to block, given c and therefore without it.

Source: docs/evidence.md, "The symmetry"; randomisation tests: Lehmann & Romano, Testing Statistical Hypotheses, 15.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ostate.evidence.residual import FLOOR, PROJECTED, RIDGE, Products, beside_decay, diagonal, log_residual, standardised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BLOCK = 4
"""Latent dimensions that signed permutations mix: 384 elements, 2.6 digits a block. Rank 5 stays whole: 3,840."""
SIGNED = 8
"""Latent dimensions whose signs alone are turned together: 256 elements."""
TIE = 1e-6
"""In standard deviations of the statistic; what is no farther below the identity's counts as equal to it. Rounding is below 1e-9."""
TOGETHER = 25_000
"""Values of a statistic that are held at a time: 200 KB an array, so that the few that are needed at once stay in a core's own cache."""


class Ranked(NamedTuple):
    """Where the claimed gauge stands among all of a group."""

    rank: int
    """Elements whose statistic is at least the identity's, itself included. Ties count, so 1 is best."""
    size: int
    """Elements of the group; 1 where the statistic is the same for all of them, which tells nothing whichever the true one is."""
    balance_rank: int = 0
    """The same by balance alone. Late in a run weights may move against their last update, and displacement then favours the wrong sign."""
    balance_size: int = 0
    """Values that balance has over the group: half its elements where g and -g are the same to it; 0 where only one of the two was asked."""
    sign_rank: int = 0
    """The same by displacement alone, among the elements that change signs and mix nothing: a group of its own, so its rank is uniform too.
    Early in a run gradients have few directions, so that latent dimensions look alike and balance lags behind; their signs still show. Where the
    other factor's moments alone are turned, by how nearly g R lies along L, on whichever side: a batch against the last one turns L about."""
    sign_size: int = 0
    """Elements of that group, of which g and -g count once where a side says nothing; 0 where they were not asked, or nothing else was."""


class _GaugeGroup(NamedTuple):
    """A group of signed permutations g of a few dimensions, as far as one of each pair (g, -g): the identity is the first."""

    linear: Array
    """g_ab, (half, b * b)."""
    products: Array
    """g_i g_j for i <= j, as far as they are not zero for every element, (half, q)."""
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    """The q pairs (i, j) of flat indices."""
    signs: int
    """Elements, the first ones, that change signs and mix nothing."""


def whole(products: Products, *, signs_only: bool = False) -> list[tuple[Ranked, ...]]:
    """Return one rank per block of each module, for "both factors' moments stand in one other gauge": m_B -> m_B g^T, m_A -> g m_A.

    D, L, R become D g^T, L g^T, g R, and the drifts g (.) g^T. Statistic: trace D g^T, -log of the residual of balance, and in blocks larger
    than 2 the same with the drift's directions projected out, each standardised over the group, added. Of one dimension balance says nothing.

    Args:
        products: of B modules of one rank, each at the place it is claimed for.
        signs_only: g is diagonal, for starts whose latent dimensions are not exchangeable (PiSSA, OLoRA, EVA: singular values in order).
    """
    return _ranked(products, _whole, signs_only=signs_only)


def zero(products: Products, *, signs_only: bool = False) -> list[tuple[Ranked, ...]]:
    """Return the same for "only the zero factor's moments are another's": D g^T, L g^T, R held."""
    return _ranked(products, _zero, signs_only=signs_only)


def other(products: Products, *, signs_only: bool = False) -> list[tuple[Ranked, ...]]:
    """Return the same for "only the other factor's moments are another's": g R, L held."""
    return _ranked(products, _other, signs_only=signs_only)


def moved(displacement: Array, *, signs_only: bool = False) -> list[tuple[Ranked, ...]]:
    """Return the same by the trace of D g^T alone, for what no balance is known of.

    Args:
        displacement: D, (B, r, r), the first index the weight's, the second the moment's.
        signs_only: as above.
    """
    nothing, none = np.zeros_like(displacement), np.zeros(displacement.shape[:2])
    return _ranked(Products(displacement, nothing, nothing, nothing, nothing, none, none), _displaced, signs_only=signs_only)


def blocks_of(rank: int, *, signs_only: bool = False) -> list[slice]:
    """Return the blocks into which r latent dimensions are cut."""
    most = SIGNED if signs_only else BLOCK + (rank == BLOCK + 1)
    return [slice(start, min(start + most, rank)) for start in range(0, rank, most)]


_Statistic = Callable[[Products, _GaugeGroup], "tuple[Array, Array, Array | None]"]
"""Displacement, balance, and what the signs are asked of where that is not displacement."""


def _ranked(products: Products, statistic: _Statistic, *, signs_only: bool) -> list[tuple[Ranked, ...]]:
    count, rank = products.left.shape[:2]
    columns = []
    for chosen in blocks_of(rank, signs_only=signs_only):
        group = _group(chosen.stop - chosen.start, signs_only)
        ranks: list[Ranked] = []
        for modules in _batches(count, 2 * len(group.linear)):
            ranks += _rank_all(*statistic(_scaled(products.block(chosen, modules)), group), group.signs)
        columns.append(ranks)
    return list(zip(*columns))


def _rank_all(moved: Array, balance: Array, along: Array | None, signs: int) -> list[Ranked]:
    """Return the rank of the identity, the first column, in both together, in balance alone, and in displacement alone among the signs.

    Which of the two is the same for all elements is the same whichever of them is the true one, so it may decide what is asked.

    Args:
        moved: (B, |group|), of all g and then of all -g.
        balance: (B, |group|) likewise, or (B, |group| / 2) where g and -g have one value.
        along: (B, signs), what is asked of the signs in displacement's place where that is the same for all.
        signs: elements that change signs alone, the first of either half.
    """
    size = moved.shape[1]
    turned = np.concatenate([moved[:, :signs], moved[:, size // 2 : size // 2 + signs]], axis=1) if along is None else along
    together = _ranks_of_first(moved + np.tile(balance, size // balance.shape[1]))
    by_balance, by_signs, by_displacement = _ranks_of_first(balance), _ranks_of_first(turned), _ranks_of_first(moved)
    found = []
    for at, (still, unbalanced) in enumerate(zip(_is_flat(moved), _is_flat(balance))):
        if still and unbalanced:
            found.append(Ranked(1, 1))
            continue
        asked = by_balance[at] if still else by_displacement[at] if unbalanced else together[at]
        apart = (0, 0) if still or unbalanced else by_balance[at]
        if along is None:
            signed = (0, 0) if still or (unbalanced and turned.shape == moved.shape) else by_signs[at]
        else:
            signed = (0, 0) if unbalanced else by_signs[at]
        found.append(Ranked(*asked, *apart, *signed))
    return found


def _is_flat(values: Array) -> list[bool]:
    flat: list[bool] = (values.max(axis=1) - values.min(axis=1) <= TIE).tolist()
    return flat


def _ranks_of_first(values: Array) -> list[tuple[int, int]]:
    """Return of each row the (rank of its first number, numbers)."""
    size = values.shape[1]
    return [(rank, size) for rank in np.count_nonzero(values >= values[:, :1] - TIE, axis=1).tolist()]


def _batches(count: int, size: int) -> Iterator[slice]:
    step = max(TOGETHER // size, 1)
    return (slice(start, start + step) for start in range(0, count, step))


@lru_cache(maxsize=16)
def _group(size: int, signs_only: bool) -> _GaugeGroup:
    orders = [tuple(range(size))] if signs_only else list(itertools.permutations(range(size)))
    signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=size - 1)], np.float64)
    elements = np.zeros((len(orders), len(signs), size, size))
    for element, order in zip(elements, orders):
        element[:, np.arange(size), order] = signs
    linear = elements.reshape(-1, size * size)
    one, two = np.triu_indices(size * size)
    products = linear[:, one] * linear[:, two]
    used = products.any(axis=0)
    return _GaugeGroup(linear, np.ascontiguousarray(products[:, used]), (one[used], two[used]), len(signs))


def _scaled(parts: Products) -> Products:
    """Return the parts in units of their own size, L and R in a common one; zeros where a number is not finite."""
    displacement, left, right, *rest = (
        np.where(np.isfinite(part).all(axis=_inner(part), keepdims=True), part, 0.0) for part in parts if part is not None
    )
    drifts, decays = rest[:4], rest[4:]
    common = np.maximum(_norm(left), _norm(right))
    known = (_norm(left) > 0) & (_norm(right) > 0)
    left, right, *decays = (np.divide(side, common, out=np.zeros_like(side), where=known) for side in (left, right, *decays))
    return Products(_unit(displacement), left, right, *(_unit(drift) for drift in drifts), *decays)


def _inner(part: Array) -> tuple[int, ...]:
    return tuple(range(1, part.ndim))


def _norm(part: Array) -> Array:
    largest = np.abs(part).max(axis=_inner(part), keepdims=True)  # squares of 1e-200 would vanish
    scaled = np.divide(part, largest, out=np.zeros_like(part), where=largest > 0)
    return np.asarray(largest * np.sqrt((scaled * scaled).sum(axis=_inner(part), keepdims=True)))


def _unit(part: Array) -> Array:
    size = _norm(part)
    return np.divide(part, size, out=np.zeros_like(part), where=size > 0)


def _displaced(parts: Products, group: _GaugeGroup) -> tuple[Array, Array, None]:
    found = _moved(parts, group)
    return found, np.zeros_like(found), None


def _whole(parts: Products, group: _GaugeGroup) -> tuple[Array, Array, None]:
    """Return displacement (B, |group|), of all g and then of all -g, for which it is the opposite, and balance (B, |group| / 2), the same for both.

    All that balance asks for is linear in g, <L g^T, g Q g^T> = <g, L Q^T> and <g R, g Q g^T> = <g, R^T Q>, but for one form <L g^T, g R>.
    """
    if parts.zero_decay is not None:
        return _moved(parts, group), beside_decay(parts, group.linear, zero=True, other=True), None
    left, right = parts.left, parts.right
    cross = _form(group, lambda a, b, c, d: left[:, c, b] * right[:, d, a])
    drift = None
    if left.shape[1] > PROJECTED:
        spans = _orthonormal(parts.zero_drift, parts.other_drift, diagonal(parts.zero_noise), diagonal(parts.other_noise))
        drift = _linear(group, left[:, None] @ spans.swapaxes(2, 3)), _linear(group, right.swapaxes(1, 2)[:, None] @ spans)
    return _moved(parts, group), _balance(left, right, cross, drift, odd=False), None


def _zero(parts: Products, group: _GaugeGroup) -> tuple[Array, Array, None]:
    """Return both (B, |group|) for L g^T and R. The directions Q of the zero factor's drift are turned with g, those Q' of the other's held.

    <L g^T, R> = <g, R^T L>, <L g^T, g Q g^T> = <g, L Q^T> and <L g^T, Q'> = <g, Q'^T L> are odd in g, <R, g Q g^T> and <g Q g^T, Q'> are not.
    """
    if parts.zero_decay is not None:
        return _moved(parts, group), beside_decay(parts, group.linear, zero=True, other=False), None
    left, right = parts.left, parts.right
    drift = None
    if left.shape[1] > PROJECTED:
        turned, held = _orthonormal(parts.zero_drift, diagonal(parts.zero_noise)), _orthonormal(parts.other_drift, diagonal(parts.other_noise))
        ones = _linear(group, left[:, None] @ turned.swapaxes(2, 3)), _linear(group, held.swapaxes(2, 3) @ left[:, None])
        twos = _around(group, right[:, None], turned), np.einsum("bij,bhij->bh", right, held)[:, :, None]
        drift = _coordinates(_around(group, held[:, :, None], turned[:, None]), ones, twos)
    return _moved(parts, group), _balance(left, right, _linear(group, right.swapaxes(1, 2) @ left), drift, odd=True), None


def _other(parts: Products, group: _GaugeGroup) -> tuple[Array, Array, Array | None]:
    """Return the same for g R and L: transposed, that is R^T g^T and L^T; and how nearly g R lies along L, |<L, g R>|, for the signs.

    |g R| is the same for every g. Where all gradients have one direction in common, L and R are one matrix times a number each, whose signs differ
    where a batch went against those before it.
    """
    turned = [part if part is None or part.ndim != 3 else part.swapaxes(1, 2) for part in parts]
    _, left, right, zero_drift, other_drift, zero_noise, other_noise, zero_decay, other_decay = turned
    sides = right, left, other_drift, zero_drift, other_noise, zero_noise, other_decay, zero_decay
    moved, balance, _ = _zero(Products(np.zeros_like(parts.left), *sides), group)  # type: ignore[arg-type]
    if group.signs < 2 or parts.zero_decay is not None:
        return moved, balance, None
    crossed = _linear(group, parts.left @ parts.right.swapaxes(1, 2))[:, : group.signs]
    return moved, balance, standardised(np.abs(crossed))


def _moved(parts: Products, group: _GaugeGroup) -> Array:
    along = _linear(group, parts.displacement)
    return standardised(np.concatenate([along, -along], axis=1))


def _balance(left: Array, right: Array, cross: Array, drift: tuple[Array, Array] | None, *, odd: bool) -> Array:
    """Return -log of the residual of balance, standardised, and the same less what lies along the drift, added.

    Args:
        left: (B, b, b), up to a gauge.
        right: the same.
        cross: their inner product for every g, (B, half).
        drift: coordinates of either along orthonormal directions, (B, d, half); None: not asked for.
        odd: products of the two change their sign with g; the values for all -g then come behind, else they would be the same.
    """
    lefts, rights = ((side * side).sum(axis=(1, 2))[:, None] for side in (left, right))
    nothing = FLOOR**2 * (lefts + rights)
    forms = [(lefts, rights, cross)]
    if drift is not None:
        ones, twos = drift
        forms.append((lefts - (ones * ones).sum(axis=1), rights - (twos * twos).sum(axis=1), cross - (ones * twos).sum(axis=1)))
    total = np.zeros((len(left), cross.shape[1] * (1 + odd)))
    for one, two, product in forms:
        values = [log_residual(one, two, signed, nothing) for signed in ((product, -product) if odd else (product,))]
        total += standardised(np.concatenate(values, axis=1))
    return total


def _linear(group: _GaugeGroup, matrices: Array) -> Array:
    """Return <g, M> for matrices (..., b, b) -> (..., half)."""
    return _each(matrices.reshape(*matrices.shape[:-2], -1), group.linear)


def _form(group: _GaugeGroup, coefficient: Callable[..., Array]) -> Array:
    """Return the sum over a, b, c, d of g_ab g_cd coefficient(a, b, c, d) -> (..., half); the coefficient takes four arrays of indices."""
    size = math.isqrt(group.linear.shape[1])
    (a, b), (c, d) = (divmod(index, size) for index in group.pairs)
    found = coefficient(a, b, c, d) + np.where(group.pairs[0] != group.pairs[1], coefficient(c, d, a, b), 0.0)
    return _each(found, group.products)


def _each(vectors: Array, elements: Array) -> Array:
    """Return the inner products of vectors (..., q) with every element (half, q) -> (..., half): one product of matrices, not one a module."""
    return np.asarray(vectors.reshape(-1, vectors.shape[-1]) @ elements.T).reshape(*vectors.shape[:-1], len(elements))


def _around(group: _GaugeGroup, held: Array, turned: Array) -> Array:
    """Return <X, g Y g^T> for matrices X, Y (..., b, b) -> (..., half)."""
    return _form(group, lambda a, b, c, d: held[..., a, c] * turned[..., b, d])


def _dot(one: Array, two: Array) -> Array:
    """Return the inner products of vectors of two, (B, 2, half) each -> (B, half)."""
    return np.asarray(one[:, 0] * two[:, 0] + one[:, 1] * two[:, 1])


def _orthonormal(*matrices: Array) -> Array:
    """Return orthonormal matrices (B, d, b, b) with the span of d given ones (B, b, b), shorter where those depend on each other."""
    spans = np.stack(matrices, axis=1)
    flat = spans.reshape(*spans.shape[:2], -1)
    values, vectors = np.linalg.eigh(flat @ flat.swapaxes(1, 2))
    turned = vectors.swapaxes(1, 2) @ flat / np.sqrt(np.maximum(values, 0) + RIDGE)[:, :, None]
    return np.asarray(turned.reshape(spans.shape))


def _coordinates(meet: Array, ones: tuple[Array, Array], twos: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return coordinates (B, 4, half) along two turned directions and what two held ones have beside them.

    Args:
        meet: inner products of held and turned directions, (B, 2, 2, half).
        ones: of the one side with the turned and with the held directions, each (B, 2, half).
        twos: of the other side.
    """
    one, two = meet[:, 0], meet[:, 1]
    along, across = 1 + RIDGE - _dot(one, one), -_dot(one, two)
    slope = across / along
    first, second = np.sqrt(along), np.sqrt(np.maximum(1 + RIDGE - _dot(two, two) - slope * across, 0) + RIDGE)
    found = []
    for turned, held in (ones, twos):
        beside = held[:, 0] - _dot(one, turned)
        last = (held[:, 1] - _dot(two, turned) - slope * beside) / second
        found.append(np.concatenate([turned, (beside / first)[:, None], last[:, None]], axis=1))
    return found[0], found[1]
