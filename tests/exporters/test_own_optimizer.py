"""A state goes back into the optimizer of another package that made it, and that optimizer goes on bit for bit; what was packed is packed again."""

from __future__ import annotations

import copy
import json

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
from tests.optimizers.live import run
from tests.optimizers.others import RETYPED, WRITTEN, retyped

from .optim_list import FLOATS, PACKAGES, REFUSED, in_adamw


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


@pytest.fixture(scope="module", autouse=True)
def eager():
    """torchao compiles its step; the numbers are the same without."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_optimizers_of_other_packages_go_on_too(name, tmp_path):
    make = PACKAGES[name]
    live = run(make, shapes=((70, 64), (64, 64), (5, 3), *([] if "Muon" in name else [(7,)])), steps=4)
    start, saved = [param.detach().clone() for param in live.params], live.optimizer.state_dict()
    path = named(live, tmp_path)
    done = ostate.export(path, "torch", tmp_path / "back.pt")
    back = torch.load(done.path, weights_only=True)
    assert ("export-packing-lost" in {finding.rule for finding in done.findings}) == (name in FLOATS)
    if name not in FLOATS:
        wanted, got = three_steps(make, start, saved), three_steps(make, start, back)
        assert all(torch.equal(one, other) for one, other in zip(wanted, got))
    goes_on_in_adamw(path, in_adamw(name), start)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_new_parameter_starts_as_the_optimizer_would_start_it_or_is_refused(name, tmp_path):
    """`--new zeros` writes an entry at step 0 where that is what the optimizer makes itself, and none where it keeps more than moments."""
    make = PACKAGES[name]
    live = run(make, shapes=((70, 64), (64, 64), (5, 3)), steps=4)
    start = [param.detach().clone() for param in live.params] + [torch.ones(70, 64)]
    path = named(live, tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"param_names": ["p0", "p1", "p2", "new"], "shapes": {"new": [70, 64]}}))
    wanted = str(tmp_path / "names.json")
    if "Muon" in name:
        return  # its groups are its own: a new one is put in one of two kinds
    absent = torch.load(ostate.export(path, "torch", tmp_path / "absent.pt", wanted=wanted, groups="one", new="absent").path, weights_only=True)
    left_to_it = three_steps(make, start, absent)
    if any({"z", "ax", "x0", "p0", "la_param"} & set(parameter.slots) for parameter in ostate.load(path).parameters.values()):
        with pytest.raises(ExportError, match="hold the parameter's own weights") as refused:
            ostate.export(path, "torch", None, wanted=wanted, groups="one", new="zeros")
        assert refused.value.fix == "pass --new absent"
        return
    done = ostate.export(path, "torch", tmp_path / "zeros.pt", wanted=wanted, groups="one", new="zeros")
    by_us = three_steps(make, start, torch.load(done.path, weights_only=True))
    assert all(torch.equal(one, other) for one, other in zip(left_to_it, by_us))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_an_optimizer_counts_beside_its_entries_is_missed_and_said(name, tmp_path):
    path = named(run(WRITTEN[name][1], shapes=((70, 64), (5, 3)), steps=4), tmp_path)
    for way in ({}, {"taken_as": "adamw_torch"}):
        with pytest.raises(ExportError, match=r"count steps beside their entries|cannot be continued by torch's AdamW"):
            ostate.export(path, "torch", tmp_path / "back.pt", **way)
    with pytest.raises(ExportError, match="count steps beside their entries"):
        ostate.export(path, "dcp", tmp_path / "back")
    assert not (tmp_path / "back.pt").exists()


def goes_on_in_adamw(path, outcome, start):
    """Load it into torch's AdamW, which must hold the same moments and step then; or be refused it."""
    if outcome == "refused":
        with pytest.raises(ExportError, match="cannot be continued by torch's AdamW"):
            ostate.export(path, "torch", None, taken_as="adamw_torch")
        return
    done = ostate.export(path, "torch", path + ".adamw.pt", taken_as="adamw_torch")
    assert ("export-packing-lost" in {finding.rule for finding in done.findings}) == ("decoded" in outcome)
    adamw = torch.optim.AdamW([torch.nn.Parameter(values.clone()) for values in start])
    adamw.load_state_dict(torch.load(done.path, weights_only=True))
    state = ostate.load(path)
    for parameter, entry in zip(state, adamw.state.values()):
        assert float(entry["step"]) == 4
        assert all(torch.equal(entry[slot], torch.as_tensor(state.tensor(parameter, slot))) for slot in state[parameter].slots)


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
    live = run(torchao.optim.AdamW8bit, shapes=((64, 64),))
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
