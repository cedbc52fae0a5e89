"""Names that the user gives: `--order FILE`."""

from __future__ import annotations

from ostate.core.names_list import read_names
from ostate.core.naming import Claim, Question
from ostate.errors import OrderingError

from ..grouping.refute import Refused
from .recorded import by_position


def given(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the order that `--order` names.

    Raises:
        OrderingError: the file holds no names, or names that cannot belong to this state: a person meant something by it.
    """
    if question.order is None:
        return [], []
    claims, lost = by_position("given", "--order", read_names(question.order, error=OrderingError), question)
    if not claims:
        raise OrderingError(
            f"the names in this file do not fit the state: {lost[0]['reason']}",
            where=question.order,
            fix="list the names in the optimizer's order, one per position",
        )
    return claims, lost
