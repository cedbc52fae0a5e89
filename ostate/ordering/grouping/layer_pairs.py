"""Groups for each layer, what decays and what does not apart: learning rates that fall from layer to layer.

timm's `param_groups_layer_decay` (optim/_param_groups.py) and BEiT's `get_parameter_groups` (optim_factory.py) make a group when its first parameter
comes by; programs that fine-tune BERT and ELECTRA go from the head to the embeddings, and give the head a group of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, product

from .cuts import Cuts, GroupCut, trainable
from .parameters import Parameter

FEWEST = 3
"""Blocks below which the order of layers is not what was meant."""
_LAYER = re.compile(r"^.*?\.\d{1,6}(?=\.)", re.ASCII)
_WORDS = ("bias", "LayerNorm.weight", "layer_norm.weight", "LayerNorm.bias")
Decays = Callable[[Parameter], bool]


def by_layer(parameters: Sequence[Parameter], sizes: Sequence[int]) -> Iterable[Cuts]:
    """Yield every way in which a program gives each layer groups of its own that fits these sizes: layers upwards or downwards, pairs either way."""
    blocks, held = _blocks(trainable(parameters)), [size for size in sizes if size]
    if len(blocks) < FEWEST or len(held) < FEWEST or sum(held) != sum(map(len, blocks)):
        return
    seen = set[tuple[tuple[Parameter, ...], ...]]()
    tests: tuple[Decays, ...] = (_is_matrix, _by_words)
    for decays, order, head in product(tests, ("first seen", "decay first", "decay last"), ("pair", "first", "last")):
        for listed in (blocks, blocks[::-1]):
            cuts = [cut for cut in _cut(listed, blocks[-1], decays, order, head) if cut.parameters]
            mark = tuple(tuple(cut.parameters) for cut in cuts)
            if [len(cut.parameters) for cut in cuts] == held and mark not in seen:
                seen.add(mark)
                yield _with_empty(cuts, sizes)


def _with_empty(cuts: Cuts, sizes: Sequence[int]) -> Cuts:
    """Return the groups with empty ones where the file has them: LoRA leaves nothing in a layer's second group, or in that of the embeddings."""
    left = iter(cuts)
    return [next(left) if size else GroupCut([], rate=f"empty {at}") for at, size in enumerate(sizes)]


def _blocks(own: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return the parameters of each layer, and of what lies before and after them; nothing where a layer's do not lie together."""
    runs = [(layer, list(run)) for layer, run in groupby(own, key=_layer)]
    layers = [layer for layer, _ in runs if layer]
    return [run for _, run in runs] if len(set(layers)) == len(layers) else []


def _layer(parameter: Parameter) -> str:
    found = _LAYER.match(parameter.name)
    return found[0] if found else ""


def _cut(blocks: Sequence[list[Parameter]], last: list[Parameter], decays: Decays, order: str, head: str) -> Iterator[GroupCut]:
    whole = GroupCut(last, decays=False, rate="head")
    if head == "first":
        yield whole
    for at, block in enumerate(blocks):
        if head != "pair" and block is last:
            continue
        yes = GroupCut([one for one in block if decays(one)], rate=f"layer {at}")
        no = GroupCut([one for one in block if not decays(one)], decays=False, rate=f"layer {at}")
        yes_first = decays(block[0]) if order == "first seen" else order == "decay first"
        yield from (yes, no) if yes_first else (no, yes)
    if head == "last":
        yield whole


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape or ()) >= 2 and not parameter.name.endswith(".bias")


def _by_words(parameter: Parameter) -> bool:
    return not any(word in parameter.name for word in _WORDS)
