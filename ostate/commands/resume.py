"""Why a resume refuses, in names: the parameters of the optimizer to come beside those of a state. `ostate diff STATE --for …` as a function."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ostate import store
from ostate.core.brief import brief
from ostate.core.hf_cache import local_model
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.errors import ExportError, OstateError
from ostate.exporters.migrate import matched, migrate, refuse_nothing_kept
from ostate.exporters.target import Grouping, Target, Wanted, shapes_unknown, target_of
from ostate.read import named_file

from .repair import repair

if TYPE_CHECKING:
    from ostate.core.documents import ResumeDocument

Shape = tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Change:
    """What another set of trainable parameters means for a state."""

    state: str
    """The path of the state; empty for one in memory."""
    wanted: str
    """What `--for` named; `a live model` or `a list` for what has no path."""
    adds: tuple[tuple[str, Shape], ...]
    """(name, shape) of parameters that the state does not know."""
    lacks: tuple[str, ...]
    """Names that the state has and the optimizer to come has not."""
    renamed: tuple[tuple[str, str], ...]
    """(name in the state, name to come) of one parameter under two names, such as another adapter's name."""
    reshaped: tuple[tuple[str, Shape, Shape], ...]
    """(name, shape in the state, shape to come)."""
    moved: tuple[tuple[str, int, int], ...]
    """(name, position in the state, position to come) of parameters that both have, where the position is another."""
    groups: tuple[int, ...]
    """Positions in each group of the state."""
    groups_to_come: tuple[int, ...]
    command: str
    """The one command that writes an optimizer.pt for it; empty where nothing is to be done, or nothing can be."""
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        return brief(self)

    @property
    def same(self) -> bool:
        """True when the state loads as it is, each moment under its own parameter."""
        return self.groups == self.groups_to_come and not (self.adds or self.lacks or self.renamed or self.reshaped or self.moved)

    @property
    def by_position(self) -> str:
        """What `load_state_dict`, which compares the number of groups and their lengths and nothing else, does with the state as it is."""
        if len(self.groups) != len(self.groups_to_come):
            return "torch refuses: loaded state dict has a different number of parameter groups"
        if self.groups != self.groups_to_come:
            return "torch refuses: loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        wrong = len(self.moved) + len(self.adds) + len(self.reshaped)
        return (
            f"torch loads it without an error, and {wrong} parameters get moments that are not theirs"
            if wrong
            else "torch loads it, each parameter where it belongs"
        )


def compare_for(state: str | NamedState, wanted: Wanted, *, base: str | None = None, groups: Grouping = "auto") -> Change:
    """Return what differs between a state's parameters and those that `wanted` will train.

    Args:
        state: a named file or state; or a checkpoint, which is named first as `repair` would.
        wanted: an adapter or checkpoint folder, a file of names, a list of names or groups of them, or a live model.
        base: the base model's folder or config.json, for the order of an adapter's new parameters.
        groups: the groups of the optimizer to come.

    Raises:
        ReadError, OrderingError: the state cannot be read, or not named.
        ExportError: the order of the parameters to come cannot be determined.
    """
    named = state if isinstance(state, NamedState) else store.load(state) if named_file.is_named(state) else repair(state).named
    target = target_of(named, wanted, grouping=groups, base_model=None if base is None else local_model(base))
    pairs = matched(named.parameters, target)
    without = set(named.without_state)
    at = {name: position for position, name in enumerate(named.names)}
    to_come = migrate(named, Target(groups=target.groups, order=target.order), new="absent").groups
    known = {name: pairs.get(name) or (name if name in without else None) for name in target.order}
    place = {name: position for position, name in enumerate(name for group in to_come for name in group.names or ())}
    there = {own for own in known.values() if own is not None}
    unseen = tuple(shapes_unknown(target))
    command, findings = _way(named, state, wanted, target, base, groups)
    change = Change(
        state=state if isinstance(state, str) else named.path or "",
        wanted=_shown(wanted),
        adds=tuple((name, target.shapes.get(name)) for name, own in known.items() if own is None),
        lacks=tuple(name for name in named.names if name not in there),
        renamed=tuple((own, name) for name, own in known.items() if own is not None and own != name),
        reshaped=_reshaped(named, target, known),
        moved=tuple((name, at[own], place[name]) for name, own in known.items() if own is not None and at[own] != place[name]),
        groups=named.group_lengths or tuple(len(group.names or ()) for group in named.groups),
        groups_to_come=tuple(len(group.names or ()) for group in to_come),
        command=command,
        findings=(*findings, *unseen),
    )
    return replace(change, command="", findings=unseen) if change.same else change


def _shown(wanted: Wanted) -> str:
    if isinstance(wanted, (str, bytes, os.PathLike)):
        return os.fsdecode(wanted)
    return "a live model" if hasattr(wanted, "parameters") else "a list"


def _reshaped(named: NamedState, target: Target, known: dict[str, str | None]) -> tuple[tuple[str, Shape, Shape], ...]:
    rows = []
    for name, own in known.items():
        shape, parameter = target.shapes.get(name), named.parameters.get(own or "")
        if shape is not None and parameter is not None and shape != parameter.shape:
            rows.append((name, parameter.shape, shape))
    return tuple(rows)


def _way(
    named: NamedState, state: str | NamedState, wanted: Wanted, target: Target, base: str | None, groups: Grouping
) -> tuple[str, tuple[Finding, ...]]:
    """Return the command that was tried and works, or none and why."""
    failed: OstateError | None = None
    for new, truncate in (("zeros", False), ("absent", False), ("zeros", True), ("absent", True)):
        try:
            refuse_nothing_kept(migrate(named, target, new=new, truncate=truncate))  # type: ignore[arg-type]
        except ExportError as error:
            failed = error
            continue
        return _command(state, wanted, base, groups, [*(["--new", new] * (new != "zeros")), *(["--truncate"] * truncate)]), ()
    text = f"no export makes this state fit: {failed.what if failed else ''}"
    return "", (
        Finding(
            rule="resume-impossible",
            severity="error",
            text=text,
            fix=failed.fix if failed else "",
            names=(failed.where,) if failed and failed.where else (),
        ),
    )


def _command(state: str | NamedState, wanted: Wanted, base: str | None, groups: Grouping, more: Sequence[str]) -> str:
    path = state if isinstance(state, str) else state.path or ""
    if not path or not isinstance(wanted, (str, bytes, os.PathLike)):
        return ""
    first = []
    if not named_file.is_named(path):
        first, path = ["ostate", "repair", path, "-o", "lora.ostate.safetensors"], "lora.ostate.safetensors"
    words = ["ostate", "export", path, "--to", "torch", "--for", os.fsdecode(wanted), *(["--base", base] if base else [])]
    words += [*(["--groups", groups] if groups != "auto" else []), *more, "-o", "optimizer.pt"]
    return " && ".join(shlex.join(part) for part in (first, words) if part)


def as_document(found: Change) -> ResumeDocument:
    """Return the JSON document that schemas/resume-v1.schema.json describes."""
    return {
        "document": "ostate-resume",
        "version": 1,
        "state": found.state,
        "for": found.wanted,
        "same": found.same,
        "adds": [{"name": name, "shape": None if shape is None else list(shape)} for name, shape in found.adds],
        "lacks": list(found.lacks),
        "renamed": [{"state": own, "to_come": name} for own, name in found.renamed],
        "reshaped": [{"name": name, "state": list(was or ()), "to_come": list(now or ())} for name, was, now in found.reshaped],
        "moved": [{"name": name, "state": was, "to_come": now} for name, was, now in found.moved],
        "groups": {"state": list(found.groups), "to_come": list(found.groups_to_come)},
        "by_position": found.by_position,
        "command": found.command,
        "findings": [finding.as_dict() for finding in found.findings],
    }
