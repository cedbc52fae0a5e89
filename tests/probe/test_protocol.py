"""`ostate probe` and the call behind it, on a real model and adapter saved to disk."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from ostate.cli import main
from ostate.errors import ProbeError
from ostate.probe.measure import protocol
from ostate.probe.measure.protocol import Record, Settings, read_records, read_settings
from tests.records import replace
from tests.schemas import closed, read

from .training import batch, edited


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """Folder with base/, adapter/, data.jsonl and lora.ostate.safetensors."""
    from ostate.store import write

    model, _, state = run
    folder = tmp_path_factory.mktemp("probe")
    model.save_pretrained(str(folder / "adapter"))
    import copy

    copy.deepcopy(model).unload().save_pretrained(str(folder / "base"))
    rows = [{"input_ids": ids, "advantage": 1.0} for seed in (1, 2) for ids in batch(seed)["input_ids"].tolist()]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(state, folder / "lora.ostate.safetensors")
    return folder


def arguments(folder, *more):
    return [
        "probe",
        str(folder / "lora.ostate.safetensors"),
        "--model",
        str(folder / "base"),
        "--adapter",
        str(folder / "adapter"),
        "--data",
        str(folder / "data.jsonl"),
        *more,
    ]


def test_a_healthy_state_is_probed_and_called_so(saved):
    done = CliRunner().invoke(main, arguments(saved, "--eta", "1e-5"))
    assert done.exit_code == 0, done.output
    assert "coverage: exp_avg_sq 100.0%, step 100.0%" in done.output
    assert "bars_dot, identity:" in done.output
    assert "delta-H1 = 1e-05 (given)" in done.output
    assert done.output.rstrip().endswith("verdict: healthy")


def test_json_is_one_document_with_plain_values(saved):
    done = CliRunner().invoke(main, arguments(saved, "--json", "--batch-e", "1", "--batch-u", "3"))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    import jsonschema

    jsonschema.validate(found, closed(read("probe-v1")))
    assert found["healthy"] is True
    assert found["eta_from"] == "the state's lr"
    assert found["result"]["value"] == pytest.approx(1e-2 * found["result"]["bars_dot"])


def test_a_fixed_cap_that_touches_much_asks_for_a_look(saved):
    done = CliRunner().invoke(main, arguments(saved, "--max-scale", "10"))
    assert done.exit_code == 1, done.output
    assert "the cap 10 clips" in done.output


def test_too_few_sequences_and_a_wrong_adapter_are_refused(saved, tmp_path):
    done = CliRunner().invoke(main, arguments(saved, "--batch-e", "90"))
    assert done.exit_code == 3
    assert "90 + 2 sequences are needed, the data has 8" in done.output
    done = CliRunner().invoke(
        main, [*arguments(saved)[:4], "--adapter", str(tmp_path), "--data", str(saved / "data.jsonl"), "--model", str(saved / "base")]
    )
    assert done.exit_code in (2, 3)
    assert "Traceback" not in done.output


def test_the_config_of_the_seed_is_understood(saved, tmp_path):
    config = tmp_path / "probe.yaml"
    config.write_text("importance:\n  checkpoint_step: 123456\n  identity_preconditioner_if_coverage_below: 0.8\n  is_mode: snis\nother: {a: 1}\n")
    assert read_settings(str(config)) == Settings(checkpoint_step=123456, identity_preconditioner_if_coverage_below=0.8, ignored=("is_mode",))
    config.write_text("importance:\n  checkpoint_step: many\n")
    with pytest.raises(ProbeError, match="must be a number, not 'many'"):
        read_settings(str(config))
    config.write_text("- a\n- b\n")
    with pytest.raises(ProbeError, match="no mapping"):
        read_settings(str(config))
    config.write_text("")
    assert read_settings(str(config)) == Settings()


RECORDS = [Record(ids=tuple(ids), counted=(True,) * len(ids)) for ids in batch(1)["input_ids"].tolist()]


def test_the_checkpoint_step_stands_in_for_missing_steps(run):
    import copy

    state = run[2]
    for name in list(state.parameters):
        state = edited(state, name, step=None)
    known, given, none = (
        protocol.run(s, copy.deepcopy(run[0]), RECORDS, eta=1e-5, settings=Settings(checkpoint_step=step))
        for s, step in [(run[2], None), (state, 20), (state, None)]
    )
    assert given.result.value == pytest.approx(known.result.value, rel=1e-12)
    assert given.coverage_step == 1.0
    assert given.healthy
    assert none.coverage_step == 0.0
    assert not none.healthy


def test_poor_coverage_makes_an_identity_verdict(run):
    import copy

    few = replace(run[2], parameters=dict(list(run[2].parameters.items())[:14]))
    report = protocol.run(few, copy.deepcopy(run[0]), RECORDS)
    assert report.result.verdict == "identity"
    assert not report.healthy
    lower = protocol.run(few, copy.deepcopy(run[0]), RECORDS, settings=Settings(identity_preconditioner_if_coverage_below=0.4))
    assert lower.result.verdict != "identity"


def test_a_learning_rate_of_zero_gives_way_to_the_initial_one_or_is_asked_for(run):
    import copy

    ended = tuple(replace(g, hyper={**g.hyper, "lr": 0.0, "initial_lr": 3e-4}) for g in run[2].groups)
    report = protocol.run(replace(run[2], groups=ended), copy.deepcopy(run[0]), RECORDS)
    assert (report.result.eta, report.eta_from) == (3e-4, "the state's initial_lr")
    nothing = tuple(replace(g, hyper={**g.hyper, "lr": 0.0}) for g in run[2].groups)
    with pytest.raises(ProbeError, match="no learning rate other than 0"):
        protocol.run(replace(run[2], groups=nothing), copy.deepcopy(run[0]), RECORDS)


def test_records_are_read_in_each_of_their_forms(tmp_path):
    path = tmp_path / "data.jsonl"

    def words(text):
        return [len(word) for word in text.split()]

    path.write_text(
        '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "advantage": -0.5}\n\n{"prompt": "a bb", "completion": "ccc"}\n{"text": "x yy"}\n'
    )
    assert read_records(str(path), words) == [
        Record(ids=(1, 2, 3), counted=(False, True, True), advantage=-0.5),
        Record(ids=(1, 2, 3), counted=(False, False, True)),
        Record(ids=(1, 2), counted=(True, True)),
    ]
    with pytest.raises(ProbeError, match="needs the model's tokenizer"):
        read_records(str(path), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the data is empty"),
        ("{", "cannot read the data"),
        ("[1]", "one JSON object per line"),
        ('{"a": 1}', "without input_ids"),
        ('{"input_ids": [1]}', "no token of this sequence is predicted"),
        ('{"input_ids": [1, 2], "labels": [1]}', "1 labels for 2 tokens"),
    ],
)
def test_data_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(ProbeError, match=message):
        read_records(str(path), None)


def test_entropy_and_objective_count_only_the_counted_tokens():
    logits = torch.randn(3, 5)
    record = Record(ids=(0, 1, 2, 3), counted=(True, False, True, True), advantage=-2.0)
    logp = logits.log_softmax(-1)
    torch.testing.assert_close(protocol.entropy(logits, record), -(logp.exp() * logp).sum(-1)[1:].mean())
    torch.testing.assert_close(protocol.objective(logits, record), -2.0 * (logp[1, 2] + logp[2, 3]) / 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input_ids": "12"}', "input_ids is not a list of token ids"),
        ('{"input_ids": [1, "2"]}', "input_ids is not a list of token ids"),
        ('{"input_ids": [1, -2]}', "input_ids is not a list of token ids"),
        ('{"input_ids": [1, 1e400]}', "input_ids is not a list of token ids"),
        ('{"input_ids": {"0": 1}}', "input_ids is not a list of token ids"),
        ('{"input_ids": [1, 2], "labels": 7}', "labels is not a list"),
        ('{"input_ids": [1, 2], "advantage": "much"}', "the advantage is 'much'"),
        ('{"input_ids": [1, 2], "advantage": NaN}', "the advantage is nan"),
        ('{"input_ids": [1, 2], "advantage": [1]}', "the advantage is"),
        ("[" * 200_000, "cannot read the data"),
        ('{"input_ids": [1, ' + "9" * 5000 + "]}", "cannot read the data"),
    ],
)
def test_data_of_another_kind_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(ProbeError, match=message) as caught:
        read_records(str(path), None)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "cannot be used"), ("cuda:99", "cannot be used"), ("abacus", "cannot be used"), ("meta", "holds no numbers")]
)
def test_a_device_that_is_not_there_is_refused_in_words(saved, device, message):
    if device == "cuda" and torch.cuda.is_available():
        return
    done = CliRunner().invoke(main, arguments(saved, "--device", device))
    assert done.exit_code == 3, done.output
    assert message in done.stderr
    assert "--device cpu" in done.stderr


def test_a_token_outside_the_vocabulary_is_refused_in_words(saved, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input_ids": [1, 2, 3]}\n' * 3 + '{"input_ids": [1, 2000000, 3]}\n')
    done = CliRunner().invoke(main, arguments(saved, "--data", str(data)))
    assert done.exit_code == 3, done.output
    assert "token id 2000000 of sequence 4 is outside the model's vocabulary of" in done.stderr


def test_an_adapter_of_a_larger_model_and_folders_that_are_no_model_are_refused_in_words(saved, tmp_path):
    import shutil

    config = json.loads((saved / "base" / "config.json").read_text())
    wrong = {"narrow": {"hidden_size": config["hidden_size"] * 2}, "kind": {"model_type": "no-such-thing"}, "type": {"vocab_size": "x"}}
    for name, change in wrong.items():
        shutil.copytree(saved / "base", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "cut").mkdir()
    for file in (saved / "base").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[: 40 if file.suffix == ".safetensors" else None])
    (tmp_path / "empty").mkdir()
    for name in ("narrow", "kind", "type", "cut", "empty"):
        done = CliRunner().invoke(main, arguments(saved, "--model", str(tmp_path / name)))
        assert done.exit_code == 3, f"{name}: {done.output}"
        assert "the model or its adapter cannot be loaded" in done.stderr


def test_a_tokenizer_that_is_damaged_is_refused_in_words(saved, tmp_path):
    import shutil

    shutil.copytree(saved / "base", tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_text("{")
    done = CliRunner().invoke(main, arguments(saved, "--model", str(tmp_path / "base")))
    assert done.exit_code == 3, done.output
    assert "the tokenizer cannot be loaded" in done.stderr
