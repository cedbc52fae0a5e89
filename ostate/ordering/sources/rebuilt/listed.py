"""A rebuilt model as its parameters, and the question that it answers: plain values, which a file of the cache holds as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ostate.core.foreign import are_texts

if TYPE_CHECKING:
    from typing import TypeGuard

    from ostate.core.foreign import Json, JsonObject


class Request(NamedTuple):
    """What is to be built."""

    made: str
    """The model's class."""
    model: JsonObject
    """Its configuration, without what names no parameter."""
    adapters: tuple[tuple[str, JsonObject], ...]
    """Name and configuration of each adapter, in the order in which they were added; none for plain fine-tuning."""
    saved: str
    """The adapter whose keys are asked for."""

    def as_json(self) -> JsonObject:
        """Return the question as the cache's key spells it."""
        adapters: list[Json] = [[name, config] for name, config in self.adapters]
        return {"class": self.made, "model": self.model, "adapters": adapters, "saved": self.saved}


class ListedParameter(NamedTuple):
    """One parameter of a rebuilt model."""

    name: str
    """In `named_parameters()`."""
    key: str | None
    """As the installed PEFT writes it; None where no adapter file holds it."""
    shape: tuple[int, ...]
    trainers: tuple[str, ...]
    """The adapters under which it requires a gradient."""
    norms: tuple[str, ...]
    """Classes of the modules around it that are called norms."""
    tuner_embedding: bool
    """True for a LoRA factor of an embedding."""


class ListedModel(NamedTuple):
    """A model that was rebuilt."""

    parameters: tuple[ListedParameter, ...]
    """In the order of `named_parameters()`."""
    others: tuple[str, ...]
    """Keys of its state dict that are no parameters."""
    free: tuple[int, ...]
    """Sizes that a run may change: vocabulary and labels."""
    versions: tuple[tuple[str, str], ...]
    """Libraries that built it, and their releases."""


class NotBuilt(NamedTuple):
    """Why the installed libraries cannot build it."""

    reason: str
    hopeless: bool = False
    """True where no other class of the same configuration would come out either."""


Answer = ListedModel | NotBuilt


def to_json(answer: Answer) -> JsonObject:
    """Return an answer as the cache keeps it."""
    if isinstance(answer, NotBuilt):
        return {"failed": answer.reason, "hopeless": answer.hopeless}
    rows: list[Json] = [[row.name, row.key, list(row.shape), list(row.trainers), list(row.norms), row.tuner_embedding] for row in answer.parameters]
    return {"parameters": rows, "others": list(answer.others), "free": list(answer.free), "versions": dict(answer.versions)}


def from_json(kept: Json) -> Answer | None:
    """Return the answer that a file of the cache holds; None where it holds something else."""
    if not isinstance(kept, dict):
        return None
    failed, rows, others, free, versions = (kept.get(key) for key in ("failed", "parameters", "others", "free", "versions"))
    if isinstance(failed, str):
        return NotBuilt(failed, kept.get("hopeless") is True)
    if not (isinstance(rows, list) and are_texts(others) and _are_sizes(free) and isinstance(versions, dict)):
        return None
    parameters = [_parameter(row) for row in rows]
    known = tuple(row for row in parameters if row is not None)
    if len(known) < len(parameters):
        return None
    return ListedModel(known, tuple(others), tuple(free), tuple(sorted((name, str(version)) for name, version in versions.items())))


def _parameter(row: Json) -> ListedParameter | None:
    if not isinstance(row, list) or len(row) != 6:
        return None
    name, key, shape, trainers, norms, embedding = row
    if not (isinstance(name, str) and (key is None or isinstance(key, str)) and isinstance(embedding, bool)):
        return None
    if not (_are_sizes(shape) and are_texts(trainers) and are_texts(norms)):
        return None
    return ListedParameter(name, key, tuple(shape), tuple(trainers), tuple(norms), embedding)


def _are_sizes(value: Json) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
