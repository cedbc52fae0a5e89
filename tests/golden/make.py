"""Adds this release's named file to the golden ones: `.venv/bin/python -m tests.golden.make`. Run once a release; never rewrites one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import ostate
from ostate.commands.options import Options
from ostate.commands.repair import repair

HERE = Path(__file__).parent
CASE = HERE.parent / "cases" / "one-process" / "llama_qv"
"""The checkpoint that every golden file is made of; its truth is that of the live optimizer."""


def facts(path: Path) -> dict[str, dict[str, object]]:
    """Return what a reader must find in the file, by name: shape, step, hyperparameters and the digest of each slot's float32 bytes."""
    state = ostate.load(path)
    return {
        name: {
            "shape": list(parameter.shape),
            "step": parameter.step,
            "position": parameter.position,
            "hyper": {key: state.hyper(name)[key] for key in ("lr", "betas", "eps", "weight_decay")},
            "slots": {slot: hashlib.sha256(np.ascontiguousarray(state.tensor(name, slot), "<f4").tobytes()).hexdigest() for slot in parameter.slots},
        }
        for name, parameter in state.parameters.items()
    }


def main() -> None:
    """Write `<version>/lora.ostate.safetensors` and `<version>/facts.json`."""
    release = HERE / ostate.__version__
    if release.exists():
        raise SystemExit(f"{release} is there already, and a golden file is never rewritten: raise the version first")
    release.mkdir()
    out = release / "lora.ostate.safetensors"
    repair(str(CASE / "checkpoint-5"), str(out), options=Options(base=str(CASE.with_suffix(".base"))))
    (release / "facts.json").write_text(json.dumps(facts(out), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {release}")


if __name__ == "__main__":
    main()
