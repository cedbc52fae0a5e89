"""LoRA on embeddings: lora_embedding_A starts at zero and is stored the other way; two of one shape are told apart, whoever stands first."""

from __future__ import annotations

import pytest
import torch

from tests.evidence import runs
from tests.evidence.numbers import Known
from tests.evidence.test_methods import ask

SIZE = 64


class TwoTables(torch.nn.Module):
    """Words and places in tables of one shape, a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(SIZE, 24), torch.nn.Embedding(SIZE, 24)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(24, 24) for _ in range(4))

    def forward(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(at)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(3)
    teacher, net = TwoTables(), TwoTables()

    def loss(model, generator):
        ids, at = (torch.randint(SIZE, (4, 16), generator=generator) for _ in range(2))
        return ((model(ids, at) - teacher(ids, at).detach()) ** 2).mean()

    lora = {"r": 16, "target_modules": ["words", "places", *(f"layers.{i}" for i in range(4))]}
    return runs.known(runs.train(tmp_path_factory.mktemp("tables"), (net, loss), lora, steps=12))


def shifted(known: Known, words: tuple[str, ...], by: int) -> tuple[str | None, ...]:
    """Return the claim that gives each of these tensors the name of the next one of its shape."""
    chosen = [p for p, key in enumerate(known.keys) if any(word in str(key) for word in words)]
    keys = list(known.keys)
    for shape in {known.raw.entries[p].shape for p in chosen}:
        members = [p for p in chosen if known.raw.entries[p].shape == shape]
        for index, p in enumerate(members):
            keys[p] = known.keys[members[(index + by) % len(members)]]
    return tuple(keys)


def test_the_own_order_is_proven_with_every_embedding_by_itself(run):
    found = ask(run, run.keys)
    assert (found.verdict, found.open, found.apart) == ("verified", (), ())
    assert {p for p, key in enumerate(run.keys) if "lora_embedding" in str(key)} <= found.alone


@pytest.mark.parametrize("words", [("lora_embedding_A",), ("lora_embedding_B",), ("lora_embedding",), ("lora_embedding", "lora_A", "lora_B")])
def test_embeddings_shifted_are_never_verified(run, words):
    keys = shifted(run, words, 1)
    moved = {p for p, key in enumerate(keys) if key != run.keys[p]}
    assert moved
    assert not moved & ask(run, keys).proven
