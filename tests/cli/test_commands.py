"""The commands on real checkpoints: their documents fit the schemas, their pages are sound, their exit codes say what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ostate.cli import main
from tests.documents import validator
from tests.real import CASES, case
from tests.report.test_page import Outline

LONG = CASES / "long" / "long_opt"


def run(*args, ok=(0, 1)):
    done = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code in ok, done.output
    return done


def strict(text):
    """Read JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", ["llama_qv", "dora_12", "named_trainable", "bias_all", "neg_wrong_run", "fsdp2_dcp", "ds_z2", "lit_single"])
@pytest.mark.parametrize("values", [False, True], ids=["plain", "values"])
def test_inspect_prints_what_its_schema_says(name, values):
    found = case(name)
    args = ["--adapter", found.adapter] if found.adapter else []
    document = strict(run("inspect", found.state, *args, "--json", *(["--values"] if values else [])).stdout)
    validator("inspect").validate(document)
    assert bool(document["values"]) == values
    assert bool(document["fit"]) == bool(found.adapter)


@pytest.mark.parametrize("step", [2, 60, 300])
def test_verify_and_repair_print_what_their_schemas_say(step, tmp_path):
    out = tmp_path / "lora.ostate.safetensors"
    validator("repair").validate(strict(run("repair", LONG / f"checkpoint-{step}", "-o", out, "--json").stdout))
    document = strict(run("verify", out, "--adapter", LONG / f"checkpoint-{step}", "--json").stdout)
    validator("verify").validate(document)
    assert document["ordering"]["verdict"] == "verified"
    validator("inspect").validate(strict(run("inspect", out, "--json").stdout))


def test_a_page_of_a_named_file_holds_evidence_and_manifest(tmp_path):
    out, page = tmp_path / "lora.ostate.safetensors", tmp_path / "report.html"
    run("repair", LONG / "checkpoint-60", "-o", out)
    assert "wrote" in run("report", out, "--adapter", LONG / "checkpoint-60", "-o", page, ok=(0,)).stdout
    text = Outline(page.read_text(encoding="utf-8")).text
    for wanted in ("Evidence: adapter tensor against position", "format_version", "verified"):
        assert wanted in text


def test_checkpoints_without_names_are_named_for_the_page_and_nothing_else_is_written(tmp_path):
    before = {file: file.stat().st_mtime_ns for file in LONG.rglob("*")}
    page = tmp_path / "run.html"
    run("report", LONG / "checkpoint-300", LONG / "checkpoint-2", "-o", page, ok=(0,))
    assert "Over training" in page.read_text(encoding="utf-8")
    assert {file: file.stat().st_mtime_ns for file in LONG.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [page]


def test_a_page_is_not_replaced_unless_asked(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("mine")
    assert "--force" in run("report", LONG / "checkpoint-2", "-o", page, ok=(3,)).output
    assert page.read_text() == "mine"
    run("report", LONG / "checkpoint-2", "-o", page, "--force", ok=(0,))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_state_that_cannot_be_named_gives_no_page(tmp_path):
    found = case("neg_wrong_run")
    page = tmp_path / "report.html"
    done = run("report", found.state, "--adapter", found.adapter, "-o", page, ok=(3,))
    assert done.output.startswith("Error: ")
    assert "  fix: " in done.output
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_environment_too(monkeypatch, tmp_path):
    monkeypatch.setenv("OSTATE_REPORT_OUT", str(tmp_path / "report.html"))
    monkeypatch.setenv("OSTATE_QUIET", "1")
    assert run("report", LONG / "checkpoint-2", ok=(0,)).stdout == ""
    assert (tmp_path / "report.html").exists()


def test_a_plain_inspect_imports_nothing_heavy():
    code = (
        "import sys; from ostate.cli import main\n"
        f"main(['inspect', {str(LONG / 'checkpoint-300')!r}, '--adapter', {str(LONG / 'checkpoint-300')!r}], standalone_mode=False)\n"
        "print('HEAVY', sorted({'rich', 'numpy', 'torch', 'jsonschema', 'scipy', 'peft', 'jinja2', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "FORCE_COLOR": ""})
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_names_are_printed_a_line_each_and_never_obeyed(tmp_path):
    lines = run("names", LONG / "checkpoint-300", ok=(0,)).stdout.splitlines()
    assert len(lines) == 88
    assert lines[0].split("\t") == ["0", "base_model.model.model.decoder.layers.0.self_attn.k_proj.lora_A.default.weight", "8x96"]
    order = tmp_path / "order.txt"
    order.write_text("\n".join(line.split("\t")[1] for line in lines).replace("layers.0.self_attn.k_proj.lora_A", "\x1b[31mred") + "\n")
    hostile = run("names", LONG / "checkpoint-300", "--order", order, "--csv", ok=(0, 1, 3))
    assert "\x1b" not in hostile.output
