"""Small healthy LoRA runs in a few lines: Adam by hand on gradients of a product, many modules side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ostate.commands.options import Options
from ostate.commands.order import order_of
from ostate.core.naming import Adapter, Ordering
from ostate.core.state import Entry, Group, RawState
from ostate.errors import Ambiguous, Contradiction
from ostate.evidence.residual import Products
from tests.evidence.numbers import Known
from tests.records import ArraySlot

INTO, OUT = 12, 10
BETAS, EPS = (0.9, 0.999), 1e-8


class Trained(NamedTuple):
    """Weights and moments of M modules, each (M, r, INTO) or (M, OUT, r)."""

    a: np.ndarray
    b: np.ndarray
    m_a: np.ndarray
    v_a: np.ndarray
    m_b: np.ndarray
    v_b: np.ndarray
    step: int

    def moments_of(self, origins: np.ndarray) -> Trained:
        """Return the same weights beside the moments of other modules."""
        return self._replace(**{name: getattr(self, name)[origins] for name in ("m_a", "v_a", "m_b", "v_b")})


def train(
    rng: np.random.Generator,
    count: int,
    rank: int,
    *,
    steps: int,
    rate: float = 1e-2,
    noise: float = 1.0,
    shared: float = 0.5,
    starts: np.ndarray | None = None,
) -> Trained:
    """Train M modules whose loss is |(B A - T) x|^2 / 2, batches of 4; A starts uniform, B at zero, as PEFT has them.

    Args:
        rng: numbers.
        count: M.
        rank: r.
        steps: of Adam.
        rate: of learning.
        noise: of the gradient dL/dW, in units of its target.
        starts: for each module, the one whose first A it begins with; None: its own.
        shared: share of target, data and noise that all modules have in common, as modules of one residual stream do.
    """
    mixed = lambda *shape: np.sqrt(shared) * rng.standard_normal(shape) + np.sqrt(1 - shared) * rng.standard_normal((count, *shape))  # noqa: E731
    a, b = rng.uniform(-1, 1, (count, rank, INTO)) / np.sqrt(INTO / 3), np.zeros((count, OUT, rank))
    a = a if starts is None else a[starts].copy()
    target = mixed(OUT, INTO)
    m_a, v_a, m_b, v_b = (np.zeros_like(one) for one in (a, a, b, b))
    for step in range(1, steps + 1):
        x = mixed(INTO, 4)
        gradient = ((b @ a - target) @ x) @ x.swapaxes(1, 2) / 4 + noise * mixed(OUT, INTO)
        for weight, moment, square, slope in ((a, m_a, v_a, b.swapaxes(1, 2) @ gradient), (b, m_b, v_b, gradient @ a.swapaxes(1, 2))):
            moment += (1 - BETAS[0]) * (slope - moment)
            square += (1 - BETAS[1]) * (slope**2 - square)
            weight -= rate * direction(moment, square, step)
    return Trained(*(one.astype(np.float32) for one in (a, b, m_a, v_a, m_b, v_b)), step=steps)


def direction(m: np.ndarray, v: np.ndarray, step: int) -> np.ndarray:
    return (m / (1 - BETAS[0] ** step)) / (np.sqrt(v / (1 - BETAS[1] ** step)) + EPS)


def products(runs: Trained) -> Products:
    """Return what one look at each module leaves."""
    a, b, m_a, v_a, m_b, v_b = (one.astype(np.float64) for one in runs[:6])
    u_a, u_b = direction(m_a, v_a, runs.step), direction(m_b, v_b, runs.step)
    turned = lambda one: one.swapaxes(1, 2)  # noqa: E731
    return Products(
        -turned(b) @ u_b, turned(b) @ m_b, m_a @ turned(a), turned(u_b) @ m_b, m_a @ turned(u_a), np.sqrt(v_b).sum(axis=1), np.sqrt(v_a).sum(axis=2)
    )


def one_of(runs: Trained, number: int) -> Known:
    """Return one module as a run of its own: position 0 is lora_A, position 1 lora_B."""
    rows = (("lora_A", runs.a, runs.m_a, runs.v_a), ("lora_B", runs.b, runs.m_b, runs.v_b))
    tensors = {f"0.{name}.weight": ArraySlot(weight[number]) for name, weight, _, _ in rows}
    entries = tuple(
        Entry(
            position=at,
            key=at,
            group=0,
            slots={"exp_avg": ArraySlot(m[number]), "exp_avg_sq": ArraySlot(v[number])},
            step=float(runs.step),
            shape=m[number].shape,
        )
        for at, (_, _, m, v) in enumerate(rows)
    )
    groups = (Group(index=0, positions=(0, 1), hyper={"betas": BETAS, "eps": EPS, "weight_decay": 0.0}),)
    raw = RawState(source="small", layout="torch", files=(), groups=groups, entries=entries, optimizer="adamw")
    return Known(raw, Adapter(path="small", file="small", kind="peft", tensors=tensors, config={"peft_type": "LORA"}), tuple(tensors))


NEVER = ("a wrong name, unlisted", "the optimizer's own order contradicted", "a false order verified")


class Saved(NamedTuple):
    """A state without names, its adapter, and the true key of every position."""

    raw: RawState
    adapter: Adapter
    keys: tuple[str, ...]


def saved(rng: np.random.Generator) -> Saved:
    """Train and save one small run: rank 1 to 4, two to four layers, one or two kinds of one shape, 1 to 12 steps."""
    rank, layers, kinds = int(rng.integers(1, 5)), int(rng.integers(2, 5)), ("q_proj", "v_proj")[: int(rng.integers(1, 3))]
    stems = [f"base_model.model.model.layers.{layer}.self_attn.{kind}" for layer in range(layers) for kind in kinds]
    steps, rate, shared = int(rng.integers(1, 13)), 10.0 ** rng.uniform(-4, -1.5), float(rng.choice([0.0, 0.5, 0.9]))
    runs = train(rng, len(stems), rank, steps=steps, rate=rate, noise=float(rng.choice([0.1, 1.0, 5.0])), shared=shared)
    return saved_of(runs, stems, rate)


def saved_of(runs: Trained, stems: Sequence[str], rate: float) -> Saved:
    """Save modules as a run of one group, A and B of each module side by side."""
    tensors, entries = {}, []
    for i, stem in enumerate(stems):
        for factor, weight, m, v in (("A", runs.a, runs.m_a, runs.v_a), ("B", runs.b, runs.m_b, runs.v_b)):
            tensors[f"{stem}.lora_{factor}.weight"] = ArraySlot(weight[i])
            slots = {"exp_avg": ArraySlot(m[i]), "exp_avg_sq": ArraySlot(v[i])}
            entries.append(Entry(position=len(entries), key=len(entries), group=0, slots=slots, step=float(runs.step), shape=m[i].shape))
    hyper = {"lr": rate, "betas": BETAS, "eps": EPS, "weight_decay": 0.0, "amsgrad": False}
    groups = (Group(index=0, positions=tuple(range(len(entries))), hyper=hyper),)
    raw = RawState(source="small", layout="torch", files=(), groups=groups, entries=tuple(entries), optimizer="adamw")
    kinds = sorted({stem.rpartition(".")[2] for stem in stems})
    config = {"peft_type": "LORA", "r": runs.a.shape[1], "target_modules": kinds, "task_type": "CAUSAL_LM"}
    return Saved(raw, Adapter(path="small", file="small", kind="peft", tensors=tensors, config=config), tuple(tensors))


def outcomes(rng: np.random.Generator) -> Iterator[str]:
    """Yield what happens to one small run: under the names its optimizer had, under none, and under false ones."""
    yield from outcomes_of(saved(rng), rng)


def outcomes_of(run: Saved, rng: np.random.Generator) -> Iterator[str]:
    """Yield the same of one run at hand."""
    yield f"own names: {_outcome(run, run.keys, true=True)}"
    yield f"no names: {_outcome(run, None, true=True)}"
    false = list(false_orders(run.keys))
    what, keys = false[int(rng.integers(len(false)))]
    yield f"{what}: {_outcome(run, keys, true=False)}"


def false_orders(keys: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield orders that a program could have written in place of the true one: modules, layers or kinds exchanged."""
    stems: dict[str, list[str]] = {}
    for key in keys:
        stems.setdefault(_stem(key), []).append(key)
    modules = list(stems.values())
    yield "modules in reverse", tuple(key for module in reversed(modules) for key in module)
    yield "two modules exchanged", tuple(key for module in (modules[1], modules[0], *modules[2:]) for key in module)
    yield "shifted by a module", tuple(key for module in (*modules[1:], modules[0]) for key in module)
    if any("q_proj" in key for key in keys) and any("v_proj" in key for key in keys):
        exchanged = {"q_proj": "v_proj", "v_proj": "q_proj"}
        yield "kinds exchanged", tuple(next(key.replace(one, two) for one, two in exchanged.items() if one in key) for key in keys)


def _live(key: str) -> str:
    if key.endswith("_proj.weight"):  # a whole model's own
        return key
    return key.replace(".weight", ".default.weight") if key.endswith(".weight") else f"{key}.default"


def _stem(key: str) -> str:
    if key.endswith("_proj.weight"):  # a whole model's layers: its modules have several shapes
        return key[: key.index(".", key.index("layers.") + len("layers."))]
    stem, word, _ = key.partition("_proj.")
    return stem + word


def _outcome(run: Saved, recorded: tuple[str, ...] | None, *, true: bool) -> str:
    """Let `repair` settle a run's names, and say how it went."""
    raw = run.raw
    if recorded is not None:
        entries = (entry._replace(name=_live(key)) for entry, key in zip(raw.entries, recorded))
        raw = raw._replace(entries=tuple(entries), recorded="param_names")
    try:
        found = order_of(raw, run.adapter, Options())
    except Contradiction:
        return NEVER[1] if true else "refused, contradicted"
    except Ambiguous:
        return "refused, ambiguous"
    return _said(run, found, true=true)


def _said(run: Saved, found: Ordering, *, true: bool) -> str:
    wrong = [p for p, key in enumerate(found.keys) if key is not None and key != run.keys[p]]
    listed = set(found.undecided)
    if found.verdict in ("verified", "recovered") and wrong and not true:
        return NEVER[2]
    if found.verdict != "unverified" and any(found.names[p] not in listed and run.keys[p] not in listed for p in wrong):
        return NEVER[0]
    return f"{found.verdict}{', wrong names listed' if wrong and true else ''}"
