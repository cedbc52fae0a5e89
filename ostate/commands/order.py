"""The names of one state with one adapter: claims, then what the numbers say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ostate import ordering
from ostate.core.naming import EXPLICIT, Adapter, Moved, Ordering, Question
from ostate.core.state import Finding, RawState
from ostate.evidence.moved import moved
from ostate.ordering import assumed, resolve
from ostate.ordering.name_form import by_key
from ostate.read import adapters
from ostate.read.fitting import fitted
from ostate.read.weights import base_weights

from .beside import order_beside
from .comparing import comparison_of
from .earlier import earlier
from .options import Options
from .steps import other_step


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
    found = None if claims else order_beside(question, options)
    if found is None:
        comparison = comparison_of(raw, adapter, previous, options, near)
        found = resolve.resolve(question, claims, rejected, comparison, strict=options.strict)
    found = replace(found, findings=(*found.findings, *said, *other_step(raw, adapter)))
    return assumed.with_assumed(by_key(found, adapter) if options.names == "file" else found, raw, adapter)


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
    previous = question.previous.tensors if question.previous is not None else None
    found = moved(raw, adapter, base if base is not None else previous)
    if base is not None and previous is not None and len(found.moved) > len(raw.entries):
        return moved(raw, adapter, previous)  # blocks were trained in turn: more moved since the base model than one optimizer holds
    return found
