"""Lists how transformers' models define their modules: `python -m tests.list_transformers` writes `transformers_orders.py` of ordering/sources anew.

Every class of the `AutoModel…` mappings is built on the meta device, small, from its default configuration; what cannot be built so is left out, and
said. The classes of one model type are one row, unless two of them order the same two modules differently.
"""

from __future__ import annotations

import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TARGET = Path(__file__).parent.parent / "ostate" / "ordering" / "sources" / "transformers_orders.py"
MAPPINGS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT",
    "IMAGE_CLASSIFICATION", "SPEECH_SEQ_2_SEQ", "CTC", "AUDIO_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION",
)  # fmt: skip
"""What people train with adapters: the names of transformers' `MODEL_FOR_…_MAPPING_NAMES`."""
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
    "num_encoder_layers",
    "num_decoder_layers",
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
SECONDS = 30
LEAST_SAVED = 200
"""Letters that a shared text must save."""
Tree = dict[str, Any]


def shrink(config: Any) -> None:
    """Set few layers and experts, in the configurations within too."""
    for words, few in ((LAYERS, 3), (EXPERTS, 2)):
        for word in words:
            if isinstance(value := config.__dict__.get(word), int) and value > few:
                setattr(config, word, few)
    for word in ("text_config", "vision_config", "audio_config", "encoder", "decoder"):
        if hasattr(inner := getattr(config, word, None), "to_dict"):
            shrink(inner)


def tree_of(model: torch.nn.Module) -> Tree:
    """Return the modules that hold parameters, each within its parent, in the order of definition; `#` stands for every number.

    Raises:
        ValueError: two blocks of one list define the same two modules in different orders.
    """
    tree: Tree = {}
    for name, _ in model.named_parameters(remove_duplicate=False):  # a tied head is a module as any other
        parts = ["#" if part.isdigit() else part for part in name.split(".")[:-1]]
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
    for path, module in model.named_modules():
        found = [child for child, inner in module.named_children() if any(True for _ in inner.parameters())]
        node = tree
        for part in path.split(".") if path else []:
            node = node.get("#" if part.isdigit() else part, {})
        place(node, [child for child in found if not child.isdigit()])
    return tree


def place(node: Tree, order: list[str]) -> None:
    """Bring the children of a node into an order that is also theirs in `order`.

    Raises:
        ValueError: what was placed before says otherwise.
    """
    before = node.setdefault("<", set())  # pairs that are known: removed by `bare`
    pairs = {(one, other) for at, one in enumerate(order) for other in order[at + 1 :]}
    if clash := next(((one, other) for one, other in pairs if (other, one) in before), None):
        raise ValueError(f"both orders of {clash}")
    before |= pairs


def bare(node: Tree) -> Tree:
    """Return the tree in its order, without the pairs it was made from.

    Raises:
        ValueError: the pairs make a circle.
    """
    pairs = node.get("<", set())
    left = [word for word in node if word != "<"]
    found: Tree = {}
    while left:
        first = next((word for word in left if not any((other, word) in pairs for other in left)), None)
        if first is None:
            raise ValueError(f"a circle of {left}")
        found[first] = bare(node[first])
        left.remove(first)
    return found


def merged(one: Tree, other: Tree) -> Tree:
    """Return the union of two trees.

    Raises:
        ValueError: they order the same two modules differently.
    """
    node: Tree = {word: merged(one.get(word, {}), other.get(word, {})) for word in dict.fromkeys((*one, *other))}
    for tree in (one, other):
        place(node, list(tree))
    return bare(node) if "<" in node else node


def built(name: str, kind: str) -> torch.nn.Module:
    """Return a small model of the class on the meta device."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[kind]()
    shrink(config)
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, name)(config)
    return model


def classes() -> Iterator[tuple[str, str]]:
    """Yield (class, model type) of the mappings."""
    from transformers.models.auto import modeling_auto

    seen = set()
    for mapping in MAPPINGS:
        for kind, names in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in [names] if isinstance(names, str) else names:
                if name not in seen:
                    seen.add(name)
                    yield name, kind


def _too_long(*_: object) -> None:
    raise TimeoutError("takes too long")


def listed() -> dict[str, Tree]:
    """Return row name -> tree."""
    rows: dict[str, Tree] = {}
    signal.signal(signal.SIGALRM, _too_long)
    for name, kind in classes():
        signal.alarm(SECONDS)
        try:
            tree = bare(tree_of(built(name, kind)))
        except Exception as error:  # noqa: BLE001  (whatever a default configuration lacks: said, and left out)
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
            continue
        finally:
            signal.alarm(0)
        try:
            rows[kind] = merged(rows[kind], tree) if kind in rows else tree
        except ValueError:
            rows[name] = tree
    return rows


def text_of(tree: Tree) -> str:
    """Return a tree as text: children in brackets behind their parent."""
    return " ".join(word + (f"({text_of(inner)})" if inner else "") for word, inner in tree.items())


def shared(rows: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the rows with `@N` for what many of them have in brackets, and those texts: the one that saves most letters first."""
    texts: list[str] = []
    while True:
        counts: Counter[str] = Counter()
        for text in (*rows.values(), *texts):
            opened: list[int] = []
            for at, letter in enumerate(text):
                if letter == "(":
                    opened.append(at)
                elif letter == ")":
                    counts[text[opened.pop() : at + 1]] += 1
        best = max(counts, key=lambda one: (counts[one] - 1) * (len(one) - 4))
        if (counts[best] - 1) * (len(best) - 4) < LEAST_SAVED:
            return rows, texts
        mark = f"@{len(texts)}"
        rows = {name: text.replace(best, mark) for name, text in rows.items()}
        texts = [*(text.replace(best, mark) for text in texts), best]


def main() -> None:
    """Write the table of the installed release."""
    import transformers

    alike: dict[str, list[str]] = {}
    for name, tree in listed().items():
        alike.setdefault(text_of(tree), []).append(name)
    kept = {" ".join(names): text for text, names in alike.items()}
    rows, texts = shared(kept)
    listing = [*(f"@{at}: {text}" for at, text in enumerate(texts)), *(f"{name}: {text}" for name, text in rows.items())]
    lines = [
        f'"""Data: the order in which transformers\' models define their modules; release {transformers.__version__}.',
        "",
        "Made by `python -m tests.list_transformers`, never by hand.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        'TRANSFORMERS = """',
        *(line for row in listing for line in textwrap.wrap(row, 149, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)),
        '"""',
        '"""Model types, and their modules, each with those in it in brackets, in the order of definition; `#` is every number of a list, `@N`',
        'what the row of that name holds."""',
        "",
    ]
    TARGET.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
