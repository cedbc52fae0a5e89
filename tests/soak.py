"""Repairs every real checkpoint of `tests/cases` again and again, each time damaged in another way, and looks for one wrong name.

Run as `python -m tests.soak --minutes 10 --seed 1` (`make soak`). The truth is the live optimizer's: what was at a position before the
damage is followed to where the damage put it. A name that `ordering.undecided` lists is counted apart: the file itself says not to trust it.
Exit code 1: a wrong name was written as proven, or something other than a refusal came out.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ostate
from ostate.commands import inspect as inspection
from ostate.commands import repair as program
from ostate.commands.options import Options
from ostate.core.state import RawState
from ostate.errors import OstateError
from tests import real
from tests.records import replace

Origin = dict[int, frozenset[str]]
"""Position -> names whose numbers lie there now."""
Loaded = dict[str, Any]


@dataclass
class Job:
    """One damaged copy of a case."""

    case: real.Case
    state: Path
    options: Options
    origin: Origin
    what: str


def torch_dict(loaded: Loaded) -> Loaded | None:
    """Return the optimizer's own dict with integer ids, wherever the file keeps it; None: another layout."""
    for place in (loaded, loaded.get("optimizer"), (loaded.get("optimizer_states") or [None])[0], loaded.get("optimizer_state_dict")):
        if isinstance(place, dict) and isinstance(place.get("state"), dict) and place["state"] and all(type(key) is int for key in place["state"]):
            return place
    return None


def shape_of(entry: dict[str, Any]) -> tuple[int, ...]:
    return max((tuple(value.shape) for value in entry.values() if torch.is_tensor(value)), key=len, default=())


# Damage to a dict of entries: each returns what it did, and changes `state` and `origin` together.


def permuted(state: dict[int, Any], origin: Origin, chance: random.Random, *, same_shape: bool, most: int | None) -> str:
    """Exchange entries: two, or all, within one shape or over all of them."""
    classes: dict[Any, list[int]] = collections.defaultdict(list)
    for position, entry in state.items():
        classes[shape_of(entry) if same_shape else None].append(position)
    wide = [positions for positions in classes.values() if len(positions) > 1]
    if not wide:
        return ""
    chosen = [chance.sample(chance.choice(wide), 2)] if most == 2 else wide
    before, was = dict(state), dict(origin)
    for positions in chosen:
        mixed = list(positions)
        while mixed == positions:
            chance.shuffle(mixed)
        for position, other in zip(positions, mixed):
            state[position], origin[position] = before[other], was[other]
    return f"{'two' if most == 2 else 'all'} entries exchanged{' within a shape' if same_shape else ''}"


def modules_exchanged(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    """Exchange two whole modules, A with A and B with B: each pair stays a pair."""
    modules: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for position in state:
        (name,) = origin[position]
        for factor in ("lora_A", "lora_B"):
            if f".{factor}" in name:
                modules[name.split(f".{factor}")[0]][factor] = position
    whole = [module for module in modules.values() if len(module) == 2]
    alike = [(a, b) for a in whole for b in whole if a is not b and all(shape_of(state[a[f]]) == shape_of(state[b[f]]) for f in a)]
    if not alike:
        return ""
    one, two = chance.choice(alike)
    for factor in one:
        here, there = one[factor], two[factor]
        state[here], state[there] = state[there], state[here]
        origin[here], origin[there] = origin[there], origin[here]
    return "two modules exchanged"


def rotated(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    """Move everything by one position: what one parameter more or less at the front does."""
    positions = sorted(state)
    entries, names = [state[p] for p in positions], [origin[p] for p in positions]
    for index, position in enumerate(positions):
        state[position], origin[position] = entries[index - 1], names[index - 1]
    return "all entries moved by one"


def spoilt(state: dict[int, Any], origin: Origin, chance: random.Random, *, value: float, share: float) -> str:
    """Overwrite moments with one value."""
    for position in state:
        if chance.random() < share:
            state[position] = {
                key: torch.full_like(v, value) if type(v) is torch.Tensor and v.is_floating_point() and v.dim() else v
                for key, v in state[position].items()
            }
    return f"moments overwritten with {value}"


def dropped(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    for position in chance.sample(sorted(state), chance.randint(1, max(1, len(state) // 4))):
        del state[position]
    return "entries dropped"


def doubled(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    """Write one entry over another of the same shape."""
    pairs = [(a, b) for a in state for b in state if a != b and shape_of(state[a]) == shape_of(state[b])]
    if not pairs:
        return ""
    source, target = chance.choice(pairs)
    state[target], origin[target] = state[source], origin[source]
    return "an entry written over another"


def noisy(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    """Put noise into the first moments: the numbers say less and less."""
    strength = chance.choice([0.1, 1.0, 10.0])
    for entry in state.values():
        moment = entry.get("exp_avg")
        if type(moment) is torch.Tensor and moment.is_floating_point() and moment.numel() > 1:
            entry["exp_avg"] = moment + strength * moment.float().std() * torch.randn(moment.shape, generator=torch.Generator().manual_seed(1))
    return f"noise of {strength} in the first moments"


def untouched(state: dict[int, Any], origin: Origin, chance: random.Random) -> str:
    return "nothing changed"


INSIDE: tuple[Callable[[dict[int, Any], Origin, random.Random], str], ...] = (
    lambda s, o, c: permuted(s, o, c, same_shape=True, most=2),
    lambda s, o, c: permuted(s, o, c, same_shape=True, most=2),
    lambda s, o, c: permuted(s, o, c, same_shape=True, most=None),
    lambda s, o, c: permuted(s, o, c, same_shape=False, most=2),
    lambda s, o, c: permuted(s, o, c, same_shape=False, most=None),
    modules_exchanged,
    modules_exchanged,
    rotated,
    lambda s, o, c: spoilt(s, o, c, value=0.0, share=0.3),
    lambda s, o, c: spoilt(s, o, c, value=float("nan"), share=0.3),
    lambda s, o, c: spoilt(s, o, c, value=0.0, share=1.0),
    dropped,
    doubled,
    noisy,
    untouched,
)


def _cut(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    data = job.state.read_bytes()
    job.state.write_bytes(data[: chance.randrange(len(data))])
    return "the file cut short"


def _bytes_changed(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    """Random bytes: a moment's value may change and nothing can tell, its place may not."""
    data = bytearray(job.state.read_bytes())
    for _ in range(chance.randint(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    job.state.write_bytes(bytes(data))
    return "random bytes changed"


def _other_adapter(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    other = chance.choice([case for case in cases if case.adapter and case.name != job.case.name])
    job.options = replace(job.options, adapter=str(other.adapter))
    return "another run's adapter"


def _other_step(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    steps = [case for case in cases if case.name.startswith("long_opt")]
    if not job.case.name.startswith("long_opt"):
        return ""
    adapter, previous = (str(chance.choice(steps).adapter) for _ in range(2))
    job.options = replace(job.options, adapter=adapter, previous=chance.choice([None, previous]))
    return "adapters of other steps"


def _wrong_config(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    """Change adapter_config.json: the skeleton then builds another model."""
    if job.options.adapter is None:
        return ""
    config = Path(job.options.adapter).parent / "adapter_config.json"
    if not config.is_file():
        return ""
    rows = json.loads(config.read_text())
    changes: list[dict[str, Any]] = [
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": list(reversed(rows.get("target_modules") or [])) if isinstance(rows.get("target_modules"), list) else None},
        {"layers_to_transform": [0]},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": not rows.get("use_dora", False)},
        {"bias": "all"},
        {"r": 1},
        {"fan_in_fan_out": True},
        {"task_type": "SEQ_CLS"},
        {"peft_type": "IA3"},
    ]
    change = chance.choice(changes)
    config.write_text(json.dumps({**rows, **change}))
    return f"adapter_config with {json.dumps(change)[:40]}"


def _other_base(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    other = chance.choice([case for case in cases if case.base])
    job.options = replace(job.options, base=str(other.base))
    return "another model's base"


def _no_base(job: Job, chance: random.Random, cases: list[real.Case]) -> str:
    job.options = replace(job.options, base=None)
    return "no base"


OUTSIDE = (_cut, _bytes_changed, _other_adapter, _other_step, _other_step, _wrong_config, _wrong_config, _other_base, _no_base)


def origin_of(case: real.Case) -> Origin:
    """Return the true names by position; where the truth has no positions, those whose second moments lie there."""
    if all("index" in row for row in case.truth):
        return {row["index"]: frozenset((row["name"],)) for row in case.truth}
    by_digest = collections.defaultdict(set)
    for row in case.truth:
        by_digest[row.get("exp_avg_sq_sha256")].add(row["name"])
    try:
        entries = inspection.open_state(str(case.state)).entries
    except OstateError:
        return {}
    held = [(entry.position, entry.slots["exp_avg_sq"].read()) for entry in entries if "exp_avg_sq" in entry.slots]
    return {position: frozenset(names) for position, values in held if (names := by_digest.get(real.sha256(values)))}


def copied(case: real.Case, root: Path) -> Job:
    """Copy the checkpoint's folder and its adapter."""
    top = case.state if case.state.is_dir() else case.state.parent
    home = Path(shutil.copytree(top, root / "state"))
    adapter = None
    if case.adapter is not None:
        inside = case.adapter.is_relative_to(top)
        folder = home / case.adapter.relative_to(top).parent if inside else Path(shutil.copytree(case.adapter.parent, root / "adapter"))
        adapter = str(folder / case.adapter.name)
    state = home if case.state.is_dir() else home / case.state.name
    options = Options(adapter=adapter, base=str(case.base) if case.base else None)
    return Job(case, state, options, origin_of(case), "")


def damage(job: Job, chance: random.Random, cases: list[real.Case]) -> None:
    """Damage the copy inside its file, outside, or both."""
    said = []
    if job.state.is_file() and chance.random() < 0.75:
        try:
            loaded = torch.load(job.state, weights_only=False, map_location="cpu")
        except (RuntimeError, OSError):  # the case that is cut short already
            loaded = None
        inner = torch_dict(loaded) if isinstance(loaded, dict) else None
        if inner is not None:
            said.append(chance.choice(INSIDE)(inner["state"], job.origin, chance))
            torch.save(loaded, job.state)
    if not said or chance.random() < 0.4:
        change = chance.choice(OUTSIDE)
        if job.state.is_file() or change not in (_cut, _bytes_changed):
            said.append(change(job, chance, cases))
    if chance.random() < 0.3:
        said.append(_no_base(job, chance, cases))
    job.what = " + ".join(one for one in said if one) or "nothing changed"


def entries_exchanged(job: Job, chance: random.Random) -> Callable[[RawState], RawState] | None:
    """For folders: exchange entries of the state after it is read, under the names it records."""
    if job.state.is_file() or chance.random() < 0.3:
        return None
    job.what += " + entries exchanged"

    def change(raw: RawState) -> RawState:
        classes = collections.defaultdict(list)
        for entry in raw.entries:
            if entry.has_state:
                classes[entry.shape].append(entry.position)
        positions = chance.choice([c for c in classes.values() if len(c) > 1])
        here, there = chance.sample(positions, 2)
        names = {name for held in job.origin.values() for name in held}
        at = {entry.position: entry.name if entry.name in names else None for entry in raw.entries}
        if all(at.values()):  # the truth by the recorded names: the rows' own order may be another
            job.origin = {position: frozenset((name,)) for position, name in at.items() if name}
        if not {here, there} <= set(job.origin):
            return raw
        job.origin[here], job.origin[there] = job.origin[there], job.origin[here]
        entries = list(raw.entries)
        moved = ("slots", "scalars", "step")
        for target, source in ((here, raw.entries[there]), (there, raw.entries[here])):
            entries[target] = replace(entries[target], **{field: getattr(source, field) for field in moved})
        master = dict(raw.master)  # the weights kept beside the moments move with them
        if {here, there} <= set(master):
            master[here], master[there] = master[there], master[here]
        return replace(raw, entries=tuple(entries), master=master)

    return change


def verdict_of(job: Job, out: Path) -> tuple[str, list[str], list[str]]:
    """Repair it. Returns the verdict, names that are wrong, and those of them that the file lists as undecided."""
    done = program.repair(str(job.state), str(out), options=job.options)
    state = ostate.load(out)
    assert state.ordering is not None
    undecided = set(state.ordering.undecided)
    by_name = job.case.with_state
    wrong = []
    for name, parameter in state.parameters.items():
        held = job.origin.get(parameter.position if parameter.position is not None else -1)
        truth = by_name.get(name, {}).get("exp_avg_sq_sha256")
        same = truth is not None and "exp_avg_sq" in parameter.slots and real.sha256(state.tensor(name, "exp_avg_sq")) == truth
        if not same and (held is None or name not in held):
            wrong.append(name)
    out.unlink()
    return done.ordering.verdict, [name for name in wrong if name not in undecided], [name for name in wrong if name in undecided]


def once(case: real.Case, key: int, everything: list[real.Case]) -> tuple[str, str, list[str], list[str]]:
    """Damage a copy as `key` says and repair it. Returns what was done, the outcome, wrong names, and wrong names that are listed."""
    chance = random.Random(key)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        job = copied(case, root)
        damage(job, chance, everything)
        change = entries_exchanged(job, chance)
        program.open_state = (lambda *a, **k: change(inspection.open_state(*a, **k))) if change else inspection.open_state
        try:
            verdict, wrong, soft = verdict_of(job, root / "out.safetensors")
        except OstateError as error:
            left = [f"left behind: {path.name}" for path in root.iterdir() if path.name.startswith("out")]
            return job.what, f"refused: {type(error).__name__}", left, []
        except Exception as error:  # noqa: BLE001  (whatever comes out is the finding)
            traceback.print_exc()
            return job.what, "broken", [f"{type(error).__name__}: {error}"], []
    return job.what, verdict, wrong, soft


def soak(minutes: float, seed: int, only: list[str], key: int | None) -> int:
    """Run until the time is over; print what happened; return the number of critical findings."""
    chance = random.Random(seed)
    everything = [real.case(name) for kind in ("one-process", "long", "distributed") for name in real.names(kind)]
    cases = [case for case in everything if not only or case.name in only]
    tally: collections.Counter[str] = collections.Counter()
    critical = listed = 0
    ends = time.monotonic() + 60 * minutes
    while time.monotonic() < ends:
        chance.shuffle(cases)
        for case in cases:
            chosen = key if key is not None else chance.randrange(1 << 40)
            what, outcome, wrong, soft = once(case, chosen, everything)
            tally[outcome] += 1
            if wrong or soft:
                kind, names = ("WRONG", wrong) if wrong else ("listed as undecided:", soft)
                print(f"{kind} {case.name} --key {chosen} ({what}) {outcome}: {len(names)} {names[:2]}", flush=True)
            critical, listed = critical + bool(wrong), listed + bool(soft and not wrong)
            if time.monotonic() > ends or key is not None:
                break
        if key is not None:
            break
    print(f"{sum(tally.values())} repairs of {len(cases)} checkpoints, seed {seed}: {dict(sorted(tally.items()))}")
    print(f"{critical} with a wrong name that is not listed; {listed} with wrong names that `ordering.undecided` lists")
    return critical


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--key", type=int, help="repeat one repair of the one case named")
    parser.add_argument("cases", nargs="*", help="only these")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(1 if soak(asked.minutes, asked.seed, asked.cases, asked.key) else 0)


if __name__ == "__main__":
    main()
