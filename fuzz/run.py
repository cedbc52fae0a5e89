"""Fuzz one target until it breaks or the time is over: `python -m fuzz.run pickle -max_total_time=600`.

Needs atheris (`pip install atheris`), which is no dependency of ostate. The corpus grows in `fuzz/corpus/<target>`, which
`python -m fuzz.seeds` starts; a finding is left as `fuzz/found/<target>-<digest>`. With file names in place of options: runs these files once.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ostate"]):
    from fuzz.targets import TARGETS

from ostate.errors import OstateError

HERE = Path(__file__).parent


def main() -> None:
    """Hand the target to libFuzzer."""
    target = TARGETS[sys.argv[1]]

    def once(data: bytes) -> None:
        with contextlib.suppress(OstateError):
            target(data)

    corpus, found = HERE / "corpus" / sys.argv[1], HERE / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    more = sys.argv[2:]
    places = [] if any(not one.startswith("-") for one in more) else [str(corpus)]
    bounds = [
        f"-artifact_prefix={found / sys.argv[1]}-",
        "-max_len=16384",
        "-timeout=20",
        "-rss_limit_mb=900",
        f"-dict={HERE / 'words' / sys.argv[1]}.txt",
    ]
    atheris.Setup(
        [sys.argv[0], *(one for one in bounds if not one.startswith("-dict") or (HERE / "words" / f"{sys.argv[1]}.txt").exists()), *more, *places],
        once,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
