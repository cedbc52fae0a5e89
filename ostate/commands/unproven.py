"""What of an order is not proven, as findings: which names, what they rest on, and what could prove them."""

from __future__ import annotations

from collections.abc import Sequence

from ostate.core.names import factor_of
from ostate.core.naming import Adapter, Ordering, first_rule
from ostate.core.state import Finding, RawState
from ostate.ordering import advice
from ostate.ordering.sources.from_keys import trained_keys
from ostate.read.fitting import FITTED

from .inspect import not_in_adapter


def unverified(found: Ordering, passed: advice.GivenOptions) -> list[Finding]:
    """Say that nothing confirms the names, and what could; nothing of an order that is proven, whole or in part."""
    if found.verdict != "unverified":
        return []
    origin = "the file, which ostate wrote" if found.rule == "named" else first_rule(found.rule)
    return [
        Finding(
            rule="order-unverified",
            severity="warning",
            text=f"the names come from {origin}; the tensor values neither confirm nor contradict them",
            fix=f"to check them: {advice.ways(passed, *_could_prove(found, [name for name in found.names if name is not None]))}",
        )
    ]


def of_verdict(found: Ordering, raw: RawState, adapter: Adapter | None, passed: advice.GivenOptions) -> list[Finding]:
    """Say aloud what is not proven."""
    said = [*found.findings, *unverified(found, passed)]
    spelled = {name for finding in said if finding.severity == "warning" for name in finding.names}
    explicit = adapter is not None and found.explicit
    lacking = {name for name, key in zip(found.names, found.keys) if explicit and key is None}
    unknown = tuple(name for name in found.undecided if name in lacking) if not found.proven else ()
    undecided = tuple(name for name in found.undecided if name not in lacking and name not in spelled)
    in_order = _proven_in_order(found)
    alone = ", not each by itself" if in_order.intersection(undecided) else ""
    undecided = tuple(name for name in undecided if name not in in_order)
    if found.verdict != "unverified" and not found.proven and undecided:
        left = found.evidence.open if found.evidence is not None else ()
        than = f"; not excluded: {left[0][0]}" if left else ""
        origin = "this file" if found.rule == "named" else first_rule(found.rule)
        said.append(
            Finding(
                rule="order-undecided",
                severity="warning",
                text=f"{len(undecided)} names come from {origin} only; the tensor values prove the others{alone}{than}",
                fix=f"to prove these too: {advice.ways(passed, *_could_prove(found, undecided))}",
                names=undecided,
            )
        )
    if adapter is not None and FITTED in adapter.facts:
        fix = "if you have it, pass the adapter as it was trained (save_pretrained without a conversion)"
        said.append(Finding(rule="adapter-fitted", severity="note", text=str(adapter.facts[FITTED]), fix=fix))
    if adapter is not None and found.source == "content":
        said += _without_position(found, adapter, raw)
    if unknown:
        said.append(not_in_adapter(unknown, found.rule, adapter.file if adapter is not None else ""))
    left_out = [f"position {position}" for position in found.left_out if f"position {position}" not in spelled]
    if left_out:
        said.append(
            Finding(
                rule="positions-left-out",
                severity="warning",
                text=f"{len(left_out)} of {sum(entry.has_state for entry in raw.entries)} positions with state got no name and were left out",
                fix=f"to name them too: {advice.ways(passed, advice.ORDER, advice.BASE)}",
                names=tuple(left_out),
            )
        )
    return said


def _proven_in_order(found: Ordering) -> frozenset[str]:
    """Return the names that are proven as part of an order."""
    proven = found.evidence.proven if found.evidence is not None else ()
    return frozenset(name for position in proven if position < len(found.names) and (name := found.names[position]) is not None)


def _could_prove(found: Ordering, names: Sequence[str]) -> tuple[str, ...]:
    """Return the options that could prove names. A base model that was found and rebuilt has only weights to add, and these prove no LoRA factor."""
    rebuilt = found.source == "skeleton" and all(factor_of(name) is not None for name in names)
    return (advice.PREVIOUS,) if rebuilt else (advice.PREVIOUS, advice.BASE)


def _without_position(found: Ordering, adapter: Adapter, raw: RawState) -> list[Finding]:
    """Say that an order which the numbers alone gave leaves tensors of the adapter without a position: the state may be a part of one.

    Positions without state may be theirs: what never had a gradient (a module that the model's code goes past) says nothing to the numbers.
    """
    held = set(found.keys)
    left = [key for key in trained_keys(adapter) if key not in held]
    idle = sum(not entry.has_state and name is None for entry, name in zip(raw.entries, found.names))
    if len(left) <= idle or found.left_out:
        return []
    text = f"{len(left)} of the adapter's {len(left) + len(held - {None})} tensors have no position: frozen, or is this a part of the state?"
    fix = "if the state was saved in parts, pass the folder with all of them"
    return [Finding(rule="adapter-without-position", severity="warning", text=text, fix=fix, names=tuple(left))]
