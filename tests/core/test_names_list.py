"""A file of names says one thing, whoever reads it: beside a state, as `--order`, or as `--for`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ostate.core.names_list import names_file_in, read_names, read_shapes
from ostate.errors import OrderingError, ReadError

READ = [
    ("order", "a\n# a remark\n\n b\nc\n", [["a", "b", "c"]]),
    ("order", "position,name,shape\n1,b,4\n0,a,4\n2,c,4\n", [["a", "b", "c"]]),
    ("order", "name\tshape\na\t4\nb\t4\n", [["a", "b"]]),
    ("order", '["a", "b"]', [["a", "b"]]),
    ("names.json", '\ufeff[["a"], [], ["b"]]', [["a"], [], ["b"]]),
    ("names.json", '{"param_name_groups": [["a"], ["b"]]}', [["a"], ["b"]]),
    ("names.json", '{"param_names": ["a", "b"]}', [["a", "b"]]),
    ("names.json", '{"groups": [["a"], ["b"]], "param_names": [["a"], ["b"]]}', [["a"], ["b"]]),
    ("names.json", '{"format": "ostate-names", "version": 1, "groups": [["a"], ["b"]]}', [["a"], ["b"]]),
]
REFUSED = [
    ("order", "", "empty"),
    ("order", "# nothing\n", "empty"),
    ("order", "a\nb\na\n", "a name twice: 'a'"),
    ("order", "position,shape\n1,2\n", "column `name`"),
    ("order", "position,name\nx,a\n", "whole numbers"),
    ("order", "position,name\n0,a\n1,\n", "name 1 of 2 is empty"),
    ("order", "[", "Expecting value"),
    ("names.json", "a\nb\n", "Expecting value"),  # a damaged JSON file is no list of one name a line
    ("names.json", "null", "neither a list of names"),
    ("names.json", "{}", "neither a list of names"),
    ("names.json", "[[1, 2]]", "neither a list of names"),
    ("names.json", '["a", ["b"]]', "neither a list of names"),
    ("names.json", '{"param_names": 3}', "neither a list of names"),
    ("names.json", "[]", "empty"),
    ("names.json", "[[], []]", "empty"),
    ("names.json", '[["a", ""]]', "name 1 of 2 is empty"),
    ("names.json", '[["a"], ["a"]]', "a name twice: 'a'"),
    ("names.json", '{"groups": ["a", "b"], "param_names": ["b", "a"]}', "several that differ, under 'groups' and 'param_names'"),
    ("names.json", '{"format": "ostate-names", "version": 2, "groups": [["a"]]}', "version 2"),
    ("names.json", "[" * 100_000, "without end"),
]


@pytest.mark.parametrize(("file", "text", "names"), READ)
def test_every_form_is_read(file: str, text: str, names: list[list[str]], tmp_path: Path):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(str(tmp_path / file)) == names


@pytest.mark.parametrize(("file", "text", "why"), REFUSED)
def test_what_is_no_list_of_names_is_refused_and_it_is_said_why(file: str, text: str, why: str, tmp_path: Path):
    (tmp_path / file).write_text(text)
    with pytest.raises(ReadError) as caught:
        read_names(str(tmp_path / file))
    assert why in caught.value.what
    assert caught.value.fix


def test_bytes_are_no_list_of_names(tmp_path: Path):
    (tmp_path / "order").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(OrderingError, match="not text"):
        read_names(str(tmp_path / "order"), error=OrderingError)


def test_of_two_names_files_the_one_that_ostate_writes_is_taken(tmp_path: Path):
    assert names_file_in(str(tmp_path)) is None
    (tmp_path / "ostate_names.json").write_text(json.dumps(["a"]))
    assert names_file_in(str(tmp_path)) == str(tmp_path / "ostate_names.json")
    (tmp_path / "optimizer_param_names.json").write_text(json.dumps(["a"]))
    assert names_file_in(str(tmp_path)) == str(tmp_path / "optimizer_param_names.json")


def test_shapes_stand_beside_names_where_somebody_wrote_them(tmp_path: Path):
    (tmp_path / "names.json").write_text('{"param_names": ["a", "b"], "shapes": {"a": [4, 32], "b": []}}')
    assert read_names(str(tmp_path / "names.json")) == [["a", "b"]]
    assert read_shapes(str(tmp_path / "names.json")) == {"a": (4, 32), "b": ()}
    for text in ('["a", "b"]', "a\nb\n", '{"param_names": ["a"]}'):
        (tmp_path / "order").write_text(text)
        assert read_shapes(str(tmp_path / "order")) == {}


@pytest.mark.parametrize("shapes", ["3", '["a"]', '{"a": 4}', '{"a": [4, -1]}', '{"a": [true]}', '{"a": ["4"]}', '{"a": [1e3]}'])
def test_shapes_that_are_none_are_refused(shapes: str, tmp_path: Path):
    (tmp_path / "names.json").write_text(f'{{"param_names": ["a"], "shapes": {shapes}}}')
    with pytest.raises(ReadError, match="no lists of whole numbers"):
        read_shapes(str(tmp_path / "names.json"))
