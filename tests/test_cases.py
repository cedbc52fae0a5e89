"""Every real checkpoint, from file to named file: right, or refused with the reason. Never a wrong name."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

import ostate
from ostate.commands.options import Options
from ostate.commands.repair import Repaired, repair
from ostate.errors import OstateError
from tests import real

REFUSED: dict[str, str] = {
    # case -> what the refusal must say
    "neg_wrong_run": "fit no order of this adapter",
    "neg_truncated": "incomplete or damaged",
    "ds_z2_rr_universal": "round_robin",
    # Its adapter was saved before training (lora_B is zero), and no base model is there: a convention alone does not do.
    "ddp_plain": "only a convention gives one",
}
PARTIAL = {
    # case -> positions left out. Three layers of rank 3 named by a convention: 5 digits are all that their gauges can say against layers
    # in descending order.
    "fsdp2_dcp_intids": 12,
    "lit_single": 12,
    "trainer_ddp": 12,
}
CASES = [(kind, name) for kind in ("one-process", "long", "distributed") for name in real.names(kind)]


@dataclass(frozen=True)
class Outcome:
    done: Repaired | None
    refused: OstateError | None
    wrong: tuple[str, ...]
    """Names whose exp_avg_sq or exp_avg is not the live optimizer's."""
    missing: tuple[str, ...]
    """Names that the live optimizer had state for and the file does not."""


def outcome(case: real.Case, out: str, options: Options | None = None) -> Outcome:
    """Repair the case, and compare what was written with the truth by name."""
    options = options or Options(adapter=str(case.adapter) if case.adapter else None, base=str(case.base) if case.base else None)
    try:
        done = repair(str(case.state), out, options=options)
    except OstateError as error:
        return Outcome(None, error, (), ())
    state = ostate.load(out)
    truth = case.with_state
    wrong = [name for name in state.parameters if name not in truth]
    for name in set(truth) & set(state.parameters):
        for slot in ("exp_avg_sq", "exp_avg"):
            told = truth[name].get(f"{slot}_sha256")
            if told and slot in state.parameters[name].slots and real.sha256(state.tensor(name, slot)) != told:
                wrong.append(name)
    return Outcome(done, None, tuple(sorted(set(wrong))), tuple(sorted(set(truth) - set(state.parameters))))


@pytest.mark.parametrize("name", [name for _, name in CASES])
def test_a_real_checkpoint_is_named_right_or_refused(name, tmp_path):
    case = real.case(name)
    seen = outcome(case, str(tmp_path / "named.safetensors"))
    assert seen.wrong == ()
    if name in REFUSED:
        assert seen.refused is not None
        assert re.search(REFUSED[name], str(seen.refused))
        assert not list(tmp_path.iterdir())
    else:
        assert seen.refused is None, str(seen.refused)
        assert len(seen.missing) == PARTIAL.get(name, 0)


def test_an_adapter_that_tells_nothing_gives_way_to_the_checkpoints_own_weights(tmp_path):
    """The adapter beside this DCP folder was saved before training; the folder's own `model.` weights are of the same save."""
    seen = outcome(real.case("fsdp2_dcp_intids"), str(tmp_path / "named.safetensors"))
    assert seen.done is not None
    assert seen.done.ordering.evidence is not None
    assert seen.done.ordering.evidence.proven
