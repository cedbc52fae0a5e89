"""Which entry of a named state belongs to which live parameter: by name, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.core.hyper import shown
from ostate.core.names import (
    COMPONENTS,
    PEFT_PREFIX,
    adapter_at,
    any_adapter,
    common_leads,
    component,
    first_names,
    is_tuned,
    named_parameters,
    plain_names,
    with_adapter,
)
from ostate.errors import ProbeError

from ..precondition.usable import number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ostate.core.naming import NamedParameter, NamedState


@dataclass(frozen=True, slots=True)
class Match:
    """Live parameters, each with its entry of the state. Lists keep the order in which the parameters were given."""

    parameters: tuple[tuple[str, Tensor], ...]
    """(plain live name, parameter)."""
    entries: Mapping[str, str]
    """Live name -> name in the state; a name that is missing here has no entry."""
    unused: tuple[str, ...]
    """Names in the state whose live parameter is not among those asked for (frozen, or not in the optimizer)."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Live names without an entry."""
        return tuple(name for name, _ in self.parameters if name not in self.entries)


def trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (plain name, parameter) of everything that requires grad, in the model's order.

    Raises:
        ProbeError: nothing requires grad; two parameters have one plain name.
    """
    plain = first_names(model, error=ProbeError)
    found: list[tuple[str, Tensor]] = [(plain[id(parameter)], parameter) for _, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise ProbeError(
            "no parameter requires grad, so there is nothing to probe",
            where=type(model).__name__,
            fix="load the adapter with PeftModel.from_pretrained(model, folder, is_trainable=True)",
        )
    return found


def match(model: nn.Module, state: NamedState, parameters: Iterable[tuple[str, Tensor]]) -> Match:
    """Give each parameter its entry of the state.

    Where the model has not one of the state's names, they are tried with `base_model.model.` or without, and without a component's name (`unet.`)
    or a module of the trainer's (`model.`) that all of them begin with: whoever wrote the state may have had the adapter's keys alone to go by.
    One form must fit all names.

    Args:
        model: the live model, wrapped or not; tied parameters answer to each of their names.
        state: the named state; its adapter name may differ from the model's.
        parameters: (plain name, parameter) to fill, e.g. `trainable(model)`.

    Raises:
        ProbeError: an entry fits no parameter of the model, fits two, or has another shape; two entries fit one parameter; an entry of a group
            that is not there, or whose step is no finite number.
    """
    wanted = tuple(parameters)
    label = {id(parameter): name for name, parameter in wanted}
    exact: dict[str, Tensor] = {}
    loose: dict[str, list[Tensor]] = {}
    for name, parameter in named_parameters(model, error=ProbeError):
        exact[name] = parameter
        loose.setdefault(any_adapter(name), []).append(parameter)
    entries: dict[str, str] = {}
    unused: list[str] = []
    later: list[tuple[str, str]] = []
    for name, entry in state.parameters.items():
        if not 0 <= entry.group < len(state.groups):
            fix = "make the state with `ostate repair` or ostate.save"
            raise ProbeError(f"the entry is of group {entry.group}, and the state has {len(state.groups)}", where=name, fix=fix)
        if entry.step is not None and number(entry.step) is None:
            raise ProbeError(f"the step is {shown(entry.step)}, which is no count of updates", where=name, fix="None, where it is not known")
    for name, form in _as_live(list(state.parameters), exact, loose).items():
        hit = exact.get(form)
        if hit is None:
            later.append((name, form))
        else:
            _assign(entries, unused, label, hit, state.parameters[name])
    for name, form in later:
        hits = {id(p): p for p in loose.get(any_adapter(form), []) if label.get(id(p)) not in entries}
        if len(hits) > 1:
            hits = {key: p for key, p in hits.items() if key in label} or hits
        if len(hits) != 1:
            raise _no_parameter(name, len(hits), model)
        _assign(entries, unused, label, next(iter(hits.values())), state.parameters[name])
    return Match(wanted, entries, tuple(unused))


def _as_live(names: list[str], exact: Mapping[str, Tensor], loose: Mapping[str, list[Tensor]]) -> dict[str, str]:
    """Return the state's names -> the form in which the model may have them: as they are, or the one other form that fits all of them.

    Raises:
        ProbeError: the model has none as they are, and two other forms fit.
    """

    def known(form: str) -> bool:
        return form in exact or any_adapter(form) in loose

    plain = plain_names(names)
    own = [name if name in exact or not known(bare) else bare for name, bare in zip(names, plain)]
    leads = common_leads([name for name in exact if is_tuned(name)])
    forms = dict.fromkeys((tuple(own), *(tuple(form) for form in _other_forms(plain, leads))))
    fitting = [form for form in forms if all(map(known, form))]
    if any(map(known, own)) or not fitting:
        return dict(zip(names, own))
    if len(fitting) > 1:
        raise ProbeError(
            f"the state's names fit the model in {len(fitting)} ways, as {fitting[0][0]!r} and as {fitting[1][0]!r}",
            where=names[0],
            fix="pass the inner model whose adapter was trained",
        )
    return dict(zip(names, fitting[0]))


def _other_forms(names: list[str], leads: Sequence[str]) -> Iterable[list[str]]:
    """Yield the names with PEFT's prefix or without it, without what all have in front of it (a LightningModule's attribute), without the one
    component they lie in, and within one; keys with an adapter's name; within the modules (`leads`) that hold all of the model's tuned parameters.
    """
    keyed = [name if not is_tuned(name) or adapter_at(name.split(".")) is not None else with_adapter(name, "default") for name in names]
    if keyed != names:
        yield keyed
        yield from _other_forms(keyed, leads)
    yield [f"{PEFT_PREFIX}{name}" for name in names]
    for lead in (PEFT_PREFIX, component(names)):
        if lead and all(name.startswith(lead) for name in names):
            yield [name.removeprefix(lead) for name in names]
    outer = {name.partition(f".{PEFT_PREFIX}")[0] if f".{PEFT_PREFIX}" in name else "" for name in names}
    if len(outer) == 1 and (lead := outer.pop()):
        yield [name.removeprefix(f"{lead}.") for name in names]
    for part in COMPONENTS:
        yield [f"{part}.{name}" for name in names]
    for front in leads:
        yield [f"{front}{name}" for name in names]


def _assign(entries: dict[str, str], unused: list[str], label: Mapping[int, str], parameter: Tensor, entry: NamedParameter) -> None:
    name = label.get(id(parameter))
    if name is None:
        unused.append(entry.name)
        return
    if tuple(parameter.shape) != tuple(entry.shape):
        raise ProbeError(
            f"the state's entry has shape {tuple(entry.shape)}, the parameter {tuple(parameter.shape)}",
            where=name,
            fix="the state belongs to another model or rank: check which adapter was loaded",
        )
    if name in entries:
        raise ProbeError(
            f"two entries of the state, {entries[name]!r} and {entry.name!r}, match one parameter",
            where=name,
            fix="load one adapter: the names differ only by what wraps them",
        )
    entries[name] = entry.name


def _no_parameter(name: str, hits: int, model: nn.Module) -> ProbeError:
    if hits:
        return ProbeError(
            f"{hits} parameters of the model could take this entry, which differ only by adapter name",
            where=name,
            fix="load one adapter, or rename it to the state's",
        )
    return ProbeError(
        "the state has an entry for a parameter that the model does not have",
        where=name,
        fix=f"load the adapter that this state was trained with (this {type(model).__name__} has other names); if modules were removed since, make "
        "a state for the new adapter: `ostate export STATE --to ostate --for ADAPTER -o new.ostate.safetensors`",
    )
