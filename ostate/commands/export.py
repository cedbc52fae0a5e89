"""Give a named state back in someone's layout: the `export` command as a function."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from ostate import store
from ostate.core.atomic import beside, cannot_write, check_target, publish, publish_folder, refuse_inputs, refuse_special
from ostate.core.brief import brief
from ostate.core.files import close_kept, recorded
from ostate.core.hf_cache import local_model
from ostate.core.names_list import NAMES_FILE
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.system import flush_file
from ostate.core.tensors import Slot
from ostate.errors import ExportError, refusing
from ostate.exporters import EXPORTERS, Exporter, ExportOptions
from ostate.exporters.base import missing_positions
from ostate.exporters.migrate import New, migrate, refuse_nothing_kept
from ostate.exporters.target import Grouping, Target, Wanted, of_names, target_of
from ostate.read import adapters
from ostate.read.layouts import dcp

if TYPE_CHECKING:
    from ostate.core.documents import ExportDocument

Layout = Literal[
    "torch", "less", "bergson", "dattri", "ota", "names", "dcp", "dcp-flat", "dcp-positions", "deepspeed-universal", "accelerate", "ostate"
]  # fmt: skip
"""The rows of `exporters.EXPORTERS`, and the named format itself; held equal by a test."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Exported:
    """What was written, and what a person should know."""

    to: str
    """The layout."""
    path: str
    """The file or folder; empty for a dry run."""
    state: NamedState
    """What was written, after migration."""
    findings: tuple[Finding, ...]
    """What was kept, added, dropped or lost."""

    def __repr__(self) -> str:
        return brief(self)


class ExportFields(TypedDict, total=False):
    """The arguments of `export` that have a default, by which a call names some of them."""

    wanted: Wanted | None
    groups: Grouping
    base: str | os.PathLike[str] | None
    new: New
    rename: Sequence[tuple[str, str]]
    truncate: bool
    adapter: str | os.PathLike[str] | None
    v_hat: bool
    root: str
    rest: str | os.PathLike[str] | None
    taken_as: Literal["own", "adamw_torch"]
    names: bool
    strict: bool
    force: bool


@refusing
def export(
    state: NamedState | str | os.PathLike[str],
    to: Layout,
    out: str | os.PathLike[str] | None,
    *,
    wanted: Wanted | None = None,
    groups: Grouping = "auto",
    base: str | os.PathLike[str] | None = None,
    new: New = "zeros",
    rename: Sequence[tuple[str, str]] = (),
    truncate: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    v_hat: bool = False,
    root: str = "optim",
    rest: str | os.PathLike[str] | None = None,
    taken_as: Literal["own", "adamw_torch"] = "own",
    names: bool = False,
    strict: bool = False,
    force: bool = False,
) -> Exported:
    """Write `state` as the program behind `to` reads it.

    Args:
        state: a named state, or the path of one.
        to: a row of `exporters.EXPORTERS`, or `ostate` for a named file.
        out: the file or folder to write; in a folder that is there, the layout's usual file name; None: nothing is written.
        wanted: `--for`: an adapter, a file of names, a list of names or groups, or a live model whose optimizer will load it.
        groups: the groups of that optimizer: as the state's, one, Trainer's two, or `auto`: Trainer's where the state's are, else as the state's.
        base: the base model's folder, config.json or `org/name`, for the order of an adapter's new parameters.
        new: what a parameter gets that the state has no moments of.
        rename: (regular expression, replacement) over the state's names.
        truncate: let a parameter that shrank keep the part that fits.
        adapter: the trained weights, for layouts that keep them too.
        v_hat: write bias-corrected v (bergson, ota).
        root: the key of the optimizer in a distributed checkpoint.
        rest: a distributed checkpoint whose other entries, such as a scheduler's, are written too.
        taken_as: whose slots a torch, accelerate or distributed file holds: the optimizer's that made the state, or torch's AdamW's.
        names: also write `optimizer_param_names.json` beside a torch or accelerate file, for who reads names there and not in `param_names`.
        strict: refuse where something would be lost.
        force: replace an existing output.

    Raises:
        ExportError: the layout cannot hold this state, or `strict` and something would be lost.
        StoreError: the output exists, is an input, or cannot be written.
    """
    _refuse_what_the_layout_lacks(to, taken_as, v_hat=v_hat, names=bool(names), rest=rest is not None)
    with recorded() as inputs:
        given = state if isinstance(state, NamedState) else store.load(state)
        known = len(given.findings)
        if wanted is not None or rename or groups in ("one", "trainer"):
            target = _target(given, wanted, groups, None if base is None else local_model(os.fsdecode(base)), rename)
            given = migrate(given, target, new=new, rename=rename, truncate=truncate)
            refuse_nothing_kept(given, "--for" if wanted is not None else "--rename")
        weights = _weights(given, os.fsdecode(adapter)) if adapter is not None else None
        others = {} if rest is None else dcp.others(os.fsdecode(rest), root)
    export_options = ExportOptions(v_hat=v_hat, root=root, rest=others, taken_as=taken_as, weights=weights)
    findings = [*given.findings[known:], *_proof(given), *_missing(given, to), *_losses(given, to, export_options)]
    _refuse_losses(findings if strict else (), to)
    path = "" if out is None else _write(given, to, Path(os.fsdecode(out)), export_options, inputs, names=names, force=force)
    return Exported(to=to, path=path, state=given, findings=tuple(findings))


def _losses(state: NamedState, to: str, export_options: ExportOptions) -> list[Finding]:
    """Return what the layout loses of the state; the named format loses nothing.

    Raises:
        ExportError: the layout cannot hold the state at all.
    """
    if to == "ostate":
        return []
    EXPORTERS[to].refuse(state, export_options)
    return list(EXPORTERS[to].losses(state, export_options))


def _refuse_losses(findings: Sequence[Finding], to: str) -> None:
    lost = [finding for finding in findings if finding.severity != "note" and finding.rule.startswith("export-")]
    if lost:
        raise ExportError(lost[0].text, where=to, fix=lost[0].fix or "drop --strict to accept it")


def _target(state: NamedState, wanted: Wanted | None, groups: Grouping, base: str | None, rename: Sequence[tuple[str, str]]) -> Target:
    """Return the parameters and groups to export for: those of `wanted`, or the state's own under their new names."""
    if wanted is not None:
        return target_of(state, wanted, grouping=groups, base_model=base)
    return of_names(_own_names(state, rename), "file" if groups == "auto" else groups, state)


def _refuse_what_the_layout_lacks(to: str, taken_as: str, *, v_hat: bool, names: bool, rest: bool) -> None:
    if to not in ("ostate", *EXPORTERS):  # in a tuple: whoever passes a list is told so too
        raise ExportError(f"no layout is called {to!r}", fix=f"choose one of {', '.join([*EXPORTERS, 'ostate'])}")
    if rest and (to == "ostate" or not EXPORTERS[to].keyed):
        able = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.keyed)
        raise ExportError(f"{to} holds an optimizer and nothing else", where="--rest", fix=f"drop --rest; it is for {able}")
    if taken_as != "own" and (to == "ostate" or not EXPORTERS[to].own_slots):
        raise ExportError(f"{to} is the same for all optimizers", where=f"--as {taken_as}", fix="drop --as")
    if v_hat and (to == "ostate" or not EXPORTERS[to].v_hat):
        able = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.v_hat)
        raise ExportError(f"{to} takes v as the optimizer keeps it", where="--v-hat", fix=f"drop --v-hat; it is for {able}")
    if names and to not in ("torch", "accelerate"):
        raise ExportError(f"{to} has the names in it", where="--names", fix="leave --names out")


def _own_names(state: NamedState, rename: Sequence[tuple[str, str]]) -> list[str]:
    """Return the state's names as they will be after renaming; two that become one are said where it is carried out."""
    names = []
    for name in state.names:
        for pattern, replacement in rename:
            with suppress(re.error, IndexError):  # said properly where it is carried out
                name = re.sub(pattern, replacement, name)
        names.append(name)
    return list(dict.fromkeys(names))


def _weights(state: NamedState, adapter: str) -> dict[str, Slot]:
    tensors = adapters.read_adapter(adapter).tensors
    return {name: tensors[key] for name, p in state.parameters.items() if (key := p.adapter_key or name) in tensors}


def _proof(state: NamedState) -> list[Finding]:
    """Say again what `repair` could not prove."""
    ordering = state.ordering
    if ordering is None:
        return []
    said = []
    if ordering.assumed:
        text = f"the names rest on an assumption: {'; '.join(ordering.assumed)}"
        said.append(Finding(rule="export-assumed", severity="note", text=text, fix="if it is wrong, pass --for or --rename"))
    if ordering.proven:
        return said
    text = f"the names are {ordering.verdict}: the program that loads this relies on them"
    fix = "check them with `ostate verify`"
    return [*said, Finding(rule="export-unproven", severity="warning", text=text, names=ordering.undecided, fix=fix)]


def _missing(state: NamedState, to: str) -> list[Finding]:
    """Say that the source had positions that got no name; whoever counts positions cannot load what is left.

    Raises:
        ExportError: the layout is one of positions.
    """
    text = missing_positions(state)
    if not text:
        return []
    fix = "pass --for an adapter, a file of names or a live model: the parameters of the optimizer that will load it"
    if to != "ostate" and EXPORTERS[to].positional:
        raise ExportError(f"{text}: they got no name, and this layout counts positions", where=to, fix=fix)
    return [Finding(rule="export-positions-missing", severity="warning", text=f"{text}: they got no name when the state was repaired", fix=fix)]


def _write(state: NamedState, to: str, out: Path, export_options: ExportOptions, inputs: Iterable[str], *, names: bool, force: bool) -> str:
    if to == "ostate":
        return store.write(state, out, force=force, inputs=inputs).path
    exporter = EXPORTERS[to]
    if exporter.file is not None and out.is_dir():
        out = out / exporter.file
    sources = dict.fromkeys((*store.sources_of(state), *inputs))
    if exporter.file is None:
        _write_folder(state, exporter, out, export_options, sources, force=force)
    else:
        beside_it = [(EXPORTERS["names"], out.with_name(NAMES_FILE))] if names else []
        _write_files(state, [(exporter, out), *beside_it], export_options, sources, force=force)
    return str(out)


def _write_folder(state: NamedState, exporter: Exporter, out: Path, export_options: ExportOptions, sources: Iterable[str], *, force: bool) -> None:
    refuse_special(out)
    if out.exists() and not force:
        raise ExportError("the output exists already", where=str(out), fix="pass --force to replace it, or choose another name")
    refuse_inputs([out], sources)
    temporary = beside(out)
    try:
        exporter.write(state, temporary, export_options)
        publish_folder(temporary, out, force=force)
    except OSError as error:
        raise cannot_write(error, out) from error
    finally:
        close_kept()  # rmtree opens folders, and may have run out of descriptors
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(
    state: NamedState, wanted: Sequence[tuple[Exporter, Path]], export_options: ExportOptions, sources: Iterable[str], *, force: bool
) -> None:
    """Write each exporter's file; all of them get their names, or none does."""
    finals = [out for _, out in wanted]
    for out in finals:
        check_target(out, force=force, inputs=tuple(sources))
    refuse_inputs(finals, sources)
    temporary = [beside(out) for out in finals]
    try:
        for (exporter, _), path in zip(wanted, temporary):
            exporter.write(state, path, export_options)
            flush_file(path)
        publish(temporary, finals, [], force=force)
    except OSError as error:
        raise cannot_write(error, finals[0]) from error
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink()


def as_document(done: Exported) -> ExportDocument:
    """Return the JSON document that schemas/export-v1.schema.json describes."""
    migration = done.state.source.get("migration")
    fates = {key: list(names) for key, names in migration.items() if isinstance(names, (list, tuple))} if isinstance(migration, Mapping) else {}
    return {
        "document": "ostate-export",
        "version": 1,
        "to": done.to,
        "out": done.path or None,
        "parameters": len(done.state.parameters),
        "migration": {key: fates.get(key, []) for key in ("kept", "grown", "cut", "made", "absent", "dropped")} if fates else None,
        "findings": [finding.as_dict() for finding in done.findings],
    }
