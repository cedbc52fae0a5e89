"""`ostate validate`: what it prints, and how it leaves."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from ostate import store
from ostate.cli import main
from ostate.store.validating import schema
from tests.records import replace
from tests.schemas import closed
from tests.store.made import big, laid_out, trained


@pytest.fixture
def state(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    return laid_out(source, trained()[1])


def run(*arguments):
    done = CliRunner().invoke(main, ["validate", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def document(*arguments):
    done = run(*arguments, "--json")
    rows = json.loads(done.stdout)
    Draft202012Validator(closed(schema("validate-v1"))).validate(rows)
    return done.exit_code, rows


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_sound_file_leaves_with_0(state, tmp_path, deep):
    out = store.write(state, tmp_path / "out.safetensors").path
    assert run(out, *deep).exit_code == 0
    code, rows = document(out, *deep)
    assert (code, rows["sound"], rows["parameters"], rows["verdict"]) == (0, True, 4, "verified")


def test_a_state_to_look_at_leaves_with_1(state, tmp_path):
    first = next(iter(state.parameters))
    stepless = replace(state, parameters={**state.parameters, first: replace(state.parameters[first], step=None)})
    code, rows = document(store.write(stepless, tmp_path / "out.safetensors").path)
    assert code == 1
    assert [finding["rule"] for finding in rows["findings"]] == ["step-is-missing"]


def test_a_state_written_in_part_says_how_many_positions_it_lacks(state, tmp_path):
    partial = replace(state, ordering=replace(state.ordering, verdict="partial", left_out=(7, 9)))
    out = store.write(partial, tmp_path / "out.safetensors").path
    assert document(out)[1]["left_out"] == [7, 9]
    assert "2 positions left out" in run(out).stdout


def test_a_flipped_byte_leaves_with_3_and_only_deep_reads_the_numbers(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out)
    raw = bytearray(out.read_bytes())
    raw[-1] ^= 1
    out.write_bytes(raw)
    assert run(out).exit_code == 0
    code, rows = document(out, "--deep")
    assert (code, rows["sound"], rows["parameters"]) == (3, False, None)
    assert rows["findings"][0]["names"] == [list(state.parameters)[-1]]
    assert "not sound" in run(out, "--deep").stdout


def test_numbers_that_cannot_be_are_found_deep(tmp_path):
    """A file whose bytes are as written, but whose second moments stand where the first should."""
    state = big(tmp_path)
    slots = {name: {"exp_avg": p.slots["exp_avg"], "exp_avg_sq": p.slots["exp_avg"]} for name, p in state.parameters.items()}
    state = replace(state, parameters={name: replace(p, slots=slots[name]) for name, p in state.parameters.items()})
    out = store.write(state, tmp_path / "out.safetensors").path
    assert run(out).exit_code == 0
    code, rows = document(out, "--deep")
    assert code == 3
    assert "second-moment-is-a-copy" in {finding["rule"] for finding in rows["findings"]}


def test_a_file_of_another_kind_and_none_at_all(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    assert run(tmp_path / "x.safetensors").exit_code == 3
    assert run(tmp_path / "none.safetensors").exit_code == 2
    assert run(tmp_path).exit_code == 3
