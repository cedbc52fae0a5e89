"""The grammar of parameter names: wrappers, PEFT's containers, the adapter's name in and out, the spellings of LoRA's factors.

A *live name* is what `named_parameters()` gives, without the segments that wrappers put in. A *key* is what an adapter file calls the same tensor:
PEFT leaves out the adapter's name and `modules_to_save.`, diffusers and kohya spell the factors otherwise, ai-toolkit writes `$$` for a dot.
Every function here looks at text alone; which of two readings is true is asked where the file's keys are at hand (`ordering/keys.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ostate.errors import OrderingError, OstateError

if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    _Parameter = TypeVar("_Parameter", covariant=True)

    class LiveModel(Protocol[_Parameter]):
        """What is asked of a model: torch.nn.Module, and what wraps one."""

        def named_parameters(self, *, remove_duplicate: bool = ...) -> Iterable[tuple[str, _Parameter]]:
            """Yield (name, parameter)."""


WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Segments of torch.compile, FSDP1, activation checkpointing and Lightning's strategies, wherever they wrap. DDP's `module` is one in front only."""
LEADING = "module."
"""What DDP, DataParallel and DeepSpeed's engine put in front of every name of the model."""
PEFT_PREFIX = "base_model.model."
"""What PeftModel puts in front of its live names, and every PEFT file in front of its keys."""
COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "prior", "diffusion_model",
)  # fmt: skip
"""What diffusers' pipelines and ComfyUI put in front of a component's keys (diffusers loaders/lora_pipeline.py)."""
OF_COMPONENT = re.compile(
    r"(?:base_model\.model\.)?(?:(lora_(?:te\d?|unet|transformer|prior(?:_unet)?)|oft_unet)_|((?:unet|transformer|prior|text_encoder)(?:_\d)?)(?:\.|\$\$))"
)
"""The component that a name begins with: diffusers', OneTrainer's and ai-toolkit's folder names, kohya's `lora_te1_`, `lora_unet_`."""
VALUE_HEAD = ("v_head.summary.weight", "v_head.summary.bias")
"""What TRL's `AutoModelForCausalLMWithValueHead` registers behind the model, and saves beside the model's own names (modeling_value_head.py)."""
SAVED = "modules_to_save"
ADAPTER_CONTAINERS = (
    "lora_A", "lora_B", "lora_E", "lora_ranknum", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_diag",
    "lora_monteclora_sampler",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_R", "oft_r", "oft_s", "oft_embedding_R", "boft_R", "boft_s", "ia3_l",
    "vera_lambda_b", "vera_lambda_d", "pvera_lambda_b", "pvera_lambda_d",
    "vblora_logits_A", "vblora_logits_B", "vblora_vector_bank", "fourierft_spectrum", "waveft_spectrum",
    "hra_u", "miss_block", "bone_block", "ln_tuning_layers",
    "trainable_tokens_delta", "trainable_tokens_original", "poly_router", "poly_lora_A", "poly_lora_B", "c3a_kernel",
    "randlora_lambda", "randlora_gamma", "shira_weight", "road_theta", "road_alpha",
    "hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B",
    "delora_A", "delora_B", "delora_lambda", "gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general",
    "adamss_A", "adamss_B", "beft_bias", "deft_P", "deft_R", "frod_lambda_l", "frod_lambda_s_values", "glora_A", "glora_B", "glora_C", "glora_D",
    "glora_E", "lily_A", "lily_B", "lily_router", "peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders", "psoft_R",
    "osf_svd_params", "supertuning_values", "supertuning_lora_A", "supertuning_lora_B", "tinylora_v", "unilora_theta_d",
)  # fmt: skip
"""PEFT's dictionaries with one entry an adapter (`adapter_layer_names` of its layers), each layer's in the order of registration."""
CONTAINERS = frozenset(ADAPTER_CONTAINERS)
_BY_ADAPTER = CONTAINERS | {SAVED, "prompt_encoder"}
"""Segments after which the adapter's name stands in a live name."""
_TENSORS = frozenset({"weight", "bias"})
"""Last segments that a tensor of a module bears: after a container, the adapter's name is missing there."""
TUNER_WORDS = CONTAINERS | {
    SAVED, "base_layer", "original_module", "lora_a", "lora_b", "lora_down", "lora_up", "prompt_encoder", "adaption_prompt", "adaption_gate",
}  # fmt: skip
"""Segments that a tuner puts below the module it tunes."""
KINDS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_A", "lora_B")
"""Sorts of parameter that statistics keep apart, by a segment of the name."""
KINDS_OF_MODULES = (
    ("norm", re.compile(r"norm|^ln(_|\d|$)")),
    ("embed", re.compile(r"embed(?!_out)|^w[tp]e$|^trainable_tokens")),
    ("head", re.compile(r"^((lm|v|value|score|reward|cls|classification)_)?head$|^(score|classifier|embed_out|qa_outputs)$")),
)
"""The same by the module that a parameter belongs to: their second moments differ by powers of ten."""
FACTORS = (  # (the factor's own word, as a segment or two; what it is), tried in order
    (re.compile(r"(?:^|\.)(lora_embedding_A)(?=\.|$)"), "embedding_A"),
    (re.compile(r"(?:^|\.)(lora_embedding_B)(?=\.|$)"), "embedding_B"),
    (re.compile(r"(?:^|\.)(lora_A|lora_a|lora_down|lora\.down|down_lora|down_list|lora(?:_linear)?_layer\.down|(?<=_lora\.)down)(?=\.|$)"), "A"),
    (re.compile(r"(?:^|\.)(lora_B|lora_b|lora_up|lora\.up|up_lora|up_list|lora(?:_linear)?_layer\.up|(?<=_lora\.)up)(?=\.|$)"), "B"),
)
"""How LoRA's two factors are spelled: PEFT, torchtune, kohya and OneTrainer, LyCORIS' DyLoRA, diffusers up to 0.24, its attention processors,
its text encoders."""

_WHOLE = re.compile(r"\A((?:lora|lycoris)_[^.]+)\.(weight|bias)\Z")
"""A tensor of LyCORIS' `full` in the live network (lycoris/modules/full.py)."""
_DIFFERENCE = {"weight": "diff", "bias": "diff_b"}
"""What LyCORIS saves in its place: the change, under a name of its own."""
_FACTOR_WORDS = {"a": "A", "down": "A", "left": "A", "b": "B", "up": "B", "right": "B"}
"""Words that stand for the first and the second factor where no word of `FACTORS` is in any key of a file."""
_LAYER_WORDS = frozenset({"proj", "block", "blocks"})
"""What follows such a word in the name of a layer or of half a U-Net: `down_proj`, `up_blocks`."""


# wrappers


def without_inner(name: str) -> str:
    """Return the name without the segments of `WRAPPERS`, which are no module's own wherever they stand; the last one is the parameter's."""
    modules, dot, last = name.rpartition(".")
    return ".".join([*(part for part in modules.split(".") if part not in WRAPPERS), last]) if dot else name


def strip_wrappers(name: str) -> str:
    """Return one name without wrappers' segments. Of all names of a model ask `plain_names`, which knows a wrapper from a submodule `module`."""
    name = without_inner(name)
    while name.startswith(LEADING) and len(name) > len(LEADING):
        name = name.removeprefix(LEADING)
    return name


def leading_modules(names: Iterable[str]) -> str:
    """Return the `module.` that every one of these names begins with, once for each wrapper; nothing where one name lacks it."""
    common: str | None = None
    for name in names:
        own = re.match(r"(?:module\.)*(?=.)", without_inner(name))
        lead = own[0] if own else ""
        common = lead if common is None or len(lead) < len(common) else common
        if not common:
            break
    return common or ""


def plain_names(names: Sequence[str]) -> list[str]:
    """Return a model's names without wrappers' segments; a leading `module.` is a wrapper's only where every name has it."""
    lead = leading_modules(names)
    return [without_inner(name).removeprefix(lead) for name in names]


def named_parameters(model: LiveModel[_Parameter], *, error: type[OstateError] = OrderingError) -> list[tuple[str, _Parameter]]:
    """Return (plain name, parameter) of a live model in its own order, a shared parameter under each of its names, the first one first.

    Args:
        model: anything with `named_parameters(remove_duplicate=…)`.
        error: what to raise.

    Raises:
        OrderingError: two parameters have one name once the wrappers' segments are taken out.
    """
    if not hasattr(model, "named_parameters"):
        raise error(f"a model with named_parameters() is expected, not a {type(model).__name__}", fix="pass the torch.nn.Module")
    pairs = list(model.named_parameters(remove_duplicate=False))
    owner: dict[str, object] = {}
    found = []
    for (full, parameter), name in zip(pairs, plain_names([full for full, _ in pairs])):
        if owner.setdefault(name, parameter) is not parameter:
            raise error(
                f"two parameters are called {name!r} once the wrappers' segments are taken out",
                where=full,
                fix=f"rename the submodule that is called like a wrapper ({', '.join(sorted(WRAPPERS))}), or pass the inner model",
            )
        found.append((name, parameter))
    return found


def first_names(model: LiveModel[object], *, error: type[OstateError] = OrderingError) -> dict[int, str]:
    """Return id(parameter) -> plain name; a parameter that two modules share has its first. Raises as `named_parameters`."""
    known: dict[int, str] = {}
    for name, parameter in named_parameters(model, error=error):
        known.setdefault(id(parameter), name)
    return known


def twins(names: Iterable[str | None]) -> list[str]:
    """Return the names that stand more than once, in order of appearance."""
    return [name for name, count in Counter(name for name in names if name is not None).items() if count > 1]


# the adapter's name


def adapter_at(parts: Sequence[str]) -> int | None:
    """Return where in a live name the adapter's name stands: after the last container; None where it has no place."""
    for at in range(len(parts) - 1, 0, -1):
        if parts[at - 1] in _BY_ADAPTER and not (at == len(parts) - 1 and parts[at] in _TENSORS):
            return at
    return None


def any_adapter(name: str) -> str:
    """Return a plain name with `*` for the adapter's name, so that one parameter under two adapters' names is one."""
    parts = name.split(".")
    at = adapter_at(parts)
    return name if at is None else ".".join([*parts[:at], "*", *parts[at + 1 :]])


def renamed_adapter(name: str, old: str, new: str) -> str:
    """Return the live name with `new` for the adapter's name, where that is `old`."""
    parts = name.split(".")
    at = adapter_at(parts)
    return ".".join([*parts[:at], new, *parts[at + 1 :]]) if at is not None and parts[at] == old else name


def with_adapter(key: str, name: str) -> str:
    """Return the key with the adapter's name where PEFT took it out: before a last `weight` or `bias`, else at the end."""
    head, dot, last = key.rpartition(".")
    return f"{head}.{name}.{last}" if dot and last in _TENSORS else f"{key}.{name}"


def without_adapter(name: str, adapter_name: str) -> Iterator[str]:
    """Yield the keys that some release of PEFT wrote for the live name, the surest first; each is only a candidate until a file holds it."""
    yield name
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if part == SAVED and parts[at + 1] == adapter_name:
            yield ".".join(parts[:at] + parts[at + 2 :])
    if parts[-1] == adapter_name:
        yield ".".join(parts[:-1])
    elif len(parts) > 1 and parts[-2] == adapter_name:
        yield ".".join([*parts[:-2], parts[-1]])
        if len(parts) > 2 and parts[-3] == "lora_magnitude_vector":
            yield ".".join(parts[:-2])
    # an adapter joined from beside this one keeps its name in its keys
    yield name.replace(f".{SAVED}.", ".")
    if len(parts) > 2 and parts[-3] == "lora_magnitude_vector":
        yield ".".join(parts[:-1])
    # PEFT 0.3 to 0.17: key.replace(f".{adapter_name}", ""), which also eats the head of a module's name
    yield name.replace(f".{adapter_name}", "").replace(f"{SAVED}.", "")
    if "vblora_vector_bank" in parts:
        yield "base_model.vblora_vector_bank"


# spellings


def factor_of(key: str) -> tuple[str, str] | None:
    """Return (the key without the factor's word, A, B, embedding_A or embedding_B), or None for a key that is no LoRA factor's weight."""
    if key.endswith((".bias", "lora_magnitude_vector")):
        return None
    for pattern, kind in FACTORS:
        match = pattern.search(key)
        if match:
            return key[: match.start(1)] + key[match.end(1) :], kind
    return None


def factor_words(key: str) -> Iterator[tuple[str, str]]:
    """Yield (the key with `*` for one of its words, A or B) for each word by which somebody may tell two factors apart: `linear_a_q`, `w_b_000`.

    Each is only a candidate, until another key says the same with the other word and the shapes of the two go together.
    """
    pieces = re.split(r"([._$-]+)", key)
    for at in range(0, len(pieces), 2):
        kind = _FACTOR_WORDS.get(pieces[at].lower().removeprefix("lora"))
        if kind is not None and (pieces[at + 2 : at + 3] or [""])[0] not in _LAYER_WORDS:
            yield "".join([*pieces[:at], "*", *pieces[at + 1 :]]), kind


def spelled(key: str) -> str:
    """Return a key in PEFT's spelling: dots for ai-toolkit's `$$`, `lora_A` and `lora_B` for every other word for LoRA's factors.

    A tensor that LyCORIS trains whole is spelled as the difference that it saves.
    """
    key = key.replace("$$", ".")
    for pattern, kind in FACTORS[2:]:
        match = pattern.search(key)
        if match:
            return f"{key[: match.start(1)]}lora_{kind}{key[match.end(1) :]}"
    whole = _WHOLE.fullmatch(key)
    return f"{whole[1]}.{_DIFFERENCE[whole[2]]}" if whole else key


def of_whole_module(key: str) -> str:
    """Return the live name of a tensor that LyCORIS trains whole and saves as its difference; any other key as it is."""
    module, _, last = key.rpartition(".")
    name = {difference: name for name, difference in _DIFFERENCE.items()}.get(last)
    return f"{module}.{name}" if name is not None and _WHOLE.fullmatch(f"{module}.{name}") else key


def by_spelling(names: Iterable[str]) -> dict[str, str]:
    """Return, for each name that no other one is spelled like, its common spelling -> the name.

    The common spelling has PEFT's words for factors and dots, and lacks the adapter's name, and the component where no name in another one is then
    spelled alike: ai-toolkit's `transformer$$blocks$$0$$q.lora_down.weight` and its file's `diffusion_model.blocks.0.q.lora_A.weight` have one.
    So have `unet.down.0.q.lora_A.weight` of a pipeline's file and the U-Net's live name, which bears no component, whatever encoder lies beside;
    and ai-toolkit's `lora_transformer_blocks_0_q.lokr_w1` and `lycoris_blocks_0_q.lokr_w1` of its file.
    """
    forms: dict[str, str] = {}
    for name in names:
        parts = spelled(name).split(".")
        at = adapter_at(parts)
        forms[name] = ".".join(parts if at is None else [*parts[:at], *parts[at + 1 :]])
    # what stands before underscored paths of the denoiser; ai-toolkit saves another than it trains (network_mixins.py, `use_old_lokr_format`)
    bare = {name: form.removeprefix(component([form])) for name, form in forms.items()}
    bare = {name: re.sub(r"^(?:lora_unet|lora_transformer|lycoris)_(?=[^.]+\.)", "", form) for name, form in bare.items()}
    alike = Counter(bare.values())
    full = Counter(forms.values())
    once = {name: form if alike[form] == 1 else forms[name] for name, form in bare.items() if alike[form] == 1 or full[forms[name]] == 1}
    count = Counter(once.values())
    return {form: name for name, form in once.items() if count[form] == 1}


def component(keys: Iterable[str]) -> str:
    """Return the one component (`unet.`) that all keys lie in; nothing where one lies in none, or two lie in different ones."""
    heads = {key.partition(".")[0] for key in keys}
    return f"{heads.pop()}." if len(heads) == 1 and heads <= set(COMPONENTS) else ""


def without_lead(names: Sequence[str | None], count: int) -> list[str | None]:
    """Return the names without the first `count` segments, which all those of a tuner share: a LightningModule, a value head's wrapper.

    Where nothing is a tuner's, most names share them. None for a name that begins otherwise: a parameter beside the model. Nothing where there is
    no such beginning.
    """
    parts = [name.split(".", count) if name is not None else None for name in names]
    tuned = [part for name, part in zip(names, parts) if name is not None and is_tuned(name)]
    leads = Counter(tuple(part[:-1]) for part in tuned or parts if part is not None)
    lead, many = leads.most_common(1)[0] if leads else ((), 0)
    if len(lead) < count or (tuned and len(leads) > 1) or 2 * many <= leads.total():
        return []
    return [part[-1] if part is not None and part[:-1] == list(lead) else None for part in parts]


def common_leads(names: Iterable[str]) -> list[str]:
    """Return the modules that all names lie in, each with its dot and those around it: `model.`, `model.layers.`, … of `model.layers.0.weight`."""
    paths = [name.split(".")[:-1] for name in names]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(paths[0][:count]) + "." for count in range(1, shared + 1)]


# what a name tells of its parameter


def tuner_at(parts: Sequence[str], *, after: int = 0) -> int | None:
    """Return where the tuner's own part of a name begins, at `after` or behind it; None for a parameter that no tuner made."""
    return next((at for at, part in enumerate(parts) if at >= after and part in TUNER_WORDS), None)


def is_tuned(name: str) -> bool:
    """True for a parameter that lies in one of PEFT's containers."""
    return not CONTAINERS.isdisjoint(name.split("."))


def component_of(name: str) -> str:
    """Return the component of a diffusion pipeline that the name begins with (`unet`, `lora_te1`); empty where it begins with none."""
    found = OF_COMPONENT.match(name)
    return found[1] or found[2] if found else ""


def kind_of(name: str, dimensions: int | None = None) -> str:
    """Return what sort of parameter this is, for the cap and for statistics: `lora_A`, `lora_B`, `head`, `embed`, `norm`, `bias`, …, `other`.

    Args:
        name: the live name.
        dimensions: of the parameter; None: unknown. A weight of one dimension scales or shifts, as a norm's does.
    """
    parts = name.split(".")
    for kind in KINDS:
        if kind in parts:
            return f"{kind}.bias" if parts[-1] == "bias" else kind
    if parts[-1] == "bias":
        return "bias"
    for kind, word in KINDS_OF_MODULES:
        if any(word.search(part) for part in parts):
            return kind
    return "norm" if dimensions == 1 else SAVED if SAVED in parts else "other"


def place_in_model(name: str) -> str:
    """Return the name that the parameter had before PEFT wrapped it: without its prefix, `base_layer` and `modules_to_save.<adapter>`."""
    parts = name.removeprefix(PEFT_PREFIX).split(".")
    at = parts.index(SAVED) if SAVED in parts else len(parts)
    return ".".join(part for i, part in enumerate(parts) if part != "base_layer" and i not in (at, at + 1))
