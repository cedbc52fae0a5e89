"""Rules on what the index of a state tells; no number is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from ostate.core.hyper import all_betas, one_number
from ostate.core.state import Finding, Hyper
from ostate.core.tensors import TensorRef
from ostate.optimizers.packings import PACKINGS
from ostate.optimizers.slots import FIRST_BESIDE, MOMENT_SLOTS, SLOTS

from .context import CheckedRow, Structure, plural, say

_EXPERT = r"(^|[._])experts?([._]|$)"
_LAYER = r"(?:^|\.)(\d+)\."


def no_state_at_all(seen: Structure) -> Iterator[Finding]:
    """A state without a single tensor was saved before the first step, or emptied since: there is nothing to name."""
    if not seen.rows or seen.with_state or (seen.spec is not None and seen.spec.refuse) or _stateless(seen):
        return
    text, taken = f"none of the {len(seen.rows)} positions holds any state", seen.facts.get("global_step")
    if isinstance(taken, int) and taken > 0:
        yield say(
            "error",
            f"{text}, although the trainer counts {plural(taken, 'step')}",
            "use another checkpoint of the run: programs that train blocks in turn (BAdam) empty their optimizer where they change blocks",
        )
    else:
        yield say("error", text, "the optimizer was saved before its first step: use a later checkpoint")


def _stateless(seen: Structure) -> bool:
    return seen.optimizer == "sgd" and not any(group.hyper.get("momentum") for group in seen.groups)


def optimizer_over_frozen_parameters(seen: Structure) -> Iterator[Finding]:
    """An optimizer built over all parameters, frozen ones too, numbers them all, but keeps state only for those that were trained.

    Whoever loads such a state by position into an optimizer over the trainable parameters alone gives most of them no second moment,
    and the rest another parameter's; g / (sqrt(v) + eps) is then g / eps.
    """
    held = seen.with_state
    if not held or len(held) * 2 >= len(seen.rows):
        return
    if seen.naming:
        yield say("note", f"the optimizer was built over {len(seen.rows)} parameters, frozen ones too; the {len(held)} that were trained are named")
        return
    lucky = sum(1 for row in held if row.entry.position < len(held))
    eps = next((eps for group in seen.groups if (eps := one_number(group.hyper, "eps", 0.0)) > 0), 1e-8)
    scale = f"{1 / eps:.0e}".replace("e+0", "e")
    yield say(
        "warning",
        f"only {len(held)} of {len(seen.rows)} positions hold state, the last at {held[-1].entry.position}: the optimizer was built over "
        f"all parameters, frozen ones too. Loaded by position into an optimizer over the trainable ones, {len(held) - lucky} of {len(held)} "
        f"{_kind(seen)}parameters would have no exp_avg_sq: Adam preconditioning would multiply by 1/eps = {scale}",
        "never load it by position: name it with `ostate repair`, then load by name",
    )


def _kind(seen: Structure) -> str:
    keys = list(seen.adapter.tensors) if seen.adapter is not None else []
    return "LoRA " if keys and all("lora_" in key for key in keys) else ""


def parameters_without_a_gradient(seen: Structure) -> Iterator[Finding]:
    """A position without state belongs to a parameter that no gradient ever reached: unused, or frozen."""
    held = seen.with_state
    missing = [row for row in seen.rows if not row.entry.has_state]
    if held and missing and len(held) * 2 >= len(seen.rows):
        yield say("note", f"{plural(len(missing), 'position')} of {len(seen.rows)} never received a gradient: no state to name", rows=missing)


def optimizer_cannot_be_used(seen: Structure) -> Iterator[Finding]:
    """Some optimizers keep nothing that belongs to a parameter by itself: moments in a projected space, or none at all."""
    if seen.spec is not None and seen.spec.refuse:
        yield say("error", f"{seen.spec.classes}: {seen.spec.refuse}", seen.spec.fix)


def optimizer_not_recognised(seen: Structure) -> Iterator[Finding]:
    """The slots and group keys are those of no known optimizer: names can be given, the numbers' meaning is not known."""
    if seen.spec is None and seen.with_state:
        slots = sorted({slot for row in seen.with_state for slot in row.entry.slots})
        yield say("warning", f"unknown optimizer; its slots are {', '.join(slots[:8])}", "please report which optimizer wrote it")
    elif seen.spec is not None and seen.spec.assumed:
        yield say("warning", seen.spec.assumed, "if it is an Adam variant, tell the probe: --as adamw")
    elif seen.spec is not None and seen.spec.caution:
        yield say("note", seen.spec.caution)


def _packed_moments(row: CheckedRow) -> Iterator[str]:
    """Yield the packings of a row's moments. Other slots may be packed too: a learning rate for each element says nothing of v."""
    for name, slot in row.entry.slots.items():
        if slot.encoding != "plain" and (name in MOMENT_SLOTS or name not in SLOTS or name == "state1"):
            yield slot.encoding


def quantised_moments(seen: Structure) -> Iterator[Finding]:
    """Moments packed into few bits are decoded, but what was rounded away stays away: small second moments become zero or double."""
    if any(encoding != "plain" for encoding, _ in seen.stored):
        packed = [row for row in seen.with_state if any(_packed_moments(row))]
        kinds = sorted({encoding for row in packed for encoding in _packed_moments(row)})
        if not packed:
            return
        known = [f"{kind}: {PACKINGS[kind].cost}" if kind in PACKINGS else kind for kind in kinds]
        yield say(
            "warning",
            f"the moments of {plural(len(packed), 'parameter')} were stored quantised ({'; '.join(known)}): v is approximate, "
            "and the smallest may be zero",
            "use them with the preconditioner's guards; a few steps with 32-bit AdamW give exact ones",
            packed,
        )


def codes_posing_as_values(seen: Structure) -> Iterator[Finding]:
    """8-bit codes mean nothing without their table and scales; read as numbers they pass every check of shape."""
    codes = {("plain", "U8"), ("plain", "I8")}
    if codes & seen.stored:
        bare = [row for row in seen.with_state if any((slot.encoding, slot.dtype) in codes for slot in row.entry.slots.values())]
        yield say(
            "error",
            f"{plural(len(bare), 'parameter')}: 8-bit codes without the table that gives them meaning",
            "save the optimizer's own state_dict",
            bare,
        )


def half_precision_moments(seen: Structure) -> Iterator[Finding]:
    """float16 turns a second moment below 6e-8 into zero; in bfloat16 v * beta2 rounds back to v, so v never decays."""
    for dtype, text in (
        ("F16", "second moments below 6e-8 are zero in float16"),
        ("BF16", "in bfloat16 a second moment cannot decay: v * beta2 rounds back to v"),
    ):
        if ("plain", dtype) not in seen.stored:
            continue
        rows = [row for row in seen.with_state if _second_dtype(row) == dtype and (dtype == "F16" or _beta2(row.hyper) > 1 - 2**-9)]
        if rows:
            yield say("warning", f"{text} ({plural(len(rows), 'parameter')})", "keep trained parameters, and so their moments, in float32", rows)


def _second_dtype(row: CheckedRow) -> str:
    slot = row.entry.slots.get("exp_avg_sq")
    return slot.dtype if isinstance(slot, TensorRef) else ""


def _beta2(hyper: Hyper) -> float:
    return (*all_betas(hyper), None, None)[1] or 0.0


def slots_missing(seen: Structure) -> Iterator[Finding]:
    """A parameter that lacks a moment the others have gets no preconditioner."""
    if seen.spec is None:
        return
    for slot in seen.spec.always:
        with_it = [row for row in seen.with_state if slot in row.entry.slots]
        without = [row for row in seen.with_state if slot not in row.entry.slots]
        if with_it and without and not _factored(without):
            yield say(
                "warning", f"{plural(len(without), 'parameter')} lack {slot}, which {len(with_it)} have", "look at how the state was saved", without
            )
    if any(
        row.hyper.get("amsgrad") is True and "max_exp_avg_sq" not in row.entry.slots and "exp_avg_sq" in row.entry.slots for row in seen.with_state
    ):
        yield say("warning", "amsgrad is on, but max_exp_avg_sq, which it divides by, is not there", "look at how the state was saved")


def _factored(rows: list[CheckedRow]) -> bool:
    return all({"exp_avg_sq_row", "row_var"} & set(row.entry.slots) or "exp_avg_slow" in row.entry.slots for row in rows)


def shapes_disagree(seen: Structure) -> Iterator[Finding]:
    """Both moments have their parameter's shape; where they differ, one belongs to another parameter."""
    differ = {
        row.entry.position
        for second, first in FIRST_BESIDE.items()
        for row in seen.with_state
        if second in (slots := row.entry.slots) and first in slots and slots[first].shape != slots[second].shape
    }
    rows = [row for row in seen.with_state if row.entry.position in differ] if differ else []
    if rows and (seen.spec is None or seen.spec.moment not in {"blocks", "projected"}):
        yield say("error", f"the moments of {plural(len(rows), 'parameter')} differ in shape", "the file was assembled wrongly: use another", rows)


def step_is_missing(seen: Structure) -> Iterator[Finding]:
    """Without the number of steps the second moment cannot be bias-corrected: v / (1 - beta2**step)."""
    rows = [row for row in seen.with_state if row.step is None]
    if not rows or seen.spec is None or seen.spec.step == "none":
        return
    from ostate.optimizers.moments import has_second_moment  # few states ask

    if has_second_moment(seen.spec):
        yield say(
            "warning",
            f"{plural(len(rows), 'parameter')} have no step: bias correction is not possible",
            "pass --step N (trainer_state.json has global_step)",
            rows,
        )


def step_is_zero(seen: Structure) -> Iterator[Finding]:
    """Moments at step 0 were made, not learned: v / (1 - beta2**0) is 0 / 0."""
    rows = [row for row in seen.with_state if row.step == 0]
    if rows:
        yield say("warning", f"{plural(len(rows), 'parameter')} are at step 0: their moments hold nothing", "use a later checkpoint", rows)


def steps_differ(seen: Structure) -> Iterator[Finding]:
    """Torch counts a step only where a gradient came; within a group that is normal for experts and dropped layers, odd elsewhere."""
    of_group: dict[int, list[CheckedRow]] = {}
    for row in seen.with_state:
        if row.step is not None:
            of_group.setdefault(row.entry.group, []).append(row)
    for group in seen.groups:
        rows = of_group.get(group.index, [])
        steps = Counter(row.step for row in rows)
        if len(steps) < 2:
            continue
        known = [step for step in steps if step is not None]
        most, least = max(known), min(known)
        behind = [row for row in rows if row.step != most]
        text = f"group {group.index}: steps run from {least:g} to {most:g}; {plural(len(behind), 'parameter')} are behind"
        if all(row.named for row in behind) and not _explained(rows, behind):
            yield say("warning", text, "normal for experts and dropped layers; else the state was mixed from two runs, or these joined late", behind)
        else:
            yield say("note", f"{text} (normal for experts and dropped layers)", rows=behind)


def _explained(rows: list[CheckedRow], behind: list[CheckedRow]) -> bool:
    """True for experts, and where whole layers share one step."""
    if all(re.search(_EXPERT, row.label) for row in behind):
        return True
    by_layer: dict[str, set[float | None]] = {}
    for row in rows:
        layer = re.search(_LAYER, row.label)
        if layer is None:
            if row in behind:
                return False
            continue
        by_layer.setdefault(row.label[: layer.end()], set()).add(row.step)
    return all(len(steps) == 1 for steps in by_layer.values())


def step_against_the_trainer(seen: Structure) -> Iterator[Finding]:
    """The trainer's own count of updates should be the optimizer's; a smaller one in the optimizer means that it was started cold."""
    known = seen.facts.get("global_step")
    steps = [row.step for row in seen.with_state if row.step is not None]
    if not isinstance(known, (int, float)) or isinstance(known, bool) or not steps or max(steps) == known:
        return
    most = max(steps)
    text = f"the optimizer is at step {most:g}, the trainer at {known:g}"
    if most == known + 1 and seen.facts.get("zero_stage") == 0:
        yield say("note", f"{text}: DeepSpeed, in 16 bits and without ZeRO, makes its state by a first step of zeros (fp16/unfused_optimizer.py)")
    elif most > known or most < 0.9 * known:
        fix = "the optimizer was started without its state at a resume, or trains blocks in turn (BAdam), or the files are of different checkpoints"
        yield say("warning", text, fix)
    else:
        yield say("note", f"{text}: gradient scaling skips updates like this")


def learning_rate_is_zero(seen: Structure) -> Iterator[Finding]:
    """At the end of a schedule the learning rate is 0.0; an eta taken from it makes every delta zero."""
    ended = [group for group in seen.groups if group.positions and group.hyper.get("lr") == 0]
    if ended:
        first = ended[0].hyper.get("initial_lr")
        yield say(
            "note",
            "lr is 0 because the schedule has finished" + (f"; initial_lr is {first:g}" if isinstance(first, float) else ""),
            "for a probe, use initial_lr as eta",
        )


def hyperparameters_missing(seen: Structure) -> Iterator[Finding]:
    """Without betas and eps the preconditioner would have to guess them."""
    if seen.spec is None:
        return
    needs = sorted({key for group in seen.groups if group.positions for key in seen.spec.needs if group.hyper.get(key) is None})
    if needs and seen.with_state:
        options = {"betas": "--betas B1,B2", "eps": "--eps E"}
        yield say("warning", f"the file does not say {' and '.join(needs)}", f"pass {' '.join(options.get(key, key) for key in needs)}")


def hyperparameters_out_of_range(seen: Structure) -> Iterator[Finding]:
    """Rates outside their range, or not finite, are damage: 0 <= beta < 1, eps >= 0, lr finite."""
    for group in seen.groups:
        if not group.positions:
            continue
        betas = all_betas(group.hyper)
        for beta in betas:
            if beta is not None and not 0 <= beta < 1 and len(betas) < 3:
                yield say("error", f"group {group.index}: beta is {beta}", "the file is damaged, or not Adam's")
        for key in ("eps", "lr", "weight_decay"):
            value = group.hyper.get(key)
            if isinstance(value, (int, float)) and (not math.isfinite(value) or (value < 0 and key != "weight_decay")):
                yield say("error", f"group {group.index}: {key} is {value}", "the file is damaged")
        if group.hyper.get("eps") == 0 and seen.spec is not None and "eps" in seen.spec.needs and seen.spec.moment == "adam":
            yield say(
                "warning", f"group {group.index}: eps is 0: where v is zero the update is infinite", "set max_scale in the preconditioner's Guards"
            )


def adapter_does_not_fit(seen: Structure) -> Iterator[Finding]:
    """Shapes that no tensor of the adapter has cannot be its state."""
    if seen.adapter is None or seen.naming or not seen.with_state:
        return
    flat = any(row.entry.flat for row in seen.with_state)
    there = Counter(_size(row.entry.shape, flat) for row in seen.with_state if row.entry.shape is not None)
    wanted = Counter(_size(ref.shape, flat) for ref in seen.adapter.tensors.values())
    left = there - wanted
    if left:
        count, total = sum(left.values()), sum(there.values())
        some = f"{count} of {total} positions with state have a shape for which the adapter has no tensor left"
        text = some if count < total else f"none of the {total} positions with state has the shape of a tensor in the adapter: it is another model's"
        yield say("warning", text, "pass the adapter that was saved with this state; it may also lack parameters that were trained beside it")


def _size(shape: tuple[int, ...], flat: bool) -> tuple[int, ...]:
    return (math.prod(shape),) if flat else shape


STRUCTURE: tuple[Callable[[Structure], Iterator[Finding]], ...] = (
    no_state_at_all,
    optimizer_over_frozen_parameters,
    parameters_without_a_gradient,
    optimizer_cannot_be_used,
    optimizer_not_recognised,
    quantised_moments,
    codes_posing_as_values,
    half_precision_moments,
    slots_missing,
    shapes_disagree,
    step_is_missing,
    step_is_zero,
    steps_differ,
    step_against_the_trainer,
    learning_rate_is_zero,
    hyperparameters_missing,
    hyperparameters_out_of_range,
    adapter_does_not_fit,
)
"""Rules that need no number."""
