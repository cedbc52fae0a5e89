"""Lists how diffusers' models define their modules: `python -m tests.list_diffusers FOLDER…` writes ostate/ordering/sources/diffusers_orders.py anew.

Each FOLDER holds one release of diffusers (`pip install --no-deps --target FOLDER diffusers==0.32.2`); the installed one is always listed. A class
whose order changed between the listed releases gets a row for each order, which names the releases.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TARGET = Path(__file__).parent.parent / "ostate" / "ordering" / "sources" / "diffusers_orders.py"
CLASSES = (
    "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel", "PixArtTransformer2DModel",
    "AuraFlowTransformer2DModel", "HunyuanVideoTransformer3DModel", "Lumina2Transformer2DModel", "SanaTransformer2DModel",
    "CogVideoXTransformer3DModel", "CogView4Transformer2DModel", "WanTransformer3DModel", "LTXVideoTransformer3DModel", "MochiTransformer3DModel",
    "QwenImageTransformer2DModel", "ChromaTransformer2DModel", "HiDreamImageTransformer2DModel", "ZImageTransformer2DModel", "StableAudioDiTModel",
    "AllegroTransformer3DModel", "PriorTransformer", "HunyuanDiT2DModel", "CosmosTransformer3DModel",
    "LTX2VideoTransformer3DModel", "SanaVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel", "BriaTransformer2DModel",
    "Kandinsky5Transformer3DModel", "ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel", "AceStepTransformer1DModel",
    "HunyuanImageTransformer2DModel", "ErnieImageTransformer2DModel", "LongCatImageTransformer2DModel", "OvisImageTransformer2DModel",
)  # fmt: skip
"""What people train with LoRA; a class that a release lacks is left out there."""
OPTIONS: dict[str, list[dict[str, object]]] = {
    "UNet2DConditionModel": [
        {},
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32},
    ],
    "WanTransformer3DModel": [{}, {"image_dim": 1280, "added_kv_proj_dim": 5120}],
    "HiDreamImageTransformer2DModel": [
        {
            "patch_size": 2, "num_layers": 2, "num_single_layers": 2, "caption_channels": [16, 16], "text_emb_dim": 16, "num_routed_experts": 4,
            "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (8, 8), "llama_layers": [0, 1],
            "attention_head_dim": 128, "num_attention_heads": 2, "in_channels": 4,
        }
    ],
    "HunyuanDiT2DModel": [{"in_channels": 4, "patch_size": 2}],
    "FluxTransformer2DModel": [{"guidance_embeds": True}],
    "SD3Transformer2DModel": [{}, {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}],
}  # fmt: skip
"""Settings of a class that add modules; default sizes are the published models'."""


def built(name: str, options: dict[str, object]) -> torch.nn.Module:
    """Return a model of diffusers on the meta device, with few blocks of each kind, the last of which may differ from the others."""
    import diffusers
    import torch

    made = getattr(diffusers, name)
    few = {word: 3 for word in inspect.signature(made.__init__).parameters if word.startswith("num_") and word.endswith("layers")}
    with torch.device("meta"):
        return made(**{**few, **options})


def listed() -> dict[str, list[str]]:
    """Return class -> modules that lie side by side and have layers below them, in the order of definition; what cannot be built is left out."""
    import torch

    found: dict[str, list[str]] = {}
    for name in CLASSES:
        chains: dict[str, None] = {}
        for options in OPTIONS.get(name, [{}]):
            try:
                model = built(name, options)
            except (AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
                continue
            children: dict[str, dict[str, None]] = {}
            for path, module in model.named_modules():
                if path and isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.Embedding)):
                    parts = path.split(".")
                    for at, part in enumerate(parts):
                        if not part.isdigit():
                            children.setdefault(".".join(parts[:at]), {}).setdefault(part)
            chains |= dict.fromkeys(" ".join(words) for words in children.values())
        if chains:
            found[name] = longest(list(chains))
    return found


def longest(chains: list[str]) -> list[str]:
    """Return the chains without those that another one holds, in its order.

    Raises:
        ValueError: two parents define the same two modules in different orders.
    """
    split = [chain.split() for chain in chains]
    pairs = {pair for words in split for pair in combinations(words, 2)}
    clash = next(((one, other) for one, other in pairs if (other, one) in pairs), None)
    if clash is not None:
        raise ValueError(f"both orders of {clash}")
    return [" ".join(words) for words in split if not any(words != other and set(words) <= set(other) for other in split)]


def _of_release(folder: str) -> tuple[str, dict[str, list[str]]]:
    code = "import json, diffusers; from tests.list_diffusers import listed; print('LISTED', json.dumps([diffusers.__version__, listed()]))"
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("LISTED ")), None)
    if line is None:
        raise SystemExit(done.stderr)
    print(done.stderr[-2000:], file=sys.stderr)
    version, found = json.loads(line.removeprefix("LISTED "))
    return version, found


def table(releases: list[tuple[str, dict[str, list[str]]]]) -> dict[str, tuple[str, ...]]:
    """Return row name -> chains; a class has one row for each order that its releases have, the newest first."""
    rows: dict[str, tuple[str, ...]] = {}
    for name in CLASSES:
        orders: dict[tuple[str, ...], list[str]] = {}
        for version, found in releases:
            if name in found:
                orders.setdefault(tuple(found[name]), []).append(version)
        for made, versions in orders.items():
            rows[name if len(orders) == 1 else f"{name} of diffusers {', '.join(reversed(versions))}"] = made
    return rows


def main(folders: list[str]) -> None:
    """Write the table of the installed release and of those in `folders`."""
    releases = sorted((_of_release(folder) for folder in ["", *folders]), key=lambda row: [int(part) for part in row[0].split(".")], reverse=True)
    TARGET.write_text(text_of(table(releases), ", ".join(version for version, _ in reversed(releases))))


def text_of(rows: dict[str, tuple[str, ...]], versions: str) -> str:
    """Return the module: the chains that several classes have once, under a number, and each class's own beside the numbers."""
    classes = Counter(chain for chains in rows.values() for chain in dict.fromkeys(chains))
    shared = [chain for chain, count in classes.most_common() if count > 1]
    lines = [
        f'"""Data: the order in which diffusers\' models define their modules; releases {versions}.',
        "",
        "Made by `python -m tests.list_diffusers`, never by hand.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "_SHARED: tuple[str, ...] = (",
        *(f"    {line}" for at, chain in enumerate(shared) for line in _lines(chain, f"  # {at}")),
        ")",
        "_ROWS: dict[str, tuple[str, ...]] = {",
    ]
    for name, chains in rows.items():
        numbers = " ".join(str(shared.index(chain)) for chain in chains if chain in shared)
        own = [line for chain in chains if chain not in shared for line in _lines(chain)]
        lines += [f'    "{name}": (', f'        "{numbers}",', *(f"        {line}" for line in own), "    ),"]
    lines += [
        "}",
        '"""Class -> numbers in `_SHARED`, its own chains."""',
        "DIFFUSERS: dict[str, tuple[str, ...]] = {",
        "    name: (*(_SHARED[int(number)] for number in numbers.split()), *own) for name, (numbers, *own) in _ROWS.items()",
        "}",
        '"""Class -> modules that lie side by side, in the order of their definition; a word alone has no siblings."""',
        "",
    ]
    return "\n".join(lines)


def _lines(chain: str, said: str = "") -> list[str]:
    pieces = [f'"{piece}"' for piece in _wrapped(chain)]
    return [f"{pieces[0]},{said}"] if len(pieces) == 1 else ["(", *(f"    {piece}" for piece in pieces), f"),{said}"]


def _wrapped(chain: str, width: int = 120) -> list[str]:
    pieces, line = [], ""
    for word in chain.split():
        if line and len(line) + len(word) > width:
            pieces.append(line)
            line = ""
        line += f"{word} "
    return [*pieces, line.rstrip()]


if __name__ == "__main__":
    main(sys.argv[1:])
