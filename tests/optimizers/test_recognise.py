"""Which optimizer wrote a file, told from the file alone."""

from __future__ import annotations

import pytest
import schedulefree
import torch
import torchao.optim
from bitsandbytes import optim as bnb
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from ostate.optimizers import OPTIMIZERS, recognise
from ostate.optimizers.recognise import fitting
from ostate.read import quantized as encodings
from ostate.read.container import torchsave
from tests import real

from .live import read, run
from .others import RETYPED, WRITTEN
from .recorded import RECORDED

OPT = torch.optim
LIVE = {
    "adamw": [OPT.AdamW, lambda p: OPT.AdamW(p, amsgrad=True), lambda p: OPT.AdamW(p, fused=True), lambda p: OPT.AdamW(p, maximize=True),
              lambda p: OPT.AdamW(p, foreach=True), lambda p: OPT.Adam(p, decoupled_weight_decay=True)],
    "adam": [OPT.Adam, lambda p: OPT.Adam(p, amsgrad=True, weight_decay=0.1), lambda p: OPT.Adam(p, fused=True)],
    "nadam": [OPT.NAdam, lambda p: OPT.NAdam(p, decoupled_weight_decay=True)],
    "radam": [OPT.RAdam],
    "adamax": [OPT.Adamax],
    "adagrad": [OPT.Adagrad],
    "adadelta": [OPT.Adadelta],
    "rmsprop": [OPT.RMSprop, lambda p: OPT.RMSprop(p, momentum=0.9, centered=True)],
    "rprop": [OPT.Rprop],
    "sgd": [OPT.SGD, lambda p: OPT.SGD(p, momentum=0.9, nesterov=True)],
    "asgd": [OPT.ASGD],
    "adafactor_torch": [OPT.Adafactor],
    "adam_bnb": [bnb.Adam, bnb.AdamW, bnb.Adam8bit, bnb.AdamW8bit, bnb.PagedAdamW, bnb.PagedAdamW8bit, bnb.PagedAdam32bit],
    "ademamix_bnb": [bnb.AdEMAMix, bnb.AdEMAMix8bit, bnb.PagedAdEMAMix8bit],
    "lion_bnb": [bnb.Lion, bnb.Lion8bit, bnb.PagedLion8bit],
    "rmsprop_bnb": [bnb.RMSprop, bnb.RMSprop8bit],
    "adagrad_bnb": [bnb.Adagrad, bnb.Adagrad8bit],
    "sgd_bnb": [lambda p: bnb.SGD(p, 1e-3, momentum=0.9), lambda p: bnb.SGD8bit(p, 1e-3, momentum=0.9)],
    "lars_bnb": [lambda p: bnb.LARS(p, 1e-3, momentum=0.9), lambda p: bnb.LARS8bit(p, 1e-3, momentum=0.9)],
    "lamb_bnb": [bnb.LAMB, bnb.LAMB8bit],
    "adamw_schedulefree": [schedulefree.AdamWScheduleFree],
    "radam_schedulefree": [schedulefree.RAdamScheduleFree],
    "sgd_schedulefree": [schedulefree.SGDScheduleFree],
}  # fmt: skip
PAIRS = [(row, make) for row, makes in LIVE.items() for make in makes]


@pytest.mark.parametrize(("row", "make"), PAIRS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.filterwarnings("ignore")
def test_a_live_optimizer_is_known_from_its_file(row, make, tmp_path):
    assert read(run(make).optimizer.state_dict(), tmp_path).optimizer == row


def test_a_sparse_adam_and_a_muon_are_known(tmp_path):
    table = torch.nn.Parameter(torch.randn(6, 4))
    table.grad = torch.ones(6, 4).to_sparse()
    optimizer = OPT.SparseAdam([table])
    optimizer.step()
    assert read(optimizer.state_dict(), tmp_path).optimizer == "sparse_adam"
    assert read(run(OPT.Muon, shapes=((8, 6),)).optimizer.state_dict(), tmp_path).optimizer == "muon"


@pytest.mark.parametrize("kind", ["Adam8bit", "AdamW8bit", "Adam4bit", "AdamW4bit", "AdamFp8", "AdamWFp8"])
def test_a_torchao_optimizer_is_known(kind, tmp_path):
    torch.compiler.set_stance("force_eager")
    live = run(lambda params: getattr(torchao.optim, kind)(params), shapes=((64, 64), (5,)))
    torch.compiler.set_stance("default")
    assert read(live.optimizer.state_dict(), tmp_path).optimizer == "adam_torchao"


def test_transformers_adafactor_is_known_with_and_without_a_first_moment(tmp_path):
    from transformers.optimization import Adafactor

    for make in (Adafactor, lambda p: Adafactor(p, lr=1e-3, relative_step=False, beta1=0.9)):
        assert read(run(make).optimizer.state_dict(), tmp_path).optimizer == "adafactor"


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_state_as_other_libraries_write_it_is_known(name):
    row, slots, scalars, hyper = RECORDED[name]
    assert recognise(slots, hyper, scalars) == row


@pytest.mark.parametrize("name", [name for name in real.names("one-process") if (real.CASES / "one-process" / name).is_dir()])
def test_a_real_checkpoint_is_known(name):
    case = real.case(name)
    recorded = case.meta.get("optimizer", "")
    wanted = {"torch.optim.adamw.AdamW": "adamw", "bitsandbytes.optim.adamw.AdamW": "adam_bnb", "torchao.optim.adam.AdamW8bit": "adam_torchao"}.get(
        recorded
    )
    if wanted is None or case.must_refuse or case.state.suffix not in {".pt", ".bin"}:
        pytest.skip(f"{recorded or 'no class'} in {case.state.name}")
    stored = torchsave.load(str(case.state)).value
    stored = stored.get("optimizer", stored)
    hyper = {key: value for group in stored["param_groups"] for key, value in group.items()}
    decoded = [encodings.slots_of(entry, hyper) for entry in stored["state"].values()]
    assert recognise({s for slots, _ in decoded for s in slots}, hyper, {s for _, scalars in decoded for s in scalars}) == wanted


def test_keys_alone_are_enough_where_values_decide_nothing():
    assert recognise({"exp_avg", "exp_avg_sq"}, ["lr", "betas", "eps", "weight_decay", "amsgrad"], ["step"]) == "adamw"


def test_a_file_from_before_the_flag_is_taken_for_adamw_and_says_so_in_the_table():
    assert recognise({"exp_avg", "exp_avg_sq"}, {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "weight_decay": 0.0}) == "adamw"


def test_bitsandbytes_with_one_state_keeps_a_neutral_name_where_the_group_is_unknown():
    assert recognise({"state1"}, ["lr", "betas", "eps"], {"step", "bitsandbytes"}) == "one_state_bnb"


@pytest.mark.parametrize(
    ("slots", "keys"),
    [({"exp_avg", "exp_avg_sq", "hessian"}, {"lr", "betas"}), ({"weights"}, {"lr"}), (set(), {"lr", "betas", "eps"}), (set(), set())],
)
def test_what_no_row_describes_is_unknown(slots, keys):
    assert recognise(slots, keys) == "unknown"


def test_trainers_stand_in_for_an_optimizer_a_parameter_is_known():
    state = LayerWiseDummyOptimizer(optimizer_dict={}, lr=1e-3).state_dict()
    (group,) = state["param_groups"]
    assert not state["state"]
    assert recognise(set(), {key: value for key, value in group.items() if key != "params"}) == "layerwise"


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_no_two_rows_answer_with_equal_weight(name):
    _, slots, scalars, hyper = RECORDED[name]
    weights = [weight for _, weight in fitting(slots, hyper, scalars)]
    assert weights.count(max(weights)) == 1


def test_every_row_is_reached_by_a_test():
    reached = set(LIVE) | {row for row, *_ in RECORDED.values()}
    reached |= (
        {"sparse_adam", "muon", "adam_torchao", "adafactor", "one_state_bnb", "layerwise"} | {row for row, _ in WRITTEN.values()} | set(RETYPED)
    )
    assert reached == set(OPTIMIZERS)
