"""DeepSpeed ZeRO: folders of real two-process runs, made here where DeepSpeed is installed, and those of tests/cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ostate import read as formats
from ostate import store
from ostate.commands.inspect import inspect
from ostate.commands.repair import repair
from ostate.errors import ReadError, UnknownFormat
from ostate.read.container.torchsave import load
from ostate.read.flat_buffers import Cut, Piece, cut
from ostate.read.master_weights import disagreements
from tests import real
from tests.real import sha256
from tests.truth import slots_of

from .made import check, made, truth_of, two_group_order, watch_reads

OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return made(tmp_path_factory, "make_zero", DS_ACCELERATOR="cpu")


STAGES = {
    "stage1": 1,
    "stage2": 2,
    "stage2_round_robin": 2,
    "stage2_bf16": 2,
    "bf16_optimizer": 1,
    "stage3": 3,
    "stage3_persistent": 3,
    "stage3_sub_groups": 3,
    "stage2_fp16": 2,
    "stage3_fp16": 3,
}
ELASTIC = ("stage1_elastic", "stage2_elastic")


@pytest.mark.parametrize("case", STAGES)
def test_every_stage_is_cut_as_the_live_optimizer_had_it(runs, case):
    raw = formats.read(str(runs / case))
    assert raw.layout == "zero"
    assert raw.recorded == "param_shapes"
    assert (raw.facts["zero_stage"], raw.facts["world_size"], raw.facts["global_step"]) == (STAGES[case], 2, 3)
    check(raw, runs / case)


@pytest.mark.parametrize("case", STAGES)
def test_master_weights_are_cut_the_same_way(runs, case):
    raw = formats.read(str(runs / case))
    rows = truth_of(runs / case)
    assert {raw.entries[position].name: sha256(slot.read()) for position, slot in raw.master.items()} == {
        name: row["master"] for name, row in rows.items()
    }


@pytest.mark.parametrize("case", ["stage1", "stage2", "stage2_round_robin", "stage2_bf16", "bf16_optimizer"])
def test_master_weights_prove_the_names_against_the_model_beside_them(runs, case):
    raw = formats.read(str(runs / case))
    compared, wrong = disagreements({raw.entries[position].name: slot for position, slot in raw.master.items()}, raw.weights)
    assert len(compared) == 12
    assert not wrong


@pytest.mark.parametrize("case", ELASTIC)
def test_an_elastic_checkpoint_keeps_the_numbers_and_says_that_hyperparameters_are_lost(runs, case):
    raw = formats.read(str(runs / case))
    check(raw, runs / case, hyper=False)
    assert [(finding.rule, finding.severity) for finding in raw.findings] == [("hyperparameters-missing", "warning")]


@pytest.mark.parametrize("case", [*STAGES, *ELASTIC, "stage0_bf16"])
def test_repair_writes_every_number_under_its_name(runs, case, tmp_path):
    out = tmp_path / "named.safetensors"
    given = {"betas": (0.9, 0.99), "eps": 1e-8} if case in ELASTIC else {}
    done = repair(str(runs / case), str(out), **given)
    rows = truth_of(runs / case)
    named = store.load(str(out))
    assert set(named.parameters) == set(rows)
    for name, row in rows.items():
        assert {slot: sha256(named.tensor(name, slot)) for slot in slots_of(row)} == slots_of(row), name
        assert named.parameters[name].step == row["step"]
    # Stage 3 leaves no weights in its files, and two betas keep the numbers silent: names on record stay unproven.
    assert done.ordering.verdict == ("unverified" if case.startswith("stage3") else "verified")


def test_a_run_without_zero_has_torch_positions(runs):
    raw = formats.read(str(runs / "stage0"))
    assert raw.recorded is None
    assert raw.facts["zero_stage"] == 0
    check(raw, runs / "stage0", order=two_group_order(truth_of(runs / "stage0")))


def test_the_first_step_of_zeros_in_16_bits_without_zero_is_no_cold_start(runs):
    seen = inspect(str(runs / "stage0_bf16"))
    assert (seen.raw.facts["global_step"], {entry.step for entry in seen.raw.entries if entry.has_state}) == (3, {4.0})
    (said,) = [finding for finding in seen.findings if finding.rule == "step-against-the-trainer"]
    assert said.severity == "note"
    assert "first step of zeros" in said.text


def test_a_run_in_16_bits_without_zero_has_positions_and_masters_that_prove_them(runs):
    raw = formats.read(str(runs / "stage0_bf16"))
    assert raw.recorded is None
    rows = truth_of(runs / "stage0_bf16")
    order = two_group_order(rows)
    check(raw, runs / "stage0_bf16", order=order)
    assert {order[position]: sha256(slot.read()) for position, slot in raw.master.items()} == {name: row["master"] for name, row in rows.items()}


@pytest.mark.parametrize("name", ["ds_z2", "ds_z3"])
def test_a_real_checkpoint_is_read_exactly_and_without_its_framework(name):
    one = real.case(name)
    raw = formats.read(str(one.state))
    one.assert_moments_of(raw)
    for entry in raw.entries:
        row = one.with_state[entry.name]
        assert entry.shape == tuple(row["shape"])
        hyper = raw.groups[entry.group].hyper
        assert (hyper["lr"], list(hyper["betas"]), hyper["eps"]) == (row["lr"], row["betas"], row["eps"])


@pytest.fixture
def z2(tmp_path):
    return Path(shutil.copytree(real.case("ds_z2").state, tmp_path / "ds_z2"))


@pytest.fixture
def z3(tmp_path):
    return Path(shutil.copytree(real.case("ds_z3").state, tmp_path / "ds_z3"))


def edit(path, change):
    """Change what is stored, without DeepSpeed: its classes stay what they are, bytes in the pickle."""
    pytest.importorskip("deepspeed")
    stored = torch.load(path, weights_only=False, map_location="cpu")
    change(stored)
    torch.save(stored, path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_named(z2, rank):
    lost = z2 / "global_step5" / OPTIM.format(rank)
    lost.unlink()
    with pytest.raises(ReadError, match=f"rank {rank} of 2 is missing") as error:
        formats.read(str(z2))
    assert error.value.where == str(lost)


@pytest.mark.parametrize("zero", ["z2", "z3"])
def test_files_of_two_ranks_in_each_others_places_are_refused(zero, request):
    folder = request.getfixturevalue(zero) / "global_step5"
    first, second = (folder / OPTIM.format(rank) for rank in range(2))
    bytes_of_first = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(bytes_of_first)
    with pytest.raises(ReadError, match="the file of rank 0 was saved as that of rank 1") as error:
        formats.read(str(folder.parent))
    assert error.value.where == str(first)


def test_a_rank_too_many_is_named(z2):
    folder = z2 / "global_step5"
    shutil.copy(folder / OPTIM.format(1), folder / OPTIM.format(2))
    with pytest.raises(ReadError, match="the run had 2 processes") as error:
        formats.read(str(z2))
    assert error.value.where.endswith(OPTIM.format(2))


def test_a_rank_of_another_world_is_named(z2, z3):
    shutil.copy(z3 / "global_step5" / OPTIM.format(1), z2 / "global_step5" / OPTIM.format(1))
    with pytest.raises(ReadError) as error:
        formats.read(str(z2))
    assert OPTIM.format(1) in error.value.where


def test_a_rank_of_another_run_with_the_same_settings_is_refused_by_its_master_weights(z2):
    """Step, world and settings agree; only the weights tell."""
    shutil.copy(real.case("ds_z2_rr_universal").state.parent / "ds_z2_rr" / "global_step5" / OPTIM.format(1), z2 / "global_step5" / OPTIM.format(1))
    with pytest.raises(ReadError, match="not the model's own"):
        formats.read(str(z2))


def test_a_file_cut_short_is_named(z2):
    path = z2 / "global_step5" / OPTIM.format(1)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ReadError) as error:
        formats.read(str(z2))
    assert OPTIM.format(1) in error.value.where


def test_a_missing_model_file_is_named(z2):
    (z2 / "global_step5" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(ReadError, match="param_shapes") as error:
        formats.read(str(z2))
    assert error.value.where.endswith("mp_rank_00_model_states.pt")


def test_a_rank_of_another_step_is_named(z2):
    def later(stored):
        for entry in stored["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
            entry["step"] = torch.tensor(6.0)

    edit(z2 / "global_step5" / OPTIM.format(1), later)
    with pytest.raises(ReadError, match="step") as error:
        formats.read(str(z2))
    assert OPTIM.format(1) in error.value.where or OPTIM.format(0) in error.value.where


class Client:
    """What a person hands to `save_checkpoint` as `client_state`."""


def test_a_client_state_of_any_class_is_left_alone(z2):
    edit(z2 / "global_step5" / "mp_rank_00_model_states.pt", lambda stored: stored.update(client=Client()))
    raw = formats.read(str(z2))
    assert len(raw.entries) == len(formats.read(str(real.case("ds_z2").state)).entries)
    assert [finding.rule for finding in raw.findings] == ["classes-left-alone"]


def test_the_stale_step_of_a_fused_optimizers_group_is_ignored(z2):
    def stale(stored):
        inner = stored["optimizer_state_dict"]["base_optimizer_state"]
        for group in inner["param_groups"]:
            group["step"] = 0
        for entry in inner["state"].values():
            entry["step"] = 5

    for rank in range(2):
        edit(z2 / "global_step5" / OPTIM.format(rank), stale)
    raw = formats.read(str(z2))
    assert {entry.step for entry in raw.entries} == {5.0}
    assert all("step" not in group.hyper for group in raw.groups)


def test_a_model_file_of_another_run_is_refused(z2):
    def longer(stored):
        shapes = stored["param_shapes"][0]
        shapes[next(iter(shapes))] = torch.Size([7, 40])

    edit(z2 / "global_step5" / "mp_rank_00_model_states.pt", longer)
    with pytest.raises(ReadError, match="param_shapes needs") as error:
        formats.read(str(z2))
    assert "mp_rank_00_model_states.pt" in error.value.where


def test_stage_3_checks_every_process_against_param_shapes(z3):
    def longer(stored):
        shapes = stored["param_shapes"][0]
        shapes[next(iter(shapes))] = torch.Size([7, 40])

    edit(z3 / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt", longer)
    with pytest.raises(ReadError, match="param_shapes needs"):
        formats.read(str(z3))


def test_padding_between_parameters_is_left_out(z2):
    """Releases that align every parameter record what they put between them."""
    wanted = {entry.name: sha256(entry.slots["exp_avg"].read()) for entry in formats.read(str(z2)).entries}
    shapes = load(str(z2 / "global_step5" / "mp_rank_00_model_states.pt")).value["param_shapes"]
    paddings = [[(-(shape[0] * shape[1])) % 4 for shape in group.values()] for group in shapes]
    assert any(map(any, paddings))
    stored = [torch.load(z2 / "global_step5" / OPTIM.format(rank), weights_only=False) for rank in range(2)] if _has_deepspeed() else []
    for number, group in enumerate(shapes):
        for slot in ("exp_avg", "exp_avg_sq"):
            flat = torch.cat([one["optimizer_state_dict"]["base_optimizer_state"]["state"][number][slot] for one in stored])
            pieces, at = [], 0
            for (_, shape), padding in zip(group.items(), paddings[number]):
                count = shape[0] * shape[1]
                pieces += [flat[at : at + count], torch.full((padding,), 7.0)]
                at += count
            whole = torch.cat(pieces)
            whole = torch.cat([whole, torch.zeros(-len(whole) % 4)])
            for one, half in zip(stored, whole.chunk(2)):
                one["optimizer_state_dict"]["base_optimizer_state"]["state"][number][slot] = half.clone()
    for rank, one in enumerate(stored):
        state = one["optimizer_state_dict"]
        state["param_alignment_paddings"] = paddings
        state["group_paddings"] = [-(sum(s[0] * s[1] for s in g.values()) + sum(p)) % 4 if rank else 0 for g, p in zip(shapes, paddings)]
        state.pop("single_partition_of_fp32_groups")
        torch.save(one, z2 / "global_step5" / OPTIM.format(rank))
    raw = formats.read(str(z2))
    assert {entry.name: sha256(entry.slots["exp_avg"].read()) for entry in raw.entries} == wanted


def _has_deepspeed():
    pytest.importorskip("deepspeed")
    return True


def test_tensor_parallel_ranks_are_refused_with_the_way_out(z2):
    folder = z2 / "global_step5"
    for rank in range(2):
        shutil.copy(folder / OPTIM.format(rank), folder / OPTIM.format(rank).replace("mp_rank_00", "mp_rank_01"))
    with pytest.raises(ReadError, match="tensor- or pipeline-parallel") as error:
        formats.read(str(z2))
    assert "ds_to_universal" in error.value.fix


def test_experts_are_refused_with_the_way_out(z2):
    folder = z2 / "global_step5"
    shutil.copy(folder / OPTIM.format(0), folder / "expp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(ReadError, match="mixture of experts"):
        formats.read(str(z2))


def test_two_steps_are_listed_unless_latest_names_one(z2):
    shutil.copytree(z2 / "global_step5", z2 / "global_step9")
    assert "global_step5" in formats.read(str(z2)).files[0].path
    (z2 / "latest").unlink()
    with pytest.raises(UnknownFormat, match=r"global_step5.*global_step9"):
        formats.read(str(z2))


def test_frozen_weights_are_never_read(z2, monkeypatch):
    read = watch_reads(monkeypatch)
    raw = formats.read(str(z2))
    for entry in raw.entries:
        entry.slots["exp_avg_sq"].read()
    model = z2 / "global_step5" / "mp_rank_00_model_states.pt"
    weights = sum(length for path, length in read if path == str(model))
    assert 0 < weights < model.stat().st_size / 2


def test_packed_slots_are_cut_after_decoding():
    """bitsandbytes under ZeRO: blocks of the flat buffer do not end where parameters do."""
    import numpy as np

    class Packed:
        encoding, dtype, shape = "bitsandbytes-8bit", "F32", (10,)

        def chunks(self, elements=4):
            for at in range(0, 10, 4):
                yield np.arange(10, dtype=np.float32)[at : at + 4]

    slot = cut([Piece(Packed(), 7, 3), Piece(Packed(), 0, 5)], (2, 4), "here")
    assert isinstance(slot, Cut)
    assert slot.encoding == "bitsandbytes-8bit"
    assert slot.read().tolist() == [[7, 8, 9, 0], [1, 2, 3, 4]]
    assert slot.with_shape((8,)).read().tolist() == [7, 8, 9, 0, 1, 2, 3, 4]
    with pytest.raises(ReadError):
        cut([Piece(Packed(), 7, 4)], (4,), "here")
    with pytest.raises(ReadError):
        cut([Piece(Packed(), 0, 3)], (4,), "here")


def test_moments_in_8_bits_are_moments_of_the_parameters_that_were_cut_out_of_them(tmp_path):
    """They were taken for plain values once, and the state for one that never stepped."""
    codes = torch.randint(0, 256, (2, 1024), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scale, table = torch.tensor([1.0, 2.0, 0.5, 4.0]), torch.linspace(0, 1, 256)
    moments = {"1": codes[0].clone(), "2": codes[1].clone()}
    entry = {"step": torch.tensor(3.0)}
    entry |= {f"{word}{n}": one for n in moments for word, one in (("state", moments[n]), ("absmax", scale), ("qmap", table))}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    state = {"zero_stage": 1, "partition_count": [1], "base_optimizer_state": {"state": {0: entry}, "param_groups": [group]}}
    torch.save({"optimizer_state_dict": state}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    shapes = {"a": torch.Size([300]), "b": torch.Size([4, 181])}
    torch.save({"param_shapes": [shapes], "module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    whole = {slot: table[moments[n].long()] * scale.repeat_interleave(256) for n, slot in (("1", "exp_avg"), ("2", "exp_avg_sq"))}
    repaired = repair(str(tmp_path), str(tmp_path / "named.safetensors"))
    assert repaired.ordering.source == "recorded"
    named = store.load(str(tmp_path / "named.safetensors"))
    for slot, wanted in whole.items():
        for name, part in (("a", wanted[:300]), ("b", wanted[300:].reshape(4, 181))):
            assert named.parameters[name].step == 3
            assert np.array_equal(named.parameters[name].slots[slot].read(), part.numpy())
