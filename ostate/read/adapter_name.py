"""What an adapter is called in the live model, as far as its folder tells, and which adapters were saved together with it.

PEFT's `save_pretrained(F)` writes the adapter `default` into F, every other one into F/<its name>, and the model card into F alone
(peft/peft_model.py). People copy folders, leave cards behind, and write `checkpoint-N/adapter_model/` themselves: a folder's name alone is
not an adapter's name.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ostate.core.adapter_config import AdapterConfig
from ostate.core.files import absolute, is_file, is_folder, read_at, size_of

from .adapter_files import holds_adapter, subfolders

_PLAIN_WORDS = frozenset({
    "adapter", "adapters", "lora", "loras", "qlora", "dora", "peft", "model", "models", "weights", "checkpoint", "checkpoints", "ckpt", "ckpts",
    "best", "last", "latest", "final", "step", "steps", "epoch", "epochs", "iter", "iteration", "global", "out", "output", "outputs", "save", "saved",
    "run", "runs", "pt", "train", "trained", "training", "hf", "huggingface", "result", "results", "tmp", "temp", "new", "old", "copy", "the",
})  # fmt: skip
"""Words of which people make the names of folders; an adapter that bears one needs more than its folder's name."""
_STATE_FILES = ("trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt", "latest")
"""A folder that holds one of these is a checkpoint, not one of several adapters of a checkpoint."""


class AdapterName(NamedTuple):
    """What the folder tells of an adapter's name."""

    name: str
    known: bool
    """True when something says so that is not the folder's own name."""
    below: bool
    """True when `save_pretrained` was pointed at the folder above."""
    assumed: tuple[str, ...] = ()
    contested: bool = False
    """True when another name is as likely."""


def name_of(home: str, asked: str | None, config: AdapterConfig) -> AdapterName:
    """Return the name of the adapter whose file lies in `home`.

    Args:
        home: the folder of the adapter file.
        asked: `--adapter-name`.
        config: adapter_config.json.
    """
    home = absolute(home)
    above, own = os.path.split(home)
    found = _from_folders(home, above, own, config)
    return AdapterName(asked, known=True, below=found.below) if asked else found


def _from_folders(home: str, above: str, own: str, config: AdapterConfig) -> AdapterName:
    if has_card(home):
        return AdapterName("default", known=False, below=False)  # PEFT was pointed here: what lies here itself is `default`
    if own != "default" and holds_adapter(home) and not is_checkpoint(home):
        card, top, plain = has_card(above), holds_adapter(above), is_plain(own)
        if not plain and (card or top or (is_checkpoint(above) and _has_several(above))):
            return AdapterName(own, known=True, below=True)
        by_trainer = not plain and is_file(os.path.join(above, "trainer_state.json"))  # Trainer saves PEFT models as PEFT does
        if (card and not top) or by_trainer:
            return AdapterName(own, known=False, below=True, assumed=(f"the adapter is called {own!r}, as its folder is",), contested=True)
        if plain and card:
            return AdapterName("default", known=False, below=False, assumed=(_default(own),), contested=True)
    if is_file(os.path.join(home, "trainer_state.json")) and config.get("inference_mode") is True:
        return AdapterName("default", known=False, below=False)  # PEFT saved it, at the folder that Trainer saves to
    return AdapterName("default", known=False, below=False, assumed=(_default(own),))


def _has_several(folder: str) -> bool:
    return sum(is_one_of_several(place) for place in subfolders(folder)) > 1


def _default(own: str) -> str:
    hint = "" if is_plain(own) else f" (its folder is called {own!r}: if that is the adapter's name, pass it)"
    return f"the adapter is called 'default'{hint}"


def siblings_of(home: str, below: bool) -> list[str]:
    """Return the folders of the adapters saved together with the one in `home`: where it is one of several, the folder above and those beside."""
    root = os.path.dirname(absolute(home)) if below else absolute(home)
    if not is_folder(root):
        return []
    places = [root, *(place for place in subfolders(root) if is_one_of_several(place))]
    return [place for place in places if absolute(place) != absolute(home) and holds_adapter(place)]


def is_one_of_several(folder: str) -> bool:
    """True when PEFT may have made the folder for one adapter of several: an adapter lies in it, no card and no state."""
    return not is_plain(os.path.basename(folder)) and holds_adapter(folder) and not is_checkpoint(folder) and not has_card(folder)


def is_plain(folder: str) -> bool:
    """True when the folder's name is made of words and numbers that say nothing of an adapter: `adapter_model`, `checkpoint-5`, `lora_best`."""
    words = [word for word in re.split(r"[\W_]+|(?<=[A-Za-z])(?=\d)", folder.lower()) if word]
    return all(word in _PLAIN_WORDS or (word.isdigit() and len(words) > 1) for word in words)


def is_checkpoint(folder: str) -> bool:
    """True when a trainer saved its state into this folder."""
    return any(is_file(os.path.join(folder, name)) for name in _STATE_FILES)


def has_card(folder: str) -> bool:
    """True when `save_pretrained` of PEFT was pointed at this folder itself."""
    card = os.path.join(folder, "README.md")
    return is_file(card) and "library_name: peft" in text_of(card)


def text_of(path: str) -> str:
    """Return the beginning of a text file, at most a megabyte."""
    return read_at(path, 0, min(size_of(path), 1 << 20)).decode("utf-8", "replace")
