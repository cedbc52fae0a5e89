"""Several optimizers of one checkpoint: shown together, asked about, and repaired as one state with `--optimizer all`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ostate.commands.inspect import inspect
from ostate.commands.repair import repair
from ostate.errors import Ambiguous, ReadError, SeveralOptimizers
from tests.trained import llama, sequences


@pytest.fixture(scope="module")
def run() -> tuple[Any, list[torch.optim.Optimizer]]:
    """A LoRA whose lora_A one AdamW trained, and its lora_B another."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(llama(layers=3), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    halves = [[p for name, p in model.named_parameters() if word in name] for word in ("lora_A", "lora_B")]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(half, lr=rate) for half, rate in zip(halves, (2e-3, 8e-3))]
    for row in sequences(16, 0):
        model(**{name: value[None] for name, value in row.items()}).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizers


def in_files(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.save(first, folder / "optimizer.bin")
    torch.save(second, folder / "optimizer_1.bin")


def in_a_list(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.save({"epoch": 1, "global_step": 100, "optimizer_states": [first, second]}, folder / "last.ckpt")


def by_name(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.save({"opt_A": first, "opt_B": second}, folder / "state.pt")


@pytest.mark.parametrize("write", [in_files, in_a_list, by_name])
def test_all_of_them_are_proven_as_one_state_where_one_alone_is_not(run, tmp_path, write):
    model, optimizers = run
    model.save_pretrained(tmp_path)
    write(tmp_path, *(optimizer.state_dict() for optimizer in optimizers))
    done = repair(str(tmp_path), optimizer="all")
    assert done.ordering.proven
    assert not [finding for finding in done.findings if finding.rule == "step-against-the-trainer"]  # Lightning's is the sum of all optimizers' steps
    live = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() for optimizer in optimizers if p in optimizer.state}
    assert done.named.parameters.keys() == live.keys()
    for name, value in live.items():
        assert np.array_equal(done.named.tensor(name, "exp_avg_sq"), value.numpy()), name


@pytest.mark.parametrize("write", [in_files, in_a_list, by_name])
def test_inspect_shows_both_and_repair_asks_which(run, tmp_path, write):
    model, optimizers = run
    model.save_pretrained(tmp_path)
    write(tmp_path, *(optimizer.state_dict() for optimizer in optimizers))
    seen = inspect(str(tmp_path))
    assert [(len(group.positions), group.hyper["lr"]) for group in seen.raw.groups] == [(6, 2e-3), (6, 8e-3)]
    (said,) = [finding for finding in seen.findings if finding.rule == "several-optimizers"]
    assert "2 optimizers" in said.text
    with pytest.raises(SeveralOptimizers, match="2 optimizer states are here") as error:
        repair(str(tmp_path))
    assert "--optimizer all" in error.value.fix


def test_the_refusal_of_one_of_them_says_that_all_may_be_taken_together(run, tmp_path):
    model, optimizers = run
    model.save_pretrained(tmp_path)
    in_files(tmp_path, *(optimizer.state_dict() for optimizer in optimizers))
    with pytest.raises(Ambiguous) as caught:
        repair(str(tmp_path), optimizer=0)
    assert caught.value.fix.endswith("or take all optimizers as one state with --optimizer all")
    (tmp_path / "optimizer_1.bin").unlink()
    with pytest.raises(Ambiguous) as caught:
        repair(str(tmp_path))
    assert "--optimizer" not in caught.value.fix


def test_optimizers_of_two_kinds_are_no_one_state(run, tmp_path):
    model, optimizers = run
    model.save_pretrained(tmp_path)
    other = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(3))])
    other.param_groups[0]["params"][0].grad = torch.ones(3)
    other.step()
    by_name(tmp_path, optimizers[0].state_dict(), other.state_dict())
    for ask in (inspect, repair):
        with pytest.raises(ReadError, match=r"opt_A .6 entries.: adamw, opt_B .1 entries.: adagrad"):
            ask(str(tmp_path), optimizer="all")


@pytest.mark.parametrize("apart", [False, True], ids=["weights within", "adapter apart"])
def test_a_value_head_in_an_optimizer_of_its_own_is_named_from_the_checkpoints_own_weights(tmp_path, apart):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    policy = get_peft_model(llama(layers=3), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model = torch.nn.ModuleDict({"policy": policy, "value": torch.nn.Linear(32, 1)})
    halves = [[p for p in model[part].parameters() if p.requires_grad] for part in ("policy", "value")]
    optimizers = [torch.optim.AdamW(half, lr=2e-3) for half in halves]
    for row in sequences(16, 0):
        out = policy(**{name: value[None] for name, value in row.items()}, output_hidden_states=True)
        (out.loss + model["value"](out.hidden_states[-1]).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"state_dict": model.state_dict(), "optimizer_states": states, "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    if apart:
        policy.save_pretrained(tmp_path / "adapter")
    done = repair(str(tmp_path), optimizer="all")
    live = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() for optimizer in optimizers if p in optimizer.state}
    assert done.named.parameters.keys() <= live.keys()  # a module that the numbers leave open is left out where a convention alone names it
    for name in done.named.parameters:
        assert np.array_equal(done.named.tensor(name, "exp_avg_sq"), live[name].numpy()), name
    assert done.ordering.verdict == "partial"
    assert {"value.weight", "value.bias"} <= set(done.ordering.undecided) & done.named.parameters.keys()
    assert done.ordering.assumed == ()


def _after_a_step(models: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, Any]]:
    """Return the state of each model's own AdamW after one step."""
    states = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        states[name] = optimizer.state_dict()
    return states


@pytest.mark.parametrize("pairs", [False, True])
def test_a_model_is_named_from_the_weights_that_are_called_as_its_optimizer(pairs: bool, tmp_path: Path):
    """StyleTTS2 saves `net: {name: weights}` and `optimizer: [(name, state), …]`; `--optimizer all` would need names that no file has."""
    torch.manual_seed(0)
    models = {"bert": torch.nn.Linear(4, 3), "decoder": torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))}
    states = _after_a_step(models)
    net = {name: {f"module.{key}": value for key, value in model.state_dict().items()} for name, model in models.items()}
    path = tmp_path / "epoch_2nd_00001.pth"
    torch.save({"net": net, "optimizer": list(states.items()) if pairs else states, "iters": 1}, path)
    for name, model in models.items():
        assert list(repair(str(path), optimizer=name).ordering.names) == [key for key, _ in model.named_parameters()]
    with pytest.raises(SeveralOptimizers, match=r"0: optimizer\.bert .*1: optimizer\.decoder"):
        repair(str(path))
    with pytest.raises(Ambiguous):
        repair(str(path), optimizer="all")


def _tiny_gan(width: int = 3) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]:
    """Weights and optimizer states of a generator and a discriminator; `width`: of the discriminator, 3 makes both of one shape."""
    torch.manual_seed(0)
    models = {"g": torch.nn.Sequential(torch.nn.Linear(4, 3)), "d": torch.nn.Sequential(torch.nn.Linear(4, width))}
    states = _after_a_step(models)
    return {name: {f"{name}.{key}": value for key, value in model.state_dict().items()} for name, model in models.items()}, states


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("words", [("net_g", "net_d"), ("generator", "discriminator")])
def test_the_model_of_a_gans_optimizer_is_told_by_shapes_or_else_by_its_name(words, width: int, tmp_path: Path):
    weights, states = _tiny_gan(width)
    average = {key: value * 0.9 for key, value in weights["g"].items()}
    bundle = {words[0]: weights["g"], words[1]: weights["d"], f"{words[0]}_ema": average, "optim_g": states["g"], "optim_d": states["d"]}
    torch.save(bundle, tmp_path / "both.pth")
    for name in ("g", "d"):
        assert list(repair(str(tmp_path / "both.pth"), optimizer=f"optim_{name}").ordering.names) == [f"{name}.0.weight", f"{name}.0.bias"]


def test_a_model_of_another_shape_is_no_optimizers(tmp_path: Path):
    """HiFi-GAN keeps the generator apart: `g_00000006` beside `do_00000006`, which holds the discriminators and both optimizers."""
    weights, states = _tiny_gan(5)
    torch.save({"generator": weights["g"]}, tmp_path / "g_00000006")
    torch.save({"mpd": weights["d"], "msd": weights["d"], "optim_g": states["g"], "optim_d": states["d"]}, tmp_path / "do_00000006")
    with pytest.raises(Ambiguous):
        repair(str(tmp_path / "do_00000006"), optimizer="optim_g")
    done = repair(str(tmp_path / "do_00000006"), optimizer="optim_g", adapter=str(tmp_path / "g_00000006"))
    assert list(done.ordering.names) == ["g.0.weight", "g.0.bias"]
    with pytest.raises(ReadError, match="several models lie in this file: 'mpd', 'msd'"):
        repair(str(tmp_path / "do_00000006"), optimizer="optim_g", adapter=str(tmp_path / "do_00000006"))
