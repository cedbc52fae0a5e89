"""Every name of `TrainingArguments(optim=…)`, stopped, repaired, exported and resumed by a real Trainer: what the rows and the page say is so."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

import ostate
from ostate.errors import CheckError, ExportError
from tests import trained

from .optim_list import ROWS, renewed
from .test_resume import STOP, adapted, trainer, weights

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "resuming.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def those(*same):
    """Return the rows of these outcomes; what needs a package beside the test extra is tried where it is installed."""
    absent = "{} is not installed (extra: test-frameworks)"
    return [
        pytest.param(
            name,
            marks=[
                pytest.mark.skipif(row.package is not None and importlib.util.find_spec(row.package) is None, reason=absent.format(row.package)),
                # the same classes as those without, with memory that a GPU may page
                *([pytest.mark.long] if name.startswith("paged_") and row.same == "bit for bit" else []),
            ],
        )
        for name, row in ROWS.items()
        if row.same in same
    ]


class AtTheStart(TrainerCallback):
    """The optimizer's state by name when a resumed run begins."""

    def on_train_begin(self, args, state, control, **live):
        names = {p: name for name, p in live["model"].named_parameters()}
        self.seen = {names[p]: {slot: value.clone() for slot, value in entry.items()} for p, entry in live["optimizer"].optimizer.state.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose LoRA of rank 64 has 4096 elements a matrix: as many as bitsandbytes and torchao want before they pack."""
    folder = tmp_path_factory.mktemp("base")
    trained.llama(layers=1, hidden_size=64).save_pretrained(folder)
    torch.compiler.set_stance("force_eager")
    yield folder
    torch.compiler.set_stance("default")


def run_of(base, folder, name):
    return trainer(folder, adapted(base, r=64), optim=name, **ROWS[name].settings)


def stopped(base, folder, name):
    """Train to the end; return the run, the checkpoint of its middle, and a copy of that without an optimizer.pt."""
    whole = run_of(base, folder / "run", name)
    whole.train()
    checkpoint = folder / "run" / f"checkpoint-{STOP}"
    bare = folder / f"checkpoint-{STOP}"
    shutil.copytree(checkpoint, bare)
    (bare / "optimizer.pt").unlink()
    return weights(whole.model), checkpoint, bare


def repaired(base, folder, checkpoint):
    ostate.repair(str(checkpoint), str(folder / "named.safetensors"), adapter=str(checkpoint), base=str(base))
    return str(folder / "named.safetensors")


def resumed(run, checkpoint):
    run.train(resume_from_checkpoint=str(checkpoint))
    return weights(run.model)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", those("bit for bit"))
def test_a_resumed_run_is_the_run_that_was_not_stopped(name, base, tmp_path):
    wanted, checkpoint, bare = stopped(base, tmp_path, name)
    path = repaired(base, tmp_path, checkpoint)
    done = ostate.export(path, "torch", bare)
    assert not any(finding.rule in ("export-requantised", "export-packing-lost") for finding in done.findings)
    assert same(wanted, resumed(run_of(base, tmp_path / "resumed", name), bare))
    if ROWS[name].adamw == "refused":
        with pytest.raises(ExportError, match="cannot be continued by torch's AdamW"):
            ostate.export(path, "torch", None, taken_as="adamw_torch")
        return
    done = ostate.export(path, "torch", bare, taken_as="adamw_torch", force=True)
    assert ("export-packing-lost" in {finding.rule for finding in done.findings}) == ("decoded" in ROWS[name].adamw)
    went_on = trainer(tmp_path / "adamw", adapted(base, r=64), optim="adamw_torch")
    went_on.add_callback(begin := AtTheStart())
    after = resumed(went_on, bare)
    state = ostate.load(path)
    assert set(begin.seen) == set(state)
    for parameter in state:
        found = begin.seen[parameter]
        assert (float(found.pop("step")), set(found)) == (STOP, {"exp_avg", "exp_avg_sq"})
        assert all(torch.equal(found[slot], torch.as_tensor(state.tensor(parameter, slot))) for slot in found)
    assert same(wanted, after) == (ROWS[name].adamw == "bit for bit")


@pytest.mark.parametrize("name", those("refused"))
def test_what_belongs_to_no_parameter_is_refused(name, base, tmp_path):
    whole, checkpoint, bare = stopped(base, tmp_path, name)
    with pytest.raises(CheckError) as refused:
        repaired(base, tmp_path, checkpoint)
    if name == "lomo":
        assert "keeps no state" in str(refused.value)
        assert same(whole, resumed(run_of(base, tmp_path / "resumed", name), checkpoint)), "and needs none"
    elif "layerwise" in name:
        assert "a resume starts cold" in str(refused.value)
        own, cold = (resumed(run_of(base, tmp_path / "resumed", name), one) for one in (checkpoint, bare))
        assert same(own, cold)
    else:
        assert "projected space" in str(refused.value)
        with pytest.raises(pickle.UnpicklingError):
            resumed(run_of(base, tmp_path / "resumed", name), checkpoint)


@pytest.mark.parametrize("name", those("starts cold"))
def test_who_starts_cold_from_its_own_file_does_so_from_ours_and_is_told(name, base, tmp_path):
    wanted, checkpoint, bare = stopped(base, tmp_path, name)
    done = ostate.export(repaired(base, tmp_path, checkpoint), "torch", bare)
    assert "export-starts-cold" in {finding.rule for finding in done.findings if finding.severity == "warning"}
    own, ours = (resumed(run_of(base, tmp_path / "resumed", name), one) for one in (checkpoint, bare))
    assert same(own, ours)
    assert not same(own, wanted)


@pytest.mark.parametrize("name", those("does not start"))
def test_what_does_not_start_on_a_cpu_says_why(name, base, tmp_path):
    with pytest.raises((AssertionError, ImportError, RuntimeError, ValueError), match=ROWS[name].error):
        run_of(base, tmp_path / "run", name).train()


def test_no_name_of_optim_is_forgotten():
    assert set(ROWS) == {name.value for name in OptimizerNames}


def test_the_table_on_the_page_is_that_of_the_rows():
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run: python -m tests.exporters.optim_list docs/recipes/resuming.md"


def test_the_word_for_torchs_adamw_is_said_where_eight_bits_were(base, tmp_path):
    _, checkpoint, _ = stopped(base, tmp_path, "adamw_bnb_8bit")
    own = {finding.rule: finding for finding in ostate.export(repaired(base, tmp_path, checkpoint), "torch", None).findings}
    assert own["export-own-slots"].fix == "to resume with torch's AdamW: --as adamw_torch"
