"""Every place where trained weights lie, and every way to damage a header."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ostate.core.safetensors import read_head
from ostate.errors import ReadError, StoreError
from ostate.read.adapters import adapter_from_weights, read_adapter
from ostate.store import header
from tests import real

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
TENSORS = {KEY.format("A"): np.arange(8, dtype=np.float32).reshape(2, 4), KEY.format("B"): np.arange(6, dtype=np.float32).reshape(3, 2)}
CONFIG = {"peft_type": "LORA", "r": 2, "peft_version": "0.21.2"}


def _adapter(folder: Path, config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TENSORS, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config or CONFIG))
    return folder


def _card(folder: Path, version: str = "0.15.2") -> None:
    (folder / "README.md").write_text(f"---\nlibrary_name: peft\n---\n\n### Framework versions\n\n- PEFT {version}\n- Transformers: 4.51.3\n")


def test_a_peft_folder_is_read_without_reading_a_tensor(tmp_path: Path):
    found = read_adapter(str(_adapter(tmp_path)))
    assert (found.kind, found.ordered, found.name, found.name_known, found.siblings) == ("peft", False, "default", False, ())
    assert found.facts == {"peft_version": "0.21.2", "saved_by": "hand"}
    for key, values in TENSORS.items():
        assert found.tensors[key].shape == values.shape
        assert np.array_equal(found.tensors[key].read(), values)


def test_a_file_is_as_good_as_its_folder(tmp_path: Path):
    folder = _adapter(tmp_path)
    found = read_adapter(str(folder / "adapter_model.safetensors"))
    assert (found.kind, set(found.tensors), found.config["r"]) == ("peft", set(TENSORS), 2)


@pytest.mark.parametrize("case", real.names("one-process")[:6])
def test_real_adapters_are_read_as_the_safetensors_library_reads_them(case: str):
    from safetensors.numpy import load_file

    path = real.case(case).adapter
    expected = load_file(path)
    found = read_adapter(str(path.parent)).tensors
    assert set(found) == set(expected)
    assert all(np.array_equal(found[key].read(), expected[key]) for key in expected)


def test_a_bin_adapter_keeps_its_order(tmp_path: Path):
    torch.save({key: torch.from_numpy(TENSORS[key]) for key in sorted(TENSORS, reverse=True)}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    found = read_adapter(str(tmp_path))
    assert (found.kind, found.ordered, list(found.tensors)) == ("peft", True, sorted(TENSORS, reverse=True))
    assert np.array_equal(found.tensors[KEY.format("A")].read(), TENSORS[KEY.format("A")])


def test_the_model_card_tells_the_releases(tmp_path: Path):
    folder = _adapter(tmp_path, {"peft_type": "LORA"})
    _card(folder)
    assert read_adapter(str(folder)).facts == {"peft_version": "0.15.2", "transformers_version": "4.51.3", "saved_by": "peft"}


def test_an_adapter_alone_in_trainers_subfolder_has_its_name(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint-5"
    _adapter(checkpoint / "french")
    (checkpoint / "trainer_state.json").write_text("{}")
    for path in (checkpoint, checkpoint / "french"):
        found = read_adapter(str(path))
        assert (found.name, found.name_known, found.siblings) == ("french", False, ())
        assert found.contested == found.assumed == ("the adapter is called 'french', as its folder is",)


def test_an_adapter_in_pefts_subfolder_has_its_name(tmp_path: Path):
    _adapter(tmp_path / "run" / "french")
    _card(tmp_path / "run")
    found = read_adapter(str(tmp_path / "run" / "french"))
    assert (found.name, found.name_known) == ("french", True)


def test_a_folder_that_somebody_called_adapter_is_no_name(tmp_path: Path):
    _adapter(tmp_path / "run" / "adapter")
    assert read_adapter(str(tmp_path / "run" / "adapter")).name == "default"
    _card(tmp_path / "run" / "adapter")
    _card(tmp_path / "run")
    assert read_adapter(str(tmp_path / "run" / "adapter")).name == "default"


@pytest.mark.parametrize("folder", ["adapter_model", "lora", "lora_adapter", "best", "checkpoint-5", "epoch_3", "final_adapter", "pt_lora_model"])
def test_a_folder_of_plain_words_is_no_name_below_a_checkpoint_without_a_card(folder: str, tmp_path: Path):
    _adapter(tmp_path / "checkpoint-12" / folder)
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text("{}")
    found = read_adapter(str(tmp_path / "checkpoint-12"))
    assert (found.name, found.name_known) == ("default", False)
    assert found.assumed == ("the adapter is called 'default'",)
    assert found.contested == ()


def test_a_plain_folder_alone_below_pefts_card_may_be_a_name_and_is_contested(tmp_path: Path):
    _adapter(tmp_path / "run" / "lora")
    _card(tmp_path / "run")
    found = read_adapter(str(tmp_path / "run"))
    assert found.name == "lora"
    assert found.contested == found.assumed == ("the adapter is called 'lora', as its folder is",)


def test_siblings_below_a_checkpoint_tell_each_others_names(tmp_path: Path):
    _adapter(tmp_path / "checkpoint-12" / "sql")
    _adapter(tmp_path / "checkpoint-12" / "chat")
    (tmp_path / "checkpoint-12" / "optimizer.pt").touch()
    found = read_adapter(str(tmp_path / "checkpoint-12" / "sql"))
    assert (found.name, found.name_known, found.assumed) == ("sql", True, ())


def test_folders_of_other_runs_are_no_siblings(tmp_path: Path):
    for run in ("llama-sql", "llama-chat"):
        _adapter(tmp_path / run)
    found = read_adapter(str(tmp_path / "llama-sql"))
    assert (found.name, found.siblings) == ("default", ())
    assert found.assumed == ("the adapter is called 'default' (its folder is called 'llama-sql': if that is the adapter's name, pass it)",)


@pytest.mark.parametrize("told", ["card", "trainer"])
def test_the_folder_that_save_pretrained_was_pointed_at_tells_that_the_adapter_is_default(told: str, tmp_path: Path):
    folder = _adapter(tmp_path / "checkpoint-5", {**CONFIG, "inference_mode": True})
    if told == "card":
        _card(folder)
    else:
        (folder / "trainer_state.json").write_text("{}")
    assert (read_adapter(str(folder)).name, read_adapter(str(folder)).assumed) == ("default", ())


def test_what_transformers_itself_saved_beside_its_trainers_state_tells_no_name(tmp_path: Path):
    folder = _adapter(tmp_path / "checkpoint-5", {**CONFIG, "inference_mode": False})
    (folder / "trainer_state.json").write_text("{}")
    assert read_adapter(str(folder)).assumed == ("the adapter is called 'default'",)


def test_a_checkpoint_folder_is_no_name(tmp_path: Path):
    _adapter(tmp_path / "checkpoint-5")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert read_adapter(str(tmp_path / "checkpoint-5")).name == "default"


def test_several_adapters_know_of_each_other(tmp_path: Path):
    checkpoint = _adapter(tmp_path / "checkpoint-5")
    _adapter(checkpoint / "french")
    _adapter(checkpoint / "german")
    (checkpoint / "trainer_state.json").write_text("{}")
    top = read_adapter(str(checkpoint))
    assert (top.name, [Path(path).name for path in top.siblings]) == ("default", ["french", "german"])
    below = read_adapter(str(checkpoint), name="german")
    assert (below.name, below.name_known) == ("german", True)
    assert [Path(path).name for path in below.siblings] == ["checkpoint-5", "french"]


def test_several_adapters_and_no_name_are_refused(tmp_path: Path):
    _adapter(tmp_path / "french")
    _adapter(tmp_path / "german")
    with pytest.raises(ReadError) as error:
        read_adapter(str(tmp_path))
    assert "several adapters: french, german" in str(error.value)
    assert read_adapter(str(tmp_path), name="german").file.endswith("german/adapter_model.safetensors")


def test_a_given_name_is_known(tmp_path: Path):
    found = read_adapter(str(_adapter(tmp_path)), name="mine")
    assert (found.name, found.name_known) == ("mine", True)


def test_shards_are_one_model(tmp_path: Path):
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b.weight": np.ones(3, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_adapter(str(tmp_path))
    assert (found.kind, set(found.tensors)) == ("model", {"a.weight", "b.weight"})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {**index["weight_map"], "c": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(ReadError, match="1 tensors of the index are in no shard, first 'c'"):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", 3])
def test_an_index_cannot_lead_out_of_its_folder(shard: object, tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ReadError, match="not a shard index"):
        read_adapter(str(tmp_path))


def test_weights_inside_a_lightning_checkpoint_are_found():
    case = real.case("lit_single")
    path = next(path for path in (case.state, *case.state.rglob("*.ckpt")) if path.suffix == ".ckpt")
    found = read_adapter(str(path))
    assert (found.kind, found.ordered) == ("model", True)
    assert all(row["name"] in found.tensors for row in case.truth)


def test_torchtune_adapters_are_known_by_their_words():
    case = real.case("tune_single")
    found = read_adapter(str(case.adapter))
    assert (found.kind, found.ordered) == ("torchtune", True)


@pytest.mark.parametrize("key", ["unet.down.to_q.lora.down.weight", "unet.down.to_q.lora_A.weight", "transformer.blocks.0.to_k.lora_B.weight"])
def test_diffusers_files_are_known_by_their_keys(key: str, tmp_path: Path):
    save_file({key: np.zeros((2, 2), np.float32)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert read_adapter(str(tmp_path)).kind == "diffusers"


def test_weights_within_a_checkpoint_are_an_adapter_too(tmp_path: Path):
    tensors = read_adapter(str(_adapter(tmp_path))).tensors
    found = adapter_from_weights(tensors, path="x.ckpt")
    assert (found.kind, found.ordered, found.path) == ("peft", True, "x.ckpt")


@pytest.mark.parametrize("files", [[], ["a.safetensors", "b.safetensors"]])
def test_a_folder_without_a_clear_adapter_is_refused(files: list[str], tmp_path: Path):
    for file in files:
        save_file(TENSORS, tmp_path / file)
    with pytest.raises(ReadError) as error:
        read_adapter(str(tmp_path))
    assert error.value.fix


def test_an_optimizer_file_is_no_adapter(tmp_path: Path):
    torch.save({"state": {}, "param_groups": [{"params": []}]}, tmp_path / "optimizer.pt")
    with pytest.raises(ReadError, match="this file holds no named weights"):
        read_adapter(str(tmp_path / "optimizer.pt"))


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_a_damaged_configuration_is_refused(text: str, tmp_path: Path):
    folder = _adapter(tmp_path)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ReadError):
        read_adapter(str(folder))


def _file(path: Path, header: object, data: bytes = b"\0" * 16, length: int | None = None) -> str:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return str(path)


def _row(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED: dict[str, object] = {
    "duplicate key": b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "beyond the end": {"a": _row(offsets=(16, 32))},
    "overlap": {"a": _row(), "b": _row(shape=(2,), offsets=(8, 16))},
    "wrong size": {"a": _row(shape=(3, 2))},
    "negative": {"a": _row(offsets=(-16, 0))},
    "unknown dtype": {"a": _row(dtype="F7")},
    "dtype no text": {"a": _row(dtype=["F32"])},
    "shape no list": {"a": _row(shape="22")},
    "shape of floats": {"a": _row(shape=(2.0, 2.0))},
    "shape of truth": {"a": _row(shape=(True, 4))},
    "three offsets": {"a": _row(offsets=(0, 8, 16))},
    "no dtype": {"a": {"shape": [2, 2], "data_offsets": [0, 16]}},
    "row no object": {"a": 3},
    "list": [1],
    "no json": b"{",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "metadata of numbers": {"__metadata__": {"a": 1}},
    "metadata no object": {"__metadata__": [1]},
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(DAMAGED))
def test_a_damaged_header_is_one_clear_error(fault: str, tmp_path: Path):
    with pytest.raises(ReadError) as error:
        read_head(_file(tmp_path / "x.safetensors", DAMAGED[fault]))
    assert "x.safetensors" in error.value.where
    assert error.value.fix


@pytest.mark.parametrize("length", [1 << 62, 100_000_001, 500])
def test_a_header_length_that_cannot_be_is_refused_before_reading(length: int, tmp_path: Path):
    with pytest.raises(ReadError, match="not a safetensors file, or cut short"):
        read_head(_file(tmp_path / "x.safetensors", {}, length=length))


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ReadError, match="not a safetensors file"):
        read_head(str(tmp_path / "x.safetensors"))


def test_empty_tensors_and_metadata_are_read(tmp_path: Path):
    rows = {"__metadata__": {"format": "pt"}, "a": _row(), "e": _row(shape=(0, 3), offsets=(16, 16))}
    head = read_head(_file(tmp_path / "x.safetensors", rows))
    tensors, metadata = head.tensors, head.metadata
    assert (metadata, tensors["e"].shape, tensors["e"].read().shape) == ({"format": "pt"}, (0, 3), (0, 3))


DISAGREED: dict[str, tuple[dict[str, object], int]] = {
    "a hole before the first": ({"a": _row(offsets=(8, 24))}, 24),
    "a hole between two": ({"a": _row(), "b": _row(offsets=(24, 40))}, 40),
    "bytes after the last": ({"a": _row()}, 20),
    "no tensor, but bytes": ({}, 4),
}
"""Files that the reader of adapters took and the reader of named files, as the safetensors library, did not: rows and bytes of data."""


@pytest.mark.parametrize("fault", sorted(DISAGREED))
def test_adapters_named_files_and_the_library_refuse_the_same_files(fault: str, tmp_path: Path):
    rows, size = DISAGREED[fault]
    head = json.dumps(rows).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(size))
    with pytest.raises(SafetensorError):
        safe_open(path, "np").keys()
    with pytest.raises(ReadError):
        read_head(str(path))
    with pytest.raises(StoreError):
        header.read(str(path))


def test_a_scalar_may_not_lie_within_another_tensor(tmp_path: Path):
    with pytest.raises(ReadError, match="lie within"):
        read_head(_file(tmp_path / "x.safetensors", {"a": _row(), "s": _row(shape=(), offsets=(0, 4))}))


def test_a_lora_one_folder_below_the_given_one_is_taken_where_it_is_the_only_one(tmp_path):
    """OneTrainer's backups hold lora/lora.safetensors. OFT has one tensor a module, and an alpha that nobody trains."""
    save_file(
        {"oft_unet_a.oft_blocks": np.zeros((2, 3, 3), np.float32), "oft_unet_a.alpha": np.ones((), np.float32)},
        _made(tmp_path / "lora") / "lora.safetensors",
    )
    assert list(read_adapter(str(tmp_path)).tensors) == ["oft_unet_a.alpha", "oft_unet_a.oft_blocks"]
    save_file({"oft_unet_a.oft_blocks": np.zeros((2, 3, 3), np.float32)}, _made(tmp_path / "other") / "lora.safetensors")
    with pytest.raises(ReadError, match="several weight files"):
        read_adapter(str(tmp_path))


def test_a_component_one_folder_below_the_given_one_is_taken_and_its_average_left(tmp_path):
    for name in ("controlnet", "controlnet_ema"):
        save_file({"conv_in.weight": np.zeros((2, 3), np.float32)}, _made(tmp_path / name) / "diffusion_pytorch_model.safetensors")
    assert read_adapter(str(tmp_path)).file == str(tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors")


def test_of_two_components_below_the_given_folder_one_is_asked_for(tmp_path):
    """LCM distillation keeps the model that it trains and its average: unet/, unet_target/."""
    for name in ("unet", "unet_target"):
        save_file({"conv_in.weight": np.zeros((2, 3), np.float32)}, _made(tmp_path / name) / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ReadError, match="several whole models: unet, unet_target"):
        read_adapter(str(tmp_path))


def _made(folder):
    folder.mkdir()
    return folder
