"""Classes of a person's own beside the state: kept as records, said in a note, never imported, never let into the state itself."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import subprocess
import sys
from typing import Any

import pytest
import torch

from ostate import read as formats
from ostate.errors import UnsafePickle
from ostate.read.pickle.unknown_classes import is_strange
from tests.read.archives import Call, Global, saved, state_of
from tests.read.test_torch_file import adamw, holds, model

HERE = __name__


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass
class Config:
    lr: float = 1e-3
    mode: Mode = Mode.FAST
    inner: Any = None


class Table(dict):
    """As EasyDict, Box and Lightning's AttributeDict are."""


class Row(list):
    """A list with a name of its own."""


Pair = collections.namedtuple("Pair", ["step", "optimizer"])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = model()


BESIDE = {
    "a dataclass and an enumeration": lambda state: {"config": Config(), "optimizer": state},
    "a table and a row": lambda state: {"config": Table(a=Row([1, Table(b=2)])), "optimizer": state},
    "a whole model": lambda state: {"model": Net(), "optimizer": state},
    "a function": lambda state: {"collate": functools.partial(adamw, 1), "optimizer": state},
    "around it": lambda state: Config(inner=state),
    "around it as a table": lambda state: Table(optimizer=state, losses=collections.deque([0.5], maxlen=3), row=Row([Mode.FAST])),
    "around it as a tuple": lambda state: Pair(3, state),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_state_beside_or_within_a_persons_own_classes_is_read(tmp_path, beside, new):
    optimizer = adamw()
    torch.save(BESIDE[beside](optimizer.state_dict()), tmp_path / "last.ckpt", _use_new_zipfile_serialization=new)
    raw = formats.read(str(tmp_path))
    assert holds(raw, optimizer)
    (finding,) = raw.findings
    assert (finding.rule, finding.severity) == ("classes-left-alone", "note")
    assert "objects of tests.read." in finding.text


def test_a_lightning_checkpoint_with_hyperparameters_of_any_class_is_read(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, config: Any, mode: Mode) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = torch.nn.Linear(3, 2)

        def training_step(self, batch, _):
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module = Module(Config(), Mode.FAST)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(4, 3), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    raw = formats.read(str(tmp_path))
    assert raw.layout == "lightning"
    assert holds(raw, trainer.optimizers[0])
    assert raw.findings[0].text == f"the file also holds objects of {HERE}.Config, {HERE}.Mode: they were neither imported nor run"


def test_nothing_of_a_class_is_imported(tmp_path):
    (tmp_path / "evil_room.py").write_text("raise SystemExit(9)")
    saved(tmp_path / "x.pt", {"config": Call("evil_room.Thing", 1), "optimizer": {**state_of({}), "state": {0: {}}}})
    code = f"from ostate import read as formats; raw = formats.read({str(tmp_path / 'x.pt')!r}); import sys; assert 'evil_room' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}).returncode == 0


def test_an_object_within_an_entry_of_the_state_is_refused(tmp_path):
    state = adamw().state_dict()
    state["state"][1]["extra"] = [Config()]
    torch.save({"optimizer": state}, tmp_path / "x.pt")
    with pytest.raises(UnsafePickle, match=rf"an entry of the state is a {HERE}\.Config"):
        formats.read(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "subprocess.Popen", "pip.main", "torch.hub.load", "numpy.f2py.compile", "posix.system", "__builtin__.exec"]
)
def test_what_could_only_mean_harm_is_refused_wherever_it_lies(tmp_path, name):
    saved(tmp_path / "x.pt", {"config": Call(name, "true"), "optimizer": {"state": {}, "param_groups": []}})
    with pytest.raises(UnsafePickle, match=name.replace(".", r"\.")):
        formats.read(str(tmp_path / "x.pt"))
    saved(tmp_path / "x.pt", {"config": Global(name), "optimizer": {"state": {}, "param_groups": []}})
    with pytest.raises(UnsafePickle, match=name.replace(".", r"\.")):
        formats.read(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("name", ["", "Thing", "a.b\x1b[2J", "a..b", "a." + "b" * 300, "os.path.join", "torch.load", "__builtin__.eval"])
def test_a_name_that_is_no_persons_class_is_not_let_through(name):
    assert not is_strange(name)


@pytest.mark.parametrize("name", ["__main__.Config", "my.project.Config", "torch.nn.modules.linear.Linear", "torch.optim.lr_scheduler.LambdaLR"])
def test_a_name_of_a_persons_class_is_let_through(name):
    assert is_strange(name)
