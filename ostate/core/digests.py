"""SHA-256 of an index, without OpenSSL: `hashlib` loads it, which takes longer than all of an index needs."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

_LITTLE = 1 << 21
"""Bytes from which OpenSSL's faster code is worth loading it."""
_OWN = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
"""The interpreter's own; a build without it has hashlib alone."""


def sha256_of(*pieces: bytes) -> str:
    """Return the SHA-256 of `pieces` one after another, in hexadecimal digits."""
    own = sum(map(len, pieces)) <= _LITTLE and find_spec(_OWN) is not None
    digest = import_module(_OWN if own else "hashlib").sha256()
    for piece in pieces:
        digest.update(piece)
    return str(digest.hexdigest())
