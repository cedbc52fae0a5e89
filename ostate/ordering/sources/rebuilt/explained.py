"""Whether a rebuilt model explains every key of an adapter file, with its shape."""

from __future__ import annotations

from collections.abc import Sequence

from ostate.core.names import VALUE_HEAD
from ostate.core.naming import Adapter

from ...grouping.parameters import Parameter, ParameterList
from ...keys import adapter_key
from .listed import ListedModel

EXTRA = ("lm_head.weight", "rotary_emb.inv_freq", "vera_A", "vera_B", "_topk_indices", "_topk_weights", "shira_indices")
"""How the keys end of what PEFT saves and nobody trains."""


def explained(made: str, answer: ListedModel, adapter: Adapter) -> ParameterList | str:
    """Return the layout if it explains every key of the adapter file, with its shape; else say which it does not."""
    rows, free, pruned = [], set(answer.free), set[str]()
    for name, key, shape, trainers, norms, embedding in answer.parameters:
        own = _key(name, key, adapter)
        if own is not None and adapter.config.get("peft_type") == "ADALORA" and adapter.tensors[own].shape != shape:
            pruned.add(own)
            own = None  # the file holds only the ranks that AdaLoRA kept
        if own is not None and not _same_but(shape, adapter.tensors[own].shape, free):
            return f"{made} gives {own} the shape {list(shape)}, the adapter has {list(adapter.tensors[own].shape)}"
        rows.append(
            Parameter(
                name=name,
                key=own,
                shape=adapter.tensors[own].shape if own is not None else shape,
                trainable=adapter.name in trainers,
                trainers=trainers,
                classes=frozenset(norms),
                tuner_embedding=embedding,
            )
        )
    held = {row.key for row in rows if row.key is not None} | pruned
    if not held and not all(_may_be_extra(key) for key in adapter.tensors):
        return f"{made} of the installed transformers has none of the {len(adapter.tensors)} keys: it names its modules differently"
    if adapter.kind == "model":
        head = [key for key in VALUE_HEAD if key in adapter.tensors and key not in held]
        rows += [Parameter(name=key, key=key, shape=adapter.tensors[key].shape) for key in head]
        held |= set(head)
    known = held | {adapter_key(name, adapter) for name in answer.others}
    wrong = [key for key in adapter.tensors if key not in known and not _may_be_extra(key)]
    if wrong:
        return f"{made} of the installed transformers lacks {len(wrong)} of the adapter's keys, first {wrong[0]!r}"
    return ParameterList(source="skeleton", rule=made, parameters=tuple(rows), versions=answer.versions)


def _key(name: str, key: str | None, adapter: Adapter) -> str | None:
    """Return the parameter's key in this file: as the installed PEFT would write it, else as another release did."""
    return key if key in adapter.tensors else adapter_key(name, adapter)


def _may_be_extra(key: str) -> bool:
    """True for tensors that PEFT saves though nothing trains them under that name: computed prompts, tied copies, choices, projections."""
    return key == "prompt_embeddings" or key.endswith(EXTRA)


def _same_but(one: Sequence[int], other: Sequence[int], free: set[int]) -> bool:
    """True when two shapes agree but for one axis that is the vocabulary or the number of labels, which a run may change."""
    if len(one) != len(other):
        return False
    differ = [index for index, (left, right) in enumerate(zip(one, other)) if left != right]
    return not differ or (len(differ) == 1 and one[differ[0]] in free)
