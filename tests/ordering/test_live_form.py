"""Whether a live name begins as its key does: what the checkpoint records decides, and what nothing records is said to be assumed."""

from __future__ import annotations

from pathlib import Path

import lightning
import peft
import pytest
import torch
from safetensors.torch import save_file

from ostate.commands.options import Options
from ostate.commands.repair import names, read, repair, verify
from ostate.core.naming import Adapter, Evidence, NamedState
from ostate.core.tensors import TensorRef
from ostate.errors import Ambiguous, OrderingError
from ostate.ordering.keys import live_name, match_all
from ostate.ordering.live_form import with_live_form
from ostate.probe import fill
from ostate.read.adapters import read_adapter
from tests import trained
from tests.ordering.answers import Answers, resolve
from tests.ordering.tiny import CAUSAL, TARGETS, llama
from tests.records import replace

pytestmark = pytest.mark.filterwarnings("ignore")

INJECTED = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
SAID = "the prefix base_model.model. comes from the adapter's keys; the live model may lack it"
REF = TensorRef(dtype="F32", shape=(2, 4), parts=())


def stepped(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def peft_model() -> torch.nn.Module:
    return peft.get_peft_model(llama(), peft.LoraConfig(r=2, **TARGETS, **CAUSAL))


def injected() -> torch.nn.Module:
    """The same model with its adapter put in by transformers itself."""
    model = llama()
    model.add_adapter(peft.LoraConfig(r=2, **TARGETS))
    return model


def by_hand(model: torch.nn.Module, folder: Path) -> None:
    """As verl, SkyRL, ms-swift, axolotl and unsloth-zoo save: the configuration by its own method, the weights by safetensors, no card."""
    model.peft_config["default"].save_pretrained(str(folder))
    save_file(peft.get_peft_model_state_dict(model), str(folder / "adapter_model.safetensors"))


def adapter_of(folder: Path, state: dict) -> Adapter:
    torch.save(state, folder / "optimizer.pt")
    adapter = read(str(folder / "optimizer.pt"), Options(adapter=str(folder)))[1]
    assert adapter is not None
    return adapter


def live_names_of(adapter: Adapter) -> set[str]:
    return {live_name(key, adapter) for key in adapter.tensors}


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapter_saved_by_hand_keeps_its_keys_form_which_is_said_to_be_assumed(tmp_path: Path):
    model = peft_model()
    by_hand(model, tmp_path)
    adapter = adapter_of(tmp_path, stepped(model).state_dict())
    assert live_names_of(adapter) == trained_names(model)
    assert SAID in adapter.assumed
    assert SAID not in adapter.contested


def test_by_hand_under_transformers_own_stamp_the_prefix_is_contested_and_nothing_called_proven(tmp_path: Path):
    model = peft_model()
    model.peft_config["default"].save_pretrained(str(tmp_path))
    save_file(peft.get_peft_model_state_dict(model), str(tmp_path / "adapter_model.safetensors"), metadata={"format": "pt"})
    adapter = adapter_of(tmp_path, stepped(model).state_dict())
    assert live_names_of(adapter) == trained_names(model)
    assert SAID in adapter.contested


def test_what_peft_itself_saved_has_its_prefix_and_nothing_is_assumed_of_it(tmp_path: Path):
    model = peft_model()
    model.save_pretrained(str(tmp_path))
    (tmp_path / "README.md").unlink()
    adapter = adapter_of(tmp_path, stepped(model).state_dict())
    assert live_names_of(adapter) == trained_names(model)
    assert SAID not in adapter.assumed


@pytest.mark.parametrize("card", ["---\nlibrary_name: peft\n---\n", "---\nlibrary_name: transformers\n---\n"])
def test_a_model_card_tells_of_the_prefix_only_where_it_is_pefts(card: str, tmp_path: Path):
    model = peft_model()
    by_hand(model, tmp_path)
    (tmp_path / "README.md").write_text(card)
    adapter = adapter_of(tmp_path, stepped(model).state_dict())
    assert any("prefix" in text for text in adapter.assumed) is ("peft" not in card)


def test_nothing_that_transformers_writes_tells_that_its_live_names_lack_the_prefix(tmp_path: Path):
    model = injected()
    model.save_pretrained(str(tmp_path))
    adapter = adapter_of(tmp_path, stepped(model).state_dict())
    assert live_names_of(adapter) == {f"base_model.model.{name}" for name in trained_names(model)}
    assert SAID in adapter.contested


def test_weights_under_live_names_in_the_checkpoint_tell_the_form(tmp_path: Path):
    for number, make in enumerate((injected, peft_model)):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = make()
        if make is injected:
            model.save_pretrained(str(folder))
        else:
            by_hand(model, folder)
        adapter = adapter_of(folder, {"model": model.state_dict(), "optimizer": stepped(model).state_dict()})
        assert live_names_of(adapter) == trained_names(model)
        assert not any("prefix" in text for text in adapter.assumed)


def coverage(model: torch.nn.Module, named: NamedState) -> float:
    return fill(torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad]), model, named).coverage


@pytest.fixture(scope="module", params=["weights", "no weights"])
def in_lightning(request, tmp_path_factory: pytest.TempPathFactory):
    """(checkpoint, adapter apart from it, base, LightningModule): of a run whose checkpoint holds its weights, or lacks them."""

    class Tuned(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.model = peft.get_peft_model(trained.llama(10), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"]))

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([parameter for parameter in self.parameters() if parameter.requires_grad], lr=1e-3)

        def on_save_checkpoint(self, checkpoint: dict) -> None:
            if request.param == "no weights":
                checkpoint["state_dict"] = {}

    folder = tmp_path_factory.mktemp("lightning")
    tuned = Tuned()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=10, accelerator="cpu", **quiet)
    trainer.fit(tuned, torch.utils.data.DataLoader(torch.randint(0, 12, (80, 8)), batch_size=8))
    trainer.save_checkpoint(folder / "last.ckpt")
    tuned.model.save_pretrained(str(folder / "adapter"))
    tuned.model.config.save_pretrained(str(folder / "base"))
    return request.param, folder, tuned


@pytest.mark.parametrize("base", [False, True])
def test_an_adapter_apart_from_lightnings_checkpoint_has_the_modules_names_or_none_is_proven(in_lightning, base: bool):
    told, folder, tuned = in_lightning
    done = repair(str(folder / "last.ckpt"), adapter=str(folder / "adapter"), base=str(folder / "base") if base else None)
    live = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    if told == "weights":
        assert (done.ordering.verdict, list(done.ordering.names), done.ordering.assumed) == ("verified", live, ())
        assert coverage(tuned, done.named) == 1
    else:
        assert done.ordering.verdict == "partial"
        assert [f"model.{name}" for name in done.ordering.names] == live
        assert set(done.ordering.undecided) == set(done.ordering.names)
        assert [text for text in done.ordering.assumed if "Lightning" in text]
    assert coverage(tuned.model, done.named) == 1


def test_the_order_of_a_model_that_transformers_gave_its_adapter_is_proven_by_any_form(tmp_path: Path):
    """The skeleton names the positions as the weights in the checkpoint do."""
    model = injected()
    model.save_pretrained(str(tmp_path))
    torch.save({"model": model.state_dict(), "optimizer": stepped(model).state_dict()}, tmp_path / "optimizer.pt")
    model.config.save_pretrained(str(tmp_path / "base"))
    done = repair(str(tmp_path / "optimizer.pt"), adapter=str(tmp_path), base=str(tmp_path / "base"), evidence=False)
    assert list(done.named.parameters) == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# components


def diffusers(*keys: str) -> Adapter:
    return Adapter(path="a", file="a", kind="diffusers", tensors=dict.fromkeys(keys, REF))


def state(tmp_path: Path, **weights: torch.Tensor):
    parameter = torch.nn.Parameter(torch.zeros(2, 4))
    parameter.grad = torch.randn(2, 4)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.step()
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    torch.save({"optimizer": optimizer.state_dict(), **({"model": weights} if weights else {})}, folder / "optimizer.pt")
    return read(str(folder / "optimizer.pt"), Options(evidence=False))[0]


def test_one_component_stays_in_the_name_and_that_is_assumed(tmp_path: Path):
    found = with_live_form(diffusers("unet.to_q.lora.down.weight"), state(tmp_path))
    assert live_names_of(found) == {"unet.to_q.lora_A.default.weight"}
    assert "unet." in found.contested[0]


def test_keys_that_a_pipeline_saved_lose_the_pipelines_prefix_and_it_is_said(tmp_path: Path):
    """A pipeline is handed the component's own names (diffusers loaders/lora_base.py, pack_weights)."""
    found = with_live_form(replace(diffusers("unet.to_q.lora.down.weight"), facts={"saved_by": "diffusers"}), state(tmp_path))
    assert live_names_of(found) == {"to_q.lora_A.default.weight"}
    assert not found.contested
    assert "save_lora_weights" in found.assumed[0]
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 4)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert read_adapter(str(tmp_path / "pytorch_lora_weights.safetensors")).facts == {"saved_by": "diffusers"}


def test_several_components_keep_theirs_and_it_is_said(tmp_path: Path):
    keys = diffusers("unet.q.lora_A.weight", "text_encoder.q.lora_A.weight")
    found = with_live_form(replace(keys, facts={"saved_by": "diffusers"}), state(tmp_path))
    assert live_names_of(found) == {"unet.q.lora_A.default.weight", "text_encoder.q.lora_A.default.weight"}
    assert "names begin with the component" in found.assumed[0]
    assert not found.contested


def test_nothing_is_assumed_of_components_where_no_key_begins_with_one(tmp_path: Path):
    """SimpleTuner writes LyCORIS' own names into the file that pipelines call so."""
    keys = replace(diffusers("lycoris_blocks_0_ff.lokr_w1", "lycoris_blocks_0_ff.lokr_w2"), facts={"saved_by": "diffusers"})
    assert not with_live_form(keys, state(tmp_path)).assumed


def test_comfyuis_prefix_under_pefts_card_is_no_live_name(tmp_path: Path):
    """diffusion-pipe models/base.py, save_adapter: PEFT's card, and `diffusion_model.` before the names of the trained model."""
    key = "diffusion_model.blocks.0.q.lora_A.weight"
    card = replace(diffusers(key), kind="peft", config={"peft_type": "LORA", "r": 2})
    found = with_live_form(card, state(tmp_path))
    assert live_names_of(found) == {"blocks.0.q.lora_A.default.weight"}
    assert "ComfyUI" in found.assumed[0]
    assert not found.contested
    assert match_all(["blocks.0.q.lora_A.default.weight"], card)[0] == (key,)


def test_onetrainers_modules_bear_the_component_themselves(tmp_path: Path):
    state(tmp_path)
    bare = torch.load(tmp_path / "run" / "checkpoint-1" / "optimizer.pt")["optimizer"]
    torch.save({**bare, "param_group_mapping": ["unet_lora"], "param_group_optimizer_mapping": ["ADAMW"]}, tmp_path / "optimizer.pt")
    raw = read(str(tmp_path / "optimizer.pt"), Options(evidence=False))[0]
    found = with_live_form(diffusers("unet.to_q.lora_down.weight"), raw)
    assert live_names_of(found) == {"unet.to_q.lora_down.weight"}
    assert not found.assumed


def test_one_component_is_cut_where_the_checkpoint_has_the_model_without_it(tmp_path: Path):
    found = with_live_form(diffusers("unet.to_q.lora.down.weight"), state(tmp_path, **{"to_q.lora_A.default.weight": torch.zeros(2, 4)}))
    assert live_names_of(found) == {"to_q.lora_A.default.weight"}
    assert found.assumed == ()


def test_two_components_always_stay(tmp_path: Path):
    keys = ("text_encoder.q.lora_A.weight", "text_encoder_2.q.lora_A.weight")
    found = with_live_form(diffusers(*keys), state(tmp_path, **{"q.lora_A.default.weight": torch.zeros(2, 4)}))
    assert live_names_of(found) == {"text_encoder.q.lora_A.default.weight", "text_encoder_2.q.lora_A.default.weight"}


def test_two_positions_under_one_name_are_refused_by_names_and_verify_and_repair(tmp_path: Path):
    """Two wrappers' spellings of one name, which nobody may write and nobody may print."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([("x.weight", parameters[0]), ("x._orig_mod.weight", parameters[1])])
    for parameter in parameters:
        parameter.grad = torch.randn(2, 2)
    optimizer.step()
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    path = str(folder / "optimizer.pt")
    torch.save(optimizer.state_dict(), path)
    for command in (names, verify, repair):
        with pytest.raises(OrderingError, match=r"positions 0 and 1 the one name 'x\.weight'"):
            command(path, evidence=False)


def test_an_order_that_only_the_numbers_tell_never_gives_one_name_twice():
    evidence = Evidence(verdict="verified", proven=frozenset({0, 1, 2}), order=("a", "a", "c"))
    with pytest.raises(Ambiguous, match="positions 0 and 1 are both called 'a'"):
        resolve(Answers({}, recovered=evidence), [])
