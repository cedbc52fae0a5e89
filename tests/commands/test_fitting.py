"""Adapters that were converted or resized after training hold more of each tensor than the state has moments of."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from ostate.commands.repair import repair, verify
from ostate.errors import OstateError
from tests import trained
from tests.commands.test_choosing import live, steps, tuned


def config(**options):
    return peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **options)


def named(done) -> dict[int, str]:
    return {parameter.position: name for name, parameter in done.named.parameters.items()}


@pytest.fixture(scope="module", params=["pissa", "olora"])
def converted(request, tmp_path_factory):
    """(folder, live names) of a run whose adapter was saved as a plain one of twice the rank."""
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp(request.param)
    start = peft.get_peft_model(trained.llama(6), config(init_lora_weights=request.param))
    start.peft_config["default"].init_lora_weights = True  # as PEFT's own example saves the start
    start.save_pretrained(str(folder / "start"))
    start.peft_config["default"].init_lora_weights = request.param
    optimizer = tuned(start)
    steps(start, optimizer, 20)
    start.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(folder / "start"))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder, live(optimizer, start)


def test_a_converted_adapter_of_twice_the_rank_is_compared_by_its_trained_half(converted, tmp_path):
    folder, names = converted
    shapes = {tuple(tensor.shape) for tensor in load_file(folder / "adapter_model.safetensors").values()}
    assert all(16 in shape for shape in shapes)
    done = repair(str(folder), str(tmp_path / "out.safetensors"), adapter=str(folder))
    assert named(done) == dict(enumerate(names))
    assert done.ordering.verdict == "verified"
    (said,) = [finding for finding in done.findings if finding.rule == "adapter-fitted"]
    assert "twice the rank" in said.text
    assert verify(str(tmp_path / "out.safetensors"), adapter=str(folder)).verdict == "verified"


def test_what_a_conversion_leaves_out_stands_beside_the_trained_halves(tmp_path):
    """PEFT writes the factors alone when it converts: `modules_to_save` is in the state, and not in the file."""
    torch.manual_seed(8)
    base = trained.llama(6)
    base.save_pretrained(str(tmp_path / "base"))
    start = peft.get_peft_model(base, config(init_lora_weights="olora", modules_to_save=["lm_head"]))
    start.peft_config["default"].init_lora_weights = True
    start.save_pretrained(str(tmp_path / "start"))
    start.peft_config["default"].init_lora_weights = "olora"
    optimizer = tuned(start)
    steps(start, optimizer, 20)
    start.save_pretrained(str(tmp_path / "run"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    torch.save(optimizer.state_dict(), tmp_path / "run" / "optimizer.pt")
    assert not any("lm_head" in key for key in load_file(tmp_path / "run" / "adapter_model.safetensors"))
    found = repair(str(tmp_path / "run"), base=str(tmp_path / "base")).ordering
    assert list(found.names) == live(optimizer, start)
    assert {name for name in found.names if "lm_head" in name} <= set(found.undecided)


def save_resized(folder: Path, rows: int) -> tuple[Path, list[str]]:
    """Train with a whole embedding, then resize the vocabulary of what is saved, as a tokenizer that grew later does."""
    torch.manual_seed(9)
    model = peft.get_peft_model(trained.llama(4), config(modules_to_save=["embed_tokens", "lm_head"]))
    optimizer = tuned(model)
    steps(model, optimizer, 12)
    tensors = peft.get_peft_model_state_dict(model)
    for key, tensor in tensors.items():
        if tensor.shape[0] == trained.VOCABULARY:
            grown = torch.zeros(rows, tensor.shape[1])
            grown[: min(rows, trained.VOCABULARY)] = tensor[:rows]
            tensors[key] = grown
    model.save_pretrained(str(folder))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder, live(optimizer, model)


def test_a_vocabulary_that_grew_after_training_is_compared_by_the_rows_that_were_trained(tmp_path):
    folder, names = save_resized(tmp_path, 112)
    done = repair(str(folder))
    assert named(done).items() <= dict(enumerate(names)).items()
    assert len(named(done)) == len(names)
    (said,) = [finding for finding in done.findings if finding.rule == "adapter-fitted"]
    assert "112 rows where 96 were trained" in said.text


def test_a_vocabulary_that_shrank_gives_no_wrong_name(tmp_path):
    folder, names = save_resized(tmp_path, 80)
    done = repair(str(folder))
    assert named(done).items() <= dict(enumerate(names)).items()
    assert named(done)


def test_an_adapter_of_another_rank_is_not_cut_to_fit(tmp_path):
    torch.manual_seed(1)
    model = peft.get_peft_model(trained.llama(4), config())
    optimizer = tuned(model)
    steps(model, optimizer, 8)
    other = peft.get_peft_model(trained.llama(4), peft.LoraConfig(r=12, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"))
    other.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(OstateError):
        repair(str(tmp_path))


def test_a_prompt_whose_encoder_is_not_in_the_file_is_not_taken_for_a_converted_adapter(tmp_path):
    torch.manual_seed(8)
    model = peft.get_peft_model(trained.llama(2), peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, task_type="CAUSAL_LM"))
    optimizer = tuned(model)
    steps(model, optimizer, 2)
    model.base_model.save_pretrained(str(tmp_path / "base"))
    model.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    done = repair(str(tmp_path), base=str(tmp_path / "base"))
    assert named(done) == dict(enumerate(live(optimizer, model)))
    assert "adapter-fitted" not in {finding.rule for finding in done.findings}
