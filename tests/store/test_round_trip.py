"""What is written is read back the same: by ostate, by the safetensors library, by torch's own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors import safe_open

from ostate import store
from ostate.core.state import Finding
from ostate.store import validating
from ostate.store.validating import schema
from tests.records import replace
from tests.schemas import closed

from .made import SHAPES, laid_out, trained


def test_the_moments_come_back_bit_for_bit(state, tmp_path):
    _, optimizer = trained()
    store.write(state, tmp_path / "out.safetensors")
    loaded = store.load(tmp_path / "out.safetensors")
    for position, name in enumerate(SHAPES):
        for slot in ("exp_avg", "exp_avg_sq"):
            live = optimizer.state_dict()["state"][position][slot].numpy()
            assert loaded.tensor(name, slot).tobytes() == live.tobytes()
            assert loaded.tensor(name, slot).shape == live.shape
        assert loaded.parameters[name].step == 5.0


def test_everything_but_the_numbers_comes_back_equal(state, tmp_path):
    state = replace(state, findings=(Finding(rule="r", severity="note", text="t", fix="f", names=("a",)),))
    loaded = store.load(store.write(state, tmp_path / "out.safetensors").path)
    assert loaded.groups == state.groups
    assert loaded.ordering == state.ordering
    assert loaded.adapter == state.adapter
    assert loaded.source == state.source
    assert loaded.findings == state.findings
    assert list(loaded.parameters) == list(state.parameters)
    for name, parameter in state.parameters.items():
        assert replace(loaded.parameters[name], slots={}) == replace(parameter, slots={})


def test_the_safetensors_library_reads_the_file(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out)
    with safe_open(str(out), framework="np") as file:
        assert set(file.keys()) == {f"state.{name}.{slot}" for name in SHAPES for slot in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in state.parameters.items():
            assert np.array_equal(file.get_tensor(f"state.{name}.exp_avg_sq"), parameter.slots["exp_avg_sq"].read())
            assert file.get_tensor(f"state.{name}.step") == np.float32(5)
        manifest = json.loads(file.metadata()["ostate"])
    Draft202012Validator.check_schema(schema("manifest-v1"))
    Draft202012Validator(closed(schema("manifest-v1"))).validate(manifest)


@pytest.mark.filterwarnings("ignore")
def test_torch_distributed_checkpoint_reads_the_file_as_it_is(state, tmp_path):
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "alone"
    folder.mkdir()
    store.write(state, folder / "out.safetensors")
    target = {f"state.{name}.{slot}": torch.zeros(shape) for name, shape in SHAPES.items() for slot in ("exp_avg", "exp_avg_sq")}
    dcp.load(target, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    for name, parameter in state.parameters.items():
        assert np.array_equal(target[f"state.{name}.exp_avg_sq"].numpy(), parameter.slots["exp_avg_sq"].read())


def test_two_writes_of_one_state_give_the_same_bytes(state, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    store.write(state, tmp_path / "a.safetensors")
    store.write(laid_out(tmp_path / "elsewhere", trained()[1]), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_digest_taken_from_the_source_equals_one_computed(tmp_path):
    for digests in (True, False):
        folder = tmp_path / str(digests)
        folder.mkdir()
        store.write(laid_out(folder, trained()[1], digests=digests), folder / "out.safetensors")
    assert (tmp_path / "True" / "out.safetensors").read_bytes() == (tmp_path / "False" / "out.safetensors").read_bytes()


def test_sha256_on_request_is_checked_deep(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out, sha256=True)
    assert "sha256:" in safe_open(str(out), framework="np").metadata()["ostate"]
    assert validating.validate(out, deep=True) == []


def test_several_files_with_an_index_are_one_state(state, tmp_path):
    written = store.write(state, tmp_path / "out.safetensors", max_shard_bytes=700)
    assert written.path.endswith("out.safetensors.index.json")
    assert len(written.files) > 2
    assert validating.validate(written.path, deep=True) == []
    single = store.load(store.write(state, tmp_path / "single.safetensors").path)
    for path in (written.path, tmp_path / "out.safetensors"):
        loaded = store.load(path)
        assert loaded.groups == single.groups
        assert loaded.ordering == single.ordering
        assert list(loaded.parameters) == list(SHAPES)
        for name in SHAPES:
            assert loaded.tensor(name, "exp_avg").tobytes() == single.tensor(name, "exp_avg").tobytes()


def test_a_folder_with_one_state_beside_an_adapter_is_enough(state, tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "run"
    folder.mkdir()
    save_file({"w": np.zeros(3, np.float32)}, str(folder / "adapter_model.safetensors"))
    store.write(state, folder / "state.safetensors", max_shard_bytes=700)
    assert len(store.load(folder).parameters) == len(SHAPES)


def test_a_long_list_of_late_findings_still_fits(state, tmp_path):
    def check(seen):
        assert seen[next(iter(SHAPES)), "exp_avg_sq"].low >= 0
        return [Finding(rule="many", severity="warning", text="x" * 30_000, names=tuple(f"n{i}" for i in range(1000)))]

    out = tmp_path / "out.safetensors"
    store.write(state, out, check=check)
    loaded = store.load(out)
    assert loaded.findings[-1].text == "x" * 30_000
    assert validating.validate(out, deep=True) == []
    for name, parameter in state.parameters.items():
        assert np.array_equal(loaded.tensor(name, "exp_avg"), parameter.slots["exp_avg"].read())


def test_a_finding_about_many_names_keeps_twenty_and_how_many_more_there_are(state, tmp_path):
    many = Finding(rule="positions-left-out", severity="warning", text="23 positions", names=tuple(f"position {at}" for at in range(23)))
    for name, wanted in (("once", (20, 3)), ("twice", (20, 3))):  # a state that is written again does not forget them
        store.write(replace(state, findings=(many,)), tmp_path / f"{name}.safetensors")
        (many,) = store.load(tmp_path / f"{name}.safetensors").findings
        assert (len(many.names), many.more) == wanted


def test_hyperparameters_that_json_cannot_say_come_back(state, tmp_path):
    odd = {**state.groups[0].hyper, "cap": float("inf"), "floor": float("-inf"), "nested": {"a": (1, (2.5, None))}, "text": "ä\n\x1b[31m"}
    state = replace(state, groups=(replace(state.groups[0], hyper=odd), state.groups[1]))
    assert store.load(store.write(state, tmp_path / "o.safetensors").path).groups[0].hyper == odd


@pytest.mark.parametrize("keep", [False, True])
def test_half_precision_moments_are_widened_or_kept(tmp_path, keep):
    from ostate.core.tensors import Part, TensorRef

    state = laid_out(tmp_path, trained()[1])
    name = next(iter(SHAPES))
    values = torch.randn(3, 40).to(torch.bfloat16)
    (tmp_path / "half.bin").write_bytes(values.view(torch.int16).numpy().tobytes())
    ref = TensorRef("BF16", (3, 40), (Part(str(tmp_path / "half.bin"), 0, (3, 40), (40, 1), (0, 0)),))
    transposed = TensorRef("BF16", (40, 3), (Part(str(tmp_path / "half.bin"), 0, (40, 3), (1, 40), (0, 0)),))
    parameter = replace(state.parameters[name], slots={"exp_avg": ref, "exp_avg_sq": transposed}, dtype="BF16")
    state = replace(state, parameters={**state.parameters, name: parameter})
    loaded = store.load(store.write(state, tmp_path / "o.safetensors", keep_dtype=keep).path)
    assert loaded.parameters[name].slots["exp_avg"].dtype == ("BF16" if keep else "F32")
    assert np.array_equal(loaded.tensor(name, "exp_avg"), values.float().numpy())
    assert np.array_equal(loaded.tensor(name, "exp_avg_sq"), values.float().numpy().T)


def of_many_layers(state, layers):
    """The state with the two factors of layer 0 in every layer."""
    factors = list(SHAPES)[:2]
    parameters = {}
    for position in range(2 * layers):
        like = state.parameters[factors[position % 2]]
        name = like.name.replace("layers.0", f"layers.{position // 2}")
        parameters[name] = replace(like, name=name, position=position, group=0)
    group = state.groups[0]._replace(names=tuple(parameters), positions=tuple(range(2 * layers)))
    return replace(state, groups=(group,), parameters=parameters)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 4000], ids=["one-file", "several"])
@pytest.mark.parametrize("proof", ["order", None])
def test_names_that_stand_only_as_part_of_an_order_are_written_as_patterns_and_come_back(state, tmp_path, proof, shard_bytes):
    many = of_many_layers(state, 30)
    undecided = tuple(list(many.parameters)[1:])  # every lora_B, and all lora_A but the first
    verdict = "verified" if proof else "partial"
    ordering = replace(state.ordering, names=tuple(many.parameters), keys=(None,) * 60, verdict=verdict, proof=proof, undecided=undecided)
    written = store.write(replace(many, ordering=ordering), tmp_path / "out.safetensors", max_shard_bytes=shard_bytes)
    assert store.load(written.path).ordering.undecided == undecided
    with safe_open(written.files[0], framework="np") as file:
        manifest = json.loads(file.metadata()["ostate"])
    Draft202012Validator(closed(schema("manifest-v1"))).validate(manifest)
    listed = manifest["ordering"]["undecided"]
    if proof:
        assert manifest["ordering"]["undecided_patterns"] == ["base_model.model.layers.*.q_proj.lora_B.default.weight"]
        assert listed == [name for name in undecided if "lora_A" in name]
    else:
        assert listed == list(undecided)
        assert "undecided_patterns" not in manifest["ordering"]
