"""Packed moments come out as the library itself unpacks them, bit for bit."""

from __future__ import annotations

import bitsandbytes.functional as bnb_functional
import numpy as np
import pytest
import torch
import torchao.optim
from bitsandbytes import optim as bnb
from hypothesis import given, settings
from hypothesis import strategies as st

from ostate.core.tensors import TensorRef
from ostate.errors import ReadError
from ostate.optimizers.packings import PACKINGS
from ostate.read import quantized as encodings
from ostate.read.container import torchsave
from ostate.read.quantized import Packed
from tests.records import replace

from .live import SHAPES, read, run
from .others import auto8bit


def saved(value, tmp_path):
    torch.save(value, tmp_path / "entry.pt")
    return torchsave.load(str(tmp_path / "entry.pt")).value


def same(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    return ours.dtype == np.float32 and ours.shape == tuple(theirs.shape) and ours.tobytes() == theirs.float().contiguous().numpy().tobytes()


def unpacked(state, number, layer=None):
    codes, scale = state[f"state{number}"], state.get(f"absmax{number}")
    if layer is not None:
        codes, scale = codes[layer], scale[layer] if scale is not None else None
    if codes.dtype != torch.uint8:
        return codes
    return bnb_functional.dequantize_blockwise(codes.contiguous(), absmax=scale.contiguous(), code=state[f"qmap{number}"], blocksize=256)


BNB = [
    (bnb.AdamW8bit, {"exp_avg": ("1", None), "exp_avg_sq": ("2", None)}),
    (bnb.AdamW, {"exp_avg": ("1", None), "exp_avg_sq": ("2", None)}),
    (bnb.PagedAdamW8bit, {"exp_avg": ("1", None), "exp_avg_sq": ("2", None)}),
    (bnb.LAMB8bit, {"exp_avg": ("1", None), "exp_avg_sq": ("2", None)}),
    (bnb.AdEMAMix8bit, {"exp_avg": ("1", 0), "exp_avg_slow": ("1", 1), "exp_avg_sq": ("2", None)}),
    (bnb.AdEMAMix, {"exp_avg": ("1", 0), "exp_avg_slow": ("1", 1), "exp_avg_sq": ("2", None)}),
    (bnb.Lion8bit, {"exp_avg": ("1", None)}),
    (bnb.RMSprop8bit, {"square_avg": ("1", None)}),
    (bnb.Adagrad8bit, {"sum": ("1", None)}),
    (lambda p: bnb.SGD8bit(p, 1e-3, momentum=0.9), {"momentum_buffer": ("1", None)}),
]


@pytest.mark.parametrize(("make", "wanted"), BNB, ids=lambda value: getattr(value, "__name__", "SGD8bit") if callable(value) else "")
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_decodes_as_its_own_dequantize(make, wanted, tmp_path):
    live = run(make)
    found = read(live.optimizer.state_dict(), tmp_path)
    for param, slots, scalars in zip(live.params, found.slots, found.scalars):
        state = live.optimizer.state[param]
        assert set(slots) == set(wanted)
        assert scalars["step"] == 3.0
        for name, (number, layer) in wanted.items():
            assert same(slots[name].read(), unpacked(state, number, layer)), name
            packed = state[f"state{number}"].dtype == torch.uint8
            assert slots[name].encoding == ("bitsandbytes-8bit" if packed else "plain")


def test_small_tensors_of_an_8_bit_optimizer_are_plain_float32(tmp_path):
    found = read(run(bnb.AdamW8bit).optimizer.state_dict(), tmp_path)
    assert [slots["exp_avg_sq"].encoding for slots in found.slots] == ["bitsandbytes-8bit", "bitsandbytes-8bit", "plain", "plain"]
    assert [scalars["bitsandbytes"] for scalars in found.scalars] == [8, 8, 32, 32]


def test_the_form_before_0_44_without_nesting_is_read_too(tmp_path):
    state = run(bnb.AdamW8bit, shapes=SHAPES[:1]).optimizer.state_dict()["state"][0]
    flat = {"step": state["step"], **state["__bnb_optimizer_quant_state__"]}
    slots, scalars = encodings.slots_of(saved(flat, tmp_path))
    assert same(slots["exp_avg_sq"].read(), unpacked(flat, "2"))
    assert scalars == {"step": 3.0, "bitsandbytes": 8}


@pytest.mark.parametrize("block", [64, 256, 2048])
def test_other_block_sizes_follow_from_the_number_of_scales(block, tmp_path):
    values = torch.rand(4480) ** 8
    codes, state = bnb_functional.quantize_blockwise(values, blocksize=block)
    entry = {"step": 1, "state1": codes, "qmap1": state.code, "absmax1": state.absmax, "state2": codes, "qmap2": state.code, "absmax2": state.absmax}
    slots, _ = encodings.slots_of(saved(entry, tmp_path))
    assert slots["exp_avg"].block == block
    assert same(slots["exp_avg"].read(), bnb_functional.dequantize_blockwise(codes, state))


def test_the_old_form_with_one_scale_a_tensor_is_table_times_scale(tmp_path):
    codes, table, largest = torch.arange(200, dtype=torch.uint8), torch.linspace(-1, 1, 256), torch.tensor([3.5])
    entry = {"state1": codes, "qmap1": table, "max1": largest, "new_max1": largest, "state2": codes, "qmap2": table, "max2": largest}
    slots, _ = encodings.slots_of(saved(entry, tmp_path))
    assert slots["exp_avg"].encoding == "bitsandbytes-8bit-tensor"
    assert same(slots["exp_avg"].read(), table[codes.long()] * largest)


TORCHAO = {"AdamW8bit": "torchao-8bit", "Adam8bit": "torchao-8bit", "AdamW4bit": "torchao-4bit", "AdamWFp8": "torchao-fp8"}


@pytest.mark.parametrize("kind", TORCHAO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_decodes_as_its_own_dequantize(kind, dtype, tmp_path):
    torch.compiler.set_stance("force_eager")

    def make(params):
        for param in params:
            param.data = param.data.to(dtype)
        return getattr(torchao.optim, kind)(params)

    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 96), (3, 64, 64), (70, 64), (5,))]
    optimizer = make(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    torch.compiler.set_stance("default")
    found = read(optimizer.state_dict(), tmp_path)
    for param, slots in zip(params, found.slots):
        for name in ("exp_avg", "exp_avg_sq"):
            held = optimizer.state[param][name]
            packed = hasattr(held, "dequantize") and type(held) is not torch.Tensor
            assert slots[name].encoding == (TORCHAO[kind] if packed else "plain")
            assert same(slots[name].read(), held.dequantize() if packed else held)
    assert [slots["exp_avg"].encoding != "plain" for slots in found.slots] == [True, True, param_is_whole(kind, 4480), False]


def param_is_whole(kind: str, elements: int) -> bool:
    return elements % (128 if "4bit" in kind else 256) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_moments_in_other_floats_stay_plain(dtype, tmp_path):
    entry = {"step": torch.tensor(2.0), "exp_avg": torch.randn(5, 3).to(dtype), "exp_avg_sq": torch.rand(5, 3).to(dtype)}
    slots, scalars = encodings.slots_of(saved(entry, tmp_path))
    assert scalars == {"step": 2.0}
    assert slots["exp_avg_sq"].encoding == "plain"
    assert torch.equal(torch.from_numpy(slots["exp_avg_sq"].read().copy()).to(dtype), entry["exp_avg_sq"])


@pytest.mark.parametrize("elements", [1, 100, 255, 256, 1000, 4097])
@pytest.mark.filterwarnings("ignore")
def test_chunks_of_any_size_join_to_the_whole(elements, tmp_path):
    found = read(run(bnb.AdEMAMix8bit).optimizer.state_dict(), tmp_path)
    for slot in (found.slots[0]["exp_avg_sq"], found.slots[1]["exp_avg_slow"]):
        joined = np.concatenate(list(slot.chunks(elements)))
        assert joined.tobytes() == slot.read().tobytes()
        assert max(chunk.size for chunk in slot.chunks(elements)) <= max(256, elements)


def test_a_packed_slot_takes_another_shape_of_as_many_elements_only(tmp_path):
    slot = read(run(bnb.AdamW8bit, shapes=SHAPES[:1]).optimizer.state_dict(), tmp_path).slots[0]["exp_avg"]
    assert np.array_equal(slot.with_shape((64, 70)).read(), slot.read().reshape(64, 70))
    with pytest.raises(ReadError, match="4480 elements"):
        slot.with_shape((64, 71))


@pytest.mark.parametrize(
    ("gone", "message"),
    [("qmap2", "the table or the scales"), ("absmax2", "the table or the scales")],
)
def test_codes_without_their_meaning_are_refused(gone, message, tmp_path):
    state = run(bnb.AdamW8bit, shapes=SHAPES[:1]).optimizer.state_dict()["state"][0]
    del state["__bnb_optimizer_quant_state__"][gone]
    with pytest.raises(ReadError, match=message):
        encodings.slots_of(saved(state, tmp_path))


def test_scales_that_do_not_go_with_the_codes_are_refused(tmp_path):
    state = run(bnb.AdamW8bit, shapes=SHAPES[:1]).optimizer.state_dict()["state"][0]
    wrapped = state["__bnb_optimizer_quant_state__"]
    wrapped["absmax1"] = wrapped["absmax1"][:11].clone()
    with pytest.raises(ReadError, match="11 scales do not go with 4480 codes"):
        encodings.slots_of(saved(state, tmp_path))


def test_entries_that_are_one_number_become_scalars_and_weights_of_one_element_do_not(tmp_path):
    entry = {
        "step": torch.tensor(3.0),
        "RMS": torch.tensor(0.25),
        "mu_product": torch.tensor(0.5),
        "exp_avg": torch.zeros(()),
        "exp_avg_sq": torch.zeros(1),
    }
    slots, scalars = encodings.slots_of(saved(entry, tmp_path))
    assert set(slots) == {"exp_avg", "exp_avg_sq"}
    assert scalars == {"step": 3.0, "RMS": 0.25, "mu_product": 0.5}


def test_a_list_of_tensors_becomes_numbered_slots(tmp_path):
    slots, scalars = encodings.slots_of(saved({"GG": [torch.eye(3), torch.eye(2)], "Q": [[]]}, tmp_path))
    assert {name: slot.shape for name, slot in slots.items()} == {"GG.0": (3, 3), "GG.1": (2, 2)}
    assert scalars == {"Q": [[]]}


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 90), block=st.sampled_from([64, 128, 256]), seed=st.integers(0, 2**16), ask=st.integers(1, 700))
def test_any_codes_and_scales_decode_as_the_library_does(tmp_path_factory, rows, columns, block, seed, ask):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = torch.rand(-(-codes.numel() // block), generator=generator) ** 9
    table = bnb_functional.create_dynamic_map(signed=bool(seed % 2))
    parts = saved([codes, scale, table], tmp_path_factory.mktemp("codes"))
    slot = Packed("bitsandbytes-8bit", (rows, columns), parts[0], parts[1], block, parts[2])
    wanted = bnb_functional.dequantize_blockwise(codes, absmax=scale, code=table, blocksize=block)
    assert same(slot.read(), wanted)
    assert np.concatenate(list(slot.chunks(ask))).tobytes() == slot.read().tobytes()


PACKED = {
    "bitsandbytes-8bit": bnb.AdamW8bit,
    "torchao-8bit": torchao.optim.AdamW8bit,
    "torchao-4bit": torchao.optim.AdamW4bit,
    "torchao-fp8": torchao.optim.AdamWFp8,
}


@pytest.mark.parametrize("kind", PACKED)
def test_the_error_the_table_expects_is_the_one_a_trained_state_shows(kind, tmp_path):
    torch.compiler.set_stance("force_eager")
    generator = torch.Generator().manual_seed(1)
    spread = torch.exp(0.75 * torch.randn((64, 128), generator=generator))
    packed, plain = (torch.nn.Parameter(torch.zeros(64, 128)) for _ in range(2))
    ours, true = PACKED[kind]([packed]), torch.optim.AdamW([plain])
    for _ in range(100):
        grad = torch.randn((64, 128), generator=generator) * spread * 1e-4
        packed.grad, plain.grad = grad.clone(), grad.clone()
        ours.step()
        true.step()
    torch.compiler.set_stance("default")
    decoded = read(ours.state_dict(), tmp_path).slots[0]["exp_avg_sq"]
    v = true.state[plain]["exp_avg_sq"].numpy()
    median = float(np.median(np.abs(decoded.read() - v) / v))
    row = PACKINGS[kind]
    assert row.relative_error / 3 < median < row.relative_error * 3
    assert decoded.block == row.block
    if row.bits == 4:
        blocks = decoded.read().reshape(-1, 128)
        assert np.allclose(blocks.min(axis=1), decoded.scale.read() / 16)


def test_the_error_of_ai_toolkits_packing_is_that_small_numbers_vanish(tmp_path):
    """`Adam8bit.step` unpacks, steps and packs again (ostris/ai-toolkit, toolkit/optimizers/adam8bit.py)."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.exp(0.75 * torch.randn((64, 128), generator=generator))
    v, packed = torch.zeros(64, 128), auto8bit(torch.zeros(64, 128))
    for _ in range(100):
        squares = (torch.randn((64, 128), generator=generator) * spread * 1e-4) ** 2
        v = 0.999 * v + 0.001 * squares
        packed = auto8bit(0.999 * packed["quantized"].float() * packed["scale"] + 0.001 * squares)
    decoded = read({"state": {0: {"exp_avg_sq": packed}}, "param_groups": [{"params": [0]}]}, tmp_path).slots[0]["exp_avg_sq"].read()
    median = float(np.median(np.abs(decoded - v.numpy()) / v.numpy()))
    assert PACKINGS["auto8bit"].relative_error / 3 < median < PACKINGS["auto8bit"].relative_error * 3
    assert (decoded == 0).mean() > 0.3
    assert decoded[decoded > 0].min() >= decoded.max() / 127.5


def test_every_encoding_that_a_slot_can_carry_has_a_row():
    assert {*TORCHAO.values(), "bitsandbytes-8bit", "bitsandbytes-8bit-tensor", "auto8bit"} == set(PACKINGS)


def test_a_plain_reference_satisfies_the_same_protocol(tmp_path):
    slots, _ = encodings.slots_of(saved({"exp_avg": torch.ones(2, 2)}, tmp_path))
    assert isinstance(slots["exp_avg"], TensorRef)


def test_a_table_that_is_too_short_for_the_codes_is_refused(tmp_path):
    state = run(bnb.AdamW8bit, shapes=SHAPES[:1]).optimizer.state_dict()["state"][0]
    wrapped = state["__bnb_optimizer_quant_state__"]
    wrapped["qmap1"] = wrapped["qmap1"][:16].clone()
    with pytest.raises(ReadError, match="a table of 16 entries"):
        encodings.slots_of(saved(state, tmp_path))


def test_codes_that_lie_in_uneven_pieces_meet_their_own_scales(tmp_path):
    codes, scale = torch.randint(0, 256, (700,), dtype=torch.uint8), torch.rand(3)
    table = bnb_functional.create_dynamic_map(signed=True)
    first, second, scales, meaning = saved([codes[:100].clone(), codes[100:].clone(), scale, table], tmp_path)
    pieces = (replace(first.parts[0], starts=(0,)), replace(second.parts[0], starts=(100,)))
    joined = TensorRef("U8", (700,), pieces)
    slot = Packed("bitsandbytes-8bit", (700,), joined, scales, 256, meaning)
    assert same(slot.read(), bnb_functional.dequantize_blockwise(codes, absmax=scale, code=table, blocksize=256))


@pytest.mark.filterwarnings("ignore")
def test_paged_states_as_a_gpu_writes_them_carry_attributes_and_are_read_the_same(tmp_path):
    """`functional.get_paged` marks its tensors; torch.save then writes them through `_rebuild_from_type_v2`."""
    live = run(bnb.PagedAdamW8bit, shapes=SHAPES[:1])
    state = live.optimizer.state_dict()
    wrapped = state["state"][0]["__bnb_optimizer_quant_state__"]
    for key in ("state1", "state2"):
        wrapped[key].is_paged, wrapped[key].page_deviceid = True, 0
    found = read(state, tmp_path)
    assert found.optimizer == "adam_bnb"
    assert same(found.slots[0]["exp_avg_sq"].read(), unpacked(wrapped, "2"))
