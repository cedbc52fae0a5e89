"""What is odd in a state: one rule, one function; its docstring says why it matters. Rules judge, they never change anything.

Severity: a note needs nobody; a warning should be looked at; an error makes the state unusable, and `repair` refuses.
`run` looks at the index alone; `judging`, `measuring` and `copied` look at numbers, and are imported by who asks for that.
"""

from .run import run, structure

__all__ = ["run", "structure"]
