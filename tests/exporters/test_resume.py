"""A run that was stopped, repaired, exported and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch

import ostate
from tests import trained

STOP, END = 4, 8


def trainer(root, model, seed=3, **changes):
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(seed)
    settings = {
        "output_dir": str(root),
        "max_steps": END,
        "save_steps": STOP,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
        "seed": seed,
        **changes,
    }
    return Trainer(model=model, args=TrainingArguments(**settings), train_dataset=trained.sequences(END * 4, seed))


def adapted(base_folder, seed=3, **lora):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**{**options, **lora}))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was not stopped: OPT with trained biases, so Trainer's second group is not empty."""
    root = tmp_path_factory.mktemp("whole")
    base = trained.opt(layers=2)
    base.save_pretrained(root / "base")
    run = trainer(root / "run", adapted(root / "base", bias="all"))
    run.train()
    stopped = root / "run" / f"checkpoint-{STOP}"
    named = root / "named.ostate.safetensors"
    repaired = ostate.repair(str(stopped), str(named), adapter=str(stopped), base=str(root / "base"))
    assert repaired.ordering.verdict in ("verified", "recovered", "partial", "unverified")
    return {"root": root, "trainer": run, "stopped": stopped, "named": str(named)}


def test_a_resumed_trainer_run_is_the_run_that_was_not_stopped(whole, tmp_path):
    checkpoint = tmp_path / f"checkpoint-{STOP}"
    shutil.copytree(whole["stopped"], checkpoint)
    (checkpoint / "optimizer.pt").unlink()
    assert ostate.export(whole["named"], "torch", checkpoint).path.endswith("optimizer.pt")
    resumed = trainer(tmp_path / "run", adapted(whole["root"] / "base", bias="all"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    wanted, got = weights(whole["trainer"].model), weights(resumed.model)
    assert set(wanted) == set(got)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    losses = [[row["loss"] for row in run.state.log_history if "loss" in row and row["step"] > STOP] for run in (whole["trainer"], resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == END - STOP


def test_a_resume_without_its_optimizer_is_another_run(whole, tmp_path):
    """What the test above would look like if nothing were carried over."""
    checkpoint = tmp_path / f"checkpoint-{STOP}"
    shutil.copytree(whole["stopped"], checkpoint)
    (checkpoint / "optimizer.pt").unlink()
    resumed = trainer(tmp_path / "run", adapted(whole["root"] / "base", bias="all"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    wanted, got = weights(whole["trainer"].model), weights(resumed.model)
    assert not any(torch.equal(wanted[name], got[name]) for name in wanted if "lora_B" in name)


def loaded_weights(model, checkpoint):
    """Put the stopped run's weights into a larger model; what is new in it stays as made."""
    from safetensors.torch import load_file

    stored = {plain_name(key): tensor for key, tensor in load_file(checkpoint / "adapter_model.safetensors").items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if plain_name(name) in stored:
                parameter.copy_(stored.pop(plain_name(name)))
    assert not stored


def plain_name(name):
    """A bias of a module that becomes a target is called `base_layer.bias` from then on."""
    return name.replace(".default", "").replace(".base_layer", "")


def steps_of_both(whole, model, optimizer):
    """Take the same step, with the same gradients, in the larger optimizer and in the stopped run's own; return both results."""
    state = ostate.load(whole["named"])
    there = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    live = {name: there[plain_name(name)] for name in state.parameters}
    old = {name: torch.nn.Parameter(live[name].detach().clone()) for name in state.parameters}
    groups = [{**group.hyper, "params": [old[name] for name in group.names]} for group in state.groups]
    plain = torch.optim.AdamW(groups)
    plain.load_state_dict(torch.load(whole["stopped"] / "optimizer.pt", weights_only=True))
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3 if parameter.requires_grad else None
    for name, parameter in live.items():
        old[name].grad = parameter.grad.clone()
    plain.step()
    optimizer.step()
    return {name: p.detach() for name, p in old.items()}, {name: live[name].detach() for name in old}


MORE = {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]}
HEAD = {"modules_to_save": ["lm_head"]}


@pytest.mark.parametrize(
    "grown,new",
    [(MORE, "absent"), (MORE, "zeros"), (MORE, "sibling"), (HEAD, "absent"), (HEAD, "cold-step")],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_parameters_that_both_runs_train_take_the_same_first_step(whole, tmp_path, grown, new):
    """The answer to "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"."""
    model = adapted(whole["root"] / "base", bias="all", **grown)
    loaded_weights(model, whole["stopped"])
    model.save_pretrained(tmp_path / "adapter")
    run = trainer(tmp_path / "run", model)
    optimizer = run.create_optimizer()
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(torch.load(whole["stopped"] / "optimizer.pt", weights_only=True))
    export_options = {"wanted": str(tmp_path / "adapter"), "base": str(whole["root"] / "base"), "groups": "trainer", "new": new}
    done = ostate.export(whole["named"], "torch", tmp_path / "optimizer.pt", **export_options)
    optimizer.load_state_dict(torch.load(done.path, weights_only=True))
    kept = done.state.source["migration"]["kept"]
    assert {plain_name(name) for name in kept} == {plain_name(name) for name in ostate.load(whole["named"]).parameters}
    assert "dropped" not in done.state.source["migration"]
    wanted, got = steps_of_both(whole, model, optimizer)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_a_state_goes_from_trainer_to_a_plain_loop(whole):
    model = adapted(whole["root"] / "base", bias="all")
    loaded_weights(model, whole["stopped"])
    named = ostate.load(whole["named"])
    live = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [live[name] for name in group.names]} for group in named.groups])
    from ostate.exporters.tensors import numbered, with_tensors

    optimizer.load_state_dict(with_tensors(numbered(named, names=False)))
    wanted, got = steps_of_both(whole, model, optimizer)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_state_goes_from_trainer_to_fsdp2(whole, tmp_path):
    """Through torch's own distributed checkpoint and `set_optimizer_state_dict`, on a mesh of one."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    path = ostate.export(whole["named"], "dcp", tmp_path / "dcp").path
    named = ostate.load(whole["named"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = adapted(whole["root"] / "base", bias="all")
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        live = dict(model.named_parameters())
        optimizer = torch.optim.AdamW([{"params": [live[name] for name in group.names]} for group in named.groups])
        target = get_optimizer_state_dict(model, optimizer, options=StateDictOptions())
        dcp.load({"optim": target}, checkpoint_id=path)
        set_optimizer_state_dict(model, optimizer, target)
        for name, parameter in named.parameters.items():
            for slot, values in parameter.slots.items():
                assert torch.equal(optimizer.state[live[name]][slot].full_tensor(), torch.from_numpy(values.read().copy())), name
            assert float(optimizer.state[live[name]]["step"]) == parameter.step
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    finally:
        dist.destroy_process_group()
