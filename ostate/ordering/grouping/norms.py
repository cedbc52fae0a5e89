"""Which norm classes transformers knew of, release by release, when it chose what not to decay.

Up to 4.52 a model's file added its own norm class to `ALL_LAYERNORM_LAYERS` when it was imported, so the same configuration was cut differently
from release to release. Read in the sources of 4.25, 4.26, 4.28, 4.30 to 4.36, 4.38, 4.40 to 4.42 and 4.44 to 4.53.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

Version = tuple[int, int]
FIRST: Version = (4, 0)
LAST: Version = (99, 0)


class Span(NamedTuple):
    """Releases from `since` on, before `before`."""

    since: Version
    before: Version

    def holds(self, version: Version) -> bool:
        """True when the release lies in the span."""
        return self.since <= version < self.before

    @property
    def text(self) -> str:
        """The span as people write it."""
        if self.before == LAST:
            return f">= {_dotted(self.since)}"
        last = (self.before[0], self.before[1] - 1)
        return f"<= {_dotted(last)}" if self.since == FIRST else f"{_dotted(self.since)} to {_dotted(last)}"


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


E1: Version = (4, 26)
"""Only what requires grad is in the optimizer from here on."""
E2: Version = (4, 49)
"""Names that hold `layernorm` or `rmsnorm` do not decay from here on."""
E3: Version = (4, 53)
"""Names are matched by regular expressions, classes only by nn.LayerNorm, from here on."""

_UNTIL_4_47: Version = (4, 48)
APPENDED: dict[str, Span] = {
    **dict.fromkeys(
        ["T5LayerNorm", "LongT5LayerNorm", "SwitchTransformersLayerNorm", "MegaSequenceNorm", "Pix2StructLayerNorm", "Pop2PianoLayerNorm"],
        Span(FIRST, E3),
    ),
    "LlamaRMSNorm": Span((4, 34), E3),
    "IdeficsRMSNorm": Span((4, 34), E3),
    **dict.fromkeys(["ChameleonRMSNorm", "NemotronLayerNorm1P", "RecurrentGemmaRMSNorm", "GraniteMoeRMSNorm", "OlmoeRMSNorm"], Span(FIRST, E3)),
    **dict.fromkeys(["MoshiRMSNorm", "ZambaRMSNorm"], Span(FIRST, E3)),
    "GemmaRMSNorm": Span(FIRST, (4, 45)),
    "CohereLayerNorm": Span(FIRST, _UNTIL_4_47),
    "OlmoLayerNorm": Span(FIRST, _UNTIL_4_47),
    "GraniteRMSNorm": Span(FIRST, _UNTIL_4_47),
}
"""Class -> releases whose model file added it. A class that came with its model has no earlier release to differ from."""


def spans(*, since: Version = FIRST) -> list[tuple[Span, frozenset[str]]]:
    """Return the spans of releases that agree on every norm class, and the classes that are not decayed in each, nn.LayerNorm first of all."""
    edges = {FIRST, E1, E2, E3, LAST} | {edge for span in APPENDED.values() for edge in span}
    ordered = sorted(edge for edge in edges if edge >= since)
    found = []
    for start, end in pairwise(ordered):
        added = {name for name, span in APPENDED.items() if span.holds(start)}
        found.append((Span(start, end), frozenset({"LayerNorm"} | added)))
    return found
