"""What of the names was guessed and not read: the adapter's name, a prefix. The numbers prove which key stands where, never these."""

from __future__ import annotations

from dataclasses import replace

from ostate.core.naming import Adapter, Ordering
from ostate.core.state import Finding, RawState

RULE = "name-assumed"
_FIX = "if it is wrong, pass --adapter-name N, or --order FILE with the live names; loading by name into a model with one adapter works either way"


def with_assumed(found: Ordering, raw: RawState, adapter: Adapter | None) -> Ordering:
    """Return the order with what was guessed of its names (adapter name, prefix), and a finding that says so.

    Names that somebody wrote down (recorded, given) assume nothing; names made from the adapter's keys assume what was guessed of the adapter.
    What was assumed when a named file was written stays assumed. Where another reading is as good, the names are not proven: `verified`
    and `recovered` become `partial`, and those names are listed as undecided.
    """
    before, contested_before = of_named_file(raw)
    here, contested_here = (adapter.assumed, adapter.contested) if found.from_keys and adapter is not None else ((), ())
    return assume(found, (*before, *here), (*contested_before, *contested_here))


def assume(found: Ordering, assumed: tuple[str, ...], contested: tuple[str, ...] = ()) -> Ordering:
    """Return the order with these sentences among what is assumed of its names; `contested` are those where another reading is as good."""
    before = [one for one in found.findings if one.rule == RULE]
    doubted = bool(contested) or any(one.severity == "warning" for one in before)
    assumed = tuple(dict.fromkeys((*found.assumed, *assumed)))
    if not assumed:
        return found
    names = tuple(name for name, key in zip(found.names, found.keys) if name is not None and key is not None and name != key)
    names = names or tuple(name for name in found.names if name is not None)
    said = finding(assumed, names, contested=doubted)
    others = [one for one in found.findings if one.rule != RULE]
    undecided, verdict = found.undecided, found.verdict
    if doubted:
        undecided = tuple(name for name in found.names if name is not None and (name in set(names) or name in set(undecided)))
        verdict = "partial" if found.proven else verdict
    return replace(found, assumed=assumed, verdict=verdict, undecided=undecided, findings=(*others, said))


def finding(assumed: tuple[str, ...], names: tuple[str, ...], *, contested: bool) -> Finding:
    """Return what says that these names rest on a guess: a warning where another reading is as good, else a note."""
    text = f"part of {len(names)} names is assumed, not recorded: {'; '.join(assumed)}"
    return Finding(rule=RULE, severity="warning" if contested else "note", text=text, fix=_FIX, names=names)


def of_named_file(raw: RawState) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the named file says was assumed when it was written, and how much of it is contested; nothing for other layouts."""
    if raw.layout != "named":
        return (), ()
    recorded = raw.facts.get("assumed")
    assumed = tuple(one for one in recorded if isinstance(one, str)) if isinstance(recorded, (list, tuple)) else ()
    doubted = any(one.rule == RULE and one.severity == "warning" for one in raw.findings)
    return assumed, assumed if doubted else ()
