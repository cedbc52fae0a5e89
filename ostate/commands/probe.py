"""`ostate probe`: whose state is it, and can its preconditioner be trusted?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ostate.core.file_digest import sha256_of_file
from ostate.core.files import is_file
from ostate.core.naming import NamedState
from ostate.core.state import Finding, Severity
from ostate.errors import Contradiction, ProbeError
from ostate.optimizers import OPTIMIZERS
from ostate.ordering.advice import SAME_SAVE
from ostate.read import adapters
from ostate.store import load

from .repair import verify

if TYPE_CHECKING:
    from ostate.probe.measure.protocol import ProbeReport
    from ostate.probe.precondition.guards import Guards


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a probe is made from; paths."""

    state: str
    """A named file."""
    model: str
    """Folder of the base model."""
    adapter: str
    data: str
    """JSON lines."""
    config: str | None = None
    """YAML with `importance:`."""


def probe(
    files: Files,
    *,
    taken_as: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    tokenize: Callable[[str], Sequence[int]] | None = None,
    batch_e: int = 2,
    batch_u: int = 2,
    eta: float | None = None,
    guards: Guards | None = None,
) -> ProbeReport:
    """Run the protocol on files.

    Args:
        files: what to read.
        taken_as: the row of `OPTIMIZERS` that the moments are of, where it was only assumed; None: the state's own.
        device: where the model runs.
        dtype: of the model's weights.
        tokenize: text to ids, for data that holds text.
        batch_e: sequences whose entropy is watched.
        batch_u: sequences whose update is asked about.
        eta: learning rate; None: the state's lr, or its initial_lr where the schedule had ended at 0.
        guards: what happens where v cannot be trusted; None: the defaults.

    Raises:
        Contradiction: the state is of another run than the adapter.
        ReadError, ProbeError: something cannot be read, or does not fit.
    """
    import torch

    from ostate.probe.measure import loading, protocol

    named = load(files.state)
    if taken_as is not None:
        if taken_as not in OPTIMIZERS:
            raise ProbeError(f"no optimizer is called {taken_as!r}", where="--as", fix="docs/optimizers.md lists them; usually adamw")
        named = replace(named, optimizer=taken_as)
    own, known = of_this_adapter(named, files.state, files.adapter)
    model = loading.load_model(files.model, files.adapter, dtype=getattr(torch, dtype), device=device)
    records = protocol.read_records(files.data, tokenize)
    settings = protocol.read_settings(files.config) if files.config else None
    report = protocol.run(named, model, records, batch_e=batch_e, batch_u=batch_u, eta=eta, settings=settings, guards=guards, known=known)
    other = [finding for finding in report.findings if finding.rule == "state-of-another-run"]
    if other and not own:
        raise Contradiction(other[0].text, where=files.adapter, fix=SAME_SAVE)
    return report


def of_this_adapter(state: NamedState, path: str, adapter: str) -> tuple[bool, tuple[Finding, ...]]:
    """Return whether this adapter is the very file that the state was repaired with, and what a person should know where it is not.

    The adapter's SHA-256 stands in the state's manifest. Where it is another one, or none stands there, `ostate verify`'s evidence is asked.

    Args:
        state: the named state, loaded.
        path: where it lies.
        adapter: folder or file of the adapter that is to be probed with.

    Raises:
        Contradiction: the numbers are those of another run.
        ReadError: no adapter there.
    """
    recorded = state.adapter.get("sha256")
    file = adapters.read_adapter(adapter).file
    if recorded is not None and is_file(file) and recorded == sha256_of_file(file):
        return True, ()
    if verify(path, adapter=adapter).verdict == "unverified":
        # A state that was saved live records no adapter: that alone is no reason to worry anybody.
        severity: Severity = "note" if recorded is None else "warning"
        text = "the state could not be compared with this adapter: they may be of different runs"
        return False, (Finding(rule="state-of-unknown-run", severity=severity, text=text, fix=SAME_SAVE),)
    if recorded is None:
        return False, ()
    text = "this adapter is not the file that the state was repaired with, but the tensor values fit it: another step of the run, or a new copy"
    return False, (Finding(rule="adapter-not-the-recorded-one", severity="warning", text=text, fix=SAME_SAVE),)
