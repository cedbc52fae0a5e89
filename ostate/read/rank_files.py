"""Files that each process of a run wrote, called by its rank: whether a file is the one of the process that it is called by."""

from __future__ import annotations

import os
import re

from ostate.errors import ReadError

RANK_FILE = re.compile(r"^(?P<head>.*?)rank[_-]?(?P<rank>\d+)(?P<tail>\D.*)?\.(?P<kind>pt|bin|pth|ckpt)$")
"""FSDP's, one a process: `optimizer_rank0.pt`, `optim_world_size_8_rank_0.pt`, …"""


def refuse_another_rank(saved_as: str, path: str, pattern: re.Pattern[str]) -> None:
    """Refuse a file that was saved as another process's: renamed or copied, it would put one process's numbers in the place of another's.

    Args:
        saved_as: the name without its ending that torch.save keeps within the file; one of another kind tells nothing.
        path: the file as it is called now.
        pattern: of the layout's file names, with the group `rank`.

    Raises:
        ReadError: the two ranks differ.
    """
    name = os.path.basename(path)
    now, then = pattern.match(name), pattern.match(saved_as + os.path.splitext(name)[1])
    if now is not None and then is not None and int(now["rank"]) != int(then["rank"]):
        raise ReadError(
            f"the file of rank {int(now['rank'])} was saved as that of rank {int(then['rank'])} ({then.group()})",
            where=path,
            fix="rename the files as they were saved, or copy the whole folder again",
        )
