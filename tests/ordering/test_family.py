"""Every order that a real program makes in place of the claimed one is in the claim's family, and nothing that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from ostate.core.naming import Claim, Question
from ostate.ordering import family
from ostate.ordering.keys import adapter_key
from tests.ordering.tiny import CAUSAL, Made, llama, trainables, write
from tests.records import replace

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Parameters = list[tuple[str, torch.nn.Parameter]]


def lora(model: torch.nn.Module, targets: list[str], **options: Any) -> torch.nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "target_modules": targets, **CAUSAL, **options}))


def own(model: torch.nn.Module) -> Parameters:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def adamw(*groups: Parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [parameter for _, parameter in group]} for group in groups], lr=1e-3)


def layer(one: tuple[str, torch.nn.Parameter]) -> int:
    return int(one[0].split(".layers.")[1].split(".")[0])


def true_keys(made: Made) -> tuple[str | None, ...]:
    adapter = made.adapter()
    return tuple(adapter_key(name, adapter) for name in made.flat)


def the_claim(made: Made, source: str, keys: tuple[str | None, ...] | None = None) -> tuple[Claim, list[Claim], Question]:
    """Return the first claim of the source, or one of that source with these keys; the others; and what they answer."""
    question = Question(raw=made.raw, adapter=made.adapter(), base=str(made.folder / "base"))
    claims = made.ask()[0]
    if keys is None:
        claim = next(claim for claim in claims if claim.source == source)
        return claim, [], question
    live = dict(zip(true_keys(made), made.flat))
    return Claim(source=source, rule="by hand", names=tuple(live[key] for key in keys), keys=keys), [], question  # type: ignore[arg-type]


def said(found: family.Family) -> dict[tuple[str | None, ...], str]:
    return {alternative.keys: alternative.what for alternative in found.alternatives}


def layers_descending(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(sorted(own(model), key=lambda one: -layer(one)))


def layers_as_text(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(sorted(own(model), key=lambda one: str(layer(one))))


MAKERS: list[tuple[Callable[[torch.nn.Module], torch.optim.Optimizer], str]] = [
    (layers_descending, "layers in descending order"),
    (layers_as_text, "layers sorted as text (0, 1, 10, 11, 2)"),
]


@pytest.mark.parametrize("maker, what", MAKERS)
def test_the_family_of_the_standard_order_holds_what_a_program_made_otherwise(
    tmp_path: Path, maker: Callable[[torch.nn.Module], torch.optim.Optimizer], what: str
) -> None:
    model = lora(llama(num_hidden_layers=12), ATTENTION)
    made = write(tmp_path, model, maker(model))
    claim, others, question = the_claim(made, "skeleton")
    assert claim.keys != true_keys(made)
    assert said(family.family_of(claim, others, question))[true_keys(made)] == what


def test_kinds_are_exchangeable_only_where_a_convention_speaks(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), [*ATTENTION, "gate_proj", "up_proj", "down_proj"])
    made = write(tmp_path, model, trainables(model))
    by_convention = family.family_of(*the_claim(made, "convention"))
    assert [one.kinds for one in by_convention.exchangeable] == [("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj")]
    first = by_convention.exchangeable[0].modules[1]
    assert first == tuple(f"base_model.model.model.layers.{at}.self_attn.k_proj.lora_B.weight" for at in range(3))
    rebuilt = family.family_of(*the_claim(made, "skeleton"))
    assert rebuilt.exchangeable == ()
    assert not any("exchanged" in one.what for one in rebuilt.alternatives)


def test_nothing_in_the_family_equals_the_claim_and_all_of_it_fits_the_shapes(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), [*ATTENTION, "gate_proj"])
    made = write(tmp_path, model, trainables(model))
    claim, others, question = the_claim(made, "skeleton")
    for source in ("skeleton", "convention", "recorded", "given", "adapter-order"):
        found = family.family_of(replace(claim, source=source), others, question)
        assert found.cut == 0
        assert len({one.keys for one in found.alternatives} | {claim.keys}) == len(found.alternatives) + 1
        for alternative in found.alternatives:
            assert sorted(map(str, alternative.keys)) == sorted(map(str, claim.keys))
            for entry, key in zip(question.raw.entries, alternative.keys):
                assert question.adapter is not None
                assert entry.shape == question.adapter.tensors[key or ""].shape
