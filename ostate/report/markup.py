"""HTML from Python: elements whose text is escaped, and whose strange characters are shown, unless it is `Markup` already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from .text import printable

_VOID = frozenset({"meta", "link", "br"})
_BLOCKS = frozenset(
    ["html", "head", "body", "header", "main", "footer", "section", "article", "figure", "details", "div", "table", "thead", "tbody", "ul", "dl"]
)
"""Elements whose children each begin a line of the page: white space between these means nothing to a reader."""


_JOINT = re.compile(r"\.(?=[^\W\d]|\{)|(?<=[^\W\d])\.(?=\d)")


class Markup(str):
    """Text that is HTML already: our own, or what `tag` has made."""

    __slots__ = ()


Child = str | None


def tag(name: str, /, *children: Child, **attributes: str) -> Markup:
    """Return an element. A child that is None is left out; attributes are given as `class_`, `aria_label`."""
    head = name + "".join(f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{head}>")
    between = "\n" if name in _BLOCKS else ""
    inner = between.join(_text(child) for child in children if child is not None)
    return Markup(f"<{head}>{between}{inner}{between}</{name}>")


def joined(children: Iterable[Child], between: str = "\n") -> Markup:
    """Return children one after another."""
    return Markup(between.join(_text(child) for child in children if child is not None))


def breakable(text: str) -> Markup:
    """Return text in which a line may end after a dot between letters, so that long names are broken where they are joined."""
    return Markup(_JOINT.sub(".<wbr>", _text(text)))


def _text(value: str) -> str:
    return value if isinstance(value, Markup) else escape(printable(value))
