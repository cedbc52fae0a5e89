"""Whose state is it: the probe compares it with the weights that it is given, as files and as a live model."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ostate
from ostate.cli import main
from ostate.probe import AdamPreconditioner, fill, filled, lora_adamw
from ostate.probe.fill import same_run
from tests.trained import Trained, llama, train

from .training import named_state

RANKS = {1: "all-linear", 4: ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[int, int], Trained]:
    """(rank, seed) -> a run; all on one base model."""
    root = tmp_path_factory.mktemp("runs")
    out = {}
    for rank, targets in RANKS.items():
        for seed in (0, 1):
            lora = {"r": rank, "target_modules": targets, "init_lora_weights": True}
            out[rank, seed] = train(root / f"r{rank}s{seed}", lambda: llama(3), steps=8, seed=seed, lora=lora)
    return out


def rules(findings) -> list[str]:
    return [finding.rule for finding in findings]


@pytest.mark.parametrize("rank", RANKS)
def test_a_live_model_of_another_run_is_flagged_and_that_of_the_run_itself_never(runs, rank, caplog):
    for mine, live in [(0, 0), (1, 1), (0, 1), (1, 0)]:
        caplog.clear()
        state = named_state(runs[rank, mine].model, runs[rank, mine].optimizer)
        model = runs[rank, live].fresh()
        optimizer = lora_adamw(model, state, lr=1e-3)
        other = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for findings in (filled(optimizer).findings, fill(other, model, state).findings, AdamPreconditioner(state, model=model).findings):
            assert ("state-of-another-run" in rules(findings)) == (mine != live)
        assert ("do not belong to the adapter in the live model" in caplog.text) == (mine != live)


def test_a_model_whose_adapter_was_never_loaded_is_flagged(runs):
    from peft import LoraConfig, get_peft_model

    run = runs[4, 0]
    fresh = get_peft_model(llama(3), LoraConfig(r=4, target_modules=RANKS[4], task_type="CAUSAL_LM"))
    (finding,) = filled(lora_adamw(fresh, named_state(run.model, run.optimizer), lr=1e-3)).findings
    assert finding.rule == "state-of-another-run"
    assert "no trained adapter was loaded" in finding.text


@pytest.mark.parametrize("early", [1, 2])
def test_after_the_first_steps_of_a_warm_up_a_zero_b_is_no_reason_to_worry(early):
    from peft import LoraConfig, get_peft_model

    from .training import batch

    model = get_peft_model(llama(2), LoraConfig(r=4, target_modules=RANKS[4], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    for step in range(early):
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert filled(lora_adamw(model, named_state(model, optimizer), lr=1e-3)).findings == ()


def pair(a, b, turn=None) -> same_run.FactorPair:
    """Factors after three steps whose balance is exact, and moments in the same gauge or turned."""
    g = torch.eye(a.shape[0], dtype=torch.float64) if turn is None else turn
    update = -b + 0.3 * torch.randn_like(b)
    gradient = torch.randn(b.shape[0], a.shape[1], dtype=torch.float64)
    return same_run.FactorPair(a, b, g @ (b.T @ gradient), gradient @ a.T @ g.T + 5 * update @ g.T, torch.full_like(b, 4.0))


def test_every_turn_is_weighed_as_if_the_turned_moments_were_compared_anew():
    """The quick sums over a few dimensions are the plain ones over whole matrices."""
    torch.manual_seed(0)
    r, n = 5, 3
    left, right = torch.randn(2, r, r, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    order, sign = same_run._turns(n, generator)
    got = same_run._balance(left, right, order, sign)
    assert torch.equal(order[0], torch.arange(n))
    assert torch.equal(sign[0], torch.ones(n, dtype=torch.float64))
    wanted = []
    for at in range(50):
        g = torch.eye(r, dtype=torch.float64)
        g[:n, :n] = torch.zeros(n, n, dtype=torch.float64).index_put_((torch.arange(n), order[at]), sign[at])
        wanted.append(float(((left @ g.T) * (g @ right)).sum()))
    assert [float(x - got[0]) for x in got[:50]] == pytest.approx([x - wanted[0] for x in wanted], rel=1e-9)


def test_under_a_random_turn_the_chance_is_uniform():
    """The null is exact: 200 tables of turned moments, by quarters of the chance that they get."""
    torch.manual_seed(0)
    counts = [0] * 4
    for _ in range(200):
        pairs = []
        for _ in range(3):
            a, b = torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
            g = torch.zeros(3, 3, dtype=torch.float64)
            g[torch.arange(3), torch.randperm(3)] = torch.randint(0, 2, (3,)).double() * 2 - 1
            pairs.append(pair(a, b, g))
        total = sum(
            same_run._standard(same_run._displacement(each, *same_run._turns(3, torch.Generator().manual_seed(at)))) for at, each in enumerate(pairs)
        )
        chance = float((total >= total[0]).sum()) / len(total)
        counts[min(int(4 * chance), 3)] += 1
    assert all(30 <= count <= 70 for count in counts), counts


def test_few_latent_dimensions_say_nothing_either_way():
    torch.manual_seed(0)
    a, b = torch.randn(1, 6, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    found = same_run.compare([pair(a, b)])
    assert found.digits == pytest.approx(0.301, abs=1e-3)
    assert found.chance > same_run.SMALLEST_CHANCE


@pytest.fixture(scope="module")
def named_files(runs, tmp_path_factory) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("named")
    for seed in (0, 1):
        ostate.repair(str(runs[4, seed].checkpoint), str(folder / f"{seed}.safetensors"))
    (folder / "data.jsonl").write_text("".join(json.dumps({"input_ids": [1 + (7 * row + at) % 90 for at in range(12)]}) + "\n" for row in range(4)))
    return folder


def probe(folder, runs, state: int, adapter, *more: str):
    run = runs[4, state]
    where = ["--model", str(run.base), "--adapter", str(adapter), "--data", str(folder / "data.jsonl")]
    return CliRunner().invoke(main, ["probe", str(folder / f"{state}.safetensors"), *where, "--eta", "1e-5", *more])


def test_the_command_refuses_the_adapter_of_another_run_and_takes_its_own(runs, named_files):
    for mine, other in permutations((0, 1)):
        assert "state-of" not in probe(named_files, runs, mine, runs[4, mine].checkpoint, "--json").output
        done = probe(named_files, runs, mine, runs[4, other].checkpoint)
        assert done.exit_code == 3, done.output
        assert "same run, same step" in done.output


def test_another_file_whose_numbers_fit_asks_for_a_look_and_the_recorded_one_does_not(runs, named_files, tmp_path):
    from safetensors.torch import load_file, save_file

    saved = tmp_path / "saved-anew"
    saved.mkdir()
    (saved / "adapter_config.json").write_text((runs[4, 0].checkpoint / "adapter_config.json").read_text())
    save_file(load_file(runs[4, 0].checkpoint / "adapter_model.safetensors"), saved / "adapter_model.safetensors", metadata={"saved": "anew"})
    anew = json.loads(probe(named_files, runs, 0, saved, "--json").stdout)
    own = json.loads(probe(named_files, runs, 0, runs[4, 0].checkpoint, "--json").stdout)
    assert (own["result"].pop("verdict"), anew["result"].pop("verdict")) == ("healthy", "healthy, with warnings")
    assert anew["result"] == own["result"]
    assert ["adapter-not-the-recorded-one" in rules(read(document)) for document in (anew, own)] == [True, False]
    assert anew["healthy"] is False


def test_a_state_that_records_no_adapter_is_compared_by_its_numbers(runs, named_files, tmp_path):
    """As `ostate.save` writes it from a live optimizer."""
    path = tmp_path / "live.safetensors"
    ostate.save(runs[4, 0].optimizer, runs[4, 0].model, str(path))
    where = ["--model", str(runs[4, 0].base), "--data", str(named_files / "data.jsonl"), "--eta", "1e-5", "--json"]
    own, other = (CliRunner().invoke(main, ["probe", str(path), "--adapter", str(runs[4, seed].checkpoint), *where]) for seed in (0, 1))
    assert (own.exit_code, other.exit_code) == (0, 3), own.output + other.output


def read(document) -> list[ostate.Finding]:
    return [ostate.Finding(**{**finding, "names": tuple(finding["names"])}) for finding in document["findings"]]
