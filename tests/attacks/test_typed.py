"""Every entry of a configuration and every hyperparameter, given every kind of JSON value: a result, or a refusal in words; never a fault of ours."""

from __future__ import annotations

import contextlib
import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ostate
from ostate.commands.inspect import as_document
from ostate.core.adapter_config import typed_config
from ostate.core.foreign import number_in, parse_json, positions_in, release, too_deep
from ostate.core.hyper import typed
from ostate.core.lora_modules import balance_holds, modules_of, starts_at_zero
from ostate.errors import OstateError, ReadError
from ostate.ordering import keys
from ostate.read.adapters import read_adapter
from tests import real
from tests.read.test_torch_file import adamw

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FIELDS = (
    "peft_type", "task_type", "r", "bias", "init_lora_weights", "target_modules", "target_parameters", "modules_to_save", "rank_pattern",
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "prefix_projection", "peft_version",
)  # fmt: skip
HYPER = (
    "lr", "initial_lr", "betas", "eps", "weight_decay", "momentum", "dampening", "alpha", "beta1", "beta2", "amsgrad", "maximize", "centered",
    "decoupled_weight_decay", "correct_bias", "rectify", "step", "k", "scaling_factor", "foreach", "d", "names", "param_names",
)  # fmt: skip
ODD = (10**400, -(10**400), "²", "9" * 5000, "", "a.b")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KINDS = (
    None,
    True,
    False,
    0,
    -1,
    3,
    10**400,
    0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "²",
    "9" * 5000,
    [],
    [1],
    ["q"],
    [["q"]],
    {},
    {"q": 1},
    {"q": ["x"]},
    [None],
)


def verdict(folder):
    """Return what `repair` says of a checkpoint: a verdict, or that it refuses, with what to do."""
    try:
        return ostate.repair(str(folder), None).ordering.verdict
    except OstateError as error:
        return "refused" if error.fix else ""


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small real checkpoint, whose configuration each test writes anew."""
    folder = tmp_path_factory.mktemp("typed") / "checkpoint-5"
    found = real.case("llama_qv")
    shutil.copytree(found.adapter.parent, folder)
    if not (folder / "optimizer.pt").exists():
        shutil.copy(found.state, folder / "optimizer.pt")
    return folder, json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("field", FIELDS)
def test_an_entry_of_any_kind_is_read_or_refused_by_its_name(checkpoint, field):
    folder, config = checkpoint
    refused = read = 0
    for value in KINDS:
        text = json.dumps({**config, field: value})
        (folder / "adapter_config.json").write_text(text)
        try:
            adapter = read_adapter(str(folder))
        except ReadError as error:
            refused += bool(error.fix and (field in error.what or "JSON" in error.what))
            continue
        read += 1
        list(modules_of(adapter)), starts_at_zero(adapter), balance_holds(adapter)
        for key in adapter.tensors:
            keys.live_name(key, adapter), keys.known_live_name(key, adapter)
    assert refused + read == len(KINDS)
    assert refused > 3
    assert read


@pytest.mark.parametrize("field", ["init_lora_weights", "rank_pattern", "target_parameters", "target_modules", "r", "modules_to_save"])
@pytest.mark.parametrize("value", [[1], {"q": 1}, 5, "x", ["q"]], ids=repr)
def test_repair_ends_with_a_verdict_or_a_refusal_whatever_an_entry_is(checkpoint, field, value):
    folder, config = checkpoint
    (folder / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    assert verdict(folder) in ("verified", "recovered", "partial", "unverified", "refused")


@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_what_comes_through_the_door_is_of_the_kind_that_its_readers_rely_on(entries):
    try:
        config = typed_config(entries, "adapter_config.json")
    except ReadError as error:
        config = {} if len(str(error)) < 500 else None
    assert config is not None
    for key, wanted in (("r", int), ("peft_type", str), ("rank_pattern", dict), ("inference_mode", bool), ("target_parameters", list)):
        assert config.get(key) is None or type(config[key]) is wanted


@pytest.mark.parametrize("stored", [[], "x", 5, None, True])
def test_a_configuration_that_is_no_object_is_refused(stored):
    with pytest.raises(ReadError, match="JSON object"):
        typed_config(stored, "adapter_config.json")


def test_lists_within_lists_and_lists_beyond_the_limits_are_refused():
    for entry in (
        {"x": deep(500)},
        {"target_modules": ["q"] * 100_001},
        {"target_parameters": ["q"] * 5000},
        {"rank_pattern": {str(i): 1 for i in range(100_001)}},
    ):
        with pytest.raises(ReadError):
            typed_config(entry, "adapter_config.json")
    assert not too_deep(deep(20))


def test_json_is_bounded_by_its_lists_and_objects_before_it_is_read():
    with pytest.raises(ValueError, match="600000 lists and objects, more than 500000"):
        parse_json(b"[" + b"[]," * 599_998 + b"[]]")
    with pytest.raises(ValueError, match="without end"):
        parse_json(b"[" * 100_000)
    with pytest.raises(ValueError):
        parse_json(b"\xff\xfe")
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("part", "number"), [("7", 7), ("007", 7), ("²", None), ("٣", None), ("", None), ("-1", None), ("9" * 5000, None), ("9" * 18, 10**18 - 1)]
)
def test_a_number_in_a_name_is_of_ascii_digits_and_not_endless(part, number):
    assert number_in(part) == number


@pytest.mark.parametrize(
    ("names", "positions"), [(["0", "1", "10"], [0, 1, 10]), (["0", "01"], None), ([], None), (["a"], None), (["²"], None), ([0], None)]
)
def test_positions_are_written_in_one_way_only(names, positions):
    """`1` and `01` would be one position, and one of the two entries lost."""
    assert positions_in(names) == positions


@pytest.mark.parametrize(
    ("text", "found"),
    [("0.15.2", (0, 15)), ("4.53.0.dev0", (4, 53)), ("9" * 5000 + ".1", None), ("x", None), ("", None), (None, None), (5, None), ("²" + ".1", None)],
)
def test_a_release_is_two_small_numbers_or_nothing(text, found):
    assert release(text) == found


@pytest.fixture(scope="module")
def state():
    return adamw().state_dict()


@pytest.mark.parametrize("key", HYPER)
def test_a_hyperparameter_of_any_kind_is_kept_or_left_out_and_said(tmp_path, state, key):
    for number, value in enumerate(KINDS):
        path = tmp_path / f"{number}.pt"
        torch.save({**state, "param_groups": [{**group, key: value} for group in state["param_groups"]]}, path)
        try:
            seen = ostate.inspect(str(path), values=True)
        except ReadError:
            assert value == 10**400 or key in ("names", "param_names")  # no pickle of a state holds such; names that do not go with the parameters
            continue
        for group in seen.raw.groups:
            if key in ("lr", "eps", "weight_decay", "beta2") and not isinstance(value, (list, dict)):
                assert (key in group.hyper) == (type(value) in (int, float, type(None)) and value != 2**1023)
        if value == "x" and key in ("lr", "betas", "eps", "momentum"):
            assert any(key in finding.text and "left out" in finding.text for finding in seen.findings)


@QUICK
@given(st.dictionaries(st.sampled_from(HYPER[:-2]), JSON, min_size=1, max_size=4))
def test_inspect_and_repair_never_fail_on_hyperparameters(tmp_path_factory, state, entries):
    folder = tmp_path_factory.mktemp("hyper")
    torch.save({**state, "param_groups": [{**group, **entries} for group in state["param_groups"]]}, folder / "x.pt")
    with contextlib.suppress(OstateError):  # a number that no pickle of a state holds
        json.dumps(as_document(ostate.inspect(str(folder / "x.pt"), values=True)), allow_nan=False)
    with pytest.raises(OstateError):
        ostate.repair(str(folder / "x.pt"), None)


@QUICK
@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(HYPER), JSON, max_size=5))
def test_typed_hyperparameters_are_numbers_where_numbers_are_meant(entries):
    kept, wrong = typed(entries)
    assert kept.keys() | wrong.keys() == entries.keys()
    assert not kept.keys() & wrong.keys()
    for key in ("lr", "beta2", "momentum"):
        assert key not in kept or kept[key] is None or math.isfinite(float(kept[key])) or isinstance(kept[key], float)
    if kept.get("betas") is not None:
        assert len(kept["betas"]) > 1


@pytest.mark.parametrize("layer", ["²", "9" * 5000, "٣", "", "-1", "0x1"])
def test_a_layer_of_any_name_gives_a_verdict_or_a_refusal(tmp_path, checkpoint, layer):
    """`²` is a digit to Python, and no number; 5,000 digits are a number that Python refuses to read."""
    folder, config = checkpoint
    there = tmp_path / "checkpoint-5"
    shutil.copytree(folder, there)
    (there / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(there / "adapter_model.safetensors")
    save_file({key.replace(".layers.1.", f".layers.{layer}."): value for key, value in tensors.items()}, there / "adapter_model.safetensors")
    assert verdict(there)


@pytest.mark.parametrize("version", ["9" * 5000, "0." + "9" * 5000, "9" * 5000 + "." + "9" * 5000, "0.15.2"])
@pytest.mark.parametrize("where", ["README.md", "adapter_config.json"])
def test_a_release_of_thousands_of_digits_is_none(tmp_path, checkpoint, version, where):
    folder, config = checkpoint
    there = tmp_path / "checkpoint-5"
    shutil.copytree(folder, there)
    (there / "adapter_config.json").write_text(json.dumps({**config, "peft_version": version} if where == "adapter_config.json" else config))
    if where == "README.md":
        (there / where).write_text(f"library_name: peft\n- PEFT {version}\n- Transformers: {version}\n")
    assert verdict(there)


def test_an_index_of_shards_that_names_itself_and_a_bundle_that_holds_itself_end_in_words(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors.index.json"}}')
    with pytest.raises(ReadError, match="files of this folder"):
        read_adapter(str(tmp_path / "model.safetensors.index.json"))
    bundle: dict = {"epoch": 1}
    bundle["model"] = bundle
    torch.save(bundle, tmp_path / "a.bin")
    with pytest.raises(ReadError, match="no named weights"):
        read_adapter(str(tmp_path / "a.bin"))
