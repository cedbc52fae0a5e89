"""A model's parameters in `named_parameters()` order, as far as some source knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One row of a model's parameters, enough to say which group a trainer would put it into."""

    name: str
    """The live name."""
    key: str | None = None
    """Its key in the adapter file; None: the file does not hold it."""
    shape: tuple[int, ...] | None = None
    trainable: bool = True
    trainers: tuple[str, ...] = ()
    """Names of the adapters that train it, where a model has several."""
    classes: frozenset[str] = frozenset()
    """Names of the norm classes, bases included, of the modules that hold it."""
    component: str = ""
    """The component of a pipeline that it lies in, where its name does not say so."""
    tuner_embedding: bool = False
    """True inside PEFT's LoRA layer for embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterList:
    """All parameters of a model, in definition order, and where that order comes from."""

    source: str
    """`skeleton`, `adapter-order` or `convention`."""
    rule: str
    """For people: which model, by which means."""
    parameters: tuple[Parameter, ...]
    versions: tuple[tuple[str, str], ...] = ()
    """(library, version) that the layout holds for; the running ones for a skeleton."""
    keys_apart: bool = False
    """True where keys are no guide to the names: the file was saved under those of another release."""
