"""What is odd in a state: one rule, one function; its docstring says why it matters. Rules judge, they never change anything.

Severity: a note needs nobody; a warning should be looked at; an error makes the state unusable, and `repair` refuses.
"""

from __future__ import annotations

from .copies import copies
from .rules import RULES
from .run import explain, judged, refuse, run, structure, values, while_copying

__all__ = ["RULES", "copies", "explain", "judged", "refuse", "run", "structure", "values", "while_copying"]
