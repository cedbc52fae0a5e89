"""docs/messages.md shows the messages as they are, and they keep to the field's words."""

from __future__ import annotations

import re

import pytest

from tests import messages

NOT_PLAIN = ("kin", "heard", "stranger", "wishes", "at hand", "tell apart", "speaks", "settles", "stands aside", "silent", "a person should look")


@pytest.fixture(scope="module")
def every():
    return messages.messages()


def rows(page):
    return {line for line in page.splitlines() if line.startswith("| ")}


def test_the_page_shows_the_messages_as_they_are(every):
    """To one in twenty: others change a message without making the page anew each time."""
    shown, made = rows(messages.PAGE.read_text(encoding="utf-8")), rows(messages.page(every))
    assert len(made) > 300
    assert len(made - shown) <= len(made) / 20, "run: python -m tests.messages"
    assert len(shown - made) <= len(made) / 20, "run: python -m tests.messages"


def test_messages_keep_to_the_fields_words(every):
    said = {f"{one.text} | {one.fix}" for one in every}
    odd = [text for text in said for word in NOT_PLAIN if re.search(rf"\b{word}\b", text)]
    assert odd == []


def test_no_message_uses_the_ordinary_imperative_for_two_things(every):
    """An option, an argument or a file is *passed*; `give` is what numbers and tables do."""
    assert [one.fix for one in every if re.match(r"give (the|a|an|one|--)", one.fix)] == []


def test_texts_that_a_message_is_made_of_are_followed_to_their_words(tmp_path):
    source = tmp_path / "x.py"
    source.write_text('def f(a):\n    fix = "pass " + "it"\n    raise ReadError(f"no {a} here" if a else "none", fix=fix)\n')
    module = messages.Module.__new__(messages.Module)
    module.name, module.tree = "x", messages.ast.parse(source.read_text())
    module.constants = messages.assigned(module.tree.body)
    assert module.messages() == [messages.Message("ReadError", "no … here / none", "pass it", "x")]


def test_every_refusal_of_a_file_says_what_to_do(every):
    """A `ProbeError` may name the values that are allowed in its text."""
    kinds = {name for name in messages.ERRORS if not name.startswith("Probe")}
    assert [one.text for one in every if one.kind in kinds and not one.fix] == []
