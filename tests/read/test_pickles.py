"""The pickle machine: equal to Python's on plain data, inert on everything else."""

from __future__ import annotations

import argparse
import collections
import fractions
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostate.errors import ReadError, UnsafePickle
from ostate.read.pickle.globals import RECORD, TORCH_GLOBALS, unpickle
from ostate.read.pickle.numpy_values import values_of
from ostate.read.pickle.records import Array, Inert
from tests.read.test_torchsave import PLAIN


def read(data: bytes, **more):
    return unpickle(data, where="here", **more)


@settings(max_examples=200, deadline=None)
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_of_every_protocol_is_what_pickle_reads(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_the_standard_library_become_plain_ones(protocol):
    value = {
        "ordered": collections.OrderedDict(a=1, b=2), "default": collections.defaultdict(list, {"k": [1]}), "set": {1, 2},
        "frozen": frozenset({3}), "bytes": bytearray(b"xy"), "complex": 1 + 2j, "counter": collections.Counter("aab"),
    }  # fmt: skip
    wanted = {**value, "bytes": b"xy", "ordered": {"a": 1, "b": 2}, "default": {"k": [1]}, "counter": {"a": 2, "b": 1}}
    assert read(pickle.dumps(value, protocol)) == wanted


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_, np.dtype(">f8").type])
def test_numpy_scalars_are_python_numbers(protocol, kind):
    value = kind(3)
    found = read(pickle.dumps(value, protocol))
    assert found == value.item()
    assert type(found) is type(value.item())


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["<", ">"])
def test_small_numpy_arrays_are_their_numbers(protocol, order):
    array = np.arange(6, dtype=order + "f4").reshape(2, 3)
    found = read(pickle.dumps(array, protocol))
    assert type(found) is Array
    assert found.shape == (2, 3)
    assert values_of(found) == [0, 1, 2, 3, 4, 5]


def test_numpys_random_state_is_read_past():
    assert read(pickle.dumps(np.random.RandomState(0).get_state(), 2))[0] == "MT19937"


def test_a_namespace_is_a_record_of_its_name_and_state():
    found = read(pickle.dumps(argparse.Namespace(lr=1e-3, name="x")))
    assert type(found) is Inert
    assert found.name == "argparse.Namespace"
    assert found.state == {"lr": 1e-3, "name": "x"}


def test_a_path_is_a_text():
    assert read(pickle.dumps(pathlib.PurePosixPath("/a/b"))) == "/a/b"


def test_a_new_class_is_one_row():
    data = pickle.dumps(fractions.Fraction(1, 3))
    with pytest.raises(UnsafePickle, match=r"fractions\.Fraction"):
        read(data)
    found = read(data, allowed={**TORCH_GLOBALS, "fractions.Fraction": RECORD})
    assert found.name == "fractions.Fraction"


def test_a_row_may_name_a_module_whose_classes_are_all_records():
    data = pickle.dumps(fractions.Fraction(1, 3))
    assert read(data, allowed={**TORCH_GLOBALS, "fractions.*": RECORD}).name == "fractions.Fraction"


def test_an_unknown_global_is_named_and_nothing_is_imported():
    data = b"\x80\x02cthis_module_is_nowhere\nGone\n)R."
    with pytest.raises(UnsafePickle) as caught:
        read(data)
    assert caught.value.what == "the file refers to this_module_is_nowhere.Gone, which no optimizer state uses"
    assert caught.value.where == "here"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "ends early"),
        (b"\x80\x02", "ends early"),
        (b"\x80\x02.", "stops in the middle"),
        (b"\x80\x02(K\x01.", "stops in the middle"),
        (b"\x80\x02K\x01K\x02.", "stops in the middle"),
        (b"\x80\x02h\x07.", "an object that it does not contain"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "ends early"),
        (b"\x80\x02X\x02\0\0\0\xff\xfe.", "damaged: UnicodeDecodeError"),
        (b"\x80\x02}K\x01s.", "ends early"),
        (b"\x80\x02}(K\x01u.", "damaged: ValueError"),
        (b"\x80\x02R.", "ends early"),
        (b"\x80\x02]K\x01\x85R.", "a call of a list"),
        (b"\x80\x02K\x01}b.", "a state for a int"),
        (b"\x80\x02K\x01Q.", "a persistent id in a pickle that has no storages"),
        (b"\x80\x02}]K\x01s.", "a dictionary key of type list"),
        (b"\x80\x02K\x01K\x02K\x03s.", "which is not a dictionary"),
        (b"\x80\x02K\x01K\x02a.", "which is not a list"),
        (b"\x80\x02K\x01(K\x02\x90.", "which is not a set"),
        (b"\x80\x02ios\nsystem\n.", "opcode 0x69"),
        (b"\x80\x02\x82\x01.", "opcode 0x82"),
        (b"\x80\x05\x97.", "opcode 0x97"),
        (b"\x80\x02K\x01q\0K\x02q\0\x86.", "a memo number is used twice"),
        (b"\x80\x02K\x01K\x02\x93.", "a global whose name is not text"),
    ],
)
def test_a_damaged_pickle_says_how(data, what):
    with pytest.raises(ReadError, match=what) as caught:
        read(data)
    assert caught.value.where == "here"
    assert caught.value.fix
