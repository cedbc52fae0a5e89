"""Whether an order stands above chance as a whole: thresholds from random tables, and when staying within chance says something."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ostate.evidence import significance
from ostate.evidence.significance import balance_level, displacement_level, start_level

NUMEL, COUNT = 400, 6


def displaced(own: float, *, modules: int = COUNT, spread: float = 1.0, rank: int = 8, numel: int = NUMEL):
    """Tables of one class whose matched cosines are `own` and whose others are noise of 1 / sqrt(numel)."""
    cosine = np.random.default_rng(0).standard_normal((modules, modules)) / np.sqrt(numel)
    np.fill_diagonal(cosine, own)
    keys = tuple(SimpleNamespace(zero=f"{at}.B", other=f"{at}.A") for at in range(modules))
    pair = SimpleNamespace(
        modules=keys,
        numel=numel,
        rank=rank,
        cosine=cosine,
        spread=np.full(cosine.shape, spread / np.sqrt(numel)),
        zero_at={at: at for at in range(modules)},
    )
    return SimpleNamespace(pairs=(pair,)), {key.zero: at for at, key in enumerate(keys)}


@pytest.mark.parametrize(("own", "above"), [(0.6, True), (0.35, True), (0.05, False), (-0.6, False)])
def test_displacement_stands_above_chance_or_does_not(own, above):
    tables, match = displaced(own)
    found = displacement_level(tables, match, early=True)
    assert found.significant == above
    assert found.why == ("" if above else "no better than chance")


def test_staying_within_chance_says_something_only_early_and_of_many_numbers():
    """Six modules of 400 numbers must reach .35 * 20 each, 42 in all; one of a hundred 3.5, and five deviations of chance are 5."""
    tables, match = displaced(0.0)
    assert displacement_level(tables, match, early=True).powerful
    assert not displacement_level(tables, match, early=False).powerful
    few, matched = displaced(0.0, modules=1, numel=100)
    assert not displacement_level(few, matched, early=True).powerful
    frozen, matched = displaced(0.0, spread=0.0)
    assert not displacement_level(frozen, matched, early=True).powerful


def test_only_what_is_matched_counts():
    tables, match = displaced(0.6)
    assert not displacement_level(tables, {key: at for key, at in match.items() if at == 0}, early=True).significant


def test_noise_of_few_columns_is_bounded_and_that_of_many_is_not():
    noise = np.random.default_rng(0)
    drawn = significance._signs(noise, 4, (20000,))
    assert set(np.unique(drawn)) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert (drawn.mean(), drawn.var()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))
    assert len(np.unique(significance._signs(noise, 15, (20000,)))) <= 16
    assert len(np.unique(significance._signs(noise, 16, (20000,)))) > 10000


def started(own: float, *, known: int = COUNT, noise: float = 1.0):
    """Tensors outside pairs: matched ratios `own`, the others noise."""
    cosine = np.random.default_rng(1).standard_normal((COUNT, COUNT)) * noise
    np.fill_diagonal(cosine, own)
    keys = tuple(f"{at}.bias" for at in range(COUNT))
    each = SimpleNamespace(
        keys=keys,
        positions=tuple(range(10, 10 + COUNT)),
        known=(True,) * known + (False,) * (COUNT - known),
        cosine=cosine,
        spread=np.ones((COUNT, COUNT)),
    )
    return SimpleNamespace(unpaired=(each,)), {key: 10 + at for at, key in enumerate(keys)}


def test_known_starts_stand_above_the_noise_that_their_own_shape_shows():
    """Ratios of 8 are far above six best of six draws; not where other tensors of the shape reach as much. None of it overthrows an order."""
    tables, match = started(8.0)
    assert start_level(tables, match).significant
    assert not start_level(tables, match).powerful
    assert not start_level(*started(8.0, noise=8.0)).significant
    assert not start_level(*started(0.5)).significant
    assert not start_level(*started(-8.0)).significant
    assert not start_level(*started(8.0, known=0)).significant
    assert not start_level(tables, {}).significant


class Candidates:
    """Balance of modules (rows) at positions (columns), the matched ones on the diagonal."""

    def __init__(self, own: float, *, rank: int = 8, modules: int = COUNT, places: int = COUNT) -> None:
        self.values = np.random.default_rng(2).exponential(0.2, (modules, modules))
        np.fill_diagonal(self.values, own)
        self.pair = SimpleNamespace(rank=rank, zero_positions=tuple(range(places)))

    def cells(self):
        return np.arange(len(self.values)), np.arange(len(self.values))


def level(*candidates: Candidates, late: bool = True, chosen: bool = False, paths: tuple[Candidates, ...] = ()):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "path_scores", lambda tables, paths, match: paths)
        patch.setattr(significance, "projected_scores", lambda tables, paths, match: candidates)
        return balance_level(None, paths, None, late=late, chosen=chosen)


def test_balance_stands_above_what_unmatched_pairs_reach():
    assert level(Candidates(3.0)).significant
    assert not level(Candidates(0.35)).significant
    assert not level(Candidates(-3.0)).significant
    assert level(Candidates(0.35), paths=(Candidates(3.0),)).significant


def test_places_that_were_chosen_by_balance_are_held_against_the_best_of_as_many():
    """One unmatched value in fifty is 1, the others 0: twenty random ones rarely find a 1 each, the best of thirty nearly always do."""
    candidates = Candidates(0.95, modules=20, places=30)
    off = ~np.eye(20, dtype=bool)
    candidates.values[off] = np.random.default_rng(0).random(off.sum()) < 0.02
    assert level(candidates, chosen=False).significant
    assert not level(candidates, chosen=True).significant
    np.fill_diagonal(candidates.values, 3.0)
    assert level(candidates, chosen=True).significant


@pytest.mark.parametrize(
    ("rank", "modules", "late", "powerful"), [(3, 4, True, True), (2, 9, True, False), (3, 3, True, False), (3, 4, False, False)]
)
def test_balance_within_chance_says_something_late_of_four_modules_of_rank_three(rank, modules, late, powerful):
    assert level(Candidates(0.3, rank=rank, modules=modules), late=late).powerful == powerful


def test_a_class_without_unmatched_cells_has_nothing_to_compare_with():
    found = level(Candidates(3.0, modules=1))
    assert (found.significant, found.powerful) == (False, False)


def test_damaged_numbers_count_as_none():
    candidates = Candidates(3.0)
    candidates.values[0, 1:] = np.nan
    assert level(candidates).significant
