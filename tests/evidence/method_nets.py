"""Many small networks trained side by side with one of PEFT's methods, written out as in its source; Adam by hand.

Each layer is x + O V x (values) and x + D gelu(U x) (neurons), random at first. All layers of a network share its residual stream, data and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from scipy.stats import kstest

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.evidence.look import Source
from ostate.evidence.looks import Looks, Place
from ostate.evidence.methods import units_of
from tests.evidence.small_runs import BETAS, EPS, Saved
from tests.records import ArraySlot

HIDDEN, UNITS, RANK = 12, 16, 4
Tensors = dict[str, torch.Tensor]


def _random(*shape: int) -> torch.Tensor:
    return (2 * torch.rand(*shape) - 1) / math.sqrt(shape[-1])


def _lora_like(zero: str, other: str) -> Callable[[int], Tensors]:
    return lambda count: {zero: torch.zeros(count, UNITS, RANK), other: _random(count, RANK, HIDDEN)}


STARTS: dict[str, Callable[[int], Tensors]] = {
    "IA3": lambda count: {"ia3_l": torch.ones(count, UNITS, 1)},
    "LOHA": lambda count: {
        "hada_w1_a": _random(count, UNITS, RANK), "hada_w1_b": _random(count, RANK, HIDDEN),
        "hada_w2_a": _random(count, UNITS, RANK), "hada_w2_b": torch.zeros(count, RANK, HIDDEN),
    },
    "LOKR": lambda count: {
        "lokr_w1": torch.zeros(count, 4, 3), "lokr_w2_a": _random(count, UNITS // 4, 2), "lokr_w2_b": _random(count, 2, HIDDEN // 3),
    },
    "ADALORA": lambda count: {
        "lora_A": 0.02 * torch.randn(count, RANK, HIDDEN), "lora_B": 0.02 * torch.randn(count, UNITS, RANK), "lora_E": torch.zeros(count, RANK, 1),
    },
    "VERA": lambda count: {"vera_lambda_b": torch.zeros(count, UNITS), "vera_lambda_d": torch.full((count, RANK), 0.1)},
    "MISS": lambda count: {"miss_block": torch.zeros(count, RANK, UNITS)},
    "HRA": lambda count: {"hra_u": torch.repeat_interleave(torch.randn(count, HIDDEN, RANK // 2), 2, dim=2)},
    "BEFT": lambda count: {"beft_bias": torch.zeros(count, 1, UNITS)},
    "GRALORA": lambda count: {"gralora_A": _random(count, 2, HIDDEN // 2, RANK), "gralora_B": torch.zeros(count, 2, RANK, UNITS // 2)},
    "GLORA": lambda count: {
        f"glora_{part}.{name}": value for part in "AB" for name, value in _lora_like("Xd", "Xu")(count).items()
    },
    "ROAD": lambda count: {"road_theta": torch.zeros(count, UNITS // 2), "road_alpha": torch.ones(count, UNITS // 2)},
    "SHIRA": lambda count: {"shira_weight": torch.zeros(count, 24)},
    "BOFT": lambda count: {"boft_R": torch.zeros(count, 1, HIDDEN // 4, 4, 4), "boft_s": torch.ones(count, UNITS, 1)},
    "OFT": lambda count: {"oft_r": torch.zeros(count, HIDDEN // 4, 4, 4), "oft_s": torch.ones(count, UNITS, 1)},
    "PVERA": lambda count: {"pvera_lambda_b": torch.zeros(count, UNITS), "pvera_lambda_d": torch.full((count, 2 * RANK), 0.1)},
    "RANDLORA": lambda count: {"randlora_lambda": torch.zeros(count, RANK, 2), "randlora_gamma": torch.full((count, 2, HIDDEN), 1 / HIDDEN)},
    "FOURIERFT": lambda count: {"fourierft_spectrum": torch.zeros(count, 24)},
    "WAVEFT": lambda count: {"waveft_spectrum": torch.zeros(count, 24)},
    "C3A": lambda count: {"c3a_kernel": torch.zeros(count, UNITS // 4, HIDDEN // 4, 4)},
    "SUPERTUNING": lambda count: {
        "supertuning_values": torch.zeros(count, 24),
        "supertuning_lora_A.weight": _random(count, RANK, HIDDEN), "supertuning_lora_B.weight": torch.zeros(count, UNITS, RANK),
    },
    "HIRA": _lora_like("hira_B", "hira_A"),
    "DELORA": _lora_like("delora_B", "delora_A"),
}  # fmt: skip
"""By method: what one module of each network starts with, (networks, *shape)."""


def changed(method: str, weight: torch.Tensor, p: Tensors, frozen: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return a module's weight (networks, UNITS, HIDDEN) as the method makes it."""
    if method == "IA3":
        return weight * p["ia3_l"]
    if method == "LOHA":
        return weight + (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    if method == "LOKR":
        small = p["lokr_w2_a"] @ p["lokr_w2_b"]
        return weight + torch.einsum("mij,mkl->mikjl", p["lokr_w1"], small).reshape(weight.shape)
    if method == "ADALORA":
        return weight + p["lora_B"] @ (p["lora_A"] * p["lora_E"]) / RANK
    if method == "VERA":
        return weight + p["vera_lambda_b"][:, :, None] * (frozen[0] @ (p["vera_lambda_d"][:, :, None] * frozen[1]))
    if method == "MISS":
        return weight + p["miss_block"].transpose(1, 2).repeat(1, 1, HIDDEN // RANK)
    if method == "HRA":
        turn = torch.eye(HIDDEN)
        for u in p["hra_u"].unbind(2):
            unit = u / u.norm(dim=1, keepdim=True)
            turn = turn - 2 * (turn @ unit[:, :, None]) * unit[:, None]
        return weight @ turn
    if method == "GRALORA":
        return weight + blocks_of_products(p["gralora_A"], p["gralora_B"])
    if method == "GLORA":
        return weight * (1 + p["glora_A.Xd"] @ p["glora_A.Xu"]) + p["glora_B.Xd"] @ p["glora_B.Xu"]
    if method == "ROAD":
        first, second = weight.chunk(2, dim=1)  # one group: output i and output i + UNITS / 2
        cosine, sine = (p["road_alpha"] * turn for turn in (p["road_theta"].cos(), p["road_theta"].sin()))
        return torch.cat([first * cosine[:, :, None] - second * sine[:, :, None], second * cosine[:, :, None] + first * sine[:, :, None]], dim=1)
    if method in LINEAR:
        return weight + LINEAR[method](p)
    if method == "SUPERTUNING":
        return weight.flatten(1).scatter_add(1, _largest(weight), p["supertuning_values"]).reshape(weight.shape) + (
            p["supertuning_lora_B.weight"] @ p["supertuning_lora_A.weight"]
        )
    if method in ("BOFT", "OFT"):
        blocks, scale = (p["boft_R"][:, 0], p["boft_s"]) if method == "BOFT" else (p["oft_r"], p["oft_s"])
        skew, one = (blocks - blocks.transpose(-1, -2)) / 2, torch.eye(4)
        turns = torch.linalg.solve(one + skew, one - skew)  # Cayley's transform, (networks, blocks, 4, 4)
        return scale * torch.einsum("nobi,nbij->nobj", weight.reshape(*weight.shape[:2], -1, 4), turns).reshape(weight.shape)
    if method in ("BEFT", "PVERA"):
        return weight  # what they change is the output
    if method == "HIRA":
        return weight * (1 + p["hira_B"] @ p["hira_A"])
    sizes = p["delora_A"].norm(dim=2).clamp(min=1e-4) * p["delora_B"].norm(dim=1).clamp(min=1e-4)
    return weight + p["delora_B"] @ (p["delora_A"] / sizes[:, :, None])


def _largest(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().flatten(1).topk(24, dim=1).indices


def _fixed(*shape: int) -> torch.Tensor:
    """Return numbers that all modules of all networks share, as a projection seed gives them."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _at_places(values: torch.Tensor) -> torch.Tensor:
    """Return (networks, UNITS, HIDDEN) with the values at 24 places."""
    places = torch.randperm(UNITS * HIDDEN, generator=torch.Generator().manual_seed(1))[:24].expand(len(values), -1)
    return torch.zeros(len(values), UNITS * HIDDEN).scatter(1, places, values).reshape(-1, UNITS, HIDDEN)


def _haar(size: int) -> torch.Tensor:
    """Return one level of Haar's transform, (size, size)."""
    pairs = torch.eye(size // 2)
    return torch.cat([torch.kron(pairs, torch.tensor([[1.0, sign]])) for sign in (1, -1)]) / 2**0.5


def _circulants(kernel: torch.Tensor) -> torch.Tensor:
    """Return a weight of circulant blocks, (networks, out, in), from their first columns (networks, out / b, in / b, b)."""
    size = kernel.shape[3]
    shifted = torch.stack([kernel.roll(by, 3) for by in range(size)], dim=4)  # (networks, out / b, in / b, row, column)
    return shifted.permute(0, 1, 3, 2, 4).reshape(len(kernel), kernel.shape[1] * size, -1) / (kernel.shape[2] * size)


LINEAR: dict[str, Callable[[Tensors], torch.Tensor]] = {
    "SHIRA": lambda p: _at_places(p["shira_weight"]),
    "FOURIERFT": lambda p: 8 * torch.fft.ifft2(_at_places(p["fourierft_spectrum"])).real,
    "WAVEFT": lambda p: _haar(UNITS).T @ _at_places(p["waveft_spectrum"]) @ _haar(HIDDEN),
    "C3A": lambda p: _circulants(p["c3a_kernel"]),
    "RANDLORA": lambda p: torch.einsum(
        "kor,nrk,ri,nki->noi", _fixed(2, UNITS, RANK), p["randlora_lambda"], _fixed(RANK, HIDDEN), p["randlora_gamma"]
    ),
}
"""Changes of a weight that are linear in the tensor which starts at zero; places and bases are the same for all layers."""


def blocks_of_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return GraLoRA's change of the weight (networks, out, in) from A (networks, k, in / k, r) and B (networks, k, r, out / k).

    Block (j, i) is the product of latent dimensions (j, t) of A_i and (i, t) of B_j, as `forward` of peft tuners/gralora/layer.py has it.
    """
    count, k, width, rank = a.shape
    cut_a, cut_b = a.reshape(count, k, width, k, rank // k), b.reshape(count, k, k, rank // k, -1)
    return torch.einsum("nicjt,njito->njoic", cut_a, cut_b).reshape(count, -1, k * width)


def trained(method: str, count: int, *, layers: int = 4, steps: int = 4, rate: float = 3e-3, seed: int = 0) -> list[Saved]:
    """Train `count` networks; IA3 scales what enters D too, as its feed-forward modules are."""
    torch.manual_seed(seed)
    base = [
        (_random(count, UNITS, HIDDEN), _random(count, HIDDEN, UNITS), _random(count, UNITS, HIDDEN), _random(count, HIDDEN, UNITS))
        for _ in range(layers)
    ]
    frozen = _random(UNITS, RANK), _random(RANK, HIDDEN)
    params: Tensors = {}
    for layer in range(layers):
        params |= {f"layers.{layer}.self_attn.v_proj.{name}": value for name, value in STARTS[method](count).items()}
        if method == "IA3":
            params[f"layers.{layer}.mlp.down_proj.ia3_l"] = torch.ones(count, 1, UNITS)
    target = torch.randn(count, HIDDEN, HIDDEN) / HIDDEN**0.5
    m, v = ({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for step in range(1, steps + 1):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        start = x = torch.randn(count, 6, HIDDEN)
        for layer, (values, out, up, down) in enumerate(base):
            prefix = f"layers.{layer}.self_attn.v_proj."
            own = {name[len(prefix) :]: value for name, value in leaves.items() if name.startswith(prefix)}
            made = x @ changed(method, values, own, frozen).transpose(1, 2)
            if method == "PVERA":  # mean and log variance of what is sampled
                mean, spread = (own["pvera_lambda_d"][:, None] * (x @ _fixed(HIDDEN, 2 * RANK))).chunk(2, dim=2)
                sampled = mean + torch.randn_like(mean) * (spread / 2).exp()
                made = made + own["pvera_lambda_b"][:, None] * (sampled @ frozen[0].T)
            x = x + (made + own["beft_bias"] if method == "BEFT" else made) @ out.transpose(1, 2)
            hidden = torch.nn.functional.gelu(x @ up.transpose(1, 2))
            scale = leaves.get(f"layers.{layer}.mlp.down_proj.ia3_l")
            x = x + (hidden if scale is None else hidden * scale) @ down.transpose(1, 2)
        loss = ((x - start @ target) ** 2).mean(dim=(1, 2)).sum()
        if method == "ADALORA":
            for name, value in leaves.items():
                if "lora_E" not in name:
                    wide = value if "lora_A" in name else value.transpose(1, 2)
                    loss = loss + 0.5 / layers * (wide @ wide.transpose(1, 2) - torch.eye(RANK)).norm(dim=(1, 2)).sum()
        _step(params, m, v, torch.autograd.grad(loss, list(leaves.values())), step, rate)
    return [_saved(method, number, params, m, v, steps, rate) for number in range(count)]


def trained_whole(count: int, *, layers: int = 4, steps: int = 4, rate: float = 1e-3, seed: int = 0) -> list[Saved]:
    """Train every weight of `count` networks: values and output of two heads, and gated neurons, six tensors a layer but for queries and keys."""
    torch.manual_seed(seed)
    shapes = {"self_attn.v_proj": (UNITS, HIDDEN), "self_attn.o_proj": (HIDDEN, UNITS)}
    shapes |= {"mlp.gate_proj": (UNITS, HIDDEN), "mlp.up_proj": (UNITS, HIDDEN), "mlp.down_proj": (HIDDEN, UNITS)}
    params = {f"layers.{layer}.{name}.weight": _random(count, *shape) for layer in range(layers) for name, shape in shapes.items()}
    target = torch.randn(count, HIDDEN, HIDDEN) / HIDDEN**0.5
    m, v = ({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for step in range(1, steps + 1):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        start = x = torch.randn(count, 6, HIDDEN)
        for layer in range(layers):
            values, out, gate, up, down = (leaves[f"layers.{layer}.{name}.weight"].transpose(1, 2) for name in shapes)
            x = x + x @ values @ out
            x = x + (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down
        loss = ((x - start @ target) ** 2).mean(dim=(1, 2)).sum()
        _step(params, m, v, torch.autograd.grad(loss, list(leaves.values())), step, rate)
    return [_saved("", number, params, m, v, steps, rate) for number in range(count)]


def _step(params: Tensors, m: Tensors, v: Tensors, slopes: Iterable[torch.Tensor], step: int, rate: float) -> None:
    for name, slope in zip(params, slopes):
        m[name] += (1 - BETAS[0]) * (slope - m[name])
        v[name] += (1 - BETAS[1]) * (slope**2 - v[name])
        params[name] = params[name] - rate * (m[name] / (1 - BETAS[0] ** step)) / ((v[name] / (1 - BETAS[1] ** step)).sqrt() + EPS)


def _saved(method: str, number: int, params: Tensors, m: Tensors, v: Tensors, steps: int, rate: float) -> Saved:
    keys = tuple(f"base_model.model.model.{name}" if method else f"model.{name}" for name in params)
    one: Callable[[Mapping[str, torch.Tensor], str], np.ndarray] = lambda table, name: table[name][number].numpy().copy()  # noqa: E731
    tensors = {key: ArraySlot(one(params, name)) for key, name in zip(keys, params)}
    entries = tuple(
        Entry(
            position=at,
            key=at,
            group=0,
            slots={"exp_avg": ArraySlot(one(m, name)), "exp_avg_sq": ArraySlot(one(v, name))},
            step=float(steps),
            shape=tensors[key].shape,
        )
        for at, (key, name) in enumerate(zip(keys, params))
    )
    hyper = {"lr": rate, "betas": BETAS, "eps": EPS, "weight_decay": 0.0, "amsgrad": False}
    raw = RawState(
        source="small",
        layout="torch",
        files=(),
        groups=(Group(index=0, positions=tuple(range(len(keys))), hyper=hyper),),
        entries=entries,
        optimizer="adamw",
    )
    if not method:
        facts = {"head_dim": UNITS // 2}
        return Saved(raw, Adapter(path="small", file="small", kind="model", tensors=tensors, config={}, facts=facts), keys)
    config = {
        "peft_type": method,
        "r": RANK,
        "target_modules": ["v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "task_type": "CAUSAL_LM",
    }
    if method in ("FOURIERFT", "C3A"):
        config["init_weights"] = True  # these start at random unless asked
    return Saved(raw, Adapter(path="small", file="small", kind="peft", tensors=tensors, config=config), keys)


WHOLE = "every weight"
LAWS = (*STARTS, WHOLE)


def networks(law: str, count: int, *, layers: int = 4, steps: int = 4, seed: int = 0) -> list[Saved]:
    """Return trained networks of one method, or of every weight."""
    if law == WHOLE:
        return trained_whole(count, layers=layers, steps=steps, seed=seed)
    return trained(law, count, layers=layers, steps=steps, seed=seed)


def wrong_pairs(run: Saved) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (kind, ranks, sizes) of units beside the moments of the next layer's: layers 0 and 1, 2 and 3, so that pairs are independent."""
    looks = Looks(Source(run.raw, run.adapter), units_of(run.adapter))
    at = {key: position for position, key in enumerate(run.keys)}
    for number, unit in enumerate(looks.modules):
        layer = int(unit.prefix.split("layers.")[1].split(".")[0])
        if unit.group is None or layer % 2:
            continue
        theirs = [at[key.replace(f"layers.{layer}.", f"layers.{layer + 1}.")] if key else None for key in (unit.zero, unit.other)]
        (found,) = looks.ranked([Place(number, theirs[0], theirs[1])], "whole")
        yield f"{unit.zero.partition('_proj.')[2]} {unit.group}", np.array([one.rank for one in found]), np.array([one.size for one in found])


def uniformity(method: str, count: int, *, steps: int, seed: int) -> dict[str, float]:
    """Return by kind of unit the Kolmogorov-Smirnov p of its p values, spread evenly within their steps: first blocks, of independent runs."""
    values: dict[str, list[float]] = {}
    spread = np.random.default_rng(1)
    for run in networks(method, count, steps=steps, seed=seed):
        for kind, ranks, sizes in wrong_pairs(run):
            values.setdefault(kind, []).extend((ranks - spread.random(len(ranks))) / sizes)
    return {kind: float(kstest(each, "uniform").pvalue) for kind, each in values.items()}
