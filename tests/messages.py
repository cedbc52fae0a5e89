"""Every message of the package, read from its source: `python -m tests.messages` writes docs/messages.md anew.

What is filled in at run time stands as `…`; of two texts that depend on a condition both are given, with ` / ` between them.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ostate import errors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "messages.md"
ERRORS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.OstateError)}
HEAD = """# Every message

<!-- written by python -m tests.messages; edit the messages in the source -->

What ostate can say when it refuses, by the class in `ostate.errors`, and its findings, by rule and severity. `…` is filled in at run time. A refusal
also says where, and up to three reasons; `-v` shows all of them. The words are explained in [Words](glossary.md).
"""
MOST_DEPTH = 4
"""Names that are followed to what was assigned to them."""


class Message(NamedTuple):
    """One text, what to do, and the module that says it."""

    kind: str
    """The class of the error, or the rule and severity of the finding."""
    text: str
    fix: str
    module: str


class Module:
    """One source file: its constants, and what each function assigns."""

    def __init__(self, path: Path) -> None:
        self.name = str(path.relative_to(ROOT / "ostate")).removesuffix(".py")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = assigned(self.tree.body)

    def messages(self) -> list[Message]:
        """Return what this module says."""
        out = []
        for scope in ast.walk(self.tree):
            if isinstance(scope, ast.FunctionDef):
                own = {id(call) for inner in ast.walk(scope) if isinstance(inner, ast.FunctionDef) and inner is not scope for call in ast.walk(inner)}
                calls = [node for node in ast.walk(scope) if isinstance(node, ast.Call) and id(node) not in own]
                for call in calls:
                    message = self.message(call, {**self.constants, **assigned(ast.walk(scope), call.lineno)}, scope.name)
                    out += [message] * (message is not None)
        return out

    def message(self, call: ast.Call, known: dict[str, ast.expr], function: str) -> Message | None:
        """Return what one call says; None where it says nothing."""
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in ERRORS and call.args:
            return Message(name, text_of(call.args[0], known), text_of(given.get("fix"), known), self.name)
        if name == "Finding" and "text" in given and "rule" in given:
            kind = f"{text_of(given['severity'], known)} `{text_of(given['rule'], known)}`"
            return Message(kind, text_of(given["text"], known), text_of(given.get("fix"), known), self.name)
        if name == "say" and self.name.startswith("checks") and len(call.args) > 1:
            fix = call.args[2] if len(call.args) > 2 else given.get("fix")
            kind = f"{text_of(call.args[0], known)} `{function.replace('_', '-')}`"
            return Message(kind, text_of(call.args[1], known), text_of(fix, known), self.name)
        return None


def assigned(nodes: Iterable[ast.AST], before: int = 1 << 30) -> dict[str, ast.expr]:
    """Return name -> what was assigned to it, the last time before a line."""
    found: dict[str, ast.expr] = {}
    rows = [node for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.lineno <= before]
    for node in sorted(rows, key=lambda node: node.lineno):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and node.value is not None:
                found[target.id] = node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                found |= {name.id: value for name, value in zip(target.elts, node.value.elts) if isinstance(name, ast.Name)}
    return found


def text_of(node: ast.expr | None, known: dict[str, ast.expr], depth: int = MOST_DEPTH) -> str:
    """Return the text that an expression gives, `…` for what only a run tells."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, known, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        inner = node.value
        return text_of(inner, known, depth) if isinstance(inner, ast.IfExp) or (isinstance(inner, ast.Name) and inner.id.isupper()) else "…"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, known, depth) + text_of(node.right, known, depth)
    if isinstance(node, ast.IfExp):
        texts = [text_of(node.body, known, depth), text_of(node.orelse, known, depth)]
        return " / ".join(text for text in texts if text)
    if isinstance(node, ast.Name) and node.id in known and depth:
        return text_of(known[node.id], known, depth - 1)
    return "…"


def messages() -> list[Message]:
    """Return every message of the package."""
    return [message for path in sorted((ROOT / "ostate").rglob("*.py")) for message in Module(path).messages()]


def page(found: list[Message]) -> str:
    """Return the whole page."""
    refusals, findings = defaultdict(list), defaultdict(list)
    for message in found:
        if message.text.strip("… :"):
            (refusals if message.kind in ERRORS else findings)[message.kind].append(message)
    parts = [HEAD, "## Refusals\n"]
    for kind in sorted(refusals):
        says = (ERRORS[kind].__doc__ or "").splitlines()[0]
        rows = sorted({f"| {cell(one.text)} | {cell(one.fix)} |" for one in refusals[kind]})
        parts.append("\n".join([f"### {kind}\n", f"{says}\n", "| what | what to do |", "|---|---|", *rows, ""]))
    rows = sorted({f"| {cell(kind)} | {cell(one.text)} | {cell(one.fix)} |" for kind, some in findings.items() for one in some})
    parts.append("\n".join(["## Findings\n", "| severity, rule | text | what to do |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("{", "\\{")


if __name__ == "__main__":
    PAGE.write_text(page(messages()), encoding="utf-8")
