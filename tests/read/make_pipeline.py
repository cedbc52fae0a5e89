"""Train a LoRA with DeepSpeed's pipeline engine in two stages, as diffusion-pipe does: `DS_ACCELERATOR=cpu python -m tests.read.make_pipeline OUT`.

Its blocks are layers of the pipeline; the adapter is gathered from the stages under the names that the model had before it was cut, with
ComfyUI's prefix (diffusion-pipe train.py, utils/saver.py, models/base.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import deepspeed
import peft
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from safetensors.torch import save_file
from torch import nn

from tests import ranks

WORLD = 2
WIDTH = 16
PREFIX = "diffusion_model."


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.narrow(torch.tanh(self.wide(x))))


class Layer(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, WIDTH, generator=source), torch.randn(8, WIDTH, generator=source)) for _ in range(4)]
    while True:
        yield from data


def save_adapter(out: Path, rank: int, config: peft.LoraConfig, names: dict[nn.Parameter, str]) -> None:
    """Gather what each stage trained and write it as diffusion-pipe does."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(WORLD)]
    dist.all_gather_object(parts, {PREFIX + name.replace(".default", ""): parameter.detach() for parameter, name in names.items()})
    if rank == 0:
        config.save_pretrained(str(out))
        save_file({key: value for part in parts for key, value in part.items()}, out / "adapter_model.safetensors", metadata={"format": "pt"})


def main(rank: int, out: str) -> None:
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # would be compiled for half a minute; gloo does without
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model = Model().requires_grad_(requires_grad=False)
    config = peft.LoraConfig(r=4, target_modules=["wide", "narrow", "last"])
    peft.get_peft_model(model, config)
    original = {parameter: name for name, parameter in model.named_parameters()}
    pipeline = PipelineModule(
        layers=[Layer(block) for block in model.blocks], num_stages=WORLD, partition_method="uniform", loss_fn=nn.functional.mse_loss
    )
    engine, *_ = deepspeed.initialize(
        model=pipeline, config={"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1, "steps_per_print": 1000}
    )
    trained = {parameter: original[parameter] for parameter in pipeline.parameters() if parameter.requires_grad}
    engine._configure_optimizer(lambda parameters: torch.optim.AdamW(parameters, lr=5e-3), list(trained))
    data = batches()
    for step in range(1, 41):
        engine.train_batch(data)
        if step in (20, 40):
            save_adapter(Path(out) / f"epoch{step // 20}", rank, config, trained)
            engine.save_checkpoint(out, client_state={"step": step}, exclude_frozen_parameters=True)
    truth = [(name, engine.optimizer.state[parameter]["exp_avg_sq"]) for parameter, name in trained.items()]
    torch.save(truth, f"{out}/truth_{rank}.pt")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    ranks.run(WORLD, main, sys.argv[1])
