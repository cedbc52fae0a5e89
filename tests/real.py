"""The real checkpoints of `tests/cases`, with the live optimizer's truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostate.core.state import RawState
from tests import truth

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Case:
    """One checkpoint: where its files are, and what the live optimizer said."""

    name: str
    state: Path
    adapter: Path | None
    """The adapter file, or None when the checkpoint holds the weights itself."""
    base: Path | None
    """Folder with the base model's config.json."""
    meta: dict[str, Any]
    truth: list[dict[str, Any]]
    """One record a parameter of the optimizer: name, exp_avg_sq_sha256, exp_avg_sha256, step, betas, …"""

    @property
    def with_state(self) -> dict[str, dict[str, Any]]:
        """Truth by name, only where the optimizer had state."""
        return {row["name"]: row for row in self.truth if row.get("exp_avg_sq_sha256")}

    @property
    def must_refuse(self) -> bool:
        """True when the only right answer is a refusal."""
        return bool(self.meta.get("must_refuse") or self.meta.get("negative"))

    def assert_moments_of(self, raw: RawState) -> None:
        """Fail unless a state that names its positions holds just these moments and steps."""
        assert {entry.name for entry in raw.entries if entry.has_state} == set(self.with_state)
        for entry in raw.entries:
            row = self.with_state[entry.name]
            assert sha256(entry.slots["exp_avg_sq"].read()) == row["exp_avg_sq_sha256"]
            assert sha256(entry.slots["exp_avg"].read()) == row["exp_avg_sha256"]
            assert entry.step == row["step"]


def case(name: str, cases: Path = CASES) -> Case:
    """Return the case of that name, whichever folder of `cases` it lies in."""
    (meta_path,) = cases.glob(f"*/{name}.meta.json")
    folder = meta_path.parent
    meta = json.loads(meta_path.read_text())
    files = meta["files"]
    state = folder / (files.get("optimizer") or files["state_path"])
    base = folder / f"{name}.base"
    if folder.name == "long":
        base = folder / "long_opt.base"
    return Case(
        name=name,
        state=state,
        adapter=folder / meta["adapter_file"] if meta.get("adapter_file") else None,
        base=base if base.is_dir() else None,
        meta=meta,
        truth=truth.read(folder / f"{name}.truth.json"),
    )


def names(kind: str) -> list[str]:
    """Return all case names of `one-process`, `long` or `distributed`."""
    return sorted(path.name.removesuffix(".meta.json") for path in (CASES / kind).glob("*.meta.json"))


def sha256(values: np.ndarray) -> str:
    """Return the digest that the truth files use: C-order little-endian float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()
