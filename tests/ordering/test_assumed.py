"""What of the names was guessed and not read is said wherever the names go."""

from __future__ import annotations

import ostate
from ostate import store
from ostate.commands.documents import ordering_document
from ostate.commands.export import export
from ostate.commands.options import Options
from ostate.commands.order import order_of
from ostate.commands.repair import names, read, verify
from ostate.commands.validate import as_document, validate
from ostate.ordering.assumed import with_assumed
from ostate.ordering.join import named_state
from ostate.read.adapters import read_adapter
from tests import real
from tests.records import replace

GUESS = "the adapter is called `default`"


def settled(**assumptions):
    """Return opt_kvq's state and its order, as found with an adapter of which something is assumed."""
    case = real.case("opt_kvq")
    options = Options(adapter=str(case.adapter), base=str(case.base))
    raw, _ = read(str(case.state), options)
    adapter = replace(read_adapter(str(case.adapter)), **{"assumed": (), "contested": (), **assumptions})
    return raw, adapter, order_of(raw, adapter, options)


def test_a_guess_without_a_real_alternative_is_a_note_and_leaves_the_verdict():
    _, _, found = settled(assumed=(GUESS,))
    (said,) = [finding for finding in found.findings if finding.rule == "name-assumed"]
    assert (found.verdict, said.severity, found.assumed, found.undecided) == ("verified", "note", (GUESS,), found.undecided)
    assert set(said.names) == set(found.names)
    assert GUESS in said.text


def test_a_guess_with_a_real_alternative_is_a_warning_and_proves_no_name():
    _, _, found = settled(assumed=(GUESS,), contested=(GUESS,))
    (said,) = [finding for finding in found.findings if finding.rule == "name-assumed"]
    assert (found.verdict, said.severity) == ("partial", "warning")
    assert set(found.undecided) == set(found.names)


def test_names_that_somebody_wrote_down_assume_nothing():
    raw, adapter, found = settled()
    recorded = replace(found, source="recorded", from_keys=False)
    assert with_assumed(recorded, raw, replace(adapter, assumed=(GUESS,))).assumed == ()


def test_it_is_in_the_manifest_and_comes_back_and_every_reader_of_the_file_says_it(tmp_path):
    raw, adapter, found = settled(assumed=(GUESS,), contested=(GUESS,))
    state = replace(named_state(raw, found, adapter), findings=found.findings)
    written = store.write(state, tmp_path / "a.safetensors").path
    assert ostate.load(written).ordering.assumed == (GUESS,)
    assert as_document(validate(written))["assumed"] == [GUESS]
    assert ordering_document(found)["assumed"] == [GUESS]
    again = verify(written, adapter=str(real.case("opt_kvq").adapter))
    assert (again.assumed, again.verdict) == ((GUESS,), "partial")
    assert names(written, adapter=str(real.case("opt_kvq").adapter))[1] is False
    rules = {finding.rule: finding for finding in export(written, "names", None).findings}
    assert GUESS in rules["export-assumed"].text
    assert "export-unproven" in rules
