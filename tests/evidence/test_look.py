"""What is kept of a factor and the moments at a position, against sums written out in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.evidence import look as look_module
from ostate.evidence.look import Shared, Source, look
from ostate.evidence.units import Unit
from tests.records import ArraySlot, replace

UNIT = Unit("0.", "0.B", "0.A", False, 1)
STEP, BETAS, EPS, DECAY = 7.0, (0.8, 0.95), 1e-3, 0.25
TALL, WIDE = (9, 3), (3, 9)


def numbers(shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {name: rng.standard_normal(shape).astype(np.float32) for name in ("w", "m", "start", "z")}
    return found | {"v": rng.uniform(0.01, 2.0, shape).astype(np.float32)}


def source_of(
    given: dict[str, np.ndarray], key: str, *, optimizer: str = "adamw", hyper: dict[str, Any] | None = None, earlier: bool = False
) -> Source:
    """One position: m, v and z as far as they are given."""
    names = {"m": "exp_avg", "v": "exp_avg_sq", "z": "z"}
    slots = {names[name]: ArraySlot(values) for name, values in given.items() if name in names}
    settings = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY} | (hyper or {})
    raw = RawState("", "torch", (), (Group(0, (0,), settings),), (Entry(0, 0, 0, slots, STEP, shape=given["w"].shape),), optimizer)
    adapter = Adapter(path="", file="", kind="peft", tensors={key: ArraySlot(given["w"])})
    return Source(raw, adapter, replace(adapter, tensors={key: ArraySlot(given["start"])}) if earlier else None)


def latent(values: np.ndarray, *, tall: bool) -> np.ndarray:
    return values.T.astype(np.float64) if tall else values.astype(np.float64)


def direction(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (m / (1 - BETAS[0] ** STEP)) / (np.sqrt(v / (1 - BETAS[1] ** STEP)) + EPS)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(("key", "shape"), [("0.B", TALL), ("0.A", WIDE)])
def test_products_of_a_factor_are_what_they_are_written_out(key, shape, earlier):
    given = numbers(shape)
    tall = key == "0.B"
    w, m, v, start = (latent(given[name], tall=tall) for name in ("w", "m", "v", "start"))
    u = direction(m, v)
    found = look(source_of({name: given[name] for name in ("w", "m", "v", "start")}, key, earlier=earlier), UNIT, key, 0)
    moved = w - start if earlier else w
    for kept, written in ((found.update, moved @ u.T), (found.first, w @ m.T), (found.drift, u @ m.T), (found.noise, np.sqrt(v).sum(axis=1))):
        np.testing.assert_allclose(kept[0], written, rtol=2e-5, atol=1e-5)
    assert (found.weight, found.moment) == (pytest.approx((w * w).sum(), rel=1e-5), pytest.approx((m * m).sum(), rel=1e-5))
    assert found.stored is None
    assert found.finite
    np.testing.assert_array_equal(found.sample, w.reshape(-1)[:64].astype(np.float32))


def test_a_tensor_of_many_strips_says_the_same_as_one(monkeypatch):
    given = numbers((50, 3))
    source = source_of({name: given[name] for name in ("w", "m", "v")}, "0.B")
    whole = look(source, UNIT, "0.B", 0)
    monkeypatch.setattr(Source, "strip", property(lambda self: 7))  # two rows at a time
    pieces = look(source, UNIT, "0.B", 0)
    for name in ("update", "first", "drift", "noise", "weight", "moment"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_of_a_high_rank_the_first_dimensions_are_compared_however_rows_are_read(monkeypatch):
    """Sixteen of forty columns, seven rows read and twenty added up at a time: as written out over the whole tensor."""
    given = {name: values for name, values in numbers((50, 40)).items() if name in ("w", "m", "v")}
    monkeypatch.setattr(Source, "strip", property(lambda self: 7 * 40))
    monkeypatch.setattr(look_module, "PIECE", 20 * 16)
    w, m, v = (latent(given[name], tall=True)[:16] for name in ("w", "m", "v"))
    u = direction(m, v)
    found = look(source_of(given, "0.B"), UNIT, "0.B", 0)
    for kept, written in ((found.update, w @ u.T), (found.first, w @ m.T), (found.drift, u @ m.T), (found.noise, np.sqrt(v).sum(axis=1))):
        np.testing.assert_allclose(kept[0], written, rtol=1e-4, atol=1e-4)
    assert found.finite
    given["m"][49, 39] = np.nan  # in a column that is not compared: the tensor is damaged all the same
    assert not look(source_of(given, "0.B"), UNIT, "0.B", 0).finite


@dataclass(frozen=True)
class Counted(ArraySlot):
    """Counts how often its numbers are asked for."""

    asked: list[int] = field(default_factory=list)

    def chunks(self, elements: int = 1 << 18) -> Iterator[np.ndarray]:
        self.asked.append(1)
        yield from super().chunks(elements)


@pytest.mark.parametrize(("key", "shape"), [("0.B", (50, 40)), ("0.A", (40, 50)), ("0.B", TALL)])
@pytest.mark.parametrize(("room", "least"), [(1 << 20, -1.0), (1 << 20, 1.0), (0, 1.0)])
def test_what_several_looks_share_is_read_once_as_far_as_there_is_room_and_says_the_same(key, shape, room, least, monkeypatch):
    """The numbers that are shared stay as they were read: a negative second moment is said to be damage at each look."""
    given = numbers(shape)
    given["v"][0, 0] = least
    source = source_of({name: given[name] for name in ("m", "v")} | {"w": given["w"]}, key)
    slots = {name: Counted(slot.values) for name, slot in source.raw.entries[0].slots.items()}
    source = replace(source, raw=source.raw._replace(entries=(source.raw.entries[0]._replace(slots=slots),)))
    monkeypatch.setattr(look_module, "SHARED", room)
    shared, alone = Shared(), look(source, UNIT, key, 0)
    for slot in slots.values():
        slot.asked.clear()
    for _ in range(3):
        found = look(source, UNIT, key, 0, shared=shared)
        for one, two in zip(found, alone):
            np.testing.assert_array_equal(one, two)
        assert found.finite == (least > 0)
    assert {len(slot.asked) for slot in slots.values()} == {1 if room else 3}


def test_what_began_at_another_number_moved_from_there():
    """A vector that starts at one: its displacement and its own weights are counted from there, its first moment stands beside itself."""
    given = numbers(TALL)
    unit = replace(UNIT, start=1.0)
    w, m, v, z = (latent(given[name], tall=True) for name in ("w", "m", "v", "z"))
    found = look(source_of({name: given[name] for name in ("w", "m", "v", "z")}, "0.B"), unit, "0.B", 0)
    np.testing.assert_allclose(found.update[0], (w - 1) @ direction(m, v).T, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found.first[0], w @ m.T, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found.stored[0], (w - 1) @ (z - 1).T, rtol=2e-5, atol=1e-5)
    assert found.weight == pytest.approx(((w - 1) ** 2).sum(), rel=1e-5)
    plain = look(source_of({name: given[name] for name in ("w", "m", "v", "z")}, "0.B"), UNIT, "0.B", 0)
    np.testing.assert_allclose(plain.stored[0], w @ z.T, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "hyper", "decays"), [("adam", {}, True), ("adamw", {}, False), ("adam", {"decoupled_weight_decay": True}, False)]
)
def test_decay_that_acts_through_the_gradient_is_told_apart_from_the_first_moment(optimizer, hyper, decays):
    """m = (1 - beta1^t) (g + wd w) where w hardly moved: the second part is the weight's own."""
    given = numbers(TALL)
    w, m = (latent(given[name], tall=True) for name in ("w", "m"))
    found = look(source_of({name: given[name] for name in ("w", "m", "v")}, "0.B", optimizer=optimizer, hyper=hyper), UNIT, "0.B", 0)
    share = DECAY * (1 - BETAS[0] ** STEP) if decays else 0.0
    np.testing.assert_allclose(found.first[0], w @ m.T, rtol=2e-5, atol=1e-5)
    if decays:
        np.testing.assert_allclose(found.decay[0], share * w @ w.T, rtol=2e-5, atol=1e-5)
    else:
        assert found.decay is None


def test_experts_of_one_tensor_are_summed_each_by_itself():
    """peft's ParamWrapper: expert e of a tall tensor has columns k * experts + e, of a wide one the rows e * r + k."""
    unit = replace(UNIT, blocks=2)
    tall, wide = numbers((5, 4)), numbers((4, 5), 1)
    w, m = (tall[name].astype(np.float64) for name in ("w", "m"))
    found = look(source_of({name: tall[name] for name in ("w", "m", "v")}, "0.B"), unit, "0.B", 0)
    for expert in range(2):
        np.testing.assert_allclose(found.first[expert], w[:, expert::2].T @ m[:, expert::2], rtol=2e-5, atol=1e-5)
    w, m = (wide[name].astype(np.float64) for name in ("w", "m"))
    found = look(source_of({name: wide[name] for name in ("w", "m", "v")}, "0.A"), unit, "0.A", 0)
    for expert in range(2):
        rows = slice(2 * expert, 2 * expert + 2)
        np.testing.assert_allclose(found.first[expert], w[rows] @ m[rows].T, rtol=2e-5, atol=1e-5)


def test_without_a_second_moment_the_direction_is_the_mean_or_its_sign():
    given = numbers(TALL)
    w, m = (latent(given[name], tall=True) for name in ("w", "m"))
    for optimizer, u in (("lion", np.sign(m)), ("unknown", m)):
        found = look(source_of({name: given[name] for name in ("w", "m")}, "0.B", optimizer=optimizer), UNIT, "0.B", 0)
        np.testing.assert_allclose(found.update[0], w @ u.T, rtol=2e-5, atol=1e-5)
        assert not found.noise.any()


@pytest.mark.parametrize("broken", ["negative v", "NaN in m", "infinite w"])
def test_damaged_numbers_are_said_to_be_that(broken):
    given = {name: values for name, values in numbers(TALL).items() if name in ("w", "m", "v")}
    name = broken[-1]
    given[name][4, 1] = {"v": -1e-3, "m": np.nan, "w": np.inf}[name]
    with np.errstate(invalid="ignore"):
        assert not look(source_of(given, "0.B"), UNIT, "0.B", 0).finite


def test_nothing_is_looked_at_where_nothing_is_kept_or_sizes_differ():
    given = numbers(TALL)
    assert look(source_of({name: given[name] for name in ("w", "v")}, "0.B"), UNIT, "0.B", 0) is None
    assert look(source_of({name: given[name] for name in ("w", "m", "v")}, "0.B"), replace(UNIT, group=None), "0.B", 0) is None
    source = source_of({name: given[name] for name in ("w", "m", "v")}, "0.B")
    smaller = source.raw._replace(entries=(source.raw.entries[0]._replace(shape=(3, 3), slots={"exp_avg": ArraySlot(given["m"][:3])}),))
    assert look(Source(smaller, source.adapter), UNIT, "0.B", 0) is None
    kept = look(source_of({name: given[name] for name in ("w", "z")}, "0.B"), UNIT, "0.B", 0)
    np.testing.assert_allclose(kept.stored[0], latent(given["w"], tall=True) @ latent(given["z"], tall=True).T, rtol=2e-5, atol=1e-5)
    assert (kept.moment, kept.first.any(), kept.update.any()) == (0.0, False, False)


def test_the_cosine_is_between_what_moved_and_the_last_update():
    given = numbers(TALL)
    found = look(source_of({name: given[name] for name in ("w", "m")}, "0.B", optimizer="unknown"), UNIT, "0.B", 0)
    w, m = given["w"].astype(np.float64), given["m"].astype(np.float64)
    assert found.cosine == pytest.approx(-(w * m).sum() / np.sqrt((w * w).sum() * (m * m).sum()), abs=1e-6)
    assert found.compared == w.size
    straight = look(source_of({"w": given["w"], "m": -2 * given["w"]}, "0.B", optimizer="unknown"), UNIT, "0.B", 0)
    assert straight.cosine == pytest.approx(1)
    assert np.isnan(look(source_of({"w": 0 * given["w"], "m": given["m"]}, "0.B"), UNIT, "0.B", 0).cosine)
