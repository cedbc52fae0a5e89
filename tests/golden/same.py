"""Whether a change of the package changed what `repair` writes: ten real checkpoints, byte by byte.

`python -m tests.golden.same BEFORE [NOW]` repairs them with the packages of two checkouts, such as two commits', or of one and this; it prints what
differs, and ends with 1 where a name or a number does. `python -m tests.golden.same --record` writes `repaired.json` anew: what this package
writes, for the next one to be held against (a `long` test does so).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.real import case

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDED = HERE / "repaired.json"
CASES = (
    "llama_qv",
    "opt_kvq",
    "bias_all",
    "dora_12",
    "loraplus",
    "llama_all_linear_12",
    "optim_adamw_bnb_8bit",
    "namekeyed_less",
    "ds_z2",
    "long_opt_step60",
)
"""Of every kind: rebuilt and recorded names, two groups, packed moments, a distributed layout, a run proven from its numbers alone."""
REPAIR = "import sys, ostate; words = dict(word.split('=', 1) for word in sys.argv[3:]); ostate.repair(sys.argv[1], sys.argv[2], **words)"
SAYS = ("created_by", "findings")
"""Fields of the manifest that hold words and the version: they may change with any release."""


def repaired(name: str, out: Path, package: Path = ROOT) -> dict[str, Any]:
    """Repair a case with a package's public function, in a process of its own; return what `digests` says of the file."""
    one = case(name)
    words = [f"{key}={path}" for key, path in (("adapter", one.adapter), ("base", one.base)) if path]
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", REPAIR, str(one.state), str(out), *words]
    done = subprocess.run(command, env=env, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return digests(out)


def digests(file: Path) -> dict[str, Any]:
    """Return the sha256 of the bytes behind the header, the names in their order, verdict and source, and a digest of each part of the manifest."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["ostate"])
    ordering = manifest["ordering"]
    return {
        "bytes": hashlib.sha256(data[8 + size :]).hexdigest(),
        "names": digest(list(manifest["parameters"])),
        "verdict": f"{ordering['verdict']}, {ordering['source']}",
        "manifest": {key: digest(value) for key, value in manifest.items() if key not in SAYS},
    }


def digest(value: Any) -> str:
    """Return a short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], str]:
    """Return which of names and numbers differ, and a line about all that does."""
    parts = [key for key in ("bytes", "names") if before[key] != now[key]]
    both = {*before["manifest"], *now["manifest"]}
    manifest = sorted(key for key in both if before["manifest"].get(key) != now["manifest"].get(key))
    verdict = before["verdict"] if before["verdict"] == now["verdict"] else f"{before['verdict']} -> {now['verdict']}"
    rest = f", but for the manifest's {', '.join(manifest)}" if manifest else ""
    return parts, f"{verdict}; {'other ' + ' and '.join(parts) if parts else 'the same'}{rest}"


def main() -> int:
    """Print a line for each case, or record them."""
    paths = [Path(word).resolve() for word in sys.argv[1:] if word != "--record"]
    wrong = 0
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            record[name] = now = repaired(name, Path(folder) / f"{name}.now.safetensors", paths[1] if len(paths) > 1 else ROOT)
            if paths:
                parts, line = difference(repaired(name, Path(folder) / f"{name}.before.safetensors", paths[0]), now)
                wrong += bool(parts)
                print(f"{name:24} {line}", flush=True)
    if not paths:
        RECORDED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
