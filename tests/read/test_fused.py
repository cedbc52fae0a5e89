"""Pairs that sd-scripts' split_qkv and DyLoRA join when they save are divided again, where the state says that they were several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ostate.read import read
from ostate.read.adapters import for_state, read_adapter

WIDTHS = (8, 8, 8, 20)
RANK, INPUT = 2, 6
STEM = "lora_unet_single_blocks_0_linear1"


def _write(folder: Path, ups: torch.Tensor, trained: list[torch.Tensor], down: torch.Tensor | None = None) -> None:
    if down is None:
        down = torch.arange(RANK * len(WIDTHS) * INPUT, dtype=torch.float32).reshape(-1, INPUT)
    save_file({f"{STEM}.lora_down.weight": down, f"{STEM}.lora_up.weight": ups}, folder / "model.safetensors")
    parameters = [torch.nn.Parameter(one.clone()) for one in trained]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")


def _diagonal() -> torch.Tensor:
    return torch.block_diag(*(torch.full((width, RANK), 1.0 + at) for at, width in enumerate(WIDTHS)))


SPLIT = [torch.zeros(RANK, INPUT) for _ in WIDTHS] + [torch.zeros(width, RANK) for width in WIDTHS]


def _read(folder: Path) -> dict[str, np.ndarray]:
    raw = read(str(folder / "optimizer.bin"))
    found = for_state(read_adapter(str(folder / "model.safetensors")), raw)
    assert bool(found.assumed) == (len(found.tensors) > 2)
    return {key: ref.read() for key, ref in found.tensors.items()}


def test_each_block_is_a_pair_of_its_own(tmp_path: Path):
    _write(tmp_path, _diagonal(), SPLIT)
    found = _read(tmp_path)
    assert list(found) == [f"{STEM}.lora_{word}.{at}.weight" for word in ("down", "up") for at in range(4)]
    for at, width in enumerate(WIDTHS):
        assert np.array_equal(found[f"{STEM}.lora_up.{at}.weight"], np.full((width, RANK), 1.0 + at, np.float32))
        rows = np.arange(at * RANK * INPUT, (at + 1) * RANK * INPUT, dtype=np.float32).reshape(RANK, INPUT)
        assert np.array_equal(found[f"{STEM}.lora_down.{at}.weight"], rows)


@pytest.mark.parametrize("fault", ["whole in the state", "no diagonal", "a block never trained"])
def test_what_was_not_joined_stays_whole(fault: str, tmp_path: Path):
    ups = _diagonal()
    whole = [torch.zeros(RANK * len(WIDTHS), INPUT), torch.zeros(sum(WIDTHS), RANK * len(WIDTHS))]
    if fault == "no diagonal":
        ups[0, -1] = 1.0
    if fault == "a block never trained":
        ups[:8] = 0.0
    _write(tmp_path, ups, whole if fault == "whole in the state" else SPLIT)
    assert list(_read(tmp_path)) == [f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"]


@pytest.mark.parametrize("lycoris", [False, True])
def test_the_ranks_of_dylora_are_pairs_of_their_own(lycoris: bool, tmp_path: Path):
    """sd-scripts trains and lists the downs first, one rank each; LyCORIS the ups first, a few ranks each."""
    size = 2 if lycoris else 1
    downs = [torch.full((size, INPUT), 1.0 + at) for at in range(6 // size)]
    ups = [torch.full((9, size), 11.0 + at) for at in range(6 // size)]
    live = {f"down_list.{at}" if lycoris else f"lora_A.{at}": one for at, one in enumerate(downs)}
    live = {**live, **{f"up_list.{at}" if lycoris else f"lora_B.{at}": one for at, one in enumerate(ups)}}
    if lycoris:
        live = dict(sorted(live.items(), key=lambda row: row[0].startswith("down")))
    _write(tmp_path, torch.cat(ups, 1), list(live.values()), down=torch.cat(downs))
    found = _read(tmp_path)
    assert list(found) == [f"{STEM}.{word}" for word in live]
    assert all(np.array_equal(found[f"{STEM}.{word}"], one.numpy()) for word, one in live.items())
