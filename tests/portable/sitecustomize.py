"""A Python without the calls that are not on every system: put this folder first in PYTHONPATH, and every process of the tests is such a one.

`signal.setitimer` stays for pytest-timeout, and `os.link` for tests that make hard links; tests/store/test_system.py does without them.
"""

import os

for _name in ("preadv", "pread", "pwritev", "pwrite", "posix_fadvise", "posix_fallocate", "O_DIRECTORY", "O_CLOEXEC"):
    if hasattr(os, _name):
        delattr(os, _name)
