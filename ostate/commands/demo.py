"""`ostate demo`: train a tiny LoRA with the real Trainer, break its state as people do, repair it, probe with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ostate.core.extras import needed
from ostate.core.quiet import quiet


def run(folder: str, say: Callable[[str], None], command: Callable[[list[str]], tuple[int, str]]) -> dict[str, float]:
    """Run the whole story in `folder` and return its numbers.

    Args:
        folder: where the files go; made if missing, files of an earlier demo are replaced.
        say: takes one line for the person who watches.
        command: runs `ostate` with the arguments it is given, in this process; returns its exit code and what it printed.

    Returns:
        coverage and bars_dot by position and by name.

    Raises:
        OstateError: transformers or accelerate is not installed, or a step of the story did not come out as it must.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with quiet(prints=False):
        with needed("the demo", extra="demo"):
            import accelerate  # noqa: F401  (an optional extra)

            from . import demo_run
        return demo_run.story(Path(folder), say, command)
