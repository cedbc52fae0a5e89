"""The minimal test protocol: load a model with its adapter, fill AdamW by name, run a tiny probe, judge it.

The probe: Xbar is the mean gradient of the token entropy over batch E, Ybar that of advantage * log-probability over batch U (both teacher-forced,
mean over a sequence's tokens, one sequence at a time, dropout off). delta-H1 = eta * <Xbar, P Ybar> is the first-order change of the entropy
when the parameters climb the objective by one preconditioned step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ostate.core.brief import brief
from ostate.core.hyper import one_number
from ostate.core.naming import NamedState
from ostate.core.plain import no_number, plain
from ostate.core.state import Finding
from ostate.errors import ProbeError, refusal_for

from ..fill.fill import filled, lora_adamw
from ..precondition.guards import Guards
from ..precondition.preconditioner import AdamPreconditioner
from ..precondition.stats import Stats
from .delta import DeltaH1, delta_h1, with_warnings
from .gradients import GradientMean, eval_mode

if TYPE_CHECKING:
    from ostate.core.documents import ProbeDocument, ProbeResult, ProbeStats

_LINE = 'write one JSON object a line: {"text": "…"}, {"prompt": "…", "completion": "…"} or {"input_ids": [1, 2, 3]}'
_MOST_ID = 1 << 31
_MOST_ADVANTAGE = 1e30
"""Beyond it, a float32 gradient is infinite."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Record:
    """One sequence of the data: token ids, which of them count, and its advantage."""

    ids: tuple[int, ...]
    """Token ids of one sequence."""
    counted: tuple[bool, ...]
    """Whether the token at this place is predicted (the completion) or only read (the prompt)."""
    advantage: float = 1.0
    """Its weight in the loss of batch U."""

    def __repr__(self) -> str:
        return brief(self)


_ENOUGH = 0.9
"""Coverage, as in the seed's configuration."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """The `importance:` keys of a probe's YAML that concern the preconditioner."""

    checkpoint_step: float | None = None
    """The step at which the state was saved, where the state does not say."""
    identity_preconditioner_if_coverage_below: float = _ENOUGH
    """Coverage of exp_avg_sq below which no gradient is preconditioned."""
    ignored: tuple[str, ...] = ()
    """Other keys that stood there."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProbeReport:
    """What the protocol found."""

    result: DeltaH1
    """delta-H1 and its parts."""
    stats: Stats
    """`AdamPreconditioner.stats()`."""
    coverage: float
    """Share of elements with an exp_avg_sq, 0 to 1."""
    coverage_step: float
    """Share of elements whose step is known, 0 to 1."""
    eta_from: str
    """Where eta comes from: the state's lr or initial_lr, or the option."""
    preconditioner: AdamPreconditioner
    """The preconditioner that was used."""
    findings: tuple[Finding, ...] = ()
    """What a person should know, the worst first in print."""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def healthy(self) -> bool:
        """True when the verdict is healthy and nothing asks for a person."""
        return self.result.verdict == "healthy" and all(finding.severity == "note" for finding in self.findings)

    def as_dict(self) -> ProbeDocument:
        """Return plain values for JSON, as schemas/probe-v1.schema.json describes them."""
        result = {key: value for key, value in self.result.as_dict().items() if key != "findings"}
        return {
            "document": "ostate-probe",
            "version": 1,
            "result": cast("ProbeResult", plain(result, no_number, str)),
            "stats": cast("ProbeStats", plain(self.stats, no_number, str)),
            "coverage": self.coverage,
            "coverage_step": self.coverage_step,
            "eta_from": self.eta_from,
            "healthy": self.healthy,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def read_settings(path: str) -> Settings:
    """Return the keys under `importance:` of a YAML file; other keys there are kept by name, and said.

    Raises:
        ProbeError: no YAML, no mapping, or a value that is no number.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        with open(path, encoding="utf-8") as file:
            stored = yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a ValueError: no text, or a date that is none
        raise ProbeError(f"cannot read the configuration: {error}", where=path, fix="pass a YAML file with a mapping `importance:`") from error
    return settings_of(stored, path)


def settings_of(stored: object, where: str) -> Settings:
    """Return the keys under `importance:` of a configuration; other keys there are kept by name.

    Raises:
        ProbeError: no mapping, or a value that is no number.
    """
    section = {} if not stored else stored.get("importance", {}) if isinstance(stored, Mapping) else None
    if not isinstance(section, Mapping):
        raise ProbeError("no mapping under `importance:`", where=where, fix="importance:\n    checkpoint_step: 500")
    values: dict[str, float] = {}
    for key in ("checkpoint_step", "identity_preconditioner_if_coverage_below"):
        value = section.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_ID:
            raise ProbeError(f"importance.{key} must be a number, not {ascii(value)[:60]}", where=where, fix="a finite number from 0")
        values[key] = value
    return Settings(
        checkpoint_step=values.get("checkpoint_step"),
        identity_preconditioner_if_coverage_below=values.get("identity_preconditioner_if_coverage_below", _ENOUGH),
        ignored=tuple(str(key) for key in section if key not in Settings.__dataclass_fields__),
    )


def read_records(path: str, tokenize: Callable[[str], Sequence[int]] | None) -> list[Record]:
    """Read a JSONL file of sequences.

    A line is an object with `input_ids` (and perhaps `labels`, -100 where a token is not counted), or `prompt` and `completion`, or `text`;
    `advantage` may stand beside it (1.0 otherwise).

    Raises:
        ProbeError: a line that is none of these, with its number; text without a tokenizer; no line at all.
    """
    records = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    records.append(_record(json.loads(line), tokenize, f"{path}: line {number}"))
    except (OSError, ValueError, RecursionError) as error:  # a ValueError: no text, no JSON, or a number of thousands of digits
        raise ProbeError(f"cannot read the data: {error}", where=path, fix=_LINE) from error
    if not records:
        raise ProbeError("the data is empty", where=path, fix=_LINE)
    return records


def _record(row: object, tokenize: Callable[[str], Sequence[int]] | None, where: str) -> Record:
    if not isinstance(row, Mapping):
        raise ProbeError("one JSON object per line is expected", where=where, fix=_LINE)
    if "input_ids" in row:
        ids = row["input_ids"]
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < _MOST_ID for token in ids):
            raise ProbeError("input_ids is not a list of token ids", where=where, fix="whole numbers from 0, as the tokenizer gives them")
        labels = row.get("labels", ids)
        if not isinstance(labels, list):
            raise ProbeError("labels is not a list", where=where, fix="one number a token, -100 where it is not counted")
        if len(labels) != len(ids):
            raise ProbeError(f"{len(labels)} labels for {len(ids)} tokens", where=where, fix="one label a token, -100 where it is not counted")
        counted = [label != -100 for label in labels]
    elif "completion" in row or "text" in row:
        if tokenize is None:
            fix = 'pass token ids: {"input_ids": [1, 2, 3]}; or copy the tokenizer into the folder of the model'
            raise ProbeError("text needs the model's tokenizer, and its folder has none", where=where, fix=fix)
        prompt = list(tokenize(str(row.get("prompt", "")))) if row.get("prompt") else []
        rest = list(tokenize(str(row.get("completion", row.get("text")))))
        ids, counted = prompt + rest, [False] * len(prompt) + [True] * len(rest)
    else:
        raise ProbeError("a line without input_ids, completion or text", where=where, fix=_LINE)
    if len(ids) < 2 or not any(counted[1:]):
        raise ProbeError("no token of this sequence is predicted", where=where, fix="two tokens at least, one of them counted")
    advantage = row.get("advantage", 1.0)
    if type(advantage) not in {int, float} or not abs(advantage) <= _MOST_ADVANTAGE:
        raise ProbeError(
            f"the advantage is {ascii(advantage)[:60]}, which is not a number", where=where, fix="a finite number, 1.0 where nothing is known"
        )
    return Record(ids=tuple(ids), counted=tuple(counted), advantage=float(advantage))


def run(
    state: NamedState,
    model: nn.Module,
    records: Sequence[Record],
    *,
    batch_e: int = 2,
    batch_u: int = 2,
    eta: float | None = None,
    settings: Settings | None = None,
    guards: Guards | None = None,
    known: Sequence[Finding] = (),
) -> ProbeReport:
    """Run the protocol: fill, stats, the tiny probe, the verdict.

    Args:
        state: the named state.
        model: with its adapter, trainable.
        records: the first `batch_e` are batch E, the next `batch_u` batch U.
        batch_e: sequences whose entropy is watched.
        batch_u: sequences whose update is asked about.
        eta: learning rate; None: the state's lr, or its initial_lr where the schedule had ended at 0.
        settings: checkpoint_step and the coverage threshold.
        guards: all other choices.
        known: what is known already, of the files; it is reported with the rest.

    Raises:
        ProbeError: too few records, no eta, or a state that does not fit the model.
    """
    settings = settings or Settings()
    if min(batch_e, batch_u) < 1 or len(records) < batch_e + batch_u:
        fix = "add lines to the data, or pass smaller --batch-e and --batch-u"
        raise ProbeError(f"{batch_e} + {batch_u} sequences are needed, the data has {len(records)}", fix=fix)
    eta, eta_from = _eta(state, eta)
    _check_ids(model, records[: batch_e + batch_u])
    optimizer = lora_adamw(model, state, lr=eta)
    guards = replace(guards or Guards(), identity_if_coverage_below=settings.identity_preconditioner_if_coverage_below)
    pre = AdamPreconditioner(optimizer, checkpoint_step=settings.checkpoint_step, guards=guards)
    with eval_mode(model):
        xbar = _mean(model, records[:batch_e], entropy)
        ybar = _mean(model, records[batch_e : batch_e + batch_u], objective)
    result = delta_h1(xbar, ybar, eta, pre)
    report = filled(optimizer)
    stats = pre.stats()
    fill_findings = report.findings if report is not None else ()
    if settings.checkpoint_step is not None:
        fill_findings = tuple(finding for finding in fill_findings if finding.rule != "step-missing")
    findings = _once(known, fill_findings, pre.findings, result.findings, _ignored(settings))
    return ProbeReport(
        result=replace(result, verdict=with_warnings(result.verdict, findings)),
        stats=stats,
        coverage=stats["coverage"],
        coverage_step=stats["coverage_step"],
        eta_from=eta_from,
        preconditioner=pre,
        findings=findings,
    )


def entropy(logits: Tensor, record: Record) -> Tensor:
    """Return the mean entropy of the next-token distributions at the counted places; nats."""
    logp = logits.to(torch.float32).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)[_places(logits, record)].mean()


def objective(logits: Tensor, record: Record) -> Tensor:
    """Return advantage * mean log-probability of the counted tokens; nats."""
    logp = logits.to(torch.float32).log_softmax(-1)
    tokens = torch.tensor(record.ids[1:], device=logits.device)
    return record.advantage * logp.gather(-1, tokens[:, None])[:, 0][_places(logits, record)].mean()


def _places(logits: Tensor, record: Record) -> Tensor:
    return torch.tensor(record.counted[1:], device=logits.device)


def _mean(model: nn.Module, records: Sequence[Record], quantity: Callable[[Tensor, Record], Tensor]) -> dict[str, Tensor]:
    total = GradientMean(model)
    device = next(model.parameters()).device
    for number, record in enumerate(records, 1):
        try:
            logits = model(input_ids=torch.tensor([record.ids], device=device)).logits[0, :-1]
            quantity(logits, record).backward()  # type: ignore[no-untyped-call]
        except (IndexError, RuntimeError, AttributeError) as error:  # more tokens than places; out of memory on the device; no `logits`
            if (refusal := refusal_for(error)) is not None:
                raise refusal.at(f"sequence {number}, {len(record.ids)} tokens") from error
            what = f"the model fails on a sequence: {(str(error).splitlines() or [type(error).__name__])[0][:300]}"
            fix = "pass a causal language model, and sequences that it has places for"
            raise ProbeError(what, where=f"sequence {number}, {len(record.ids)} tokens", fix=fix) from error
        total.add()
    return total.mean()


def _check_ids(model: nn.Module, records: Sequence[Record]) -> None:
    """Refuse a token id outside the model's vocabulary: torch's own error comes late on a GPU, and ends the process there.

    Raises:
        ProbeError: there is one.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None)
    for number, record in enumerate(records, 1):
        if size is not None and max(record.ids) >= size:
            text = f"token id {max(record.ids)} of sequence {number} is outside the model's vocabulary of {size}"
            raise ProbeError(text, where="the data", fix="tokenize it with this model's own tokenizer")


def _eta(state: NamedState, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    for key in ("lr", "initial_lr"):
        values = {rate for group in state.groups if (rate := one_number(group.hyper, key, 0.0))}
        if len(values) == 1:
            return values.pop(), f"the state's {key}"
        if values:
            raise ProbeError(f"the state's groups have several values of {key}: {sorted(values)}", fix="pass --eta, the learning rate that is meant")
    raise ProbeError("the state has no learning rate other than 0", fix="pass --eta, the learning rate that is meant")


def _ignored(settings: Settings) -> tuple[Finding, ...]:
    if not settings.ignored:
        return ()
    return (Finding(rule="settings-ignored", severity="note", text=f"not used here: importance.{', importance.'.join(settings.ignored)}"),)


def _once(*sources: Sequence[Finding]) -> tuple[Finding, ...]:
    """Join the findings; what two sources say by one rule is said as the first of them says it."""
    out: list[Finding] = []
    for findings in sources:
        said = {finding.rule for finding in out}
        out += [finding for finding in findings if finding.rule not in said]
    return tuple(out)
