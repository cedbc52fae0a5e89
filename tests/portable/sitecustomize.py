"""A Python without the calls that are not on every system: put this folder first in PYTHONPATH, and every process of the tests is such a one.

`signal.setitimer` stays, for pytest-timeout; tests/store/test_system.py does without it.
"""

import os

for _name in ("preadv", "pread", "pwritev", "pwrite", "posix_fadvise", "posix_fallocate", "link", "O_DIRECTORY", "O_CLOEXEC"):
    if hasattr(os, _name):
        delattr(os, _name)
