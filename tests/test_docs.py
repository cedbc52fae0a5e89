"""The documentation is true: its command lines run, its Python is sound, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ostate.cli import COMMANDS, main
from tests.real import CASES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = {"first-five-minutes.md"}
"""Pages that a script writes from what it saw; their lines ran already."""
SLOW = {"demo", "probe"}
"""Commands that train or load a model; tests of their own run them."""
EXECUTED = {"docs/api.md", "docs/recipes/merging.md", "docs/recipes/dattri.md", "docs/recipes/resuming.md", "docs/recipes/layers.md"}
"""Pages whose Python needs nothing but the files of the sandbox."""
RUN = ("", "bash", "console", "sh", "text")
"""Languages of blocks whose command lines are run; Python may mention one."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def command_lines(text):
    """Return (environment, arguments) of every ostate command of a block, continued lines joined."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S* )*ostate\b", line):
            continue
        words = shlex.split(line.removeprefix("$ ").strip(), comments=True)
        given = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            key, _, given[key] = words.pop(0).partition("=")
        if words and words[0] == "ostate":
            found.append((given, words[1:]))
    return found


def fill(folder):
    """Put everything there that the documentation speaks of."""
    long_run = CASES / "long" / "long_opt"
    shutil.copytree(long_run / "checkpoint-300", folder / "checkpoint-500")
    shutil.copytree(long_run / "checkpoint-60", folder / "checkpoint-100")
    shutil.copytree(long_run / "checkpoint-300", folder / "checkpoint-300")
    for name in ("base", "base-model"):
        shutil.copytree(CASES / "long" / "long_opt.base", folder / name)
    shutil.copytree(long_run / "checkpoint-300", folder / "lora")
    (folder / "lora" / "optimizer.pt").rename(folder / "optimizer.pt")
    for name, source in (("zero", "ds_z2"), ("fsdp", "fsdp2_dcp"), ("automodel/optim", "fsdp2_dcp")):
        shutil.copytree(CASES / "distributed" / source, folder / name)
    fully_trained(folder / "run" / "checkpoint-500")
    for name, step in (("lora", 500), ("step-100", 100), ("step-500", 500)):
        run(["repair", f"checkpoint-{step}", "-o", f"{name}.ostate.safetensors"], {})


def fully_trained(folder):
    """Train every weight of a tiny model for some steps, and save both."""
    import torch

    from tests.trained import llama

    torch.manual_seed(0)
    model = llama(1)
    model.save_pretrained(folder.parent / "base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        ids = torch.randint(3, 96, (2, 8))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def clear(arguments):
    """Remove what an earlier line wrote to this command's output: pages are read one by one."""
    for flag, target in itertools.pairwise(arguments):
        if flag in ("-o", "--out"):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target) if Path(target).is_dir() else Path(target).unlink(missing_ok=True)


def run(arguments, given):
    done = CliRunner().invoke(main, arguments, env=given, catch_exceptions=False)
    assert done.exit_code in (0, 1), f"ostate {' '.join(arguments)}\n{done.output}"


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    here = Path.cwd()
    os.chdir(folder)
    fill(folder)
    os.chdir(here)
    return folder


@pytest.fixture
def sandbox(furnished, tmp_path, monkeypatch):
    folder = tmp_path / "sandbox"
    shutil.copytree(furnished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WRITTEN], ids=name_of)
def test_every_command_line_runs(page, sandbox):
    for text in blocks(page, *RUN):
        for given, arguments in command_lines(text):
            assert not arguments or arguments[0] in COMMANDS or arguments[0].startswith("-"), arguments
            if not SLOW & set(arguments):
                clear(arguments)
                run(arguments, given)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WRITTEN], ids=name_of)
def test_no_command_hides_in_a_block_that_is_not_run(page):
    """But for a job script, which needs a scheduler."""
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert language in RUN or language == "slurm" or not command_lines(text), f"{language}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles_and_imports_what_is_there(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ostate"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) in EXECUTED], ids=name_of)
def test_python_that_needs_only_files_runs(page, sandbox):
    for text in blocks(page, "", "bash"):
        for given, arguments in command_lines(text):
            clear(arguments)
            run(arguments, given)
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {})


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_that_parses(name, sandbox):
    command = main.get_command(click.Context(main), name)
    assert "Example:" in command.help, name
    lines = [line for text in command.help.split("Example:")[1:] for line in command_lines(text)]
    assert lines, name
    for _, arguments in lines:
        cut = [word for word in arguments if word not in (">", ">>")]
        if ">" in arguments or ">>" in arguments:
            cut = cut[: min(i for i, word in enumerate(arguments) if word in (">", ">>"))]
        assert cut[0] == name
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{name} {option.name}"


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_keep_to_the_fields_words(page):
    """What the messages do not say (`tests/test_messages.py`), the pages do not either; names of files are names."""
    text = re.sub(r"`[^`]*`|\(tests/[^)]*\)", "", page.read_text(encoding="utf-8"))
    assert re.findall(r"\b(?:skeleton|stands? aside|stood aside|speaks?|settles?|heard|kin|wishes|strangers?|at hand)\b", text) == []


def test_every_page_can_be_reached():
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8") + "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name in told, page.name


def test_the_tests_that_hold_the_rows_of_the_trainers_are_there():
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("trainers.md", "image-trainers.md")]
    rows = [line for page in pages for line in page.splitlines() if line.startswith("| ") and not line.startswith("| trainer |")]
    assert len(rows) >= 30
    for row in rows:
        held = row.rstrip("| ").rpartition("|")[2].strip()
        files = re.findall(r"`(tests/[\w/]+\.py)`", held)
        assert held == "source" or (files and all((ROOT / file).is_file() for file in files)), row


def test_every_schema_is_told_of():
    told = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for schema in (ROOT / "schemas").glob("*.json"):
        assert schema.name in told


def test_the_notebook_begins_with_the_checkpoint_that_the_demo_leaves():
    from ostate.commands.demo_run import STEPS

    assert f"ostate-demo/run/checkpoint-{STEPS}\\" in (ROOT / "examples" / "by_name.ipynb").read_text(encoding="utf-8")


def test_the_notebook_runs(sandbox, monkeypatch):
    monkeypatch.setenv("CHECKPOINT", "checkpoint-100")
    (sandbox / "lora.ostate.safetensors").unlink()
    there = {}
    for cell in json.loads((ROOT / "examples" / "by_name.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "by_name.ipynb", "exec"), there)
    assert there["done"].ordering.verdict == "verified"
    assert "Update size" in (sandbox / "report.html").read_text(encoding="utf-8")


def test_pictures_ask_the_network_for_nothing():
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert "url(http" not in text
        assert "@font-face" not in text
        assert "<script" not in text


def test_every_field_of_what_the_api_page_shows_is_documented():
    shown = set(re.findall(r"\b[A-Z]\w+\b", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    bare = []
    for path in set((ROOT / "ostate").rglob("*.py")) - set((ROOT / "ostate" / "evidence").rglob("*.py")):
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(found, ast.ClassDef) and found.name in shown | {"Filled", "ImportanceWeights", "ProbeReport"}:
                for field, after in zip(found.body, [*found.body[1:], None]):
                    told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if isinstance(field, ast.AnnAssign) and not told:
                        bare.append(f"{found.name}.{ast.unparse(field.target)}")
    assert bare == []
