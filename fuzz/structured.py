"""Changes that know what their target reads, so that inputs get past its first look: values of JSON, opcodes of a pickle, members of an archive.

Bytes changed at random leave nine in ten texts without JSON, and as many archives without a directory. Each function takes an input of the
corpus and returns one that is still JSON, a list of opcodes or an archive; what it cannot take apart comes back as it was.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from itertools import pairwise

from .mutator import EDGES
from .values import Choices, damaged

PART = b"\n--8<--\n"
"""Between the files of an input that stands for several."""
OPCODES = (b"N", b"\x88", b")", b"]", b"}", b"(", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"Q", b"0", b"2", b"\x85", b"\x86", b"\x81", b"\x94")
"""Opcodes without an argument that may stand anywhere (pickletools)."""
NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
"""Opcodes of numbers, and how these are packed."""


def json_changed(data: bytes, chance: random.Random) -> bytes:
    """Return a text with one to four of its values changed, renamed, exchanged or taken out."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    return json.dumps(damaged(value, Choices(chance.randbytes(32))), default=str).encode()


def parts_changed(data: bytes, chance: random.Random) -> bytes:
    """Return several files, one or two of them changed as JSON, or as text where they are none."""
    parts = data.split(PART)
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(parts))
        changed = json_changed(parts[at], chance)
        words = changed.split(b" ")
        parts[at] = changed if changed != parts[at] else b" ".join(chance.sample(words, len(words)))
    return PART.join(parts)


def header_changed(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file, the JSON of its header changed, its length set right and the tensors as they were."""
    length = int.from_bytes(data[:8], "little")
    header = json_changed(data[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def pickle_changed(data: bytes, chance: random.Random) -> bytes:
    """Return a pickle, one to four of its opcodes taken out, doubled, exchanged, put in, or given another number."""
    try:
        starts = [at for _, _, at in pickletools.genops(data)]
    except (ValueError, UnicodeDecodeError):
        return data
    pieces = [data[one:two] for one, two in pairwise([*starts, len(data)])]
    for _ in range(chance.choice((1, 1, 2, 4))):
        if len(pieces) < 3:
            break
        at, other = chance.randrange(len(pieces) - 1), chance.randrange(len(pieces) - 1)
        what = chance.randrange(6)
        if what == 0:
            del pieces[at]
        elif what == 1:
            pieces.insert(other, pieces[at])
        elif what == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif what == 3:
            pieces[at] = pieces[other]
        elif what == 4:
            pieces.insert(at, chance.choice(OPCODES))
        else:
            _renumber(pieces, chance)
    return b"".join(pieces)


def _renumber(pieces: list[bytes], chance: random.Random) -> None:
    """Give one of the numbers of a pickle another value, nearby or at an edge."""
    places = [at for at, piece in enumerate(pieces) if piece[:1] in NUMBERS]
    if not places:
        return
    at = chance.choice(places)
    code, packing = pieces[at][:1], NUMBERS[pieces[at][:1]]
    (value,) = struct.unpack(packing, pieces[at][1:])
    made = chance.choice((value + 1, value - 1, value * 2, *EDGES))
    if code == b"G":
        pieces[at] = b"G" + struct.pack(packing, float(made))
    elif 0 <= made < 1 << 31:
        pieces[at] = b"J" + struct.pack("<i", int(made))
    else:
        pieces[at] = b"\x8a\x0a" + int(made).to_bytes(10, "little", signed=True)


def archive_changed(data: bytes, chance: random.Random) -> bytes:
    """Return an archive written anew, its directory and checksums right: another pickle, or members cut, lengthened, exchanged, renamed, gone."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return pickle_changed(data, chance)  # the format before torch 1.6 is one pickle after another
    if not members:
        return data
    at, other = chance.randrange(len(members)), chance.randrange(len(members))
    name, inner = members[at]
    what = chance.randrange(8)
    if what <= 3:
        members = [(key, pickle_changed(value, chance) if key.endswith("data.pkl") else value) for key, value in members]
    elif what == 4:
        members[at] = name, inner[: chance.randrange(len(inner) + 1)] + bytes(chance.choice((0, 0, 1, 4, 64)))
    elif what == 5:
        members[at], members[other] = (name, members[other][1]), (members[other][0], inner)
    elif what == 6:
        del members[at]
    else:
        members[at] = name[: chance.randrange(len(name) + 1)] + chance.choice(("", "0", "data.pkl", "/", "../x")), inner
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name are meant
        for key, value in members:
            archive.writestr(key or "x", value)
    return made.getvalue()


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "pickle": pickle_changed, "dcp": pickle_changed, "zip": archive_changed, "safetensors": header_changed, "manifest": json_changed,
    "config": json_changed, "beside": parts_changed,
}  # fmt: skip
"""By target; the two that are missing know their structure themselves (`fuzz/values.py`)."""
