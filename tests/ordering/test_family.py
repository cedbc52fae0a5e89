"""Every order that a real program makes in place of the claimed one is in the claim's family, and nothing that cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ostate.core.naming import Adapter, Claim, Question
from ostate.core.state import Entry, Group, RawState
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


def keys_of(made: Made, order: Parameters) -> tuple[str | None, ...]:
    adapter = made.adapter()
    return tuple(adapter_key(name, adapter) for name, _ in order)


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


def attention(model: torch.nn.Module) -> torch.nn.Module:
    return lora(model, ATTENTION)


def square(model: torch.nn.Module) -> torch.nn.Module:
    """Rank and width agree, so that no shape tells lora_A from lora_B."""
    return lora(model, ["q_proj", "o_proj"], r=16)


def by_layer(key: Callable[[int], Any]) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    return lambda model: adamw(sorted(own(model), key=lambda one: key(layer(one))))


def of_factor(model: torch.nn.Module, factor: str) -> Parameters:
    return [one for one in own(model) if f".{factor}." in one[0]]


def a_then_b(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(of_factor(model, "lora_A") + of_factor(model, "lora_B"))


def b_then_a(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(of_factor(model, "lora_B") + of_factor(model, "lora_A"))


def b_before_a(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw([one for pair in zip(of_factor(model, "lora_B"), of_factor(model, "lora_A")) for one in pair])


def a_then_b_by_layer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(sorted(own(model), key=lambda one: (layer(one), "lora_B" in one[0])))


def names_sorted(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(sorted(own(model)))


def from_the_end(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(own(model)[::-1])


def one_module_in_front(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Every module one place earlier than a list says that counts one too many."""
    rows = own(model)
    return adamw(rows[2:] + rows[:2])


Maker = Callable[[torch.nn.Module], torch.optim.Optimizer]
TABLE: list[tuple[str, Maker, Callable[[torch.nn.Module], torch.nn.Module], str]] = [
    ("skeleton", by_layer(lambda at: -at), attention, "layers in descending order"),
    ("skeleton", by_layer(str), attention, "layers sorted as text (0, 1, 10, 11, 2)"),
    ("skeleton", a_then_b, square, "all lora_A before all lora_B"),
    ("skeleton", b_then_a, square, "all lora_B before all lora_A"),
    ("skeleton", b_before_a, square, "lora_B before lora_A, module by module"),
    ("skeleton", a_then_b_by_layer, square, "all lora_A of a block before its lora_B"),
    ("skeleton", names_sorted, attention, "the groups of names sorted, parameters as in AutoModelForCausalLM"),
    ("skeleton", from_the_end, square, "the order reversed"),
    ("recorded", by_layer(lambda at: (at + 1) % 12), attention, "layers one place later, the last first"),
    ("recorded", by_layer(lambda at: (at - 1) % 12), attention, "layers one place earlier, the first last"),
    ("recorded", one_module_in_front, attention, "every name, among those of one shape, one place earlier"),
    ("recorded", by_layer(lambda at: -at), attention, "layers in descending order"),
]


@pytest.mark.parametrize("source, maker, wrap, what", TABLE)
def test_the_family_of_the_standard_order_holds_what_a_program_made_otherwise(
    tmp_path: Path, source: str, maker: Maker, wrap: Callable[[torch.nn.Module], torch.nn.Module], what: str
) -> None:
    model = wrap(llama(num_hidden_layers=12))
    made = write(tmp_path, model, maker(model))
    claim, others, question = the_claim(made, source, keys_of(made, own(model)))
    assert claim.keys != true_keys(made)
    assert said(family.family_of(claim, others, question))[true_keys(made)] == what


def test_kinds_are_exchangeable_only_where_a_convention_speaks(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), [*ATTENTION, "gate_proj", "up_proj", "down_proj"])
    made = write(tmp_path, model, trainables(model))
    by_convention = family.family_of(*the_claim(made, "convention"))
    assert [one.kinds for one in by_convention.exchangeable] == [("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj")]
    first = by_convention.exchangeable[0].modules[1]
    assert first == tuple(tuple(f"base_model.model.model.layers.{at}.self_attn.k_proj.lora_{f}.weight" for f in "AB") for at in range(3))
    rebuilt = family.family_of(*the_claim(made, "skeleton"))
    assert rebuilt.exchangeable == ()
    assert "q_proj and k_proj exchanged in every layer" in {one.what for one in rebuilt.alternatives}  # another release may define them otherwise


@pytest.mark.parametrize(("told", "open_"), [(None, True), ("4.30.2", True), (metadata.version("transformers"), False)])
def test_the_release_that_a_checkpoint_was_trained_with_defines_its_kinds_in_one_order(tmp_path: Path, told: str | None, open_: bool) -> None:
    model = lora(llama(num_hidden_layers=3), ATTENTION)
    claim, others, question = the_claim(write(tmp_path, model, trainables(model)), "skeleton")
    assert question.adapter is not None
    facts = {"transformers_version": told} if told else {}
    found = family.family_of(claim, others, replace(question, adapter=replace(question.adapter, facts=facts)))
    assert ("q_proj and k_proj exchanged in every layer" in {one.what for one in found.alternatives}) == open_
    assert "layers in descending order" in {one.what for one in found.alternatives}


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


def test_a_group_of_its_own_may_run_from_the_top_layer_down(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=4), ["q_proj", "v_proj"])
    made = write(tmp_path, model, adamw(of_factor(model, "lora_B"), of_factor(model, "lora_A")[::-1]))
    claim, others, question = the_claim(made, "convention")
    assert said(family.family_of(claim, others, question))[true_keys(made)] == "the order reversed, in group 1 alone"


def test_groups_that_are_cut_otherwise_are_in_the_family(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), ["q_proj", "v_proj"], r=16)
    made = write(tmp_path, model, adamw(of_factor(model, "lora_B"), of_factor(model, "lora_A")))
    keys = keys_of(made, of_factor(model, "lora_A") + of_factor(model, "lora_B"))
    for source in ("skeleton", "recorded"):
        found = said(family.family_of(*the_claim(made, source, keys)))[true_keys(made)]
        assert found.startswith("the groups of two groups by hand") or found == "groups listed in the order 1, 0"


def test_other_claims_that_stand_are_in_the_family(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), ["q_proj", "v_proj"])
    made = write(tmp_path, model, trainables(model))
    claim, _, question = the_claim(made, "skeleton")
    other = replace(claim, source="given", rule="--order", keys=(claim.keys[4:] + claim.keys[:4]), names=(claim.names[4:] + claim.names[:4]))
    assert said(family.family_of(claim, [other], question))[other.keys] == "the order of --order (given)"


def two_adapters(made_of: Callable[[torch.nn.Module], Parameters], folder: Path) -> tuple[Claim, Question, tuple[str, ...]]:
    """Train two adapters of one model together; returns the order of `named_parameters` as a claim, and the optimizer's own names."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **CAUSAL)
    model = peft.get_peft_model(llama(num_hidden_layers=2), config)
    model.add_adapter("other", config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name
    made = write(folder, model, adamw(made_of(model)))
    question = Question(raw=made.raw, adapter=made.adapter())
    names = tuple(name for name, _ in own(model))
    claim = Claim(source="skeleton", rule="rebuilt", names=names, keys=keys_of(made, own(model)))
    return claim, question, tuple(made.flat)


@pytest.mark.parametrize(
    "order, what",
    [
        (lambda model: sorted(own(model), key=lambda one: ".default." in one[0]), "all of adapter other before default"),
        (lambda model: sorted(own(model), key=lambda one: ".other." in one[0]), "all of adapter default before other"),
        (lambda model: [one for pair in zip(own(model)[1::2], own(model)[::2]) for one in pair], "adapters default and other exchanged"),
        (
            lambda model: sorted(own(model), key=lambda one: (one[0].split(".lora_")[0], ".other." in one[0])),
            "adapter default before other, module by module",
        ),
    ],
)
def test_two_adapters_may_be_exchanged_or_stand_one_after_the_other(
    tmp_path: Path, order: Callable[[torch.nn.Module], Parameters], what: str
) -> None:
    claim, question, live = two_adapters(order, tmp_path)
    assert claim.names != live
    assert {one.names: one.what for one in family.family_of(claim, [], question).alternatives}[live] == what


def test_kinds_and_components_of_a_list_may_be_exchanged_everywhere(tmp_path: Path) -> None:
    model = lora(llama(num_hidden_layers=3), ATTENTION)
    other = {"q_proj": "k_proj", "k_proj": "q_proj"}
    rows = own(model)
    at = {name: index for index, (name, _) in enumerate(rows)}
    exchanged = [rows[at[".".join(other.get(part, part) for part in name.split("."))]] for name, _ in rows]
    made = write(tmp_path, model, adamw(exchanged))
    claim, others, question = the_claim(made, "recorded", keys_of(made, rows))
    assert said(family.family_of(claim, others, question))[true_keys(made)] == "q_proj and k_proj exchanged in every layer"


@dataclass(frozen=True)
class Sized:
    """Stands in for a tensor of which only the shape is asked."""

    shape: tuple[int, ...]


def synthetic(kinds: dict[str, tuple[int, int]], layers: int, experts: int, rank: int, cuts: tuple[int, ...] = ()) -> tuple[Claim, Question]:
    """Make a LoRA state in memory, in definition order, its groups cut at `cuts`. kinds: name -> (in, out)."""
    inside = [f"{layer}.experts.{expert}" for layer in range(layers) for expert in range(experts)] if experts else list(map(str, range(layers)))
    shapes = {}
    for at in inside:
        for kind, (wide, out) in kinds.items():
            shapes[f"base_model.model.layers.{at}.{kind}.lora_A.weight"] = (rank, wide)
            shapes[f"base_model.model.layers.{at}.{kind}.lora_B.weight"] = (out, rank)
    edges = [0, *cuts, len(shapes)]
    groups = tuple(Group(at, tuple(range(start, end))) for at, (start, end) in enumerate(pairwise(edges)))
    group_of = {position: group.index for group in groups for position in group.positions}
    entries = tuple(
        Entry(position=at, key=at, group=group_of[at], slots={"exp_avg": Sized(shape)}, shape=shape) for at, shape in enumerate(shapes.values())
    )
    raw = RawState(source="made", layout="torch", files=(), groups=groups, entries=entries)
    tensors = {key: Sized(shape) for key, shape in sorted(shapes.items())}
    adapter = Adapter(path="made", file="made", kind="peft", tensors=tensors, config={"peft_type": "LORA"})  # type: ignore[arg-type]
    names = tuple(key.replace(".weight", ".default.weight") for key in shapes)
    return Claim(source="recorded", rule="made", names=names, keys=tuple(shapes)), Question(raw=raw, adapter=adapter)


@pytest.mark.long
def test_a_mixture_of_experts_of_36864_positions_takes_seconds() -> None:
    claim, question = synthetic({"gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}, layers=48, experts=128, rank=8)
    assert len(claim.keys) == 36864
    for source in ("recorded", "convention", "adapter-order"):
        before = time.process_time()
        found = family.family_of(replace(claim, source=source), [], question)
        assert time.process_time() - before < 30  # 3 to 5 alone; 100 when one list is searched for each key
        assert {"layers in descending order", "experts sorted as text (0, 1, 10, 11, 2)"} <= {one.what for one in found.alternatives}


SIZES = st.sampled_from([2, 3])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj"]), st.tuples(SIZES, SIZES), min_size=1), st.integers(1, 12),
       st.integers(0, 3), SIZES, st.data())  # fmt: skip
def test_whatever_the_model_every_alternative_is_another_order_that_fits(
    kinds: dict[str, tuple[int, int]], layers: int, experts: int, rank: int, data: st.DataObject
) -> None:
    claim, question = synthetic(kinds, layers, experts, rank)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(claim.keys) - 1), max_size=3)))
    claim, question = synthetic(kinds, layers, experts, rank, tuple(cuts))
    source = data.draw(st.sampled_from(["recorded", "given", "convention", "skeleton", "adapter-order"]))
    found = family.family_of(replace(claim, source=source), [], question)
    assert found.cut == 0
    assert len({claim.keys, *(one.keys for one in found.alternatives)}) == len(found.alternatives) + 1
    for one in found.alternatives:
        assert sorted(map(str, one.keys)) == sorted(claim.keys)
        assert [question.adapter.tensors[key].shape for key in one.keys] == [entry.shape for entry in question.raw.entries]  # type: ignore[union-attr]
        assert [name.replace(".default.", ".") for name in one.names] == list(one.keys)


UNET = [f"{half}.attentions.0.transformer_blocks.0.{attention}.{kind}" for half in ("down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1")
        for attention in ("attn1", "attn2") for kind in ("to_q", "to_k", "to_v")]  # fmt: skip


def listed(modules: list[str], prefix: str = "", down: str = "lora_A", up: str = "lora_B") -> tuple[Claim, Question]:
    """Make a state of these modules, all of one shape, in this order."""
    keys = [f"{prefix}{module}.{factor}.weight" for module in modules for factor in (down, up)]
    shapes = [(2, 8), (8, 2)] * len(modules)
    entries = tuple(Entry(position=at, key=at, group=0, slots={"exp_avg": Sized(shape)}, shape=shape) for at, shape in enumerate(shapes))
    raw = RawState(source="made", layout="torch", files=(), groups=(Group(0, tuple(range(len(keys)))),), entries=entries)
    tensors = {key: Sized(shape) for key, shape in zip(keys, shapes)}
    adapter = Adapter(path="made", file="made", kind="diffusers", tensors=tensors)  # type: ignore[arg-type]
    return Claim(source="convention", rule="made", names=tuple(keys), keys=tuple(keys)), Question(raw=raw, adapter=adapter)


def order_of(claim: Claim, modules: list[str]) -> tuple[str | None, ...]:
    return tuple(key for module in modules for key in claim.keys if f"{module}." in f"{key}")


def test_blocks_of_both_halves_of_a_unet_are_of_one_class_and_change_together() -> None:
    claim, question = listed(UNET, "unet.")
    found = family.family_of(claim, [], question)
    ends = [tuple(kind.split(".")[-2:]) for kind in found.exchangeable[0].kinds]
    assert sorted(ends) == sorted((attention, kind) for attention in ("attn1", "attn2") for kind in ("to_q", "to_k", "to_v"))
    assert all(len(modules) == 4 for modules in found.exchangeable[0].modules)


def test_the_text_encoders_may_stand_before_or_behind_the_unet() -> None:
    for prefix, encoder, unet in (("", "text_encoder.layers", "unet.blocks"), ("lora_", "te1_text_model_layers", "unet_input_blocks")):
        sign = "_" if prefix else "."
        modules = [f"{encoder}{sign}{at}{sign}q" for at in range(2)] + [f"{unet}{sign}{at}{sign}q" for at in range(3)]
        claim, question = listed(modules, prefix, "lora_down" if prefix else "lora_A", "lora_up" if prefix else "lora_B")
        other = order_of(claim, modules[2:] + modules[:2])
        for source in ("convention", "adapter-order", "recorded"):
            found = said(family.family_of(replace(claim, source=source), [], question))
            assert any(words in found[other] for words in ("exchanged, with all they hold", "sorted", "parameters as in module order of"))


def test_what_repair_wrote_is_asked_as_the_source_that_named_it() -> None:
    claim, question = synthetic({"q_proj": (8, 8), "k_proj": (8, 8)}, layers=12, experts=0, rank=2)
    named = replace(question, raw=replace(question.raw, layout="named", facts={"named_by": "skeleton"}))
    assert said(family.family_of(claim, [], named)) == said(family.family_of(replace(claim, source="skeleton"), [], question))
    listed = replace(question, raw=replace(question.raw, layout="named", facts={"named_by": "convention"}))
    assert family.family_of(claim, [], listed).exchangeable
    assert not family.family_of(claim, [], named).exchangeable
