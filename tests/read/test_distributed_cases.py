"""Every real distributed checkpoint of tests/cases: read exactly, or refused where the case says so."""

from __future__ import annotations

import math

import pytest

from ostate import read as formats
from ostate.errors import ReadError
from tests import real
from tests.real import sha256


@pytest.mark.parametrize("name", real.names("distributed"))
def test_the_numbers_of_every_parameter_are_there_exactly_once(name):
    one = real.case(name)
    if one.must_refuse:
        with pytest.raises(ReadError):
            formats.read(str(one.state))
        return
    raw = formats.read(str(one.state))
    wanted = sorted((row["exp_avg_sq_sha256"], row["exp_avg_sha256"], float(row["step"])) for row in one.with_state.values())
    held = [entry for entry in raw.entries if entry.has_state]
    assert sorted((sha256(entry.slots["exp_avg_sq"].read()), sha256(entry.slots["exp_avg"].read()), entry.step) for entry in held) == wanted
    by_numbers = {(row["exp_avg_sq_sha256"], row["exp_avg_sha256"]): row for row in one.with_state.values()}
    for entry in held:
        row = by_numbers[sha256(entry.slots["exp_avg_sq"].read()), sha256(entry.slots["exp_avg"].read())]
        assert math.prod(entry.shape) == math.prod(row["shape"])
        if entry.name is not None:
            assert entry.name.removeprefix("module.") == row["name"]
