"""The form of the names that a person asks for: the live model's, the adapter file's own keys, or those of PEFT's PeftModel."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ostate.core.naming import Adapter, Ordering

from .assumed import RULE

NameForm = Literal["live", "file", "peft"]
"""`live`: as `named_parameters()` gives them, as far as the files tell; `file`: the keys of the adapter file, about which nothing
is assumed but what was joined or divided; `peft`: under `base_model.model.` with the adapter's name, whatever else the live model may be."""


def by_key(found: Ordering, adapter: Adapter | None) -> Ordering:
    """Return the order under the keys of the adapter file; a position that the file does not hold keeps its name.

    Of these names only what was put into the keys here is assumed: models joined, pairs divided.
    """
    to = {name: key for name, key in zip(found.names, found.keys) if name is not None and key is not None}
    said = tuple(one._replace(names=tuple(to.get(name, name) for name in one.names)) for one in found.findings if one.rule != RULE)
    return replace(
        found,
        names=tuple(None if name is None else to.get(name, name) for name in found.names),
        undecided=tuple(to.get(name, name) for name in found.undecided),
        assumed=adapter.made_keys if adapter is not None and found.from_keys else (),
        from_keys=False,
        findings=said,
    )
