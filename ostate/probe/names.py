"""Which entry of a named state belongs to which live parameter: by name, never by position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.errors import ProbeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ostate.model import NamedParameter, NamedState

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Segments that DDP, torch.compile, FSDP1 and activation checkpointing put into a name."""

_CONTAINER = re.compile(
    r"(x?lora_\w+|modules_to_save|trainable_tokens_\w+|ia3_l|vera_\w+|vblora_\w+|randlora_\w+|hada_\w+|lokr_\w+|oft_\w+|boft_\w+|poly_lora_\w+"
    r"|fourierft_\w+|waveft_\w+|ln_tuning_layers|hra_u|bone_block|miss_block|c3a_kernel|shira_weight|road_\w+|prompt_encoder|delora_\w+|gralora_\w+)$"
)
"""PEFT's dictionaries by adapter name: the segment after one of these is the adapter's name."""

_KINDS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_A", "lora_B")
_MODULES = (
    ("norm", re.compile(r"norm|^ln(_|\d|$)")),
    ("embed", re.compile(r"embed(?!_out)|^w[tp]e$|^trainable_tokens")),
    ("head", re.compile(r"(^|_)head$|^(score|classifier|classification_head|embed_out|qa_outputs)$")),
)
"""Kinds of whole modules, by a segment of the name: their second moments differ by powers of ten."""


@dataclass(frozen=True, slots=True)
class Match:
    """Live parameters, each with its entry of the state. Lists keep the order in which the parameters were given."""

    parameters: tuple[tuple[str, Tensor], ...]
    """(plain live name, parameter)."""
    entries: Mapping[str, str]
    """Live name -> name in the state; a name that is missing here has no entry."""
    unused: tuple[str, ...]
    """Names in the state whose live parameter is not among those asked for (frozen, or not in the optimizer)."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Live names without an entry."""
        return tuple(name for name, _ in self.parameters if name not in self.entries)


def plain_name(name: str) -> str:
    """Return the name without the segments that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_adapter(name: str) -> str:
    """Return the plain name with `*` for the adapter's name, so that two names of one adapter meet."""
    parts = plain_name(name).split(".")
    return ".".join("*" if at and _CONTAINER.match(parts[at - 1]) else part for at, part in enumerate(parts))


def kind_of(name: str, dimensions: int | None = None) -> str:
    """Return what sort of parameter this is, for the cap and for statistics: `lora_A`, `lora_B`, `head`, `embed`, `norm`, `bias`, …, `other`.

    Args:
        name: the live name.
        dimensions: of the parameter; None: unknown. A weight of one dimension scales or shifts, as a norm's does.
    """
    parts = name.split(".")
    for kind in _KINDS:
        if kind in parts:
            return f"{kind}.bias" if parts[-1] == "bias" else kind
    if parts[-1] == "bias":
        return "bias"
    for kind, word in _MODULES:
        if any(word.search(part) for part in parts):
            return kind
    return "norm" if dimensions == 1 else "modules_to_save" if "modules_to_save" in parts else "other"


def trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (plain name, parameter) of everything that requires grad, in the model's order.

    Raises:
        ProbeError: nothing requires grad.
    """
    found: list[tuple[str, Tensor]] = [(plain_name(name), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise ProbeError(
            "no parameter requires grad, so there is nothing to probe",
            where=type(model).__name__,
            fix="load the adapter with PeftModel.from_pretrained(model, folder, is_trainable=True)",
        )
    return found


def match(model: nn.Module, state: NamedState, parameters: Iterable[tuple[str, Tensor]]) -> Match:
    """Give each parameter its entry of the state.

    Args:
        model: the live model, wrapped or not; tied parameters answer to each of their names.
        state: the named state; its adapter name may differ from the model's.
        parameters: (plain name, parameter) to fill, e.g. `trainable(model)`.

    Raises:
        ProbeError: an entry fits no parameter of the model, fits two, or has another shape.
    """
    wanted = tuple(parameters)
    label = {id(parameter): name for name, parameter in wanted}
    exact, loose = _live_names(model)
    entries: dict[str, str] = {}
    unused: list[str] = []
    later: list[str] = []
    for name in state.parameters:
        hit = exact.get(plain_name(name))
        if hit is None:
            later.append(name)
        else:
            _assign(entries, unused, label, hit, state.parameters[name])
    for name in later:
        hits = {id(p): p for p in loose.get(without_adapter(name), []) if label.get(id(p)) not in entries}
        if len(hits) > 1:
            hits = {key: p for key, p in hits.items() if key in label} or hits
        if len(hits) != 1:
            raise _no_parameter(name, len(hits), model)
        _assign(entries, unused, label, next(iter(hits.values())), state.parameters[name])
    return Match(wanted, entries, tuple(unused))


def _live_names(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    exact: dict[str, Tensor] = {}
    loose: dict[str, list[Tensor]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        name = plain_name(full)
        if exact.setdefault(name, parameter) is not parameter:
            raise ProbeError("two parameters have one name once the wrappers' segments are taken out", where=full, fix="give the inner model")
        loose.setdefault(without_adapter(full), []).append(parameter)
    return exact, loose


def _assign(entries: dict[str, str], unused: list[str], label: Mapping[int, str], parameter: Tensor, entry: NamedParameter) -> None:
    name = label.get(id(parameter))
    if name is None:
        unused.append(entry.name)
        return
    if tuple(parameter.shape) != tuple(entry.shape):
        raise ProbeError(
            f"the state's entry has shape {tuple(entry.shape)}, the parameter {tuple(parameter.shape)}",
            where=name,
            fix="the state belongs to another model or rank: check which adapter was loaded",
        )
    if name in entries:
        raise ProbeError(f"two entries of the state, {entries[name]!r} and {entry.name!r}, answer to one parameter", where=name)
    entries[name] = entry.name


def _no_parameter(name: str, hits: int, model: nn.Module) -> ProbeError:
    if hits:
        return ProbeError(
            f"{hits} parameters of the model could take this entry, which differ only by adapter name",
            where=name,
            fix="load one adapter, or rename it to the state's",
        )
    return ProbeError(
        "the state has an entry for a parameter that the model does not have",
        where=name,
        fix=f"load the adapter that this state was trained with; this {type(model).__name__} has other names",
    )
