"""Models that one optimizer trained and the checkpoint holds in folders of their own, whole or by an adapter each: a denoiser, its text encoders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ostate.core.files import is_file, is_remote
from ostate.core.names import COMPONENTS
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef

from .adapter_files import ADAPTER_FILES, DIFFUSERS_FILES, MODEL_FILES
from .made_keys import with_made_keys


def files_of_models(adapter: Adapter, raw: RawState) -> dict[str, str]:
    """Return folder -> weights file of what was saved together with a whole model or an adapter of PEFT's, its own among them, where the state has
    more parameters. diffusers' RealFill and PEFT's own DreamBooth script save a PeftModel for each component.

    Args:
        adapter: what was found or given; nothing is returned for what is neither, or has made keys already.
        raw: the state.
    """
    trained = sum(entry.has_state for entry in raw.entries)
    if adapter.kind not in ("model", "peft") or adapter.made_keys or trained <= len(adapter.tensors) or is_remote(adapter.file):
        return {}
    return dict(_files(adapter.file, ADAPTER_FILES if adapter.kind == "peft" else (*DIFFUSERS_FILES, *MODEL_FILES)))


def with_other_models(adapter: Adapter, raw: RawState, parts: Mapping[str, Mapping[str, TensorRef]]) -> Adapter:
    """Return a model or an adapter joined with those saved beside it, where the state has as many parameters at most as they hold together.

    Their names begin with the folder (`unet.`, `text_encoder.`: diffusers' scripts), since two encoders name their weights alike. No live name has
    that beginning, so it is said to be assumed.

    Args:
        adapter: what was found or given.
        raw: the state.
        parts: folder -> tensors of the models of `files_of_models`.
    """
    trained = sum(entry.has_state for entry in raw.entries)
    if len(parts) < 2 or sum(map(len, parts.values())) < trained:
        return adapter
    tensors = {f"{word}.{key}": ref for word, own in parts.items() for key, ref in own.items()}
    what = "adapters" if adapter.kind == "peft" else "models"
    leads = ", ".join(f"{word}." for word in parts)
    text = f"{len(parts)} {what} were trained together: their names begin with {leads} here, and do not in the program"
    return replace(with_made_keys(adapter, tensors, text), ordered=False, cut="", contested=(*adapter.contested, text))


def _files(file: str, called: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (word, file) of each model of the save, the one asked about among them; nothing where it lies alone."""
    home = os.path.dirname(os.path.abspath(file))
    above, folder = os.path.split(home)
    if folder not in COMPONENTS:
        return
    for word in COMPONENTS:
        places = (os.path.join(above, word, other) for other in called)
        found = file if word == folder else next((place for place in places if is_file(place)), None)
        if found is not None:
            yield word, found
