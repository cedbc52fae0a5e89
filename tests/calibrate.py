"""How well the proof keeps its word, at full size: `make calibrate`.

P values of moments that stand beside another module's weights, against the uniform; then small healthy runs through the verdict, with the names
their optimizer had, without any, and with names that a program could have made in their place.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from multiprocessing import Pool

import numpy as np

from ostate.evidence import gauge
from tests.evidence import method_nets
from tests.evidence.small_runs import NEVER, outcomes, outcomes_of, products, train

KINDS = ("whole", "balance", "signs", "zero", "other", "other signs")
"""What is another's: all moments, told by all there is, by balance alone or by signs alone; or one factor's, the other one's by signs alone too."""
RANKS = (1, 2, 3, 4, 5, 6, 8, 16)
BATCH = 50
"""Runs that one process makes at a time."""


def ranked(kind: str, rank: int, *, draws: int, steps: int, shared: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks (draws, blocks) and sizes (blocks,) of modules that hold what `kind` names of the next one's moments.

    The modules stand in a ring, so all draws but one are independent.
    """
    rng = np.random.default_rng((seed, rank, steps, KINDS.index(kind)))
    runs = train(rng, draws, rank, steps=steps, shared=shared)
    beside = runs.moments_of(np.roll(np.arange(draws), -1))
    if kind == "zero":
        beside = beside._replace(m_a=runs.m_a, v_a=runs.v_a)
    if kind.startswith("other"):
        beside = beside._replace(m_b=runs.m_b, v_b=runs.v_b)
    found = getattr(gauge, kind.split()[0] if kind.startswith(("zero", "other")) else "whole")(products(beside))
    rank_of, size_of = {"balance": ("balance_rank", "balance_size"), "signs": ("sign_rank", "sign_size")}.get(kind.split()[-1], ("rank", "size"))
    return np.array([[getattr(one, rank_of) for one in each] for each in found]), np.array([getattr(one, size_of) for one in found[0]])


def uniformity(kind: str, rank: int, *, draws: int, steps: int, shared: float, seed: int = 0) -> list[float]:
    """Return the Kolmogorov-Smirnov p of each block's p values, spread evenly within their steps; 1 where ties forbid them to be uniform."""
    from scipy.stats import kstest

    if (kind, rank) in (("zero", 1), ("balance", 1), ("signs", 1), ("other signs", 1)):
        return [1.0]
    ranks, sizes = ranked(kind, rank, draws=draws, steps=steps, shared=shared, seed=seed)
    spread = np.random.default_rng(1).random(ranks.shape)
    return [float(kstest(one, "uniform").pvalue) for one in ((ranks - spread) / sizes).T]


def held_back(kind: str, rank: int, *, draws: int, steps: int, shared: float) -> float:
    """Return the largest ratio of the share of p values up to a value to that value, for values seen 50 times or more by chance."""
    ranks, sizes = ranked(kind, rank, draws=draws, steps=steps, shared=shared, seed=0)
    shares = [(float((ranks[:, 0] <= at).mean()), at / sizes[0]) for at in range(1, sizes[0] + 1) if at / sizes[0] * draws >= 50]
    return max(share / value for share, value in shares)


def small_runs(count: int, *, seed: int = 0) -> Counter[str]:
    """Return how often each thing happened to `count` small runs; none of `small_runs.NEVER` may be among them."""
    found: Counter[str] = Counter()
    for number in range(count):
        found.update(outcomes(np.random.default_rng((seed, number))))
    return found


def print_uniformity(draws: int, seed: int) -> None:
    print(f"p values of {draws} wrong pairs: Kolmogorov-Smirnov p, by block\n")
    print("moments     rank  another run, 3 steps      one run, 2 steps          one run, 12 steps")
    for kind in KINDS:
        for rank in RANKS:
            cells = [uniformity(kind, rank, draws=draws, steps=steps, shared=shared, seed=seed) for steps, shared in ((3, 0.0), (2, 0.9), (12, 0.9))]
            print(f"{kind:11} {rank:4}  " + "".join(f"{' '.join(f'{p:.2f}' for p in cell):26}" for cell in cells), flush=True)


def print_methods(laws: Sequence[str], draws: int, runs: int, seed: int, jobs: int) -> None:
    """Print the same of PEFT's other methods and of whole models: by kind of tensor, and what happened to the names of small runs."""
    with Pool(jobs) as pool:
        if draws:
            asked = [(law, draws // 2, steps, seed) for law in laws for steps in (2, 4, 12)]
            for (law, _, steps, _), found in zip(asked, pool.imap(_uniform, asked)):
                print(f"{law:12} {steps:3} steps  " + ", ".join(f"{kind} {p:.3f}" for kind, p in found.items()), flush=True)
        batches = [(law, at, seed) for law in laws for at in range(0, runs, BATCH)]
        names: dict[str, Counter[str]] = {}
        for (law, _, _), found in zip(batches, pool.imap(_method_runs, batches)):
            names.setdefault(law, Counter()).update(found)
    for law, outcome in names.items():
        print(f"\n{law}: what happened to the names of {runs} runs\n")
        print_outcomes(outcome)


def _uniform(asked: tuple[str, int, int, int]) -> dict[str, float]:
    law, count, steps, seed = asked
    return method_nets.uniformity(law, count, steps=steps, seed=seed)


def _method_runs(asked: tuple[str, int, int]) -> Counter[str]:
    law, at, seed = asked
    found: Counter[str] = Counter()
    for number, run in enumerate(method_nets.networks(law, BATCH, layers=5, steps=1 + at // BATCH % 6, seed=seed + at)):
        found.update(outcomes_of(run, np.random.default_rng((seed, at, number))))
    return found


def _lora_runs(asked: tuple[int, int]) -> Counter[str]:
    at, seed = asked
    found: Counter[str] = Counter()
    for number in range(at, at + BATCH):
        found.update(outcomes(np.random.default_rng((seed, number))))
    return found


def print_outcomes(found: Counter[str]) -> None:
    for what, times in sorted(found.items()):
        print(f"{times:8}  {what}", flush=True)
    if any(never in what for what in found for never in NEVER):
        raise SystemExit("a wrong name, a contradicted order or a false proof: see above")


def main() -> None:
    """Print every figure; leave with 1 at the first thing that must never happen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000, help="wrong pairs for each row of p values; 0: none")
    parser.add_argument("--runs", type=int, default=10_000, help="small LoRA runs")
    parser.add_argument("--method-runs", type=int, default=2_000, help="small runs of each other method, and of whole models")
    parser.add_argument("--laws", default=",".join(method_nets.LAWS), help="which of them; empty: none")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another set of runs: batches on several machines add up")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if options.draws:
        print_uniformity(options.draws, options.seed)
    laws = [law for law in options.laws.split(",") if law]
    if laws:
        print_methods(laws, options.draws, options.method_runs, options.seed, options.jobs)
    if options.runs:
        print(f"\n{options.runs} small healthy runs: what happened to the names\n")
        lora: Counter[str] = Counter()
        with Pool(options.jobs) as pool:
            for found in pool.imap(_lora_runs, [(at, options.seed) for at in range(0, options.runs, BATCH)]):
                lora.update(found)
        print_outcomes(lora)


if __name__ == "__main__":
    main()
