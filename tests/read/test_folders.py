"""Which file a folder means: the only state in it or below it, and never a guess between two."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from ostate import read as formats
from ostate.errors import ReadError, UnknownFormat, UnsafePickle
from ostate.read import named_file
from ostate.read.checkpoint_folder import card_versions
from tests import real
from tests.read.archives import Call, saved
from tests.read.test_torch_file import adamw, holds


@pytest.fixture
def optimizer(tmp_path):
    made = adamw()
    torch.save(made.state_dict(), tmp_path / "optimizer.pt")
    return made


def test_other_files_of_a_checkpoint_are_no_states(tmp_path, optimizer):
    for file in ("scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin", "notes.pt"):
        torch.save({"a": torch.zeros(2)}, tmp_path / file)
    saved(tmp_path / "args.bin", {"x": Call("transformers.training_args.TrainingArguments")})
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "readme.pt").write_text("not a torch file")
    assert holds(formats.read(str(tmp_path)), optimizer)


def test_the_name_of_the_file_does_not_matter(tmp_path, optimizer):
    (tmp_path / "optimizer.pt").rename(tmp_path / "last.anything")
    assert holds(formats.read(str(tmp_path)), optimizer)


def test_a_state_some_levels_below_is_found(tmp_path, optimizer):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "optimizer.pt").rename(tmp_path / "a/b/c/optimizer.pt")
    raw = formats.read(str(tmp_path))
    assert holds(raw, optimizer)
    assert raw.source == str(tmp_path)
    assert raw.facts["folder"] == str(tmp_path / "a/b/c")


def test_two_states_are_an_error_that_lists_both_and_state_settles_it(tmp_path, optimizer):
    other = adamw(torch.nn.Linear(2, 2))
    torch.save({"optimizer": other.state_dict()}, tmp_path / "bundle.ckpt")
    with pytest.raises(UnknownFormat) as caught:
        formats.read(str(tmp_path))
    assert caught.value.what == "2 states in this folder: bundle.ckpt, optimizer.pt"
    assert "--state" in caught.value.fix
    assert holds(formats.read(str(tmp_path), state="bundle.ckpt"), other)
    assert holds(formats.read(str(tmp_path), state=str(tmp_path / "optimizer.pt")), optimizer)


def test_two_checkpoints_below_a_folder_are_an_error_that_lists_both(tmp_path, optimizer):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        shutil.copy(tmp_path / "optimizer.pt", tmp_path / f"checkpoint-{step}/optimizer.pt")
    (tmp_path / "optimizer.pt").unlink()
    with pytest.raises(UnknownFormat, match=r"2 states in this folder: checkpoint-10.optimizer\.pt, checkpoint-5.optimizer\.pt"):
        formats.read(str(tmp_path))
    assert holds(formats.read(str(tmp_path), state="checkpoint-5"), optimizer)


def test_a_folder_that_holds_a_state_itself_means_that_one(tmp_path, optimizer):
    (tmp_path / "checkpoint-5").mkdir()
    shutil.copy(tmp_path / "optimizer.pt", tmp_path / "checkpoint-5/optimizer.pt")
    assert formats.read(str(tmp_path)).files[0].path == str(tmp_path / "optimizer.pt")


def test_latest_chooses_among_the_steps_of_a_deepspeed_folder(tmp_path):
    case = real.case("ds_z2")
    shutil.copytree(case.state, tmp_path / "run")
    shutil.copytree(case.state / "global_step5", tmp_path / "run/global_step9")
    raw = formats.read(str(tmp_path / "run"))
    assert all("global_step5" in file.path for file in raw.files)
    (tmp_path / "run/latest").unlink()
    with pytest.raises(UnknownFormat, match="global_step5, global_step9"):
        formats.read(str(tmp_path / "run"))


def test_links_that_lead_back_are_seen_once(tmp_path, optimizer):
    (tmp_path / "deep").mkdir()
    (tmp_path / "optimizer.pt").rename(tmp_path / "deep/optimizer.pt")
    for index in range(12):
        os.symlink(tmp_path, tmp_path / f"deep/again{index}")
        os.symlink(tmp_path / "deep", tmp_path / f"same{index}")
    assert holds(formats.read(str(tmp_path)), optimizer)


@pytest.mark.parametrize("files", [(), ("adapter_model.safetensors",), ("scheduler.pt",)])
def test_a_folder_without_an_optimizer_says_so(tmp_path, files):
    for file in files:
        (tmp_path / file).write_bytes(b"x" * 100)
    with pytest.raises(UnknownFormat, match="no optimizer state in this folder or below it") as caught:
        formats.read(str(tmp_path))
    assert caught.value.where == str(tmp_path)
    assert "optimizer.pt" in caught.value.fix


@pytest.mark.parametrize("name", ["missing.pt", "missing/folder", "with\0zero"])
def test_a_missing_path_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(ReadError, match="no such file or folder"):
        formats.read(str(tmp_path / name))


def test_a_damaged_optimizer_file_is_an_error_and_not_an_absence(tmp_path, optimizer):
    whole = (tmp_path / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="archive"):
        formats.read(str(tmp_path))


def test_an_optimizer_file_that_asks_for_a_class_is_an_error_and_not_an_absence(tmp_path):
    saved(tmp_path / "optimizer.pt", {"state": Call("os.system", "true"), "param_groups": []})
    with pytest.raises(UnsafePickle, match=r"os\.system"):
        formats.read(str(tmp_path))


def test_a_weights_file_given_as_the_state_says_what_to_give(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnknownFormat, match=r"this is a model's weights .1 tensors., no optimizer state") as caught:
        formats.read(str(tmp_path / "pytorch_model.bin"))
    assert "optimizer file" in caught.value.fix


@pytest.mark.parametrize("name", [name for name in (*real.names("one-process"), *real.names("distributed")) if name != "neg_truncated"])
def test_exactly_one_row_reads_each_real_checkpoint(name):
    from ostate.read.detect import _search, reader_of
    from ostate.read.peek import Peek

    seen = Peek(str(real.case(name).state))
    if seen.is_folder:
        assert len(list(_search(seen, 0, set(), []))) == 1
    else:
        assert reader_of(seen) == "torch"


def test_facts_come_from_the_checkpoint_folder_around_the_state(tmp_path, optimizer):
    checkpoint = tmp_path / "checkpoint-7"
    (checkpoint / "inner").mkdir(parents=True)
    (tmp_path / "optimizer.pt").rename(checkpoint / "inner/optimizer.pt")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 7}')
    (checkpoint / "config.json").write_text('{"transformers_version": "4.40.0"}')
    (checkpoint / "README.md").write_text("---\nlibrary_name: peft\n---\n### Framework versions\n\n- PEFT 0.11.1\n- Transformers: 9.9.9\n")
    facts = formats.read(str(checkpoint)).facts
    assert facts == {"folder": str(checkpoint), "global_step": 7, "transformers_version": "4.40.0", "peft_version": "0.11.1"}


@pytest.mark.parametrize("text", ["nonsense", "[1, 2]", "[" * 100_000, '{"global_step": "many"}', '{"global_step": true}'])
def test_facts_that_are_damaged_are_no_facts(tmp_path, optimizer, text):
    (tmp_path / "trainer_state.json").write_text(text)
    assert "global_step" not in formats.read(str(tmp_path)).facts


def test_the_named_format_is_known_by_its_manifest(tmp_path, optimizer):
    from safetensors.torch import save_file

    save_file({"state.a.exp_avg": torch.zeros(2)}, tmp_path / "named.safetensors", metadata={"ostate": "{}"})
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    assert named_file.is_named(str(tmp_path / "named.safetensors"))
    assert not named_file.is_named(str(tmp_path / "weights.safetensors"))
    assert not named_file.is_named(str(tmp_path / "optimizer.pt"))
    assert not named_file.is_named(str(tmp_path / "missing"))
    assert not named_file.is_named(str(tmp_path))
    (tmp_path / "optimizer.pt").unlink()
    assert named_file.is_named(str(tmp_path))


PIECES = [
    "ds_z2/global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "ds_z3/global_step5/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "ds_z2/global_step5/mp_rank_00_model_states.pt",
    "fsdp2_dcp/.metadata",
    "fsdp2_dcp/__0_0.distcp",
]


@pytest.mark.parametrize("piece", PIECES)
def test_one_file_of_many_asks_for_the_folder(piece):
    with pytest.raises(ReadError) as caught:
        formats.read(str(real.CASES / "distributed" / piece))
    assert "folder" in caught.value.fix


def deepspeed_folder(place):
    """A folder as DeepSpeed leaves it, `latest` and all, with somebody's own name-keyed file at the top."""
    shutil.copytree(real.case("ds_z2").state, place)
    made = adamw()
    torch.save({"state": {f"layers.{key}": row for key, row in made.state_dict()["state"].items()}, "param_groups": []}, place / "by_name.pt")
    torch.save(made.state_dict(), place / "optimizer.pt")
    return place


def test_what_latest_names_comes_before_any_file_at_the_top(tmp_path):
    raw = formats.read(str(deepspeed_folder(tmp_path / "run")))
    assert (raw.layout, raw.read) == ("zero", str(tmp_path / "run/global_step5"))
    assert raw.not_read == ("by_name.pt", "optimizer.pt")
    assert [(f.severity, f.text) for f in raw.findings if f.rule == "other-states"] == [
        ("note", "global_step5 was read; not read: by_name.pt, optimizer.pt")
    ]
    assert formats.read(str(tmp_path / "run"), state="optimizer.pt").layout == "torch"


def test_a_latest_that_names_nothing_here_is_said_aloud(tmp_path):
    place = deepspeed_folder(tmp_path / "run")
    (place / "by_name.pt").unlink()
    shutil.rmtree(place / "global_step5")
    raw = formats.read(str(place))
    assert raw.read == str(place / "optimizer.pt")
    assert [(f.severity, f.rule) for f in raw.findings] == [("warning", "index-names-another")]


def test_the_trainers_state_names_the_step_and_its_own_file(tmp_path, optimizer):
    for step in (5, 10):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        shutil.copy(tmp_path / "optimizer.pt", tmp_path / f"run/checkpoint-{step}/optimizer.pt")
    (tmp_path / "run/trainer_state.json").write_text('{"global_step": 10}')
    raw = formats.read(str(tmp_path / "run"))
    assert raw.read == str(tmp_path / "run/checkpoint-10/optimizer.pt")
    assert raw.not_read == (os.path.join("checkpoint-5", "optimizer.pt"),)
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "run/checkpoint-10/bundle.ckpt")
    with pytest.raises(UnknownFormat, match="2 states"):
        formats.read(str(tmp_path / "run/checkpoint-10"))
    (tmp_path / "run/checkpoint-10/trainer_state.json").write_text('{"global_step": 10}')
    raw = formats.read(str(tmp_path / "run/checkpoint-10"))
    assert (os.path.basename(raw.read), raw.not_read) == ("optimizer.pt", ("bundle.ckpt",))


def test_a_distributed_checkpoint_comes_before_a_file_beside_its_index(tmp_path, optimizer):
    shutil.copytree(real.case("fsdp2_dcp").state, tmp_path / "dcp")
    shutil.copy(tmp_path / "optimizer.pt", tmp_path / "dcp/optimizer.pt")
    raw = formats.read(str(tmp_path / "dcp"))
    assert (raw.layout, raw.not_read) == ("dcp", ("optimizer.pt",))


def test_what_was_passed_over_may_be_damaged_and_is_not_looked_for_without_end(tmp_path, optimizer):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old.pt").write_bytes((tmp_path / "optimizer.pt").read_bytes()[:300])
    for index in range(40):
        (tmp_path / f"below{index}").mkdir()
        shutil.copy(tmp_path / "optimizer.pt", tmp_path / f"below{index}/optimizer.pt")
    raw = formats.read(str(tmp_path))
    assert raw.read == str(tmp_path / "optimizer.pt")
    assert 10 < len(raw.not_read) < 20
    assert not any("old.pt" in path for path in raw.not_read)


@pytest.mark.parametrize("command", [["inspect"], ["repair", "--dry-run", "--order", "order.txt"]])
@pytest.mark.parametrize("as_json", [True, False])
def test_commands_print_which_state_was_read_and_which_were_not(tmp_path, optimizer, command, as_json):
    import json

    from click.testing import CliRunner

    from ostate.cli import main

    place = tmp_path / "runs" / "one" / "last"
    (place / "older").mkdir(parents=True)
    for folder in (place, place / "older"):
        shutil.copy(tmp_path / "optimizer.pt", folder)
    names = [f"layer{index}" for index in range(len(formats.read(str(place)).entries))]
    (tmp_path / "order.txt").write_text("\n".join(names))
    arguments = [str(tmp_path / word) if word.endswith(".txt") else word for word in command]
    done = CliRunner().invoke(main, [*arguments, str(place), *(["--json"] if as_json else [])], catch_exceptions=False)
    if as_json:
        document = json.loads(done.stdout)
        assert (document["read"], document["not_read"]) == (str(place / "optimizer.pt"), [os.path.join("older", "optimizer.pt")])
    else:
        lines = [line.split() for line in done.stdout.splitlines()]
        assert ["read", str(place / "optimizer.pt")] in lines
        assert ["not", "read", os.path.join("older", "optimizer.pt")] in lines


def test_only_the_list_of_versions_in_a_model_card_is_a_record():
    """Prose about another release was taken for the writer's by one of two readers of the same card, the list's lower case by the other alone."""
    card = (
        "---\nbase_model: x\n---\nFine-tuned as in Transformers 4.30 and PEFT 0.3 tutorials.\n"
        "### Framework versions\n\n- peft 0.15.2\n- Transformers: 4.51.3\n"
    )
    assert card_versions(card) == {"peft_version": "0.15.2", "transformers_version": "4.51.3"}
