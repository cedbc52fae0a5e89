"""The order of a diffusion model's modules: diffusers builds each component anew on the meta device, from its configuration alone.

Which modules were trained is read off the file's keys; the components tell in which order their modules were defined. Every trainer that was read
walks `named_modules()` of a component and makes its factors module by module (sd-scripts networks/lora.py, LyCORIS lycoris/wrapper.py, OneTrainer
modules/module/LoRAModule.py, ai-toolkit toolkit/lora_special.py, peft tuners/tuners_utils.py). They differ in how a key spells the module's path,
in whether the text encoders come before the denoiser, and in whose code the U-Net is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ostate.core.names import factor_of
from ostate.core.naming import Adapter

from ...grouping.parameters import ParameterList
from ..from_keys import layouts_of_keys, trained_keys
from ..fused_modules import SAID, parted, with_fused
from ..tuner_keys import PROCESSOR_SLOTS, TunerKey, slot_rank, split_key
from .listed import ListedParameter

TEXT = "text_encoder"
"""How the folders of text encoders begin."""


_WHOLE = ("weight", "bias")
_INNER = "_text_model"
"""What of two text encoders of one pipeline only the class with a projection has in its paths, since transformers 5; keys have it for both."""
_SD_SCRIPTS = ("attn1", "ff", "attn2")
_BLOCK = re.compile(r"^(.+\.transformer_blocks\.\d+)\.(attn1|ff|attn2)\.")


class Component(NamedTuple):
    """One model of a pipeline, rebuilt."""

    name: str
    """Its folder: `unet`, `text_encoder_2`."""
    made: str
    """Its class."""
    modules: tuple[str, ...]
    """Paths of the modules that have parameters, in `named_modules()` order."""
    shapes: Mapping[str, tuple[int, ...]]
    """Path -> shape of the module's weight, where it has one."""


class ModulePlace(NamedTuple):
    """Where a key's module stands."""

    component: int
    module: int
    key: str
    read: TunerKey


def component_of_rows(name: str, made: str, rows: Sequence[ListedParameter]) -> Component:
    """Return a component from the listing of its parameters in definition order."""
    paths: dict[str, None] = {}
    shapes = {}
    for row in rows:
        path, _, last = row.name.rpartition(".")
        paths.setdefault(path)
        if last == "weight":
            shapes[path] = row.shape
    return Component(name, made, tuple(paths), shapes)


def tuned_layouts(adapter: Adapter, components: Sequence[Component], versions: tuple[tuple[str, str], ...]) -> list[ParameterList] | str:
    """Return the orders in which programs would have made these adapter weights over these components, or why there is none.

    Args:
        adapter: whose keys lie in tuners' containers.
        components: of the pipeline, the denoiser's first.
        versions: of the libraries that built them: name and release.
    """
    fused, keys = parted(trained_keys(adapter))
    tuned = {read.module for key in keys if (read := split_key(key)) is not None}
    within = next((key for key in keys if split_key(key) is None and key.rpartition(".")[0] in tuned), None)
    if within is not None:
        return f"nothing tells how the live model calls {within!r}, a tensor of a module that was tuned too"
    places = _placed(keys, components)
    lost = [key for key in keys if key not in places]
    if lost:
        known = ", ".join(f"{one.name} ({one.made})" for one in components)
        return f"{len(lost)} of the adapter's keys lie in none of {known}, first {lost[0]!r}: give the whole pipeline's folder, or that model's"
    layouts: list[ParameterList] = []
    seen = set()
    peft = adapter.kind == "peft"
    unknown = next((place.key for place in places.values() if slot_rank(place.read, peft=peft) is None), None)
    if unknown is not None:
        return f"nothing tells in which order a module registers {unknown!r}"
    misfit = next((place for place in places.values() if not _fits(place, adapter, components)), None)
    if misfit is not None:
        one = components[misfit.component]
        path = one.modules[misfit.module]
        shapes = f"{list(adapter.tensors[misfit.key].shape)}, and {path} is {list(one.shapes[path])}"
        return f"{misfit.key!r} of shape {shapes} in {one.name} ({one.made}): another base model?"
    for rule, order in _orders(list(places.values()), components, peft=peft):
        ordered = tuple(with_fused([place.key for place in order], fused))
        if ordered not in seen:
            seen.add(ordered)
            for layout in layouts_of_keys("skeleton", rule + (SAID if fused else ""), ordered, adapter):
                layouts.append(replace(layout, versions=versions))
    return layouts


def _read(key: str) -> TunerKey | None:
    """Return the halves of a key; that of a model's own tensor, trained whole beside the LoRA (train_control_lora_flux.py's norms), divides too."""
    module, _, last = key.rpartition(".")
    return split_key(key) or (TunerKey(module, last) if module and last in _WHOLE else None)


def _placed(keys: Sequence[str], components: Sequence[Component]) -> dict[str, ModulePlace]:
    """Return the place of each key whose module one component alone can be.

    A key spells the path with dots, `$$` or underscores, behind words of its trainer's own (`lora_unet_`, `transformer.`). Those words are the
    same for all keys of a component, and no component has two of them.
    """
    spelled = [_spelled(component.modules) for component in components]
    by_lead: dict[str, dict[str, dict[int, int]]] = {}
    for key in keys:
        read = _read(key)
        if read is None:
            continue
        hits = {at: hit for at, known in enumerate(spelled) if (hit := _module_of(read.module, known)) is not None}
        lead = min((lead for _, lead in hits.values()), key=len, default="")
        modules = {at: module for at, (module, own) in hits.items() if own == lead}
        by_lead.setdefault(lead, {})[key] = modules
    return _assigned(by_lead, components)


def _fits(place: ModulePlace, adapter: Adapter, components: Sequence[Component]) -> bool:
    """True when a factor takes or gives as many features as the module has, or a processor's layer gives as many; others say nothing of it."""
    component = components[place.component]
    weight = component.shapes.get(component.modules[place.module])
    factor = factor_of(place.key)
    shape = adapter.tensors[place.key].shape
    if weight is not None and place.read.slot == "weight" and split_key(place.key) is None:
        return shape == weight
    if weight is not None and place.read.slot in PROCESSOR_SLOTS:
        return shape[0] == weight[0]
    if weight is None or factor is None or len(shape) < 2 or len(weight) < 2 or factor[1] not in ("A", "B"):
        return True
    return shape[1] == weight[1] if factor[1] == "A" else shape[0] == weight[0]


def _assigned(by_lead: Mapping[str, Mapping[str, Mapping[int, int]]], components: Sequence[Component]) -> dict[str, ModulePlace]:
    """Give each lead the one component that has all its modules, by the word in the lead where several have; nothing where two leads want one."""
    taken: dict[int, str] = {}
    found: dict[str, ModulePlace] = {}
    for lead, keys in by_lead.items():
        able = [at for at in range(len(components)) if all(at in modules for modules in keys.values())]
        named = [at for at in able if components[at].name == _component_said(lead)]
        at = able[0] if len(able) == 1 else named[0] if named else None
        if at is None or taken.setdefault(at, lead) != lead:
            return {}
        for key, modules in keys.items():
            read = _read(key)
            if read is not None:
                found[key] = ModulePlace(at, modules[at], key, read)
    return found


def _component_said(lead: str) -> str:
    """Return the folder that the words before a module's path name: `lora_te2` and `text_encoder_2` are the second text encoder's."""
    text = re.search(r"(?:^|_)(?:te|text_encoder)_?(\d?)$", lead)
    if text is not None:
        return TEXT if text[1] in ("", "1") else f"{TEXT}_{text[1]}"
    bare = lead.removeprefix("base_model_model_").removeprefix("lora_").removeprefix("diffusion_model_")
    return "transformer" if bare == "transformer_1" else bare


def _spelled(modules: Sequence[str]) -> dict[str, int | None]:
    """Return underscored path -> index of the module; None where two paths are spelled alike."""
    found: dict[str, int | None] = {}
    for at, path in enumerate(modules):
        word = _underscored(path)
        found[word] = None if word in found else at
    return found


def _underscored(path: str) -> str:
    return path.replace("$$", "_").replace(".", "_")


def _module_of(path: str, spelled: Mapping[str, int | None]) -> tuple[int, str] | None:
    """Return the index of the module that the path ends with, the longest such, and the words before it, those of the trainer alone."""
    word = _underscored(path)
    at = 0
    while True:
        module = spelled.get(word[at:])
        if module is not None:
            return module, word[:at].removesuffix("_").removesuffix(_INNER)
        at = word.find("_", at) + 1
        if not at:
            return None


def _orders(places: Sequence[ModulePlace], components: Sequence[Component], *, peft: bool) -> Iterator[tuple[str, list[ModulePlace]]]:
    """Yield the orders of programs: text encoders before or behind the denoiser, its blocks as diffusers or as sd-scripts defines them."""
    made = ", ".join(dict.fromkeys(components[place.component].made for place in places))
    used = sorted({place.component for place in places})
    text = [at for at in used if components[at].name.startswith(TEXT)]
    others = [at for at in used if at not in text]
    for order in dict.fromkeys((tuple(text + others), tuple(others + text))):
        rank = {at: index for index, at in enumerate(order)}
        names = ", then ".join(components[at].name for at in order)
        where = f"{made}, {names}" if len(order) > 1 else made
        for said, inner in _definitions(components):

            def place_of(
                place: ModulePlace, rank: Mapping[int, int] = rank, inner: Mapping[tuple[int, int], tuple[int, ...]] = inner
            ) -> tuple[int, tuple[int, ...], int]:
                own = slot_rank(place.read, peft=peft)
                return rank[place.component], inner[place.component, place.module], -1 if own is None else own  # none is: `tuned_layouts` looked

            yield f"{where}{said}", sorted(places, key=place_of)


def _definitions(components: Sequence[Component]) -> Iterator[tuple[str, dict[tuple[int, int], tuple[int, ...]]]]:
    """Yield (what to say, (component, module) -> sort key) for each code that may have defined the modules.

    sd-scripts' own U-Net, like the first ones, makes `attn1`, `ff`, `attn2` (library/original_unet.py:814-843); diffusers' `attn1`, `attn2`, `ff`.
    """
    plain: dict[tuple[int, int], tuple[int, ...]] = {
        (at, module): (module,) for at, component in enumerate(components) for module in range(len(component.modules))
    }
    yield "", plain
    turned: dict[tuple[int, int], tuple[int, ...]] = {}
    for at, component in enumerate(components):
        first: dict[str, int] = {}
        for module, path in enumerate(component.modules):
            block = _BLOCK.match(path) if component.made == "UNet2DConditionModel" else None
            if block is None:
                turned[at, module] = (module,)
            else:
                turned[at, module] = (first.setdefault(block[1], module), _SD_SCRIPTS.index(block[2]), module)
    yield ", blocks as in sd-scripts", turned
