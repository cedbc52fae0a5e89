"""States that a program saved in parts: ColossalAI's index and shards, the pipeline stages of NeMo Automodel."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from ostate.commands.repair import repair
from ostate.errors import ReadError, UnknownFormat
from ostate.read import read
from tests import trained
from tests.commands.test_choosing import lora, steps
from tests.read.test_torch_file import adamw, holds


def colossalai(folder: Path, optimizer: torch.optim.Optimizer, parts: int = 3) -> Path:
    """What `Booster.save_optimizer(optimizer, folder, shard=True)` writes (colossalai/checkpoint_io/general_checkpoint_io.py, index_file.py)."""

    def write(place: Path, entries: dict[int, dict[str, torch.Tensor]]) -> None:
        torch.save(entries, place)

    return _in_parts(folder, optimizer, parts, "pytorch_optim-{:05d}.bin", "pytorch_optim.bin.index.json", write)


def colossalai_async(folder: Path, optimizer: torch.optim.Optimizer, parts: int = 2) -> Path:
    """What the same writes with `use_async=True` (colossalai/checkpoint_io/utils.py, utils/safetensors.py); HybridAdam's step is an int."""

    def write(place: Path, entries: dict[int, dict[str, torch.Tensor]]) -> None:
        tensors = {f"state-{key}-{slot}": value for key, entry in entries.items() for slot, value in entry.items() if slot != "step"}
        counts = {key: list(pickle.dumps(int(entry["step"]))) for key, entry in entries.items()}
        pickled = {f"state-{key}-step": torch.tensor(count, dtype=torch.uint8) for key, count in counts.items()}
        save_file(tensors | pickled, place, metadata={"format": "pt", "non_tensor_keys": json.dumps(list(pickled))})

    return _in_parts(folder, optimizer, parts, "optimizer-{:05d}.safetensors", "optimizer.safetensors.index.json", write)


def colossalai_async_whole(path: Path, optimizer: torch.optim.Optimizer) -> Path:
    """What `Booster.save_optimizer(optimizer, path, shard=False, use_async=True)` writes (colossalai/utils/safetensors.py)."""
    stored = optimizer.state_dict()
    pickled = {f"state-{key}-step": pickle.dumps(int(entry["step"])) for key, entry in stored["state"].items()}
    pickled["param_groups"] = pickle.dumps(stored["param_groups"])
    tensors = {f"state-{key}-{slot}": value for key, entry in stored["state"].items() for slot, value in entry.items() if slot != "step"}
    tensors |= {name: torch.tensor(list(data), dtype=torch.uint8) for name, data in pickled.items()}
    path.parent.mkdir(parents=True)
    save_file(tensors, path, metadata={"format": "pt", "non_tensor_keys": json.dumps(list(pickled))})
    return path


def _in_parts(folder: Path, optimizer: torch.optim.Optimizer, parts: int, name: str, index: str, write: Callable[[Path, dict], None]) -> Path:
    """Write entries by parts, the groups beside them, and the index of both."""
    folder.mkdir(parents=True)
    stored = optimizer.state_dict()
    ids = list(stored["state"])
    weight_map = {}
    for part in range(parts):
        own = ids[part * len(ids) // parts : (part + 1) * len(ids) // parts]
        write(folder / name.format(part + 1), {key: stored["state"][key] for key in own})
        weight_map.update(dict.fromkeys(own, name.format(part + 1)))
    torch.save(stored["param_groups"], folder / "pytorch_optim_group.bin")
    metadata = {"param_groups": "pytorch_optim_group.bin", "total_size": 1}
    (folder / index).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder


def stages(optimizers: list[torch.optim.Optimizer]) -> dict:
    """What NeMo Automodel's `OptimizerState.state_dict` gives for a pipeline (components/checkpoint/stateful_wrappers.py)."""
    return {"optim": {"optimizer_parts": {f"stage_{number}": one.state_dict() for number, one in enumerate(optimizers)}}}


def test_a_sharded_optimizer_of_colossalai_is_joined_by_its_index(tmp_path):
    made = adamw()
    raw = read(str(colossalai(tmp_path / "optimizer", made).parent))
    assert raw.layout == "colossalai"
    assert holds(raw, made)
    assert len(raw.files) == 4


@pytest.mark.parametrize("ask", [lambda path: path, lambda path: path.parent, lambda path: path.parent.parent])
def test_one_file_that_colossalai_wrote_asynchronously_is_read(tmp_path, ask):
    made = adamw()
    raw = read(str(ask(colossalai_async_whole(tmp_path / "step" / "optimizer.safetensors", made))))
    assert raw.layout == "colossalai-file"
    assert holds(raw, made)


def test_pickled_groups_that_are_something_else_are_refused(tmp_path):
    path = colossalai_async_whole(tmp_path / "step" / "optimizer.safetensors", adamw())
    data = load_file(path) | {"param_groups": torch.tensor(list(pickle.dumps({"lr": 1})), dtype=torch.uint8)}
    save_file(data, path)
    with pytest.raises(ReadError, match="no list of groups"):
        read(str(path))


def test_parts_that_colossalai_wrote_asynchronously_are_joined(tmp_path):
    made = adamw()
    raw = read(str(colossalai_async(tmp_path / "optimizer", made).parent))
    assert raw.layout == "colossalai"
    assert [entry.step for entry in raw.entries] == [float(made.state[one]["step"]) for group in made.param_groups for one in group["params"]]
    for entry, one in zip(raw.entries, (one for group in made.param_groups for one in group["params"])):
        for slot in ("exp_avg", "exp_avg_sq"):
            assert np.array_equal(next(entry.slots[slot].chunks()).ravel(), made.state[one][slot].numpy().ravel())


def test_pickled_bytes_that_are_no_number_are_refused(tmp_path):
    folder = colossalai_async(tmp_path / "optimizer", adamw(), parts=1)
    stored = torch.tensor(list(pickle.dumps([1, 2])), dtype=torch.uint8)
    save_file({"state-0-step": stored}, folder / "optimizer-00001.safetensors", metadata={"non_tensor_keys": '["state-0-step"]'})
    with pytest.raises(ReadError, match="state-0-step is no number"):
        read(str(folder))


def test_one_part_alone_is_refused_and_says_which_folder_to_give(tmp_path):
    folder = colossalai(tmp_path / "optimizer", adamw())
    with pytest.raises(ReadError, match=r"one of the 3 parts of a state that pytorch_optim\.bin\.index\.json lists"):
        read(str(folder / "pytorch_optim-00002.bin"))


@pytest.mark.parametrize("file", ["pytorch_optim-00003.bin", "pytorch_optim_group.bin"])
def test_a_missing_part_is_named(tmp_path, file):
    folder = colossalai(tmp_path / "optimizer", adamw())
    (folder / file).unlink()
    with pytest.raises(ReadError, match="a part that the index names is missing") as caught:
        read(str(folder))
    assert caught.value.where.endswith(file)


def test_a_part_that_lacks_what_the_index_says_is_refused(tmp_path):
    folder = colossalai(tmp_path / "optimizer", adamw(), parts=2)
    torch.save({}, folder / "pytorch_optim-00002.bin")
    with pytest.raises(ReadError, match="the index says that entry"):
        read(str(folder))


def by_torch(folder: Path, value: dict) -> Path:
    torch.save(value, folder / "optimizer.pt")
    return folder


def by_dcp(folder: Path, value: dict) -> Path:
    dcp.save(value, checkpoint_id=folder / "optim", no_dist=True)
    return folder


@pytest.fixture(scope="module")
def pipeline():
    """(adapter's model, an optimizer for each of two stages, the live names stage after stage, group after group)."""
    torch.manual_seed(6)
    import peft

    model = peft.get_peft_model(trained.llama(6), lora(bias="all"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    halves = [named[: len(named) // 2], named[len(named) // 2 :]]
    made = [torch.optim.AdamW([p for _, p in half], lr=2e-3) for half in halves]

    class Both:
        def zero_grad(self):
            for one in made:
                one.zero_grad()

        def step(self):
            for one in made:
                one.step()

    steps(model, Both(), 12)
    return model, made, [name for name, _ in named]


@pytest.mark.parametrize("save", [by_torch, by_dcp])
def test_the_stages_of_a_pipeline_are_one_state(tmp_path, pipeline, save: Callable[[Path, dict], Path]):
    model, made, names = pipeline
    model.save_pretrained(str(tmp_path / "model"))
    done = repair(str(save(tmp_path, stages(made))), adapter=str(tmp_path / "model"))
    assert {p.position: name for name, p in done.named.parameters.items()} == dict(enumerate(names))
    assert (done.ordering.verdict, len(done.named.groups)) == ("verified", 1)
    for name, parameter in model.named_parameters():
        if name in names:
            state = next(one.state[parameter] for one in made if parameter in one.state)
            assert torch.equal(torch.from_numpy(done.named.tensor(name, "exp_avg_sq")), state["exp_avg_sq"])


@pytest.mark.parametrize("save", [by_torch, by_dcp])
def test_a_pipeline_without_one_of_its_stages_is_refused(tmp_path, pipeline, save):
    _, made, _ = pipeline
    half = stages(made)
    del half["optim"]["optimizer_parts"]["stage_0"]
    with pytest.raises(ReadError, match="stage 0 of the pipeline is missing, stage 1 is here"):
        read(str(save(tmp_path, half)))


def test_stages_of_other_settings_keep_their_groups(tmp_path):
    one, other = adamw(), adamw()
    other.param_groups[0]["lr"] = 7.0
    raw = read(str(by_torch(tmp_path, stages([one, other]))))
    sizes = [len(group["params"]) for group in one.param_groups]
    assert [len(group.positions) for group in raw.groups] == sizes * 2
    assert [group.hyper["lr"] for group in raw.groups][len(sizes)] == 7.0


def test_half_a_state_that_the_numbers_name_alone_is_said_to_leave_tensors_out(tmp_path, pipeline):
    model, made, names = pipeline
    model.save_pretrained(str(tmp_path))
    torch.save({"state": dict(enumerate(made[0].state.values()))}, tmp_path / "optimizer.pt")
    done = repair(str(tmp_path))
    assert {p.position: name for name, p in done.named.parameters.items()}.items() <= dict(enumerate(names)).items()
    assert any(finding.rule == "adapter-without-position" for finding in done.findings) or done.ordering.left_out
    assert not done.settled


def test_modules_that_never_had_a_gradient_are_not_taken_for_a_missing_part(tmp_path):
    """Mamba's code goes past `dt_proj`'s LoRA: its positions have no state, and no number tells which of them is which."""
    torch.manual_seed(4)
    model = peft.get_peft_model(trained.llama(4), lora())
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    idle = [parameter for name, parameter in model.named_parameters() if "layers.1." in name and parameter.requires_grad]
    optimizer = torch.optim.AdamW(random.Random(0).sample(own, len(own)), lr=2e-3)
    optimizer.register_step_pre_hook(lambda *_: [setattr(parameter, "grad", None) for parameter in idle] and None)
    steps(model, optimizer, 12)
    model.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    done = repair(str(tmp_path))
    assert done.ordering.source == "content"
    assert not [finding for finding in done.findings if finding.rule == "adapter-without-position"]


def test_several_optimizers_that_are_no_stages_are_still_a_choice(tmp_path):
    torch.save({"actor": adamw().state_dict(), "critic": adamw().state_dict()}, tmp_path / "optimizer.pt")
    with pytest.raises(UnknownFormat, match="2 optimizer states"):
        read(str(tmp_path / "optimizer.pt"))


def nanotron(folder: Path, optimizer: torch.optim.Optimizer, names: list[str], *, tensors: int = 1) -> Path:
    """What nanotron writes: `NamedOptimizer.state_dict` under `save_optimizer` (optim/named_optimizer.py, serialize/optimizer.py)."""
    stored = optimizer.state_dict()
    stored["names"] = {position: names[position] for position in stored["state"]}
    stored["gradient_accumulator"] = {names[at]: p.detach().clone() for at, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    path = folder / "optimizer" / f"optimizer_pp-0-of-1_tp-0-of-{tensors}_exp-0-of-1.pt"
    path.parent.mkdir(parents=True)
    torch.save(stored, path)
    return path


def test_names_by_id_beside_the_state_are_recorded_names(tmp_path):
    made = adamw()
    count = sum(len(group["params"]) for group in made.param_groups)
    names = [f"model.decoder.{at}.pp_block.weight" for at in range(count)]
    raw = read(str(nanotron(tmp_path, made, names).parent.parent))
    assert raw.recorded == "names"
    assert [entry.name for entry in raw.entries if entry.has_state] == [names[entry.position] for entry in raw.entries if entry.has_state]
    assert set(raw.weights) == set(names)
    assert {entry.position: name for name, entry in repair(str(tmp_path)).named.parameters.items()}.items() <= dict(enumerate(names)).items()


def test_the_file_of_one_process_of_nanotron_is_refused(tmp_path):
    made = adamw()
    names = [str(at) for at in range(sum(len(group["params"]) for group in made.param_groups))]
    with pytest.raises(ReadError, match=r"one process of nanotron's \(tp 2\)"):
        read(str(nanotron(tmp_path, made, names, tensors=2)))


def test_the_live_names_of_nemo_automodel_have_neither_prefix_nor_adapter_name(tmp_path, pipeline):
    """Its LoRA layers are `<layer>.lora_A.weight`; PEFT's prefix comes before the keys on saving (components/checkpoint/stateful_wrappers.py)."""
    model, made, names = pipeline
    model.save_pretrained(str(tmp_path / "model"))
    (tmp_path / "model" / "README.md").unlink()
    (tmp_path / "model" / "automodel_peft_config.json").write_text("{}")
    model.get_base_model().config.save_pretrained(str(tmp_path / "base"))
    for base in (None, str(tmp_path / "base")):
        done = repair(str(by_dcp(tmp_path, stages(made))), adapter=str(tmp_path / "model"), base=base)
        live = [name.removeprefix("base_model.model.").replace(".default", "") for name in names]
        assert {p.position: name for name, p in done.named.parameters.items()} == dict(enumerate(live))
        assert (done.ordering.verdict, done.ordering.assumed) == ("verified", ())
