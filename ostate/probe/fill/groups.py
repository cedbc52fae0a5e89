"""Parameter groups and hyperparameters of an optimizer that is filled: the state's, where the caller does not say otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from ostate.core.hyper import shown
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ProbeError

from ..precondition.usable import number, rates
from .names import Match


def groups_of(found: Match, state: NamedState, lr: float | None, options: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the state's groups over the model's trainable parameters, as AdamW takes them.

    Args:
        found: the model's parameters, and which entry of the state each has.
        state: whose groups and hyperparameters they get.
        lr: in place of the state's.
        options: what else the caller passes to AdamW; it may say what the state does not, and contradict nothing.

    Raises:
        ProbeError: no parameter has an entry; a hyperparameter is in neither, contradicts, or is out of range.
    """
    members: dict[int | None, list[tuple[str, Tensor]]] = {group.index: [] for group in state.groups}
    for name, parameter in found.parameters:
        entry = found.entries.get(name)
        members.setdefault(state.parameters[entry].group if entry else None, []).append((name, parameter))
    groups = []
    used = [at for at, parameters in members.items() if parameters]
    for at in used:
        known = at if at is not None else next((other for other in used if other is not None), None)
        if known is None:
            raise ProbeError(
                "the state has no entry for any trainable parameter",
                where=f"first trainable: {found.parameters[0][0]}",
                fix="this state is of another model or adapter",
            )
        groups.append({"params": members[at], **_hyper(state.groups[known].hyper, lr, options)})
    return groups


def _hyper(stored: Mapping[str, object], lr: float | None, options: Mapping[str, object]) -> dict[str, object]:
    out: dict[str, object] = {"lr": stored.get("lr") if lr is None else lr}
    for key in ("betas", "eps", "weight_decay"):
        here, given = stored.get(key), options.get(key)
        here, given = _comparable(here), _comparable(given)
        if here is not None and given is not None and here != given:
            raise ProbeError(f"{key}={given} contradicts the state's {here}", fix=f"drop {key}")
        out[key] = given if here is None else here
    if out["weight_decay"] is None:
        out["weight_decay"] = 0.0  # it takes no part in the preconditioner, and no file that lacks it can be stepped on as it was
    unknown = [key for key, value in out.items() if value is None]
    if unknown:
        raise ProbeError(
            f"the state does not say {', '.join(unknown)}", fix="pass it: lora_adamw(model, state, " + ", ".join(f"{key}=…" for key in unknown) + ")"
        )
    _check_hyper(out, "lora_adamw")
    for key in ("amsgrad", "maximize"):
        out[key] = bool(stored.get(key, False))
    if "initial_lr" in stored:
        out["initial_lr"] = stored["initial_lr"]
    return out


def _check_hyper(group: Mapping[str, object], where: str) -> None:
    """Refuse what torch looks at only where it is a default of the optimizer, and would step on all the same.

    Raises:
        ProbeError: lr or weight_decay that is no finite number from 0; betas or eps out of range.
    """
    rates(group["betas"], group["eps"], where)
    for key in ("lr", "weight_decay"):
        value = number(group[key])
        if value is None or value < 0:
            raise ProbeError(f"{key} must be a finite number from 0, not {shown(group[key])}", where=where, fix=f"{key}=…")


def _comparable(value: object) -> object:
    """Return betas, and an eps of several numbers, as a tuple: some programs keep a list."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


def adopt_hyper(optimizer: Optimizer, state: NamedState, found: Match, adopt: bool) -> list[Finding]:
    """Take the state's betas, eps and weight decay into the optimizer's groups, or say where they differ.

    Raises:
        ProbeError: the state has several values for one group, or one out of range.
    """
    name_of = {id(parameter): name for name, parameter in found.parameters}
    notes = []
    for at, group in enumerate(optimizer.param_groups):
        names = [name_of[id(parameter)] for parameter in group["params"]]
        stored = [state.hyper(found.entries[name]) for name in names if name in found.entries]
        for key in ("betas", "eps", "weight_decay"):
            values = {_comparable(h[key]) for h in stored if h.get(key) is not None}
            here = _comparable(group[key])
            if values <= {here}:
                continue
            if not adopt:
                text = f"group {at} has {key}={here}, the state {sorted(values, key=str)}: the preconditioner will not be the training's"
                notes.append(Finding(rule="hyperparameters-differ", severity="warning", text=text, fix="fill(…, hyper=True)"))
            elif len(values) > 1:
                raise ProbeError(
                    f"the state has several values of {key}, {sorted(values, key=str)}, for one group",
                    where=f"group {at}",
                    fix="use lora_adamw, which makes the state's groups",
                )
            else:
                group[key] = values.pop()
        if adopt:
            _check_hyper(group, f"group {at}")
    return notes
