"""How programs cut a model's parameters into groups: a function for each way, from the parameters in definition order to the groups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby, product
from typing import NamedTuple

from ostate.core.names import CONTAINERS, SAVED, component_of, factor_of, is_tuned

from . import norms
from .norms import Span
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


def same_rates(cuts: Sequence[GroupCut]) -> list[list[int]]:
    """Return the sets of groups that get one learning rate."""
    words = dict.fromkeys(cut.rate for cut in cuts)
    return [[index for index, cut in enumerate(cuts) if cut.rate == word] for word in words]


def trainable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return what requires grad, in definition order."""
    return [parameter for parameter in parameters if parameter.trainable]


def once(cut: Callable[[Sequence[Parameter]], Cuts]) -> Split:
    """Return a rule that cuts in one way, whatever the sizes of the file's groups."""
    return lambda parameters, sizes: [cut(parameters)]  # noqa: ARG005


def _parts(own: Sequence[Parameter], *tests: Test) -> list[list[Parameter]]:
    """Deal every parameter to the first test it passes; the last list holds those that pass none."""
    dealt: list[list[Parameter]] = [[] for _ in range(len(tests) + 1)]
    for parameter in own:  # of hundreds of thousands: a generator for each takes as long as the tests
        for index, test in enumerate(tests):
            if test(parameter):
                dealt[index].append(parameter)
                break
        else:
            dealt[-1].append(parameter)
    return dealt


_E3_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _e3_excludes(name: str) -> bool:
    """Return whether Trainer's pattern is found in a name, lower case; adapters have many, few of which hold either word."""
    return ("norm" in name or "bias" in name) and _E3_NAMES.search(name) is not None


def _decays(span: Span, classes: frozenset[str]) -> Test:
    """Return Trainer's own test of what decays, in the releases of `span`."""
    if span.since >= norms.E3:
        return lambda parameter: "LayerNorm" not in parameter.classes and not _e3_excludes(parameter.name.lower())
    if span.since >= norms.E2:
        words = ("bias", "layernorm", "rmsnorm")
        return lambda parameter: not parameter.classes & classes and not any(word in parameter.name.lower() for word in words)
    return _decays_by_class(classes)


def _decays_by_class(classes: frozenset[str]) -> Test:
    return lambda parameter: not parameter.classes & classes and "bias" not in parameter.name


def trainer(span: Span, classes: frozenset[str]) -> Split:
    """Trainer's two groups: what decays, what does not; up to 4.25 with frozen parameters."""
    decays = _decays(span, classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        own = list(parameters) if span.before <= norms.E1 else trainable(parameters)
        yes, no = _parts(own, decays)
        return [GroupCut(yes), GroupCut(no, decays=False)]

    return once(cut)


def no_decay_first(classes: frozenset[str]) -> Split:
    """Two groups, what does not decay first."""
    decays = _decays_by_class(classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        yes, no = _parts(trainable(parameters), decays)
        return [GroupCut(no, decays=False), GroupCut(yes)]

    return once(cut)


def meshes(parameters: Sequence[Parameter]) -> Cuts:
    """Trainer's groups, each cut by device mesh in order of first appearance: experts lie on a mesh of their own."""
    cuts: Cuts = []
    for group in next(iter(trainer(Span(norms.E3, norms.LAST), frozenset({"LayerNorm"}))(parameters, ()))):
        by_mesh: dict[bool, list[Parameter]] = {}
        for parameter in group.parameters:
            by_mesh.setdefault(".experts." in parameter.name, []).append(parameter)
        cuts += [group._replace(parameters=own) for own in by_mesh.values()]
    return cuts


def lora_plus(embedding: Test, classes: frozenset[str], order: str) -> Split:
    """LoRA+'s groups in an order of a (lora_A), b (lora_B), e (embeddings), n (lora_B that does not decay)."""
    decays = _decays_by_class(classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        apart, b, rest = _parts(trainable(parameters), embedding, lambda one: "lora_B" in one.name or len(one.shape or ()) == 1)
        yes, no = _parts(b, decays)
        made = {"a": GroupCut(rest), "e": GroupCut(apart, rate="embedding"), "b": GroupCut(yes, rate="b"), "n": GroupCut(no, decays=False, rate="b")}
        return [made[letter] for letter in order]

    return once(cut)


def axolotl(span: Span, classes: frozenset[str]) -> Split:
    """Axolotl's groups: embeddings and named rates apart, each only where it is not empty."""
    decays = _decays(span, classes)

    def embedding(parameter: Parameter) -> bool:
        name = parameter.name
        return name.endswith("modules_to_save.default.weight") or "embed_tokens" in name or "lm_head" in name

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        apart, yes, no = _parts(trainable(parameters), embedding, decays)
        return [one for one in (GroupCut(yes), GroupCut(apart, decays=False, rate="embedding"), GroupCut(no, decays=False)) if one.parameters]

    return once(cut)


_ALIGNER = re.compile(
    r"(?:^|\.)(?:multi_modal_projector|mm_projector|aligner|\w*projector|visual\.merger|visual\.deepstack_merger_list|resampler|connector|mlp1)\."
)
_TOWER = re.compile(r"(?:^|\.)(?:vision_tower|vision_model|visual|vision_backbone|vpm|vit|audio_tower|apm|audio_encoder|speech_encoder)\.")
"""What ms-swift's table of architectures calls the aligner and the tower of most of its models (swift/model/model_arch.py)."""


def swift_multimodal(span: Span, classes: frozenset[str]) -> Split:
    """Return ms-swift's groups with `vit_lr` or `aligner_lr`: tower, aligner, the rest; of each what does not decay first; empty ones dropped."""
    decays = _decays(span, classes)

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        aligner, tower, rest = _parts(trainable(parameters), lambda one: bool(_ALIGNER.search(one.name)), lambda one: bool(_TOWER.search(one.name)))
        cuts = []
        for rate, part in (("tower", tower), ("aligner", aligner), ("base", rest)):
            yes, no = _parts(part, decays)
            cuts += [one for one in (GroupCut(no, decays=False, rate=rate), GroupCut(yes, rate=rate)) if one.parameters]
        return cuts if tower or aligner else []

    return once(cut)


def unsloth(parameters: Sequence[Parameter]) -> Cuts:
    """Two groups: the rest, then whole modules that were saved with the adapter."""
    apart, rest = _parts(trainable(parameters), lambda one: one.name.endswith("modules_to_save.default.weight"))
    return [GroupCut(rest), GroupCut(apart, rate="embedding")]


def targets(classes: frozenset[str], *, frozen_too: bool) -> Split:
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


def nano_gpt(parameters: Sequence[Parameter]) -> Cuts:
    """Matrices decay, vectors do not."""
    matrices, vectors = _by_rank(trainable(parameters))
    return [GroupCut(matrices), GroupCut(vectors, decays=False)]


def timm(parameters: Sequence[Parameter]) -> Cuts:
    """Vectors and biases first, which do not decay, then matrices."""
    matrices, vectors = _parts(trainable(parameters), lambda one: len(one.shape or ()) >= 2 and not one.name.endswith(".bias"))
    return [GroupCut(vectors, decays=False), GroupCut(matrices)]


def muon(parameters: Sequence[Parameter]) -> Cuts:
    """One group: the matrices of linear layers, then the rest."""
    matrices, rest = _parts(trainable(parameters), _is_linear)
    return [GroupCut(matrices + rest)]


def by_substring(*, frozen_too: bool) -> Split:
    """Two groups by words in names: what has neither `bias` nor `LayerNorm.weight` decays."""

    def cut(parameters: Sequence[Parameter]) -> Cuts:
        own = list(parameters) if frozen_too else trainable(parameters)
        no, yes = _parts(own, lambda one: any(word in one.name for word in ("bias", "LayerNorm.weight", "layer_norm.weight")))
        return [GroupCut(yes), GroupCut(no, decays=False)]

    return once(cut)


def each_alone(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    """Each parameter in a group of its own."""
    own = trainable(parameters)
    if len(sizes) > 2 and len(sizes) == len(own):
        yield [GroupCut([parameter], rate=parameter.name) for parameter in own]


def late(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    """Two groups by hand: A and B apart, or a second one added later, of other kinds of module, other layers, or no adapter weights."""
    own = trainable(parameters)
    if len(sizes) != 2 or not own:
        return
    kinds = [_kind(one) for one in own]
    layers = [_layer(one) for one in own]
    of_kind = Counter(kinds)
    at_most = sorted({layer for layer in layers if layer is not None})[1:]
    marks = [[test(one.name) for one in own] for test in (is_tuned, lambda name: ".lora_a." in name.lower(), lambda name: ".lora_b." in name.lower())]
    marks += [[one == kind for one in kinds] for kind in sorted(of_kind) if of_kind[kind] == sizes[0]]
    marks += [[one != kind for one in kinds] for kind in sorted(of_kind) if of_kind[kind] == sizes[1]]
    marks += [[(layer or 0) >= at for layer in layers] for at in at_most]
    marks += [[(layer or 0) < at for layer in layers] for at in at_most]
    for mark in marks:
        if [sum(mark), len(own) - sum(mark)] == list(sizes):
            first, rest = ([one for one, is_first in zip(own, mark) if is_first is want] for want in (True, False))
            yield [GroupCut(first, rate="first"), GroupCut(rest, rate="late")]


def _kind(parameter: Parameter) -> str:
    parts = parameter.name.split(".")
    at = next((at for at, part in enumerate(parts) if part in CONTAINERS or part == SAVED), None)
    return parts[at - 1] if at else parts[-1]


def _layer(parameter: Parameter) -> int | None:
    found = re.search(r"\.(\d{1,18})\.", parameter.name, re.ASCII)
    return int(found[1]) if found else None


def by_component(*, plus: bool) -> Split:
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


def by_block(*, plus: bool) -> Split:
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


def in_runs(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
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


def sorted_names(parameters: Sequence[Parameter]) -> Cuts:
    """One group, sorted by name."""
    return [GroupCut(sorted(trainable(parameters), key=lambda one: one.name))]


def min_gpt(parameters: Sequence[Parameter]) -> Cuts:
    """Matrices but embeddings, which decay, and the rest, each sorted by name."""
    decays, rest = _parts(trainable(parameters), lambda one: len(one.shape or ()) >= 2 and not _is_embedding(one))
    return [GroupCut(sorted(part, key=lambda one: one.name), decays=part is decays) for part in (decays, rest)]


def _is_embedding(parameter: Parameter) -> bool:
    """True for a matrix of a module that is called as embeddings are, `wte` and `text_pos_embedding.emb` among them."""
    module = parameter.name.rpartition(".")[0].rpartition(".")[2]
    return len(parameter.shape or ()) == 2 and re.search(r"emb|^w[tp]e$", module) is not None


def fixed_embedding(parameter: Parameter) -> bool:
    """True for PEFT's LoRA of embeddings."""
    return parameter.tuner_embedding


def no_embedding(_: Parameter) -> bool:
    """False: PEFT before its fix recognised none."""
    return False


def factory_embedding(parameter: Parameter) -> bool:
    """True for what LLaMA-Factory takes for an embedding."""
    return "lora_embedding_B" in parameter.name
