"""A state goes back into the optimizer that made it, and that optimizer goes on as if it had never been stopped, bit for bit."""

from __future__ import annotations

import copy
import shutil

import bitsandbytes.functional
import numpy as np
import pytest
import torch
import torchao.optim
from hypothesis import given, settings
from hypothesis import strategies as st

import ostate
from ostate.errors import ExportError
from ostate.exporters.requantise import Codes, CodeTable, Scales, Values, encode, table_of
from tests import trained
from tests.optimizers.live import run
from tests.optimizers.others import RETYPED, WRITTEN, retyped

from .test_resume import STOP, adapted, trainer, weights

RUN_HERE = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit",
    "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "schedule_free_radam",
    "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
)  # fmt: skip
"""Every name of `TrainingArguments(optim=…)` that runs on a CPU with what the test extra installs."""
ELSEWHERE = ("xla", "npu", "anyprecision", "galore", "lomo", "apollo", "grokadamw")
"""The rest wants another device, or a package whose state `repair` refuses (GaLore, APOLLO, LOMO) or that is not installed here."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose LoRA of rank 64 has 4096 elements a matrix: as many as bitsandbytes and torchao want before they pack."""
    folder = tmp_path_factory.mktemp("base")
    trained.llama(layers=1, hidden_size=64).save_pretrained(folder)
    torch.compiler.set_stance("force_eager")
    yield folder
    torch.compiler.set_stance("default")


def repaired(base, folder, optim):
    whole = trainer(folder / "run", adapted(base, r=64), optim=optim)
    whole.train()
    stopped = folder / "run" / f"checkpoint-{STOP}"
    ostate.repair(str(stopped), str(folder / "named.safetensors"), adapter=str(stopped), base=str(base))
    checkpoint = folder / f"checkpoint-{STOP}"
    shutil.copytree(stopped, checkpoint)
    (checkpoint / "optimizer.pt").unlink()
    return whole, checkpoint


@pytest.mark.parametrize("optim", RUN_HERE)
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_the_run_that_was_not_stopped(optim, base, tmp_path):
    whole, checkpoint = repaired(base, tmp_path, optim)
    done = ostate.export(str(tmp_path / "named.safetensors"), "torch", checkpoint)
    assert not any(finding.rule in ("export-requantised", "export-packing-lost") for finding in done.findings)
    resumed = trainer(tmp_path / "resumed", adapted(base, r=64), optim=optim)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    wanted, got = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_no_name_of_optim_is_forgotten():
    from transformers.training_args import OptimizerNames

    left = {name.value for name in OptimizerNames} - set(RUN_HERE)
    assert all(any(word in name for word in ELSEWHERE) for name in left), left


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_go_on_in_torchs_adamw_where_asked(base, tmp_path):
    _, checkpoint = repaired(base, tmp_path, "adamw_bnb_8bit")
    own = {finding.rule: finding for finding in ostate.export(str(tmp_path / "named.safetensors"), "torch", None).findings}
    assert own["export-own-slots"].fix == "to resume with torch's AdamW: --as adamw_torch"
    done = ostate.export(str(tmp_path / "named.safetensors"), "torch", checkpoint, taken_as="adamw_torch")
    assert "export-packing-lost" in {finding.rule for finding in done.findings}
    resumed = trainer(tmp_path / "resumed", adapted(base, r=64), optim="adamw_torch")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 2 * STOP
    state = next(iter(resumed.optimizer.state_dict()["state"].values()))
    assert (state["exp_avg_sq"].dtype, float(state["step"])) == (torch.float32, 2 * STOP)


def named(live, folder):
    """Repair a live optimizer's file with an order of made-up names."""
    torch.save(live.optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "order.txt").write_text("\n".join(f"p{index}" for index in range(len(live.params))))
    ostate.repair(str(folder / "optimizer.pt"), str(folder / "named.safetensors"), order=str(folder / "order.txt"))
    return str(folder / "named.safetensors")


def three_steps(make, start, saved):
    params = [torch.nn.Parameter(values.clone()) for values in start]
    optimizer = make(params)
    if hasattr(optimizer, "train"):
        optimizer.train()
    torch.manual_seed(1)
    optimizer.load_state_dict(copy.deepcopy(saved))
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        for param in params:
            param.grad = (torch.randn(param.shape, generator=generator) * 1e-3).to(param.dtype)
        optimizer.step()
    return params


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore")
def test_optimizers_of_other_packages_go_on_too(name, tmp_path):
    _, make = WRITTEN[name]
    live = run(make, shapes=((70, 64), (64, 64), (5, 3), *([] if "Muon" in name else [(7,)])), steps=4)
    start = [param.detach().clone() for param in live.params]
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=False) if (tmp_path / "optimizer.pt").exists() else live.optimizer.state_dict()
    back = torch.load(ostate.export(named(live, tmp_path), "torch", tmp_path / "back.pt").path, weights_only=True)
    wanted, got = three_steps(make, start, saved), three_steps(make, start, back)
    assert all(torch.equal(one, other) for one, other in zip(wanted, got))


def test_ai_toolkits_mappings_come_back(tmp_path):
    for row, slots in (("adam_aitk", ("exp_avg", "exp_avg_sq")), ("automagic", ("lr_mask",))):
        folder = tmp_path / row
        folder.mkdir()
        rewrite, group = RETYPED[row][0]
        live = run(torch.optim.AdamW)
        saved = retyped(live.optimizer.state_dict(), rewrite, group)
        live.optimizer.state_dict = lambda saved=saved: saved
        back = torch.load(ostate.export(named(live, folder), "torch", folder / "back.pt").path, weights_only=True)
        for position, entry in saved["state"].items():
            for slot in slots:
                ours, theirs = (one[slot].get("state", one[slot]) for one in (back["state"][position], entry))
                assert ours["orig_dtype"] == torch.float32
                assert torch.equal(ours["quantized"].float() * ours["scale"], theirs["quantized"].float() * theirs["scale"])
                assert ours["quantized"].dtype == torch.int8
                assert ("_type" in back["state"][position][slot]) == (row == "adam_aitk")


def test_numbers_that_never_were_codes_are_rounded_and_the_error_is_said(tmp_path):
    torch.compiler.set_stance("force_eager")
    live = run(torchao.optim.AdamW8bit, shapes=((64, 64),))
    torch.compiler.set_stance("default")
    state = ostate.load(named(live, tmp_path))
    fine = ostate.export(state, "torch", None).findings
    assert [finding.severity for finding in fine if finding.rule == "export-packed-again"] == ["note"]
    from tests.records import replace

    values = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    parameter = next(iter(state.parameters.values()))
    changed = replace(parameter, slots={**parameter.slots, "exp_avg": Values(values)})
    done = ostate.export(replace(state, parameters={parameter.name: changed}), "torch", tmp_path / "back.pt")
    (finding,) = [finding for finding in done.findings if finding.rule == "export-requantised"]
    assert finding.severity == "warning"
    off = float(finding.text.rpartition("up to ")[2].split(" ")[0])
    assert 0.001 < off < 0.02


def test_adamw_is_refused_what_it_cannot_go_on_from(tmp_path):
    live = run(WRITTEN["lion_pytorch.Lion"][1])
    path = named(live, tmp_path)
    with pytest.raises(ExportError, match="cannot be continued by torch's AdamW"):
        ostate.export(path, "torch", tmp_path / "back.pt", taken_as="adamw_torch")
    with pytest.raises(ExportError, match="the same for all optimizers"):
        ostate.export(path, "less", tmp_path / "back.bin", taken_as="adamw_torch")


def test_the_tables_are_the_libraries_own():
    from torchao.optim import subclass_4bit, subclass_8bit

    for signed, name in ((True, "dynamic"), (False, "udynamic")):
        assert table_of(name).tobytes() == bitsandbytes.functional.create_dynamic_map(signed).numpy().tobytes()
    assert table_of("dynamic").tobytes() == np.array(subclass_8bit.get_qmap_signed(), np.float32).tobytes()
    assert table_of("udynamic").tobytes() == np.array(subclass_8bit.get_qmap_unsigned(), np.float32).tobytes()
    assert table_of("dynamic4").tobytes() == np.array(subclass_4bit.get_qmap_signed(), np.float32).tobytes()
    assert table_of("linear4").tobytes() == np.array(subclass_4bit.get_qmap_unsigned(), np.float32).tobytes()


@settings(max_examples=40, deadline=None)
@given(
    table=st.sampled_from(["dynamic", "udynamic", "dynamic4", "linear4", "int8"]),
    block=st.sampled_from([64, 128, 256]),
    blocks=st.integers(1, 5),
    rest=st.integers(0, 63),
    spread=st.integers(0, 30),
    seed=st.integers(0, 2**16),
)
def test_any_codes_and_scales_are_found_again(table, block, blocks, rest, spread, seed):
    """Also where no code of a block is the largest: older blocks were larger."""
    random = np.random.default_rng(seed)
    known = table_of(table)
    codes = random.integers(0, len(known), block * blocks + (rest if 0 in known else 0))
    scales = (10.0 ** -random.uniform(0, spread, blocks + 1)).astype(np.float32)
    values = known.take(codes) * np.repeat(scales, block)[: codes.size]
    found, ours = encode(values, known, block)
    assert (known.take(found) * np.repeat(ours, block)[: values.size]).tobytes() == (values + 0.0).tobytes()


@pytest.mark.parametrize("halves", [False, True])
def test_pieces_of_any_size_give_the_same_codes(halves):

    class Uneven(Values):
        def chunks(self, elements=0):
            flat = self.read().reshape(-1)
            yield from (flat[at : at + 77] for at in range(0, flat.size, 77))

    values = np.random.default_rng(3).standard_normal((40, 32)).astype(np.float32)
    packing = CodeTable("dynamic4" if halves else "dynamic", 128, halves)
    for make in (Codes, Scales):
        whole, pieces = make(Values(values), packing), make(Uneven(values), packing)
        assert whole.read().tobytes() == pieces.read().tobytes()
        assert whole.read().shape == whole.shape
