"""The parameters that an export is for, group by group: from names, an adapter or a live model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from ostate.core.names import first_names, plain_names, renamed_adapter, twins
from ostate.core.names_list import read_names, read_shapes
from ostate.core.naming import Adapter, NamedState, Question, positions_of
from ostate.core.state import Finding
from ostate.errors import ExportError
from ostate.ordering import keys
from ostate.ordering.grouping.norms import LAST
from ostate.ordering.grouping.parameters import Parameter, ParameterList
from ostate.ordering.grouping.rules import RULES
from ostate.ordering.join import as_raw
from ostate.ordering.sources.rebuilt import base_config as base
from ostate.ordering.sources.rebuilt.model import layout_for
from ostate.read import adapters

if TYPE_CHECKING:
    import torch

Grouping = Literal["auto", "file", "one", "trainer"]
"""Groups of the optimizer to come: as the state's, one, Trainer's two, or `auto`: Trainer's where the state's own are, else as the state's."""
Wanted: TypeAlias = "str | os.PathLike[str] | Sequence[str] | Sequence[Sequence[str]] | torch.nn.Module"
"""What `--for` may be: an adapter or a file of names, the names themselves, one after another or by group, or a live model."""
_NORMS = ("LayerNorm", "RMSNorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The parameters of the optimizer to come."""

    groups: tuple[tuple[str, ...], ...] | None
    """Names by group; None: in definition order, to be grouped as the state is."""
    order: tuple[str, ...]
    """All names, in definition order."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Live name -> adapter key, where known."""
    adapter: Adapter | None = None
    by_trainer: bool = False
    """True when the groups were cut by Trainer's rule unasked, since the state's own are."""
    names_alone: bool = False
    """True where a person gave names and no shapes: a parameter that grew or shrank cannot be distinguished from one that did not."""


def shapes_unknown(target: Target) -> Iterator[Finding]:
    """Say that names alone do not tell whether a parameter is as large as it was."""
    if target.names_alone:
        text = "--for gives names without shapes: a parameter that is larger or smaller now, as with another rank, cannot be seen"
        fix = 'pass an adapter folder or a live model; or a file {"param_names": […], "shapes": {name: [rows, columns]}}'
        yield Finding(rule="for-shapes-unknown", severity="note", text=text, fix=fix)


def target_of(state: NamedState, wanted: Wanted, *, grouping: Grouping = "auto", base_model: str | None = None) -> Target:
    """Return the parameters that `--for` names: by a list, a file of names, an adapter or a live model.

    Args:
        state: whose names and groups are kept where nothing else is said.
        wanted: an adapter (folder or file), a file of names, a list of names or of groups of names, or a live model.
        grouping: see `Grouping`.
        base_model: the base model's folder or config.json, which tells the order of an adapter's parameters.

    Raises:
        ExportError: the order of the parameters cannot be determined.
    """
    if hasattr(wanted, "named_parameters"):
        rows = _of_model(cast("torch.nn.Module", wanted))
        return _grouped(rows, grouping, {}, None, state)
    if not isinstance(wanted, (str, bytes, os.PathLike)):
        return _of_lists(wanted, grouping, state, {})
    path = os.fsdecode(wanted)
    if path.endswith((".json", ".txt")) and not path.endswith("adapter_config.json"):
        return _of_lists(read_names(path, error=ExportError), grouping, state, read_shapes(path, error=ExportError))
    adapter = adapters.read_adapter(path)
    rows, known = _of_adapter(state, adapter, base_model)
    return _grouped(rows, grouping, known, adapter, state)


def of_names(names: Sequence[str], grouping: Grouping, state: NamedState) -> Target:
    """Return the target that has exactly these names."""
    return _grouped([Parameter(name=name) for name in names], grouping, {}, None, state)


def _of_lists(wanted: Iterable[str | Sequence[str]], grouping: Grouping, state: NamedState, shapes: Mapping[str, tuple[int, ...]]) -> Target:
    rows = list(wanted)
    lists = [row for row in rows if isinstance(row, (list, tuple))]
    grouped = bool(rows) and len(lists) == len(rows)
    whole = [str(name) for row in lists for name in row] if grouped else [str(name) for name in rows]
    plain = _plain(whole, state)
    known = {name: shapes[given] for name, given in zip(plain, whole) if given in shapes}
    if grouped and (len(rows) > 1 or grouping == "one"):
        names = iter(plain)
        target = Target(groups=tuple(tuple(next(names) for _ in row) for row in lists), order=tuple(plain), shapes=known)
    else:
        target = _grouped([Parameter(name=name, shape=known.get(name)) for name in plain], grouping, {}, None, state)
    return replace(target, names_alone=len(known) < len(plain))


def _plain(whole: Sequence[str], state: NamedState) -> list[str]:
    """Return the names without wrappers' segments; as they are where the state has them so.

    Raises:
        ExportError: two of them are one then.
    """
    own = set(state.names)
    plain = plain_names(whole)
    if sum(name in own for name in whole) > sum(name in own for name in plain):
        plain = list(whole)
    if same := twins(plain):
        raise ExportError(f"two parameters are called {same[0]!r}", where="--for", fix="make every name unique")
    return plain


def _of_model(model: torch.nn.Module) -> list[Parameter]:
    modules = dict(model.named_modules())
    rows = []
    plain = first_names(model, error=ExportError)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds = frozenset(kind.__name__ for kind in type(modules[name.rpartition(".")[0]]).__mro__ if kind.__name__.endswith(_NORMS))
            rows.append(Parameter(name=plain[id(parameter)], shape=tuple(parameter.shape), classes=kinds))
    if not rows:
        raise ExportError("the model has no parameter that requires grad", fix="PeftModel.from_pretrained(…, is_trainable=True)")
    return rows


def _of_adapter(state: NamedState, adapter: Adapter, base_model: str | None) -> tuple[list[Parameter], dict[str, str]]:
    """Return the adapter's parameters in definition order: as the state has them, or as PEFT builds them."""
    by_key = {key: name for name, key in _keys_in_source_order(state, adapter).items()}
    shapes = {key: tuple(ref.shape) for key, ref in adapter.tensors.items()}
    if set(shapes) <= set(by_key):
        rows = [Parameter(name=_renamed(name, adapter, state), key=key, shape=shapes[key]) for key, name in by_key.items() if key in shapes]
        return rows, {row.name: row.key for row in rows if row.key is not None}
    question = Question(raw=as_raw(state), adapter=adapter, base=base_model)
    config = base.find_config(question)
    layout = config if isinstance(config, str) else layout_for([adapter], config[0])
    if not isinstance(layout, ParameterList):
        new = sorted(set(shapes) - set(by_key))
        names = "--for a file of names in the optimizer's order"
        raise ExportError(
            f"the order of {len(new)} new parameters is not known",
            where=f"{adapter.file}: {new[0]}",
            why=(layout,),
            fix=f"pass --base DIR, or {names}" if base_model is None else f"pass {names}",
        )
    rows = [row for row in layout.parameters if row.trainable]
    return rows, {row.name: row.key for row in rows if row.key is not None}


def _keys_in_source_order(state: NamedState, adapter: Adapter) -> dict[str, str]:
    """Return name -> adapter key in the source's order; names without state too, where it is known at which positions they stand."""
    known = {name: parameter.adapter_key for name, parameter in state.parameters.items()}
    unknown = [name for name, key in known.items() if key is None]  # all of them in a state that was saved live
    known |= dict(zip(unknown, keys.match_all(unknown, adapter)[0]))
    if any(parameter.position is None for parameter in state.parameters.values()):
        return {name: key for name, key in known.items() if key is not None}
    without = state.without_state
    known |= dict(zip(without, keys.match_all(without, adapter)[0]))
    at = positions_of(state)
    return {name: key for name in sorted(known, key=at.__getitem__) if (key := known[name]) is not None}


def _renamed(name: str, adapter: Adapter, state: NamedState) -> str:
    """Give the name the adapter's name in the model to come, where that is known to be another."""
    there = state.adapter.get("name")
    if not adapter.name_known or not isinstance(there, str) or there == adapter.name:
        return name
    return renamed_adapter(name, there, adapter.name)


def _grouped(rows: Sequence[Parameter], grouping: Grouping, known: Mapping[str, str], adapter: Adapter | None, state: NamedState) -> Target:
    order = tuple(row.name for row in rows)
    groups: tuple[tuple[str, ...], ...] | None = None
    by_trainer = grouping == "auto" and groups_are_trainers(state, rows)
    if grouping == "one":
        groups = (order,)
    elif grouping == "trainer" or by_trainer:
        groups = _by_trainer(rows)
    shapes = {row.name: row.shape for row in rows if row.shape is not None}
    return Target(groups=groups, order=order, shapes=shapes, keys=known, adapter=adapter, by_trainer=by_trainer)


def _by_trainer(rows: Sequence[Parameter]) -> tuple[tuple[str, ...], ...]:
    """Return names by group as Trainer of today cuts them: what decays, and what does not."""
    rule = next(rule for rule in RULES if rule.family == "Trainer" and rule.span is not None and rule.span.before == LAST)
    (cuts,) = rule.split(rows, ())
    return tuple(tuple(row.name for row in one.parameters) for one in cuts)


def groups_are_trainers(state: NamedState, rows: Sequence[Parameter]) -> bool:
    """True when Trainer's rule, on the state's own names, gives the state's own groups: two, of which the second does not decay.

    `rows`, the parameters of the optimizer to come, tell the classes of those norms that both have.
    """
    if len(state.groups) != 2 or (state.groups[1].names and state.groups[1].hyper.get("weight_decay")):
        return False
    known = {row.name: row for row in rows}
    cut = _by_trainer([known.get(name, Parameter(name=name)) for name in state.names])
    return [set(names) for names in cut] == [set(group.names or ()) for group in state.groups]
