"""The documents that commands print with `--json`, as types: `commands` makes them, `report` says them in words, `schemas/` describes them.

For type checkers alone, and so imported nowhere when a program runs. Values that JSON may hold in more than one way (a step that is nan is text)
are `object`: whoever says one looks what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

Severity = Literal["note", "warning", "error"]
Verdict = Literal["verified", "recovered", "partial", "unverified"]


class FindingRow(TypedDict):
    """A finding."""

    rule: str
    severity: Severity
    text: str
    fix: str
    names: list[str]
    more: NotRequired[int]


class AlternativeRow(TypedDict):
    """Another order, and the digits against it."""

    what: str
    digits: float


class PairRow(TypedDict):
    """How a name's own numbers score against its best rival."""

    name: str
    parameter: str
    position: int
    score: float
    rival: str | None
    rival_parameter: str | None
    margin: float


class OrderingRow(TypedDict):
    """How the names were settled."""

    source: str
    rule: str
    verdict: Verdict
    margin: float | None
    proof: str | None
    weakest_alternative: AlternativeRow | None
    named: int
    undecided: list[str]
    assumed: list[str]
    left_out: list[int]
    rejected: list[Mapping[str, str]]
    tests: list[str]
    silent: Mapping[str, str]
    weakest: list[PairRow]


class OrderingDocument(TypedDict):
    """schemas/repair-v1.schema.json and verify-v1.schema.json: what both have."""

    document: Literal["ostate-repair", "ostate-verify"]
    version: int
    source: str
    ordering: OrderingRow
    findings: list[FindingRow]
    read: NotRequired[str]
    not_read: NotRequired[list[str]]
    out: NotRequired[list[str]]
    optimizer: NotRequired[str]
    parameters: NotRequired[int]


class SlotRow(TypedDict):
    """A slot as it is stored."""

    dtype: str
    encoding: str
    shape: list[int]


class EntryRow(TypedDict):
    """A position."""

    position: int
    group: int
    name: str | None
    shape: list[int] | None
    step: object
    slots: Mapping[str, SlotRow]


class GroupRow(TypedDict):
    """One of `param_groups`."""

    index: int
    positions: list[int]
    hyper: Mapping[str, object]
    names: list[str] | None


class FitRow(TypedDict):
    """How a state and an adapter go together, by shapes alone; shape -> how many."""

    adapter: str
    tensors: int
    with_state: int
    matched: int
    only_state: Mapping[str, int]
    only_adapter: Mapping[str, int]


class NextRow(TypedDict):
    """What would go wrong with the state as it is, and the command to run next."""

    risk: str
    command: str


class InspectDocument(TypedDict):
    """schemas/inspect-v1.schema.json."""

    document: str
    version: int
    source: str
    read: NotRequired[str]
    not_read: NotRequired[list[str]]
    layout: str
    optimizer: str
    files: list[Mapping[str, object]]
    positions: int
    with_state: int
    names: str | None
    groups: list[GroupRow]
    entries: list[EntryRow]
    facts: Mapping[str, object]
    fit: FitRow | None
    values: Mapping[str, Mapping[str, object]] | None
    findings: list[FindingRow]
    next: NotRequired[NextRow | None]


class ValidateDocument(TypedDict):
    """schemas/validate-v1.schema.json."""

    document: str
    version: int
    source: str
    read: NotRequired[str | None]
    sound: bool
    deep: bool
    optimizer: str | None
    parameters: int | None
    verdict: str | None
    undecided: list[str]
    left_out: NotRequired[list[int]]
    assumed: NotRequired[list[str]]
    findings: list[FindingRow]


class ExportDocument(TypedDict):
    """schemas/export-v1.schema.json."""

    document: str
    version: int
    to: str
    out: str | None
    parameters: int
    migration: Mapping[str, list[str]] | None
    findings: list[FindingRow]


class BothRow(TypedDict):
    """A parameter, and what each of two states says of it."""

    name: str
    a: object
    b: object


class SlotsRow(TypedDict):
    """A parameter, and the slots that only one of two states has."""

    name: str
    only_a: list[str]
    only_b: list[str]


class HyperRow(TypedDict):
    """A hyperparameter that differs, and for how many parameters."""

    key: str
    a: object
    b: object
    parameters: int


class GapRow(TypedDict):
    """How far a slot lies apart."""

    name: str
    slot: str
    relative: object
    cosine: object


class DiffDocument(TypedDict):
    """schemas/diff-v1.schema.json."""

    document: str
    version: int
    a: str
    b: str
    same: bool
    matched_by: str
    matched: int
    only_a: list[str]
    only_b: list[str]
    shapes: list[BothRow]
    slots: list[SlotsRow]
    steps: list[BothRow]
    hyper: list[HyperRow]
    compared: int
    equal: int
    values: list[GapRow]
    cold_a: bool | None
    cold_b: bool | None


class AddedRow(TypedDict):
    """A parameter that a state lacks."""

    name: str
    shape: list[int] | None


class RenamedRow(TypedDict):
    """The names of one parameter in the state and in the optimizer to come."""

    state: str
    to_come: str


class ReshapedRow(TypedDict):
    """A parameter and its shapes."""

    name: str
    state: list[int]
    to_come: list[int]


class MovedRow(TypedDict):
    """A parameter and its positions."""

    name: str
    state: int
    to_come: int


class GroupSizes(TypedDict):
    """The sizes of the groups."""

    state: list[int | None]
    to_come: list[int]


ResumeDocument = TypedDict(
    "ResumeDocument",
    {
        "document": str,
        "version": int,
        "state": str,
        "for": str,
        "same": bool,
        "adds": list[AddedRow],
        "lacks": list[str],
        "renamed": list[RenamedRow],
        "reshaped": list[ReshapedRow],
        "moved": list[MovedRow],
        "groups": GroupSizes,
        "by_position": str,
        "command": str,
        "findings": list[FindingRow],
    },
)
"""schemas/resume-v1.schema.json. `for` is a word of Python's, so no class can have it."""


class ProbeResult(TypedDict):
    """delta-H1 and its parts; None: not finite."""

    value: float | None
    eta: float
    bars_dot: float | None
    bars_dot_identity: float | None
    ratio: float | None
    mass_ratio: float | None
    plausible_ratio: float | None
    verdict: str
    shares: Mapping[str, float]
    raw_shares: Mapping[str, float]
    cosine: float | None


class ProbeCounts(TypedDict):
    """What `ostate probe` says of all parameters, or of one kind; None: not finite."""

    parameters: int
    elements: int
    with_v: int
    min_denom: float | None
    max_scale: float | None
    median_scale: float | None
    cap: float | None
    zero: int
    tiny: int
    negative: int
    nonfinite: int
    clamped_share: float
    identity_share: float
    eps_dominated_share: float


class ProbeStats(ProbeCounts):
    """`AdamPreconditioner.stats()`."""

    by_kind: Mapping[str, ProbeCounts]


class ProbeDocument(TypedDict):
    """schemas/probe-v1.schema.json."""

    document: str
    version: int
    result: ProbeResult
    stats: ProbeStats
    coverage: float
    coverage_step: float
    eta_from: str
    healthy: bool
    findings: list[FindingRow]


class ErrorDocument(TypedDict):
    """schemas/error-v1.schema.json."""

    document: str
    version: int
    error: str
    what: str
    where: str
    why: Sequence[str]
    fix: str
    exit_code: int
