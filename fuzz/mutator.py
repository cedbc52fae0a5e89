"""A mutator of bytes without a compiler: for machines where atheris cannot be installed. It knows nothing of coverage.

Each input is one of the corpus, or two of them joined, with one to eight places changed: bits, bytes, numbers at their edges, pieces taken out,
doubled, moved, filled, and words of the target's dictionary put in.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

EDGES = (0, 1, -1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def mutated(corpus: Sequence[bytes], words: Sequence[bytes], chance: random.Random, longest: int) -> bytes:
    """Return the next input."""
    made = bytearray(chance.choice(corpus))
    if chance.random() < 0.15:
        other = chance.choice(corpus)
        made = made[: chance.randrange(len(made) + 1)] + other[chance.randrange(len(other) + 1) :]
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        _change(made, words, chance)
    return bytes(made[:longest])


def _change(made: bytearray, words: Sequence[bytes], chance: random.Random) -> None:
    if not made:
        made.append(chance.randrange(256))
    at = chance.randrange(len(made))
    until = min(len(made), at + 1 + int(chance.expovariate(0.1)))
    what = chance.randrange(9)
    if what == 0:
        made[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        made[at] = chance.randrange(256)
    elif what == 2:
        width = chance.choice((1, 2, 4, 8))
        made[at : at + width] = struct.pack(chance.choice("<>") + "Q", chance.choice(EDGES) & (2**64 - 1))[:width]
    elif what == 3:
        del made[at:until]
    elif what == 4:
        made[at:at] = made[at:until] * chance.choice((1, 1, 2, 16))
    elif what == 5:
        to = chance.randrange(len(made))
        made[to : to + until - at] = made[at:until]
    elif what == 6:
        made[at:until] = bytes([chance.randrange(256)]) * (until - at)
    elif what == 7 and words:
        word = chance.choice(words)
        made[at : at + chance.choice((0, len(word)))] = word
    else:
        made[at:at] = chance.randbytes(chance.randrange(1, 9))
