"""The whole program on one screen: read -> name -> check -> write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ostate import checks, ordering, store
from ostate.checks import copied, judging
from ostate.core.brief import brief
from ostate.core.file_digest import sha256_beside
from ostate.core.files import announce, is_file, recorded
from ostate.core.naming import EXPLICIT, Adapter, Moved, NamedState, Ordering, Question, settled
from ostate.core.state import Finding, RawState
from ostate.core.tensors import shape_text
from ostate.errors import Ambiguous, CheckError, ReadError, StoreError, refusing
from ostate.evidence.moved import moved
from ostate.optimizers import OPTIMIZERS
from ostate.ordering import advice, assumed, keys, resolve
from ostate.ordering.join import named_state
from ostate.ordering.live_form import with_live_form
from ostate.ordering.name_form import NameForm, by_key
from ostate.read import adapters, named_file
from ostate.read.fitting import SCALED, fitted
from ostate.read.weights import Candidates, base_weights, candidates, own_weights

from . import choosing, unproven
from .beside import order_beside
from .earlier import earlier
from .inspect import open_state, stored_bytes
from .steps import other_step

if TYPE_CHECKING:
    from ostate.evidence.comparison import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may add to what the files say."""

    adapter: str | None = None
    """Folder or file of the trained weights; None: looked for beside the state and inside it."""
    base: str | None = None
    """Folder or config.json of the base model."""
    model: str | None = None
    """Folder with full weights, where there is no adapter (full fine-tuning)."""
    order: str | None = None
    """File of names, one a line, in the optimizer's order."""
    previous: str | None = None
    """Folder or file of an earlier adapter of the same run."""
    adapter_name: str | None = None
    """The adapter's name in the live model, where the files do not record it."""
    names: NameForm = "live"
    """Which form of the names is written, where the adapter's keys and the live names differ."""
    state: str | None = None
    """Which file of the folder is the state."""
    optimizer: int | str | None = None
    """Which optimizer, where the file holds several."""
    step: int | None = None
    """Updates taken, where the file does not record them."""
    betas: tuple[float, float] | None = None
    """Adam's betas, where the file does not record them."""
    eps: float | None = None
    """Adam's eps, where the file does not record it."""
    evidence: bool = True
    """False: no tensor value is compared, and the names stay unverified."""
    strict: bool = False
    """Refuse instead of writing only the proven names."""
    checksum: bool = False
    """Compare every byte of the state with the checksums that were saved with it, before anything else."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True)
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
MOST_LISTED = 6
"""Files that one message lists."""


@refusing
def repair(
    path: str,
    out: str | None = None,
    *,
    options: Options | None = None,
    force: bool = False,
    keep_dtype: bool = False,
    sha256: bool = False,
    **more: Any,
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
    live = fitting if options.names == "peft" else [with_live_form(adapter, raw) for adapter in fitting]
    return raw, found._replace(adapters=tuple(live))


def order_among(raw: RawState, found: Candidates, options: Options) -> tuple[Adapter | None, Ordering]:
    """Return the adapter that goes with the state, and the names that stand with it, or refuse."""
    try:
        return choosing.choose(found, lambda adapter: order_of(raw, adapter, options, near=found.seen))
    except Ambiguous as error:
        raise choosing.with_misfit(error, raw, found) from None


def order_of(raw: RawState, adapter: Adapter | None, options: Options, *, near: Sequence[str] = ()) -> Ordering:
    """Return the names that stand, by claims and numbers, or refuse. `near`: weight files to tell of where there is no adapter."""
    previous, said = _earlier(raw, adapter, options)
    question = Question(
        raw=raw,
        adapter=adapter,
        base=options.base,
        order=options.order,
        adapter_name=options.adapter_name,
        previous=previous,
        evidence=options.evidence,
    )
    claims, rejected = ordering.claims(question, EXPLICIT)
    if not claims:
        question = replace(question, moved=_moved(question, options))
        claims, rejected = ordering.claims(question)
    found = None
    if not claims and adapter is not None:
        found = order_beside(raw, adapter, lambda rest: _order_of_rest(replace(question, raw=rest), options))
    if found is None:
        comparison = _comparison(raw, adapter, previous, options, near)
        found = resolve.resolve(question, claims, rejected, comparison, strict=options.strict)
    found = replace(found, findings=(*found.findings, *said, *other_step(raw, adapter)))
    return assumed.with_assumed(by_key(found) if options.names == "file" else found, raw, adapter)


def _earlier(raw: RawState, adapter: Adapter | None, options: Options) -> tuple[Adapter | None, tuple[Finding, ...]]:
    """Return the adapter of `--previous`, cut as the state's own was, where it is of the same run; or refuse."""
    if options.previous is None:
        return None, ()
    previous = fitted(adapters.read_adapter(options.previous, name=options.adapter_name), raw)
    if adapter is None or not options.evidence:
        return previous, ()
    return earlier(previous, adapter)


def _moved(question: Question, options: Options) -> Moved | None:
    """Return what training moved, where the optimizer holds fewer parameters than the whole model beside it; None elsewhere, and without evidence."""
    raw, adapter = question.raw, question.adapter
    if adapter is None or adapter.kind != "model" or not options.evidence or len(raw.entries) >= len(adapter.tensors):
        return None
    base = base_weights(options.base) if options.base is not None else None
    start = base if base is not None else question.previous.tensors if question.previous is not None else None
    return moved(raw, adapter, start)


def _order_of_rest(question: Question, options: Options) -> Ordering | None:
    """Return the order of a state without the positions that its adapter lacks; None where no claim stands over the rest."""
    claims, rejected = ordering.claims(question)
    if not claims:
        return None
    comparison = _comparison(question.raw, question.adapter, question.previous, options, ())
    return resolve.resolve(question, claims, rejected, comparison)


def _comparison(raw: RawState, adapter: Adapter | None, previous: Adapter | None, options: Options, near: Sequence[str]) -> Comparison:
    """Return what asks the numbers: of the adapter first; where it tells nothing, of the checkpoint's own weights of the same save."""
    from ostate.evidence.comparison import Comparison  # numpy, not needed where the numbers are not asked

    untested = _untested_reason(adapter, options, near)
    own = None
    if adapter is not None and untested is None:
        own = own_weights(raw, adapter, lambda key: keys.live_name(key, adapter)) if raw.weights else None
        announce(lambda: stored_bytes(raw) + sum(tensor.nbytes for tensor in adapter.tensors.values()))
    base = base_weights(options.base) if options.base is not None else None
    return Comparison(raw, adapter, previous=previous, base=base, own=own, untested=untested)


def _passed(adapter: Adapter | None, options: Options) -> advice.Given:
    return advice.Given(adapter=adapter, order=options.order, base=options.base, previous=options.previous, evidence=options.evidence)


def _untested_reason(adapter: Adapter | None, options: Options, near: Sequence[str]) -> str | None:
    if not options.evidence:
        return "--no-evidence was given"
    if adapter is not None:
        scaled = adapter.facts.get(SCALED)  # no factor stands in the file as it was trained
        return scaled if isinstance(scaled, str) else None
    listed = f"; weight files nearby: {', '.join(near[:MOST_LISTED])}" if near else ""
    return f"no adapter was found{listed}"


@refusing
def verify(path: str, *, options: Options | None = None, **more: Any) -> Ordering:
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
def names(path: str, *, options: Options | None = None, **more: Any) -> tuple[list[tuple[int, str, str]], bool]:
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
