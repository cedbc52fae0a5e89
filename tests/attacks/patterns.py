"""Every regular expression of the package, and a matcher that counts its steps: backtracking as Python's own does it, without its shortcuts."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ostate.ordering.sources.module_orders import FAMILIES
from tests.architecture import Source, imports_of, sources

if sys.version_info >= (3, 11):
    from re import _constants as c
    from re import _parser
else:
    import sre_constants as c
    import sre_parse as _parser

CALLS = {"compile", "match", "search", "findall", "fullmatch", "sub", "split", "finditer", "subn"}
MOST_STEPS = 300_000


def patterns() -> dict[str, tuple[str, int]]:
    """Return place -> (pattern, flags) of every expression: compiled ones of each module, and texts that are given to `re` in a call."""
    found = {f"FAMILIES: {name}: {pattern!r}": (pattern, 0) for name, pattern, _ in FAMILIES}
    for source in sources().values():
        if "re" not in imports_of(source):
            continue
        module = importlib.import_module(source.name)
        for name, value in vars(module).items():
            for pattern in compiled(value, 0):
                found.setdefault(f"{source.name}.{name}: {pattern.pattern!r}", (text_of(pattern.pattern), pattern.flags))
        for pattern, flags in called(source, module):
            found.setdefault(f"{source.name}: {pattern!r}", (text_of(pattern), flags))
    return found


def compiled(value: Any, depth: int) -> Iterator[re.Pattern[Any]]:
    """Yield the compiled patterns in a module's value: itself, its members, or the owner of a bound method."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(getattr(value, "__self__", None), re.Pattern):
        yield value.__self__
    elif isinstance(value, (tuple, list, set, frozenset)) and depth < 3:
        for one in value:
            yield from compiled(one, depth + 1)
    elif isinstance(value, dict) and depth < 3:
        yield from compiled(tuple(value.values()), depth + 1)


def called(source: Source, module: Any) -> Iterator[tuple[str | bytes, int]]:
    """Yield the texts that a module gives to functions of `re`: constants, and names of constants."""
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS and node.args):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re"):
            continue
        first = node.args[0]
        if isinstance(first, ast.Constant):
            anchored = node.func.attr in ("match", "fullmatch") and isinstance(first.value, str)
            yield (f"^(?:{first.value})" if anchored else first.value), 0
        elif isinstance(first, ast.Name) and isinstance(getattr(module, first.id, None), (str, bytes)):
            yield getattr(module, first.id), 0


def text_of(pattern: str | bytes) -> str:
    """Return a pattern as text; bytes as latin-1."""
    return pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern


class TooManyStepsError(Exception):
    """More than any linear pattern takes."""


class Counter:
    """Searches a text and counts how often a character is looked at."""

    def __init__(self, pattern: str, flags: int) -> None:
        flags &= re.IGNORECASE | re.MULTILINE | re.DOTALL | re.ASCII
        self.tree = _parser.parse(pattern, flags)
        self.flags = self.tree.state.flags
        self.steps = 0
        self.text = ""

    def search(self, text: str) -> int:
        """Return the steps of one search."""
        self.steps, self.text = 0, text
        for at in range(len(text) + 1):
            if self.run(list(self.tree), 0, at, lambda end: True):
                break
        return self.steps

    def run(self, items: list[Any], i: int, at: int, then: Callable[[int], bool]) -> bool:
        """Match the items from `i` on at a place; call `then` with each end, until it says yes."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TooManyStepsError
        while i < len(items):
            op, arg = items[i]
            if op in (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN, c.CATEGORY):
                if not self.one(op, arg, at):
                    return False
                at, i = at + 1, i + 1
                continue
            if op is c.AT:
                if not self.place(arg, at):
                    return False
                i += 1
                continue
            if op in (c.ASSERT, c.ASSERT_NOT):
                if not self.looked(op, arg, at):
                    return False
                i += 1
                continue
            return self.nested(op, arg, at, self.after(items, i + 1, then))
        return then(at)

    def after(self, items: list[Any], rest: int, then: Callable[[int], bool]) -> Callable[[int], bool]:
        """Return what goes on with the rest of the items."""
        return lambda end: self.run(items, rest, end, then)

    def nested(self, op: Any, arg: Any, at: int, then: Callable[[int], bool]) -> bool:
        """Match a group, one of several branches, or a repetition."""
        if op is c.SUBPATTERN:
            return self.run(list(arg[3]), 0, at, then)
        if op is c.BRANCH:
            return any(self.run(list(branch), 0, at, then) for branch in arg[1])
        if op in (c.MAX_REPEAT, c.MIN_REPEAT):
            return self.repeat(op, arg, at, then)
        raise NotImplementedError(op)

    def one(self, op: Any, arg: Any, at: int) -> bool:
        """True when one character matches."""
        self.steps += 1
        if at >= len(self.text):
            return False
        sign = self.text[at]
        if op is c.ANY:
            return bool(self.flags & re.DOTALL) or sign != "\n"
        signs = {sign, sign.lower(), sign.upper()} if self.flags & re.IGNORECASE else {sign}
        if op is c.LITERAL:
            return any(ord(one) == arg for one in signs if len(one) == 1)
        if op is c.NOT_LITERAL:
            return ord(sign) != arg
        return any(self.member(arg, one) for one in signs if len(one) == 1)

    def member(self, members: Any, sign: str) -> bool:
        """True when a character is in a set."""
        turned = members[0][0] is c.NEGATE
        tests = {c.CATEGORY_DIGIT: r"\d", c.CATEGORY_NOT_DIGIT: r"\D", c.CATEGORY_SPACE: r"\s", c.CATEGORY_NOT_SPACE: r"\S"}
        tests |= {c.CATEGORY_WORD: r"\w", c.CATEGORY_NOT_WORD: r"\W"}
        for op, arg in members[turned:]:
            hit = ord(sign) == arg if op is c.LITERAL else arg[0] <= ord(sign) <= arg[1] if op is c.RANGE else re.match(tests[arg], sign) is not None
            if hit:
                return not turned
        return turned

    def place(self, where: Any, at: int) -> bool:
        """True at the beginning, the end or a boundary that is asked for."""
        if where in (c.AT_BEGINNING, c.AT_BEGINNING_STRING):
            return at == 0 or (where is c.AT_BEGINNING and bool(self.flags & re.MULTILINE) and self.text[at - 1] == "\n")
        if where in (c.AT_END, c.AT_END_STRING):
            return (
                at == len(self.text)
                or (at == len(self.text) - 1 and self.text[at] == "\n")
                or (bool(self.flags & re.MULTILINE) and self.text[at] == "\n")
            )
        word = [0 <= i < len(self.text) and re.match(r"\w", self.text[i]) is not None for i in (at - 1, at)]
        return (word[0] != word[1]) == (where is c.AT_BOUNDARY)

    def looked(self, op: Any, arg: Any, at: int) -> bool:
        """True when what stands ahead or behind is as the pattern asks."""
        ahead, inner = arg
        starts = [at] if ahead > 0 else [at - width for width in range(inner.getwidth()[0], inner.getwidth()[1] + 1) if at >= width]
        hit = any(self.run(list(inner), 0, start, lambda end: ahead > 0 or end == at) for start in starts)
        return hit == (op is c.ASSERT)

    def repeat(self, op: Any, arg: Any, at: int, then: Callable[[int], bool]) -> bool:
        """Match as many as fit, or as few, and go back one by one."""
        least, most, inner = arg
        items = list(inner)
        if len(items) == 1 and items[0][0] in (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN):
            end = at
            while end - at < most and self.one(*items[0], end):
                end += 1
            ends = range(at + least, end + 1)
            return any(then(one) for one in (ends if op is c.MIN_REPEAT else reversed(ends)))

        def more(count: int, place: int) -> bool:
            def again() -> bool:
                return count < most and self.run(items, 0, place, lambda end: (end > place or count < least) and more(count + 1, end))

            def stop() -> bool:
                return count >= least and then(place)

            return (stop() or again()) if op is c.MIN_REPEAT else (again() or stop())

        return more(0, at)


def attacks(pattern: str, length: int) -> Iterator[str]:
    """Yield texts of about this length that make a pattern go back: pieces of itself and of names, again and again, and something else at the end."""
    words = sorted(set(re.findall(r"[A-Za-z_]{2,}", pattern)), key=len)[-5:]
    units = ["\n", " ", "a", "1", ".", "_", "a.", "1.", '"', *(f"{word}." for word in words), *(f"{word}_" for word in words[-1:])]
    for unit in dict.fromkeys(units):
        for start in ("", *(f"- {word} " for word in words[-1:]), *(f'"{word}.' for word in words[-1:])):
            yield start + unit * (length // len(unit)) + "!"


def growth(pattern: str, flags: int, lengths: tuple[int, int] = (60, 120)) -> tuple[float, str]:
    """Return by how much the steps grow where the text doubles, for the worst text, and that text's beginning."""
    counter, worst = Counter(pattern, flags), (0.0, "")
    for short, long in zip(attacks(pattern, lengths[0]), attacks(pattern, lengths[1])):
        try:
            first, second = counter.search(short), counter.search(long)
        except TooManyStepsError:
            return float("inf"), short[:40]
        if second > 8 * lengths[1]:
            worst = max(worst, (second / max(first, 1), short[:40]))
    return worst


if __name__ == "__main__":
    sys.setrecursionlimit(20_000)
    for place, (text, flags) in patterns().items():
        ratio, attack = growth(text, flags)
        if ratio > 2.6:
            print(f"{ratio:.1f}  {place}  {attack!r}")
    print(len(patterns()), "patterns")
