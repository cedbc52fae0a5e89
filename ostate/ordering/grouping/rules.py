"""How trainers cut a model's parameters into groups: one row a rule, with the lines of source it was read in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, product
from typing import NamedTuple

from ostate.core.names import CONTAINERS, SAVED, component_of, factor_of, is_tuned

from . import norms
from .norms import Span, Version
from .parameters import Parameter


class GroupCut(NamedTuple):
    """One group that a rule makes."""

    parameters: list[Parameter]
    decays: bool = True
    """False: the rule sets its weight decay to zero whatever the user asks for."""
    rate: str = "base"
    """Groups with the same word get the same learning rate."""


Cuts = list[GroupCut]
MOST_COMPONENTS = 5
"""Of one pipeline: a denoiser, perhaps two, and up to three text encoders."""
Split = Callable[[Sequence[Parameter], Sequence[int]], Iterable[Cuts]]
"""(parameters in definition order, sizes of the file's groups) -> the ways in which this rule may cut them."""
Test = Callable[[Parameter], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way of making groups."""

    name: str
    split: Split
    source: str
    family: str = ""
    """Rules of one family differ by release only."""
    span: Span | None = None
    """Releases of transformers for which it holds; None: any."""
    classes: frozenset[str] = frozenset()
    """Norm classes that those releases do not decay."""
    groups: int | None = None
    """How many groups it always makes; None: it depends."""
    guess: bool = False
    """True: tried only where no other rule fits, and never used without the numbers."""


def trainable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return what requires grad, in definition order."""
    return [parameter for parameter in parameters if parameter.trainable]


def _once(cut: Callable[[Sequence[Parameter]], Cuts]) -> Split:
    return lambda parameters, sizes: [cut(parameters)]  # noqa: ARG005


def _parts(own: Sequence[Parameter], *tests: Test) -> list[list[Parameter]]:
    """Deal every parameter to the first test it passes; the last list holds those that pass none."""
    dealt: list[list[Parameter]] = [[] for _ in range(len(tests) + 1)]
    for parameter in own:
        dealt[next((index for index, test in enumerate(tests) if test(parameter)), len(tests))].append(parameter)
    return dealt


_E3_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _decays(span: Span, classes: frozenset[str]) -> Test:
    """Return Trainer's own test of what decays, in the releases of `span`."""
    if span.since >= norms.E3:
        return lambda parameter: "LayerNorm" not in parameter.classes and not _E3_NAMES.search(parameter.name.lower())
    if span.since >= norms.E2:
        words = ("bias", "layernorm", "rmsnorm")
        return lambda parameter: not parameter.classes & classes and not any(word in parameter.name.lower() for word in words)
    return _decays_by_class(classes)


def _decays_by_class(classes: frozenset[str]) -> Test:
    return lambda parameter: not parameter.classes & classes and "bias" not in parameter.name


def _trainer(span: Span, classes: frozenset[str]) -> Split:
    decays = _decays(span, classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        own = list(parameters) if span.before <= norms.E1 else trainable(parameters)
        yes, no = _parts(own, decays)
        return [GroupCut(yes), GroupCut(no, decays=False)]

    return _once(cut)


def _no_decay_first(classes: frozenset[str]) -> Split:
    decays = _decays_by_class(classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        yes, no = _parts(trainable(parameters), decays)
        return [GroupCut(no, decays=False), GroupCut(yes)]

    return _once(cut)


def _meshes(parameters: Sequence[Parameter]) -> Cuts:
    """Trainer's groups, each cut by device mesh in order of first appearance: experts lie on a mesh of their own."""
    cuts: Cuts = []
    for group in next(iter(_trainer(Span(norms.E3, norms.LAST), frozenset({"LayerNorm"}))(parameters, ()))):
        by_mesh: dict[bool, list[Parameter]] = {}
        for parameter in group.parameters:
            by_mesh.setdefault(".experts." in parameter.name, []).append(parameter)
        cuts += [group._replace(parameters=own) for own in by_mesh.values()]
    return cuts


def _lora_plus(embedding: Test, classes: frozenset[str], order: str) -> Split:
    decays = _decays_by_class(classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        apart, b, rest = _parts(trainable(parameters), embedding, lambda one: "lora_B" in one.name or len(one.shape or ()) == 1)
        yes, no = _parts(b, decays)
        made = {"a": GroupCut(rest), "e": GroupCut(apart, rate="embedding"), "b": GroupCut(yes, rate="b"), "n": GroupCut(no, decays=False, rate="b")}
        return [made[letter] for letter in order]

    return _once(cut)


def _axolotl(span: Span, classes: frozenset[str]) -> Split:
    decays = _decays(span, classes)

    def embedding(parameter: Parameter) -> bool:
        name = parameter.name
        return name.endswith("modules_to_save.default.weight") or "embed_tokens" in name or "lm_head" in name

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        apart, yes, no = _parts(trainable(parameters), embedding, decays)
        return [one for one in (GroupCut(yes), GroupCut(apart, decays=False, rate="embedding"), GroupCut(no, decays=False)) if one.parameters]

    return _once(cut)


def _unsloth(parameters: Sequence[Parameter]) -> Cuts:
    apart, rest = _parts(trainable(parameters), lambda one: one.name.endswith("modules_to_save.default.weight"))
    return [GroupCut(rest), GroupCut(apart, rate="embedding")]


def _targets(classes: frozenset[str], *, frozen_too: bool) -> Split:
    """GaLore and its like: matrices of linear layers apart, the rest in front of them. Which layers is the user's choice: the usual two."""
    decays = _decays_by_class(classes)
    usual: tuple[Test, ...] = (_is_linear, lambda one: _is_linear(one) and ("attn" in one.name or "mlp" in one.name))

    def split(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
        for target in usual:
            apart, rest = _parts(parameters if frozen_too else trainable(parameters), target)
            yes, no = _parts(rest, decays)
            yield (
                [GroupCut(rest), GroupCut(apart, rate="galore")]
                if len(sizes) == 2
                else [GroupCut(no, decays=False), GroupCut(yes), GroupCut(apart, rate="galore")]
            )

    return split


def _is_linear(parameter: Parameter) -> bool:
    return len(parameter.shape or ()) == 2 and parameter.trainable and not re.search(r"embed|wte|wpe|lm_head", parameter.name)


def _by_rank(own: Sequence[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    matrices, vectors = _parts(own, lambda one: len(one.shape or ()) >= 2)
    return matrices, vectors


def _nano_gpt(parameters: Sequence[Parameter]) -> Cuts:
    matrices, vectors = _by_rank(trainable(parameters))
    return [GroupCut(matrices), GroupCut(vectors, decays=False)]


def _timm(parameters: Sequence[Parameter]) -> Cuts:
    matrices, vectors = _parts(trainable(parameters), lambda one: len(one.shape or ()) >= 2 and not one.name.endswith(".bias"))
    return [GroupCut(vectors, decays=False), GroupCut(matrices)]


def _muon(parameters: Sequence[Parameter]) -> Cuts:
    matrices, rest = _parts(trainable(parameters), _is_linear)
    return [GroupCut(matrices + rest)]


def _by_substring(*, frozen_too: bool) -> Split:
    def cut(parameters: Sequence[Parameter]) -> Cuts:
        own = list(parameters) if frozen_too else trainable(parameters)
        no, yes = _parts(own, lambda one: any(word in one.name for word in ("bias", "LayerNorm.weight", "layer_norm.weight")))
        return [GroupCut(yes), GroupCut(no, decays=False)]

    return _once(cut)


def _each_alone(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    own = trainable(parameters)
    if len(sizes) > 2 and len(sizes) == len(own):
        yield [GroupCut([parameter], rate=parameter.name) for parameter in own]


def _late(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    """Two groups by hand: A and B apart, or a second one added later, of other kinds of module, other layers, or no adapter weights."""
    own = trainable(parameters)
    if len(sizes) != 2 or not own:
        return
    tests: list[Test] = [lambda one: is_tuned(one.name)]
    tests += [lambda one: ".lora_a." in one.name.lower(), lambda one: ".lora_b." in one.name.lower()]
    kinds = sorted({_kind(one) for one in own})
    tests += [lambda one, kind=kind: _kind(one) == kind for kind in kinds]  # type: ignore[misc]
    tests += [lambda one, kind=kind: _kind(one) != kind for kind in kinds]  # type: ignore[misc]
    layers = sorted({layer for one in own if (layer := _layer(one)) is not None})
    tests += [lambda one, at=at: (_layer(one) or 0) >= at for at in layers[1:]]  # type: ignore[misc]
    tests += [lambda one, at=at: (_layer(one) or 0) < at for at in layers[1:]]  # type: ignore[misc]
    for test in tests:
        first, rest = _parts(own, test)
        if [len(first), len(rest)] == list(sizes):
            yield [GroupCut(first, rate="first"), GroupCut(rest, rate="late")]


def _kind(parameter: Parameter) -> str:
    parts = parameter.name.split(".")
    at = next((at for at, part in enumerate(parts) if part in CONTAINERS or part == SAVED), None)
    return parts[at - 1] if at else parts[-1]


def _layer(parameter: Parameter) -> int | None:
    found = re.search(r"\.(\d{1,18})\.", parameter.name, re.ASCII)
    return int(found[1]) if found else None


def _by_component(*, plus: bool) -> Split:
    """Return a split at the borders of a pipeline's components, neighbours perhaps together; `plus`: each group's `lora_up` in one of its own."""

    def split(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
        own = trainable(parameters)
        if not all(map(_component, own)):
            return
        runs = [list(run) for _, run in groupby(own, key=_component)]
        if len(runs) == 1 and not plus:
            return
        for borders in product((True, False), repeat=min(len(runs), MOST_COMPONENTS) - 1):
            cuts = [GroupCut(group, rate=str(at)) for at, group in enumerate(_joined(runs, borders))]
            cuts = [half for cut in cuts for half in _halves(cut)] if plus else cuts
            if [len(cut.parameters) for cut in cuts] == list(sizes):
                yield cuts

    return split


_BLOCK_OF_UNET = re.compile(
    r"^lora_unet_(?:(down|up)_blocks_(\d{1,3})_(?:(?:resnets|attentions)_(\d{1,3})|((?:up|down)samplers))|(mid_block)|((?:input|middle|output)_blocks?_\d{1,3}))_",
    re.ASCII,
)


def _block_of_unet(parameter: Parameter) -> str:
    """Return the block of the U-Net that sd-scripts' `get_block_index` gives one learning rate; the component elsewhere.

    A resnet and the attention behind it share an index, and a sampler has that of the third (networks/lora.py, `get_block_index`).
    """
    found = _BLOCK_OF_UNET.match(parameter.name)
    if found is None:
        return _component(parameter)
    half, level, at, sampler, middle, of_stability = found.groups()
    return of_stability or middle or f"{half} {int(level)} {2 if sampler else int(at)}"


def _by_block(*, plus: bool) -> Split:
    """Return sd-scripts' split with `block_lr`: text encoders, then a group for each block of the U-Net in the order of first appearance."""

    def split(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
        own = trainable(parameters)
        blocks: dict[str, list[Parameter]] = {}
        for one in own:
            blocks.setdefault(_block_of_unet(one), []).append(one)
        if len(blocks) < 2 or not all(map(_component, own)):
            return
        text = [block for block in blocks if block == _component(blocks[block][0])]
        encoders, unet = [blocks[block] for block in text], [blocks[block] for block in blocks if block not in text]
        for together in dict.fromkeys((False, len(encoders) > 1)):
            joined = [[one for part in encoders for one in part]] if together else encoders
            cuts = [GroupCut(group, rate=str(at)) for at, group in enumerate([*joined, *unet])]
            cuts = [half for cut in cuts for half in _halves(cut)] if plus else cuts
            if [len(cut.parameters) for cut in cuts] == list(sizes):
                yield cuts

    return split


def _in_runs(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    """Groups of neighbours in the order of definition, each of whole modules: a learning rate for each layer or stage."""
    own = trainable(parameters)
    ends = list(accumulate(sizes))
    if len(sizes) < 2 or not all(sizes) or ends[-1] != len(own) or any(_module(own[end - 1]) == _module(own[end]) for end in ends[:-1]):
        return
    yield [GroupCut(own[end - size : end], rate=str(at)) for at, (size, end) in enumerate(zip(sizes, ends))]


def _module(parameter: Parameter) -> str:
    factor = factor_of(parameter.name)
    return factor[0] if factor is not None else parameter.name


def _component(parameter: Parameter) -> str:
    return parameter.component or component_of(parameter.name)


def _joined(runs: Sequence[list[Parameter]], borders: Sequence[bool]) -> list[list[Parameter]]:
    """Return the runs as groups: True in `borders` begins a new one, False goes on with the last. Those beyond the borders go on."""
    groups = [list(runs[0])] if runs else []
    for run, border in zip(runs[1:], borders):
        groups = [*groups, list(run)] if border else [*groups[:-1], groups[-1] + run]
    return groups


def _halves(cut: GroupCut) -> list[GroupCut]:
    """Return sd-scripts' LoRA+ of one component: what is no `lora_up`, then those; empty ones are left out."""
    up, rest = _parts(cut.parameters, lambda one: "lora_up" in one.name)
    return [GroupCut(half, rate=f"{cut.rate} {word}") for word, half in (("base", rest), ("plus", up)) if half]


def _sorted_names(parameters: Sequence[Parameter]) -> Cuts:
    return [GroupCut(sorted(trainable(parameters), key=lambda one: one.name))]


def _min_gpt(parameters: Sequence[Parameter]) -> Cuts:
    return [cut._replace(parameters=sorted(cut.parameters, key=lambda one: one.name)) for cut in _nano_gpt(parameters)]


def _fixed_embedding(parameter: Parameter) -> bool:
    return parameter.tuner_embedding


def _no_embedding(_: Parameter) -> bool:
    return False


def _factory_embedding(parameter: Parameter) -> bool:
    return "lora_embedding_B" in parameter.name


def _trainer_rule(span: Span, classes: frozenset[str]) -> Rule:
    source = "transformers trainer.py, create_optimizer and get_decay_parameter_names"
    name = f"Trainer of transformers {span.text}"
    return Rule(name=name, split=_trainer(span, classes), groups=2, source=source, family="Trainer", span=span, classes=classes)


def _rules_by_norms(span: Span, classes: frozenset[str]) -> list[Rule]:
    """Return the rules of other programs that ask transformers which norms do not decay."""
    known = "transformers " + span.text
    return [
        Rule(name=f"no decay first ({known})", split=_no_decay_first(classes),
             groups=2, family="LLaMA-Factory BAdam, PPO", span=span, classes=classes,
             source="LLaMA-Factory train/trainer_utils.py:412-430, train/ppo/trainer.py:319-333"),
        Rule(name=f"LoRA+ of peft ({known})", split=_lora_plus(_fixed_embedding, classes, "aebn"), groups=4, family="LoRA+ of peft", span=span,
             classes=classes, source="peft 0.21.2 optimizers/loraplus.py:63-114"),
        Rule(name=f"LoRA+ of peft before its embedding fix ({known})", split=_lora_plus(_no_embedding, classes, "aebn"), groups=4,
             family="LoRA+ of peft before its embedding fix", span=span, classes=classes, source="peft 0.17.1 optimizers/loraplus.py:61-112"),
        Rule(name=f"LoRA+ of LLaMA-Factory ({known})", split=_lora_plus(_factory_embedding, classes, "abne"),
             groups=4, family="LoRA+ of LLaMA-Factory",
             span=span, classes=classes, source="LLaMA-Factory train/trainer_utils.py:372-409"),
        Rule(name=f"axolotl ({known})", split=_axolotl(span, classes), family="axolotl", span=span, classes=classes,
             source="axolotl core/trainers/mixins/optimizer.py:22-105"),
        Rule(name=f"GaLore of LLaMA-Factory ({known})", split=_targets(classes, frozen_too=False), family="GaLore", span=span, classes=classes,
             source="LLaMA-Factory train/trainer_utils.py:274-279", guess=True),
    ]  # fmt: skip


ONE_GROUP = (
    Rule(
        name="one group of all trainables",
        split=_once(lambda rows: [GroupCut(trainable(rows))]),
        groups=1,
        source="torch nn/modules/module.py:2645-2663",
    ),
    Rule(
        name="one group of all parameters, frozen too",
        split=_once(lambda rows: [GroupCut(list(rows))]),
        groups=1,
        source="torch nn/modules/module.py",
    ),
)
FURTHER = (
    Rule(name="GaLore of Trainer", split=_targets(frozenset({"LayerNorm"}), frozen_too=True),
         source="transformers 5.23 trainer_optimizer.py:156-162", guess=True),
    Rule(name="Trainer on several device meshes", split=_once(_meshes), source="transformers 5.23 trainer.py:1287-1300"),
    Rule(name="Unsloth with embedding_learning_rate", split=_once(_unsloth), groups=2, source="unsloth trainer.py:459-499"),
    Rule(name="matrices decay, vectors do not (nanoGPT)", split=_once(_nano_gpt), groups=2, source="nanoGPT model.py:270"),
    Rule(name="vectors first, then matrices (timm)", split=_once(_timm),
         groups=2, source="timm optim/_param_groups.py, param_groups_weight_decay"),
    Rule(name="bias and LayerNorm.weight by name", split=_by_substring(frozen_too=False),
         groups=2, source="transformers examples, *_no_trainer.py"),
    Rule(name="bias and LayerNorm.weight by name, frozen too", split=_by_substring(frozen_too=True), groups=2,
         source="transformers examples, *_no_trainer.py"),
    Rule(name="a group for each component", split=_by_component(plus=False),
         source="sd-scripts networks/lora.py:1148-1240, networks/lora_flux.py; OneTrainer modules/modelSetup/*LoRASetup.py; diffusers examples"),
    Rule(name="LoRA+ of sd-scripts", split=_by_component(plus=True),
         source="sd-scripts networks/lora.py:1165-1200; musubi-tuner networks/lora.py:785-800"),
    Rule(name="sd-scripts with block_lr", split=_by_block(plus=False), source="sd-scripts networks/lora.py, get_block_index"),
    Rule(name="sd-scripts with block_lr and LoRA+", split=_by_block(plus=True), source="sd-scripts networks/lora.py, get_block_index"),
    Rule(name="one group for each parameter", split=_each_alone, source="torch.optim, by its users"),
    Rule(name="matrices before the rest (Muon)", split=_once(_muon), groups=1, source="LLaMA-Factory train/trainer_utils.py, Muon", guess=True),
    Rule(name="two groups by hand", split=_late, groups=2, source="torch.optim.Optimizer.add_param_group", guess=True),
    Rule(name="groups of neighbours", split=_in_runs, source="by its users: a rate for each layer or stage", guess=True),
    Rule(name="names sorted", split=_once(_sorted_names), groups=1, source="by its users", guess=True),
    Rule(name="names sorted within groups (minGPT)", split=_once(_min_gpt), groups=2, source="minGPT model.py:254", guess=True),
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    *ONE_GROUP,
    *(_trainer_rule(span, classes) for span, classes in norms.spans()),
    *(rule for span, classes in norms.spans(since=norms.E1) for rule in _rules_by_norms(span, classes)),
    *FURTHER,
)
"""Every way of making groups that is known; a new one is a row of FURTHER."""


def cuts_alike(rule: Rule, present: frozenset[str]) -> tuple[object, ...]:
    """Return what rules have in common that cut every model with these norm classes in the same way."""
    if rule.span is None:
        return (rule.name,)
    since = rule.span.since
    return rule.family, since >= norms.E1, since >= norms.E2, since >= norms.E3, rule.classes & present


def version_matched(rule: Rule, version: Version | None, *, by_trainer: bool) -> bool:
    """True when the checkpoint's own version stamp asks for exactly this rule."""
    return by_trainer and version is not None and rule.family == "Trainer" and rule.span is not None and rule.span.holds(version)
