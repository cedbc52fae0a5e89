"""Parameters trained beside the adapter and saved elsewhere: a projector, a value head, a reward head."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

from ostate.commands.repair import repair, verify
from tests import trained
from tests.commands.test_choosing import live, lora


def llava(**options) -> torch.nn.Module:
    """A PEFT model whose projector is trained as it is, not by PEFT, as LLaVA's train.py does it (`tune_mm_mlp_adapter`)."""
    base = trained.llama(4)
    base.model.mm_projector = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    model = peft.get_peft_model(base, lora(**options))
    projector = model.base_model.model.model.mm_projector
    projector.requires_grad_(True)

    def loss(ids):
        seen = projector(torch.nn.functional.one_hot(ids[:, :4], 12).float())
        embedded = torch.cat([seen, base.model.embed_tokens(ids[:, 4:])], dim=1)
        return model(inputs_embeds=embedded, labels=ids).loss

    model.loss_of = loss
    return model


class ValueHead(torch.nn.Module):
    """TRL's `AutoModelForCausalLMWithValueHead` (trl 0.25 models/modeling_value_head.py) as far as names and files go."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.pretrained_model = model
        self.v_head = torch.nn.Module()
        self.v_head.summary = torch.nn.Linear(32, 1)

    def loss_of(self, ids):
        out = self.pretrained_model(input_ids=ids, labels=ids, output_hidden_states=True)
        return out.loss + (self.v_head.summary(out.hidden_states[-1]).squeeze(-1) - (ids % 7) / 7).pow(2).mean()

    def save_pretrained(self, folder: str) -> None:
        torch.save({f"v_head.{key}": value for key, value in self.v_head.state_dict().items()}, Path(folder) / "pytorch_model.bin")
        self.pretrained_model.save_pretrained(folder)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, many: int = 12) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(many):
        optimizer.zero_grad()
        model.loss_of(torch.randint(0, 12, (8, 12), generator=draw)).backward()
        optimizer.step()


def trainer_groups(model: torch.nn.Module, *, apart: str = "") -> list[dict]:
    """Trainer's two groups; with `apart`, LLaVA's four (llava_trainer.py, `mm_projector_lr`)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for own in (False, True) if apart else (False,):
        part = [(name, p) for name, p in named if not apart or (apart in name) == own]
        for decays in (True, False):
            params = [p for name, p in part if ("bias" not in name) == decays]
            groups.append({"params": params, "weight_decay": 0.01 * decays, "lr": 1e-4 if own else 2e-3})
    return groups


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


@pytest.fixture(scope="module", params=["one rate", "two rates", "DoRA", "DoRA in one group"])
def with_projector(request, tmp_path_factory):
    """(checkpoint, live names, weights beside the adapter) of a LLaVA run; DoRA's vectors have the shape of the projector's biases."""
    torch.manual_seed(3)
    model = llava(use_dora="DoRA" in request.param)
    groups = trainer_groups(model, apart="mm_projector" if request.param == "two rates" else "")
    one = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(one if "one group" in request.param else groups, lr=2e-3)
    train(model, optimizer)
    folder = save(tmp_path_factory.mktemp("llava") / "checkpoint-12", model, optimizer)
    others = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    return folder, live(optimizer, model), others


@pytest.fixture(scope="module")
def with_value_head(tmp_path_factory):
    """(folder, live names) of a run with a value head."""
    torch.manual_seed(4)
    model = ValueHead(peft.get_peft_model(trained.llama(4), lora()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    train(model, optimizer)
    return save(tmp_path_factory.mktemp("value"), model, optimizer), live(optimizer, model)


def named(done) -> dict[int, str]:
    return {parameter.position: name for name, parameter in done.named.parameters.items()}


def unproven(found):
    """The names that are proven neither by themselves nor as part of an order."""
    return {name for position, name in enumerate(found.names) if name is not None and position not in found.evidence.proven}


@pytest.mark.parametrize("place", ["non_lora_trainables.bin", "../non_lora_trainables.bin"])
def test_a_projector_beside_the_adapter_is_named_from_its_own_file_and_the_rest_is_proven(with_projector, place, tmp_path):
    folder, names, others = with_projector
    checkpoint = tmp_path / "run" / folder.name
    checkpoint.mkdir(parents=True)
    for file in folder.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    torch.save(others, checkpoint / place)
    done = repair(str(checkpoint), str(tmp_path / "out.safetensors"))
    assert named(done) == dict(enumerate(names))
    assert done.ordering.verdict == "partial"
    alike = {name for name in names if "magnitude" in name}  # of the biases' shape: either may be what the adapter lacks
    assert unproven(done.ordering) == set(others) | alike
    assert set(done.ordering.undecided) == {name for position, name in enumerate(names) if position not in done.ordering.evidence.alone}
    assert not [finding for finding in done.findings if finding.rule == "order-undecided" and not set(finding.names) <= alike]
    (said,) = [finding for finding in done.findings if finding.rule == "positions-not-in-adapter"]
    assert "4 positions were trained beside the adapter" in said.text
    assert "4 are named from non_lora_trainables.bin" in said.text
    again = verify(str(tmp_path / "out.safetensors"), adapter=str(checkpoint))
    assert (again.verdict, unproven(again) - alike) == ("partial", set(others))
    assert set(others) <= set(again.undecided)


def test_without_the_other_file_they_are_left_out_and_said_to_be_in_no_adapter(with_projector):
    folder, names, others = with_projector
    done = repair(str(folder))
    lacking = {position for position, name in enumerate(names) if name in others}
    assert set(done.ordering.left_out) == lacking
    assert named(done) == {position: name for position, name in enumerate(names) if position not in lacking}
    (said,) = [finding for finding in done.findings if finding.rule == "positions-not-in-adapter"]
    assert "4 have no name" in said.text
    assert not any(finding.rule == "positions-left-out" for finding in done.findings)
    assert done.ordering.assumed  # names might begin with a module around the adapter's model


class Heads(torch.nn.Module):
    """Two heads of one shape, defined in another order than their names sort, in front of the model or behind it."""

    def __init__(self, model: torch.nn.Module, *, first: bool) -> None:
        super().__init__()
        if not first:
            self.backbone = model
        self.value, self.reward = torch.nn.Linear(32, 3), torch.nn.Linear(32, 3)
        if first:
            self.backbone = model

    def loss_of(self, ids):
        out = self.backbone(input_ids=ids, labels=ids, output_hidden_states=True)
        hidden = out.hidden_states[-1]
        return (
            out.loss + (self.value(hidden) - (ids % 7)[..., None] / 7).pow(2).mean() + (self.reward(hidden) - (ids % 5)[..., None] / 5).pow(2).mean()
        )


@pytest.mark.parametrize("first", [True, False])
def test_heads_of_one_shape_in_a_sorted_file_get_no_name_and_the_model_may_lie_in_a_module(tmp_path, first):
    torch.manual_seed(5)
    inner = peft.get_peft_model(trained.llama(4), lora())
    model = Heads(inner, first=first)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    train(model, optimizer)
    inner.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    heads = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    save_file(heads, tmp_path / "heads.safetensors")
    done = repair(str(tmp_path))
    assert {position: f"backbone.{name}" for position, name in named(done).items()}.items() <= dict(enumerate(live(optimizer, model))).items()
    assert len(done.ordering.left_out) == 4
    assert any("may have a module's name in front" in one for one in done.ordering.assumed)
    assert set(done.ordering.undecided) == set(named(done).values())
    torch.save(heads, tmp_path / "heads.pt")
    done = repair(str(tmp_path))
    assert {name for name in named(done).values() if "lora_" not in name} == set(heads)
    assert any("may have a module's name in front" in one for one in done.ordering.assumed)


def test_a_file_with_other_shapes_names_nothing(with_projector, tmp_path):
    folder, _, others = with_projector
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({name: torch.zeros(*tensor.shape, 2) for name, tensor in others.items()}, tmp_path / "head.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\3\4 no archive")
    assert len(repair(str(tmp_path)).ordering.left_out) == 4


def test_a_value_head_is_named_from_its_file_and_the_model_lies_in_trls_wrapper(with_value_head, tmp_path):
    folder, names = with_value_head
    done = repair(str(folder), str(tmp_path / "out.safetensors"))
    assert named(done) == dict(enumerate(names))
    assert {"v_head.summary.weight", "v_head.summary.bias"} <= set(done.ordering.undecided)
    assert any("pretrained_model" in one for one in done.ordering.assumed)
    again = verify(str(tmp_path / "out.safetensors"), adapter=str(folder))
    assert again.evidence is not None
    assert unproven(again) == {"v_head.summary.weight", "v_head.summary.bias"}
    assert unproven(again) <= set(again.undecided)


def test_a_whole_model_that_trl_saved_with_its_value_head_is_rebuilt_with_the_head_behind_it(tmp_path):
    """Full fine-tuning of PPO or a reward model: the file has the model's own names, the live model `pretrained_model.` in front of them."""
    torch.manual_seed(0)
    model = ValueHead(trained.llama(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    model.pretrained_model.config.architectures = ["LlamaForCausalLM"]
    model.pretrained_model.config.save_pretrained(tmp_path)
    names = [name.removeprefix("pretrained_model.") for name in live(optimizer, model)]
    weights = {name.removeprefix("pretrained_model."): value.detach().clone() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    done = repair(str(tmp_path), str(tmp_path / "out.safetensors"))
    assert named(done) == dict(enumerate(names))
    assert done.ordering.source == "skeleton"
    assert any("pretrained_model." in one for one in done.ordering.assumed)


def test_a_whole_model_with_its_value_head_in_a_file_apart_is_verified_as_far_as_it_was_named(tmp_path):
    """LLaMA-Factory's reward and PPO runs write the head into `value_head.safetensors` (train/callbacks.py): the model's own file has none of it."""
    torch.manual_seed(0)
    model = ValueHead(trained.llama(6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    model.pretrained_model.save_pretrained(tmp_path)
    save_file({f"v_head.{key}": value.detach() for key, value in model.v_head.state_dict().items()}, tmp_path / "value_head.safetensors")
    done = repair(str(tmp_path), str(tmp_path / "out.ostate.safetensors"))
    assert named(done) == dict(enumerate(live(optimizer, model)))
    assert not any(finding.rule == "adapter-fitted" for finding in done.findings)  # a whole model has no rank to be twice another
    again = verify(str(tmp_path / "out.ostate.safetensors"), adapter=str(tmp_path))
    assert again.verdict == done.ordering.verdict == "partial"
    assert again.evidence.proven == done.ordering.evidence.proven
    assert {"v_head.summary.weight", "v_head.summary.bias"} <= set(again.undecided)


def test_what_was_trained_beside_the_lora_is_named_from_the_whole_model_that_holds_both(tmp_path: Path):
    """Accelerate's save_state writes the program's own module whole: an identity encoder of PhotoMaker's kind beside a LoRA."""
    torch.manual_seed(3)
    model = llava()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    train(model, optimizer)
    save_file({name: value.detach().clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    done = repair(str(tmp_path))
    right = live(optimizer, model)
    assert [name for name in right if "mm_projector" in name] == [name for name in done.ordering.names if name is not None and "mm_projector" in name]
    assert all(name in (None, wanted) for name, wanted in zip(done.ordering.names, right))
    (said,) = [finding for finding in done.findings if finding.rule == "positions-not-in-adapter"]
    assert "has no tuner's tensor for them; 4 are named from model.safetensors" in said.text
    assert set(done.ordering.undecided) >= {name for name in right if "mm_projector" in name}
