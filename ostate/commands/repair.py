"""The whole program on one screen: read -> name -> check -> write."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ostate import checks, store
from ostate.checks import copied, judging
from ostate.checks.context import structure_of
from ostate.checks.structure import no_state_at_all
from ostate.core.brief import brief
from ostate.core.file_digest import sha256_beside
from ostate.core.files import announce, is_file, recorded
from ostate.core.naming import Adapter, NamedState, Ordering, settled
from ostate.core.state import Finding, RawState
from ostate.core.tensors import shape_text
from ostate.errors import CheckError, ReadError, StoreError, refusing
from ostate.optimizers import OPTIMIZERS
from ostate.ordering import advice
from ostate.ordering.join import named_state
from ostate.ordering.live_form import with_live_form, with_peft_form
from ostate.read import named_file
from ostate.read.fitting import fitted
from ostate.read.weights import Candidates, candidates

from . import choosing, unproven
from .choosing import order_among
from .inspect import open_state, stored_bytes
from .options import OptionFields, Options, passed_to

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Repaired:
    """What `repair` settled on."""

    named: NamedState
    """The state under its names."""
    ordering: Ordering
    """How the names were determined."""
    findings: tuple[Finding, ...]
    """What a person should know, the worst first in print."""
    out: tuple[str, ...]
    """Files written; empty for a dry run."""
    read: str = ""
    """The state that was read, a file or a folder."""
    not_read: tuple[str, ...] = ()
    """Other states in the folder that was asked for."""
    beside: tuple[Finding, ...] = ()
    """Named states that lie in the same folder already; the written file does not speak of them, since the same state gives the same bytes."""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def settled(self) -> bool:
        """True when no person needs to look: proven whole, and nothing above a note."""
        return settled(self.ordering, self.findings)


TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Names under which a program expects what torch.save writes."""


@refusing
def repair(
    path: str,
    out: str | None = None,
    *,
    options: Options | None = None,
    force: bool = False,
    keep_dtype: bool = False,
    sha256: bool = False,
    **more: Unpack[OptionFields],
) -> Repaired:
    """Give the state at `path` its names and write them to `out`.

    Args:
        path: state file or checkpoint folder.
        out: the named file to write; None: a dry run, nothing is written.
        options: what the files do not say.
        force: replace an existing output.
        keep_dtype: leave 16-bit moments as they are; otherwise everything becomes float32.
        sha256: record a SHA-256 of every tensor in place of a CRC32.
        more: fields of `Options` by name, such as `adapter="lora/"`.

    Raises:
        ReadError, OrderingError, CheckError, StoreError: refused; nothing is written.
    """
    options = replace(options or Options(), **more)
    if out is not None:
        if out.endswith(TORCH_ENDINGS):
            fix = "choose a name like lora.ostate.safetensors; `ostate export FILE --to torch` then makes an optimizer.pt of it"
            raise StoreError("repair writes a safetensors file, which no program expects under this name", where=out, fix=fix)
        store.check_target(out, force=force, inputs=_given(path, options))
    with recorded() as inputs:
        raw, beside = opened(path, options)
        _refuse_the_unusable(raw)
        if out is not None:
            announce(lambda: stored_bytes(raw))
        _refuse_copies(raw, options)
        only = beside.adapters[0].file if options.evidence and len(beside.adapters) == 1 else None
        with sha256_beside(only if only is not None and is_file(only) else None) as sha256_of:  # while the numbers are compared
            adapter, found = order_among(raw, beside, options)
            digest = sha256_of(adapter.file) if options.evidence and adapter is not None and is_file(adapter.file) else None
        named = named_state(raw, found, adapter, step=options.step, betas=options.betas, eps=options.eps, sha256=digest)
    named = replace(named, source={**named.source, **passed_to(options, keep_dtype=keep_dtype, sha256=sha256)})
    findings = (*checks.run(raw, named, adapter), *unproven.of_verdict(found, raw, adapter, _passed(adapter, options)))
    judging.refuse(findings, path)
    named = replace(named, findings=findings)
    done = Repaired(
        named=named,
        ordering=found,
        findings=findings,
        out=(),
        read=raw.read,
        not_read=raw.not_read,
        beside=tuple(named_file.beside(raw.read or raw.source, but=out)),
    )
    if out is None:
        return done
    written = store.write(named, out, force=force, check=judging.while_copying(named), keep_dtype=keep_dtype, sha256=sha256, inputs=inputs)
    return replace(done, findings=tuple(written.findings), out=tuple(written.files))


def _given(path: str, options: Options) -> tuple[str | None, ...]:
    """Return the paths that a person typed, and the configuration that `--base` stands for: refused as outputs before anything is read."""
    base = None if options.base is None else os.path.join(options.base, "config.json")
    return path, options.adapter, options.model, options.order, options.previous, options.base, base


def _refuse_the_unusable(raw: RawState) -> None:
    """Say of moments that belong to no parameter by themselves what they are, before shapes that fit nothing are looked at.

    Raises:
        CheckError: projected moments, or no state at all.
    """
    spec = OPTIMIZERS.get(raw.optimizer)
    if spec is not None and spec.refuse:
        raise CheckError(f"{spec.classes}: {spec.refuse}", where=raw.source, fix=spec.fix)
    judging.refuse(no_state_at_all(structure_of(raw, None)), raw.source)


def _refuse_copies(raw: RawState, options: Options) -> None:
    """Refuse a state in which one parameter's moments stand twice: whoever was written over gets no right name. `--no-evidence` reads no number.

    Raises:
        CheckError: they do.
    """
    if options.evidence:
        judging.refuse(copied.copies(raw), raw.source)


def read(path: str, options: Options, *, named_too: bool = False) -> tuple[RawState, Adapter | None]:
    """Return the state, and the weights that go with it: as given, beside it, or inside the checkpoint.

    Raises:
        ReadError: not readable; or a named file where only an unnamed one makes sense.
    """
    raw, found = opened(path, options, named_too=named_too)
    return raw, found.adapters[0] if found.adapters and not found.on_trial else None


def opened(path: str, options: Options, *, named_too: bool = False) -> tuple[RawState, Candidates]:
    """Return the state, and all weights that may go with it.

    Raises:
        ReadError: not readable; or a named file where only an unnamed one makes sense.
    """
    raw = open_state(path, state=options.state, optimizer=options.optimizer, checksum=options.checksum)
    if raw.layout == "named" and not named_too:
        raise ReadError("this file already has names", where=path, fix="use `ostate verify`, `validate` or `export` on it")
    found = candidates(raw, adapter=options.adapter, model=options.model, name=options.adapter_name)
    fitting = [fitted(adapter, raw) for adapter in found.adapters]
    if options.adapter is not None:
        choosing.refuse_another_models(raw, fitting)
    live = [with_peft_form(adapter) if options.names == "peft" else with_live_form(adapter, raw) for adapter in fitting]
    return raw, found._replace(adapters=tuple(live))


def _passed(adapter: Adapter | None, options: Options) -> advice.GivenOptions:
    return advice.GivenOptions(adapter=adapter, order=options.order, base=options.base, previous=options.previous, evidence=options.evidence)


@refusing
def verify(path: str, *, options: Options | None = None, **more: Unpack[OptionFields]) -> Ordering:
    """Tell whether the numbers of the state at `path` belong to the adapter under the names that are claimed.

    A named file is judged by its own names; any other layout by the claims that `repair` would weigh.

    Raises:
        Contradiction: they do not.
        CheckError: one parameter's moments stand twice.
    """
    options = replace(options or Options(), **more)
    raw, beside = opened(path, options, named_too=True)
    _refuse_copies(raw, options)
    adapter, found = order_among(raw, beside, options)
    compared = tuple(finding for finding in raw.findings if finding.rule == "checksums")
    passed = _passed(adapter, options)
    partial = found.verdict == "partial"  # then which names, as `repair` lists them
    said = unproven.of_verdict(found, raw, adapter, passed) if partial else [*found.findings, *unproven.unverified(found, passed)]
    return replace(found, findings=(*compared, *said))


@refusing
def names(path: str, *, options: Options | None = None, **more: Unpack[OptionFields]) -> tuple[list[tuple[int, str, str]], bool]:
    """Return (position, name, shape) for every position that gets a name, and whether all of them are proven.

    Raises:
        OrderingError: no order can be settled.
        CheckError: one parameter's moments stand twice.
    """
    rows, found = names_and_order(path, options=replace(options or Options(), **more))
    return rows, found.proven


def names_and_order(path: str, *, options: Options) -> tuple[list[tuple[int, str, str]], Ordering]:
    """Return (position, name, shape) for every position that gets a name, and the order they come from.

    Raises:
        OrderingError: no order can be settled.
        CheckError: one parameter's moments stand twice.
    """
    raw, beside = opened(path, options, named_too=True)
    _refuse_copies(raw, options)
    _, found = order_among(raw, beside, options)
    rows = [(entry.position, name, shape_text(entry.shape)) for entry, name in zip(raw.entries, found.names) if name is not None]
    return rows, found
