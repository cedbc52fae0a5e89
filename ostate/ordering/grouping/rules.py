"""Every way of making groups that is known: one row a rule, with the lines of source it was read in."""

from __future__ import annotations

from dataclasses import dataclass

from . import norms
from .cuts import (
    GroupCut,
    Split,
    axolotl,
    by_block,
    by_component,
    by_substring,
    each_alone,
    factory_embedding,
    fixed_embedding,
    in_runs,
    late,
    lora_plus,
    meshes,
    min_gpt,
    muon,
    nano_gpt,
    no_decay_first,
    no_embedding,
    once,
    sorted_names,
    swift_multimodal,
    targets,
    timm,
    trainable,
    trainer,
    unsloth,
)
from .layer_pairs import by_layer
from .norms import Span, Version


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


def _trainer_rule(span: Span, classes: frozenset[str]) -> Rule:
    source = "transformers trainer.py, create_optimizer and get_decay_parameter_names"
    name = f"Trainer of transformers {span.text}"
    return Rule(name=name, split=trainer(span, classes), groups=2, source=source, family="Trainer", span=span, classes=classes)


def _rules_by_norms(span: Span, classes: frozenset[str]) -> list[Rule]:
    """Return the rules of other programs that ask transformers which norms do not decay."""
    known = "transformers " + span.text
    return [
        Rule(name=f"no decay first ({known})", split=no_decay_first(classes),
             groups=2, family="LLaMA-Factory BAdam, PPO", span=span, classes=classes,
             source="LLaMA-Factory train/trainer_utils.py:412-430, train/ppo/trainer.py:319-333"),
        Rule(name=f"LoRA+ of peft ({known})", split=lora_plus(fixed_embedding, classes, "aebn"), groups=4, family="LoRA+ of peft", span=span,
             classes=classes, source="peft 0.21.2 optimizers/loraplus.py:63-114"),
        Rule(name=f"LoRA+ of peft before its embedding fix ({known})", split=lora_plus(no_embedding, classes, "aebn"), groups=4,
             family="LoRA+ of peft before its embedding fix", span=span, classes=classes, source="peft 0.17.1 optimizers/loraplus.py:61-112"),
        Rule(name=f"LoRA+ of LLaMA-Factory ({known})", split=lora_plus(factory_embedding, classes, "abne"),
             groups=4, family="LoRA+ of LLaMA-Factory",
             span=span, classes=classes, source="LLaMA-Factory train/trainer_utils.py:372-409"),
        Rule(name=f"axolotl ({known})", split=axolotl(span, classes), family="axolotl", span=span, classes=classes,
             source="axolotl core/trainers/mixins/optimizer.py:22-105"),
        Rule(name=f"ms-swift with vit_lr or aligner_lr ({known})", split=swift_multimodal(span, classes), family="ms-swift with vit_lr or aligner_lr",
             span=span, classes=classes, source="ms-swift 4.6.0 optimizers/multimodal.py"),
        Rule(name=f"GaLore of LLaMA-Factory ({known})", split=targets(classes, frozen_too=False), family="GaLore", span=span, classes=classes,
             source="LLaMA-Factory train/trainer_utils.py:274-279", guess=True),
    ]  # fmt: skip


ONE_GROUP = (
    Rule(
        name="one group of all trainables",
        split=once(lambda rows: [GroupCut(trainable(rows))]),
        groups=1,
        source="torch nn/modules/module.py:2645-2663",
    ),
    Rule(
        name="one group of all parameters, frozen too",
        split=once(lambda rows: [GroupCut(list(rows))]),
        groups=1,
        source="torch nn/modules/module.py",
    ),
)
FURTHER = (
    Rule(name="GaLore of Trainer", split=targets(frozenset({"LayerNorm"}), frozen_too=True),
         source="transformers 5.23 trainer_optimizer.py:156-162", guess=True),
    Rule(name="Trainer on several device meshes", split=once(meshes), source="transformers 5.23 trainer.py:1287-1300"),
    Rule(name="Unsloth with embedding_learning_rate", split=once(unsloth), groups=2, source="unsloth trainer.py:459-499"),
    Rule(name="matrices decay, vectors do not (nanoGPT)", split=once(nano_gpt), groups=2, source="nanoGPT model.py:270"),
    Rule(name="vectors first, then matrices (timm)", split=once(timm),
         groups=2, source="timm optim/_param_groups.py, param_groups_weight_decay"),
    Rule(name="bias and LayerNorm.weight by name", split=by_substring(frozen_too=False),
         groups=2, source="transformers examples, *_no_trainer.py"),
    Rule(name="bias and LayerNorm.weight by name, frozen too", split=by_substring(frozen_too=True), groups=2,
         source="transformers examples, *_no_trainer.py"),
    Rule(name="a group for each component", split=by_component(plus=False),
         source="sd-scripts networks/lora.py:1148-1240, networks/lora_flux.py; OneTrainer modules/modelSetup/*LoRASetup.py; diffusers examples"),
    Rule(name="LoRA+ of sd-scripts", split=by_component(plus=True),
         source="sd-scripts networks/lora.py:1165-1200; musubi-tuner networks/lora.py:785-800"),
    Rule(name="sd-scripts with block_lr", split=by_block(plus=False), source="sd-scripts networks/lora.py, get_block_index"),
    Rule(name="sd-scripts with block_lr and LoRA+", split=by_block(plus=True), source="sd-scripts networks/lora.py, get_block_index"),
    Rule(name="one group for each parameter", split=each_alone, source="torch.optim, by its users"),
    Rule(name="groups for each layer", split=by_layer, source="timm optim/_param_groups.py, param_groups_layer_decay; BEiT optim_factory.py"),
    Rule(name="matrices before the rest (Muon)", split=once(muon), groups=1, source="LLaMA-Factory train/trainer_utils.py, Muon", guess=True),
    Rule(name="two groups by hand", split=late, groups=2, source="torch.optim.Optimizer.add_param_group", guess=True),
    Rule(name="groups of neighbours", split=in_runs, source="by its users: a rate for each layer or stage", guess=True),
    Rule(name="names sorted", split=once(sorted_names), groups=1, source="by its users", guess=True),
    Rule(name="names sorted within groups (minGPT)", split=once(min_gpt), groups=2,
         source="minGPT model.py:254; XTTS, Tortoise: coqui TTS/tts/layers/xtts/trainer/gpt_trainer.py, get_optimizer", guess=True),
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
