"""States of the shared runs, named from their live optimizers: the truth that every layout must carry."""

from __future__ import annotations

from ostate import read as formats
from ostate import store
from ostate.core.naming import Ordering
from ostate.ordering.join import named_state
from ostate.read import adapters


def name_it(run, out):
    """Write the run's optimizer.pt under the names that its live optimizer gives, and load it."""
    raw = formats.read(str(run.checkpoint / "optimizer.pt"))
    names = tuple(run.names[p] for group in run.optimizer.param_groups for p in group["params"])
    adapter = adapters.read_adapter(str(run.checkpoint))
    keys = tuple(key if (key := name.replace(".default", "").replace("modules_to_save.", "")) in adapter.tensors else None for name in names)
    ordering = Ordering(names=names, keys=keys, source="given", rule="live optimizer", verdict="verified", margin=9.0)
    return store.load(store.write(named_state(raw, ordering, adapter), out).path)
