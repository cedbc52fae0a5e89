"""The opcodes of pickle (PEP 307, 3154, 574; `pickletools`), each as a function of the machine and the position of its operand.

It returns the position of the next opcode. What plain data never needs is not in the table, and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from .machine import Machine
from .records import Inert, Named, Refusal, check_keys

MOST_MARKS = 1000
"""Containers within containers."""
MOST_INT_BYTES = 128
"""Bytes of one integer: a larger one is no float and cannot be printed."""

_FLOAT = Struct(">d").unpack_from
_INT = Struct("<i").unpack_from
_UINT = Struct("<I").unpack_from


def _operand(m: Machine, at: int, width: int) -> tuple[bytes, int]:
    """Return the bytes whose length stands in `width` bytes at `at`, and the position after them."""
    start = at + width
    end = start + int.from_bytes(m.data[at:start], "little")
    if end > len(m.data):
        raise IndexError("a length reaches past the end")
    return m.data[start:end], end


def _line(m: Machine, at: int) -> tuple[str, int]:
    end = m.data.index(b"\n", at)
    return m.data[at:end].decode("utf-8"), end + 1


def _integer(raw: bytes) -> int:
    if len(raw) > MOST_INT_BYTES:
        raise Refusal(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _mark(m: Machine, at: int) -> int:
    m.marks.append(m.stack)
    if len(m.marks) > MOST_MARKS:
        raise Refusal("containers nest too deep")
    m.stack = []
    return at


def _pop(m: Machine, at: int) -> int:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()
    return at


def _pop_mark(m: Machine, at: int) -> int:
    m.pop_mark()
    return at


def _dup(m: Machine, at: int) -> int:
    m.stack.append(m.stack[-1])
    return at


def _constant(value: object) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        m.stack.append(value)
        return at

    return push


def _int1(m: Machine, at: int) -> int:
    m.stack.append(m.data[at])
    return at + 1


def _int2(m: Machine, at: int) -> int:
    m.stack.append(m.data[at] | m.data[at + 1] << 8)
    return at + 2


def _int4(m: Machine, at: int) -> int:
    m.stack.append(_INT(m.data, at)[0])
    return at + 4


def _float8(m: Machine, at: int) -> int:
    m.stack.append(_FLOAT(m.data, at)[0])
    return at + 8


def _int_line(m: Machine, at: int) -> int:
    text, at = _line(m, at)
    if len(text) > 2 * MOST_INT_BYTES:
        raise Refusal(f"an integer of {len(text)} digits")
    m.stack.append({"00": False, "01": True}[text] if text in {"00", "01"} else int(text.removesuffix("L")))
    return at


def _float_line(m: Machine, at: int) -> int:
    text, at = _line(m, at)
    m.stack.append(float(text))
    return at


def _long(width: int) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        raw, at = _operand(m, at, width)
        m.stack.append(_integer(raw))
        return at

    return push


def _text(width: int) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        raw, at = _operand(m, at, width)
        m.stack.append(raw.decode("utf-8"))
        return at

    return push


def _text_line(m: Machine, at: int) -> int:
    end = m.data.index(b"\n", at)
    m.stack.append(m.data[at:end].decode("raw-unicode-escape"))
    return end + 1


def _bytes(width: int) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        raw, at = _operand(m, at, width)
        m.stack.append(raw)
        return at

    return push


def _old_text(width: int) -> Callable[[Machine, int], int]:
    """BINSTRING of Python 2: text by convention, latin-1 so that every byte has its sign."""

    def push(m: Machine, at: int) -> int:
        raw, at = _operand(m, at, width)
        m.stack.append(raw.decode("latin-1"))
        return at

    return push


def _empty(make: Callable[[], object]) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        m.spend()
        m.stack.append(make())
        return at

    return push


def _tuple(m: Machine, at: int) -> int:
    m.spend()
    items = m.pop_mark()
    m.stack.append(tuple(items))
    return at


def _tuple_of(count: int) -> Callable[[Machine, int], int]:
    def push(m: Machine, at: int) -> int:
        m.spend()
        stack = m.stack
        if len(stack) < count:
            raise IndexError("the stack is empty")
        stack[-count:] = [tuple(stack[-count:])]
        return at

    return push


def _list(m: Machine, at: int) -> int:
    m.spend()
    items = m.pop_mark()
    m.stack.append(items)
    return at


def _dict(m: Machine, at: int) -> int:
    m.spend()
    items = m.pop_mark()
    check_keys(items[::2])
    m.stack.append(dict(zip(items[::2], items[1::2], strict=True)))
    return at


def _frozenset(m: Machine, at: int) -> int:
    m.spend()
    items = m.pop_mark()
    check_keys(items)
    m.stack.append(frozenset(items))
    return at


def _append(m: Machine, at: int) -> int:
    value = m.stack.pop()
    _extend(m.stack[-1], [value])
    return at


def _appends(m: Machine, at: int) -> int:
    items = m.pop_mark()
    _extend(m.stack[-1], items)
    return at


def _extend(target: object, items: list[object]) -> None:
    if type(target) is Inert:
        if target.held is None:
            target.held = []
        target = target.held
    if type(target) is not list:
        raise Refusal(f"items for a {type(target).__name__}, which is not a list")
    target.extend(items)


def _setitem(m: Machine, at: int) -> int:
    value = m.stack.pop()
    key = m.stack.pop()
    _update(m.stack[-1], [key], [value])
    return at


def _setitems(m: Machine, at: int) -> int:
    items = m.pop_mark()
    _update(m.stack[-1], items[::2], items[1::2])
    return at


def _update(target: object, keys: list[object], values: list[object]) -> None:
    if type(target) is Inert:
        if target.held is None:
            target.held = {}
        target = target.held
    if type(target) is not dict:
        raise Refusal(f"keys for a {type(target).__name__}, which is not a dictionary")
    check_keys(keys)
    target.update(zip(keys, values, strict=True))


def _additems(m: Machine, at: int) -> int:
    items = m.pop_mark()
    target = m.stack[-1]
    if type(target) is not set:
        raise Refusal(f"members for a {type(target).__name__}, which is not a set")
    check_keys(items)
    target.update(items)
    return at


def _get1(m: Machine, at: int) -> int:
    value = m.memo[m.data[at]]
    if value is m.before:
        after = m.fast_path(m, at + 1)
        if after > 0:
            return after
    m.stack.append(value)
    return at + 1


def _get4(m: Machine, at: int) -> int:
    value = m.memo[_UINT(m.data, at)[0]]
    if value is m.before:
        after = m.fast_path(m, at + 4)
        if after > 0:
            return after
    m.stack.append(value)
    return at + 4


def _get_line(m: Machine, at: int) -> int:
    text, at = _line(m, at)
    m.stack.append(m.memo[int(text)])
    return at


def _put1(m: Machine, at: int) -> int:
    _put(m, m.data[at])
    return at + 1


def _put4(m: Machine, at: int) -> int:
    _put(m, _UINT(m.data, at)[0])
    return at + 4


def _put_line(m: Machine, at: int) -> int:
    text, at = _line(m, at)
    _put(m, int(text))
    return at


def _put(m: Machine, index: int) -> None:
    """Remember the top of the stack; a number is given once, so that what a number means never changes."""
    value, memo = m.stack[-1], m.memo
    if memo.setdefault(index, value) is not value:
        raise Refusal("a memo number is used twice")
    if len(memo) > m.most_memo:
        raise Refusal("more memo numbers than a file of this size can hold")


def _memoize(m: Machine, at: int) -> int:
    m.counted()
    _put(m, len(m.memo))
    return at


def _global(m: Machine, at: int) -> int:
    module, at = _line(m, at)
    name, at = _line(m, at)
    m.stack.append(m.find(module, name))
    return at


def _stack_global(m: Machine, at: int) -> int:
    name = m.stack.pop()
    module = m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Refusal("a global whose name is not text")
    m.stack.append(m.find(module, name))
    return at


def _reduce(m: Machine, at: int) -> int:
    m.spend()
    arguments = m.stack.pop()
    m.stack[-1] = _call(m.stack[-1], arguments, {})
    return at


def _newobj_ex(m: Machine, at: int) -> int:
    m.spend()
    named = m.stack.pop()
    arguments = m.stack.pop()
    m.stack[-1] = _call(m.stack[-1], arguments, named)
    return at


def _call(function: object, arguments: object, named: object) -> object:
    if type(function) is not Named:
        raise Refusal(f"a call of a {type(function).__name__}")
    if type(arguments) is not tuple or type(named) is not dict:
        raise Refusal("a call whose arguments are not a tuple")
    return function.call(*arguments, **named)


def _build(m: Machine, at: int) -> int:
    state = m.stack.pop()
    m.stack[-1] = m.build(m.stack[-1], state)
    return at


def _persid(m: Machine, at: int) -> int:
    text, at = _line(m, at)
    m.stack.append(m.persistent(text))
    return at


def _binpersid(m: Machine, at: int) -> int:
    m.stack[-1] = m.persistent(m.stack[-1])
    return at


def _skip(width: int) -> Callable[[Machine, int], int]:
    return lambda _, at: at + width


def _unknown(m: Machine, at: int) -> int:
    raise Refusal(f"opcode 0x{m.data[at - 1]:02x} at {at - 1}, which plain data never uses")


_OPCODES: dict[bytes, Callable[[Machine, int], int]] = {
    b"(": _mark, b"0": _pop, b"1": _pop_mark, b"2": _dup,
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False), b")": _constant(()),
    b"K": _int1, b"M": _int2, b"J": _int4, b"G": _float8, b"I": _int_line, b"L": _int_line, b"F": _float_line,
    b"\x8a": _long(1), b"\x8b": _long(4),
    b"X": _text(4), b"\x8c": _text(1), b"\x8d": _text(8), b"V": _text_line, b"T": _old_text(4), b"U": _old_text(1),
    b"B": _bytes(4), b"C": _bytes(1), b"\x8e": _bytes(8), b"\x96": _bytes(8),
    b"]": _empty(list), b"}": _empty(dict), b"\x8f": _empty(set),
    b"t": _tuple, b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3), b"l": _list, b"d": _dict, b"\x91": _frozenset,
    b"a": _append, b"e": _appends, b"s": _setitem, b"u": _setitems, b"\x90": _additems,
    b"h": _get1, b"j": _get4, b"g": _get_line, b"q": _put1, b"r": _put4, b"p": _put_line, b"\x94": _memoize,
    b"c": _global, b"\x93": _stack_global, b"R": _reduce, b"\x81": _reduce, b"\x92": _newobj_ex, b"b": _build,
    b"P": _persid, b"Q": _binpersid, b"\x80": _skip(1), b"\x95": _skip(8),
}  # fmt: skip
"""Not here, so refused: INST and OBJ (calls of Python 2 classes), EXT1/2/4 (a process-wide table), NEXT_BUFFER and READONLY_BUFFER."""

TABLE: list[Callable[[Machine, int], int]] = [_OPCODES.get(bytes((code,)), _unknown) for code in range(256)]


def run(machine: Machine, at: int = 0) -> tuple[object, int]:
    """Return the object and the position after STOP.

    Raises:
        Refusal: an opcode, a call or a key that plain data never needs.
        IndexError: the pickle ends early, or its stack runs empty.
        KeyError: a memo number that was never put.
        ValueError, TypeError, OverflowError, struct.error: damaged operands.
    """
    data, table = machine.data, TABLE
    while True:
        code = data[at]
        if code == 46:  # STOP
            if machine.marks or len(machine.stack) != 1:
                raise Refusal("the pickle stops in the middle of something")
            return machine.stack[0], at + 1
        at = table[code](machine, at + 1)
