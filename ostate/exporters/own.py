"""A state as its own optimizer writes it, so that the same optimizer goes on: its slot names, codes, and tensors where it keeps some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Finding
from ostate.errors import ExportError
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.moments import fits_adamw

from .base import ADAMW_SLOTS, AUTO8BIT_SLOTS, TORCHAO, groups_of
from .tensors import Entry, Number, Numbered, entry, numbered, step_in_entry

_ADAMW_HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


_GROUP_TENSORS: tuple[tuple[str, str, tuple[str, ...], tuple[int, ...], str], ...] = (
    ("adam_torchao", "lr", ("lr",), (), "F32"),
    *((row, "gradient_release", ("step",), (), "I32") for row in ("stable_adamw", "ranger_optimi", "adan")),
    ("prodigy_schedulefree", "running_d_numerator", ("running_d_numerator", "running_d_denom"), (), "F32"),
    ("prodigy", "d_de_nom", ("d_numerator", "d_de_nom"), (1,), "F32"),
    *((row, "weight_decouple", ("numerator_weighted",), (1,), "F32") for row in ("dadapt_adam", "dadapt_lion")),
)
"""(row, a key that its groups hold and those of its namesakes do not, keys kept as tensors, shape, dtype): torchao, optimi, prodigyplus and
pytorch_optimizer change these in place or hand them to tensors' methods."""


def own_numbered(state: NamedState) -> Numbered:
    """Return the state dict by position that the state's own optimizer loads, with slots for tensors."""
    made = numbered(state, names=True)
    for group in made["param_groups"]:
        group.update(_tensors_of_group(state.optimizer, group))
    names = [name for group in groups_of(state) for name in group]
    for position in made["state"]:
        made["state"][position] = _nested(_own_entry(state, state.parameters[names[position]]))
    return made


def refuse_for_adamw(state: NamedState) -> None:
    """Refuse a state that torch's AdamW cannot go on from.

    Raises:
        ExportError: the state is not of Adam's kind.
    """
    slots = {slot for parameter in state.parameters.values() for slot in parameter.slots}
    if not {"exp_avg", "exp_avg_sq"} <= slots <= set(ADAMW_SLOTS) or not fits_adamw(state.optimizer):
        what = f"a state of {state.optimizer} with {', '.join(sorted(slots))} cannot be continued by torch's AdamW"
        raise ExportError(what, where="--as adamw_torch", fix="drop --as: the state goes back into its own optimizer")


def refuse_uncounted(state: NamedState) -> None:
    """Refuse a state with which no optimizer can go on: when its moments last began anew is counted beside its entries.

    Raises:
        ExportError: it is of such an optimizer.
    """
    if state.optimizer in ("spam", "stable_spam"):
        what = "SPAM and StableSPAM count steps beside their entries (total_step, current_step), and no named file keeps them"
        raise ExportError(what, where="--to", fix="resume it from its own checkpoint; a probe takes the named file")


def adamw_numbered(state: NamedState) -> Numbered:
    """Return the state dict by position that torch.optim.AdamW loads, of a state that `refuse_for_adamw` lets pass."""
    slots = {slot for parameter in state.parameters.values() for slot in parameter.slots}
    made = numbered(state, names=True)
    for group in made["param_groups"]:
        for key in [key for key in group if key not in (*_ADAMW_HYPER, "params", "param_names")]:
            del group[key]
        group.setdefault("amsgrad", "max_exp_avg_sq" in slots)
    own = [name for group in groups_of(state) for name in group]
    for position in made["state"]:
        parameter = state.parameters[own[position]]
        made["state"][position] = {**({} if parameter.step is None else {"step": Number(parameter.step)}), **parameter.slots}
    return made


def packings_of(state: NamedState) -> set[str]:
    """Return the packings into which something of the state goes back; `repack.packed_slots` yields what does."""
    return {
        kind
        for parameter in state.parameters.values()
        for kind in parameter.decoded_from.split("+")
        if kind.startswith("bitsandbytes-8bit")
        or any(slot in (AUTO8BIT_SLOTS if kind == "auto8bit" else ADAMW_SLOTS) for slot in parameter.slots if kind in ("auto8bit", *TORCHAO))
    }


def requantised(state: NamedState) -> Iterator[Finding]:
    """Say that moments were rounded to few bits again, and how far that moved them; or that they are the same to the last bit."""
    spec = OPTIMIZERS.get(state.optimizer)
    if spec is not None and {"bitsandbytes", "torchao"} & set(spec.tells):
        text = f"the slots are those of {spec.classes}: resume with the same optimizer"
        fix = "to resume with torch's AdamW: --as adamw_torch" if fits_adamw(state.optimizer) else ""
        yield Finding(rule="export-own-slots", severity="note", text=text, fix=fix)
    if spec is not None and spec.starts_cold:
        yield Finding(
            rule="export-starts-cold", severity="warning", text=f"{spec.classes} starts cold from any file, its own included: {spec.starts_cold}"
        )
    kinds = packings_of(state)
    worst = 0.0
    if kinds:
        from .repack import largest_error

        worst = largest_error(state)
    stay = {kind for parameter in state.parameters.values() for kind in parameter.decoded_from.split("+")} - kinds - {"plain"}
    if kinds and not worst:
        text = f"the moments go back into {', '.join(sorted(kinds))}: each code decodes to the same number, bit for bit"
        yield Finding(rule="export-packed-again", severity="note", text=text)
    elif kinds:
        text = f"the moments go back into {', '.join(sorted(kinds))} and are rounded: off by up to {worst:.1g} of the largest in their block"
        yield Finding(rule="export-requantised", severity="warning", text=text, fix="--as adamw_torch keeps them exact, for torch's AdamW")
    if stay:
        text = f"the moments were {', '.join(sorted(stay))}; they are written decoded, as float32 under their own names"
        yield Finding(rule="export-packing-lost", severity="warning", text=text)


def _own_entry(state: NamedState, parameter: NamedParameter) -> Entry:
    spec = OPTIMIZERS.get(state.optimizer)
    of_bitsandbytes = spec is not None and "bitsandbytes" in spec.tells
    made = entry(parameter, step=step_in_entry(state))
    if not of_bitsandbytes and "auto8bit" not in parameter.scalars and not set(TORCHAO) & set(parameter.decoded_from.split("+")):
        return made
    from . import repack

    if of_bitsandbytes:
        return repack.bitsandbytes(parameter)
    if "auto8bit" in parameter.scalars:
        return repack.auto8bit(entry(parameter))
    return repack.torchao(made, parameter)


def _tensors_of_group(optimizer: str, group: Mapping[str, object]) -> Entry:
    """Return the values that the optimizer keeps as tensors in its groups, from `_GROUP_TENSORS`."""
    made: Entry = {}
    for row, marker, keys, shape, dtype in _GROUP_TENSORS:
        if optimizer == row and marker in group:
            values = {key: group.get(key) for key in keys}
            made |= {key: Number(float(value), shape, dtype=dtype) for key, value in values.items() if isinstance(value, (int, float))}
    return made


def _nested(made: Entry) -> Entry:
    """Put `GG.0`, `GG.1` back into the list, `odd.inner` back into the mapping that they were read from."""
    out: Entry = {}
    for key, value in made.items():
        place, parts = out, key.split(".")
        for part in parts[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ExportError(f"{key!r} lies within {part!r}, which is a value of its own", fix="report this layout")
            place = inner
        place[parts[-1]] = value
    return {key: _listed(value) if any(other.startswith(f"{key}.") for other in made) else value for key, value in out.items()}


def _listed(value: object) -> object:
    """Return a mapping whose keys count from 0 as the list it was."""
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(item) for key, item in value.items()}
    return [inner[str(at)] for at in range(len(inner))] if set(inner) == {str(at) for at in range(len(inner))} else inner
