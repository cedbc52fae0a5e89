"""One state that a program saved in parts: the stages of a pipeline, each numbered from 0; and files of which an index says that they are parts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from ostate.core.files import is_file, names_in, read_at, size_of
from ostate.core.foreign import number_in, parse_json
from ostate.errors import ReadError

from .hyper import plain_hyper
from .pickled_optimizer import params_of

_NANOTRON = re.compile(r"_(pp|dp|tp|exp)-\d+-of-(\d+)")
"""nanotron/serialize/optimizer.py, `optimizer_filename`."""
MOST_INDEX = 1 << 25
"""Bytes of an index of parts."""


class OptimizerPart(NamedTuple):
    """The optimizer of one stage: entries by its own ids, and its groups."""

    state: Mapping[object, object]
    groups: object
    """As the file has them: `joined` refuses what is no list of groups."""


def stages(places: Iterable[str], where: str) -> list[str]:
    """Return the places of the optimizers of one pipeline in the order of its stages; nothing where they are not that.

    Args:
        places: where each optimizer lies: `optim.optimizer_parts.stage_0`, ….
        where: the file or folder, for messages.

    Raises:
        ReadError: a stage is missing.
    """
    # NeMo Automodel components/checkpoint/stateful_wrappers.py, `OptimizerState`: one optimizer a pipeline stage, by its global number
    found = {place: match for place in places if (match := re.match(r"^(?P<root>(?:.*\.)?optimizer_parts)\.stage_(?P<number>\d+)$", place))}
    if not found or len({match["root"] for match in found.values()}) > 1:
        return []
    numbers = {number: place for place, match in found.items() if (number := number_in(match["number"])) is not None}
    if len(numbers) != len(found):
        return []
    missing = next((number for number in range(max(numbers) + 1) if number not in numbers), None)
    if missing is not None:
        raise ReadError(
            f"part of a state: stage {missing} of the pipeline is missing, {', '.join(f'stage {number}' for number in sorted(numbers))} is here",
            where=where,
            fix="pass the folder with the files of all stages",
        )
    return [numbers[number] for number in sorted(numbers)]


def joined(parts: Sequence[OptimizerPart]) -> OptimizerPart:
    """Return the parts as one optimizer: positions counted on from part to part within each group, as the whole model would have them.

    Groups are joined by their number where every part has as many with the same settings, else they follow one another.
    """
    state: dict[object, object] = {}
    listed: list[list[dict[str, object]]] = []
    for part in parts:
        if not are_groups(part.groups):
            raise ReadError("a stage's `param_groups` is not a list of groups", fix="save the whole state_dict() of every stage")
        before = sum(len(params_of(group)) for groups in listed for group in groups)
        new: dict[object, int] = {}
        for group in part.groups:
            for key in params_of(group):
                new[key] = before + len(new)
        listed.append([{**group, "params": [new[key] for key in params_of(group)]} for group in part.groups])
        state.update({new.get(key, f"{len(listed) - 1}.{key}"): entry for key, entry in part.state.items()})
    alike = {tuple(_settings(group) for group in groups) for groups in listed}
    if len(alike) > 1:
        return OptimizerPart(state, [group for groups in listed for group in groups])
    return OptimizerPart(state, [{**rows[0], "params": [key for row in rows for key in params_of(row)]} for rows in zip(*listed)])


def are_groups(value: object) -> TypeGuard[Sequence[dict[str, object]]]:
    """True for `param_groups` as optimizers write them: mappings, each with a list of what it holds, by number or by name."""
    return isinstance(value, (list, tuple)) and all(isinstance(one, dict) and _are_keys(one.get("params")) for one in value)


def _are_keys(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(key) is int or type(key) is str for key in value)


def _settings(group: Mapping[str, object]) -> str:
    return repr(sorted(plain_hyper({key: value for key, value in group.items() if key != "params"}).items()))


def refuse_one_process(path: str) -> None:
    """Refuse nanotron's file of one process of several: its tensors are slices, or the other processes hold the other layers.

    Raises:
        ReadError: it is one.
    """
    counts = {axis: int(count) for axis, count in _NANOTRON.findall(os.path.basename(path))}
    several = [f"{axis} {count}" for axis, count in counts.items() if count > 1]
    if several and os.path.basename(path).startswith("optimizer_"):
        raise ReadError(
            f"the state of one process of nanotron's ({', '.join(several)})",
            where=path,
            fix="save with one process of each kind: nanotron resumes the run with pp, dp, tp and exp of 1",
        )


def refuse_one_of_several(path: str) -> None:
    """Refuse a file that an index beside it lists as one of several parts of a state.

    Raises:
        ReadError: it is one.
    """
    folder, name = os.path.dirname(path) or ".", os.path.basename(path)
    for index in names_in(folder):
        parts = parts_of(os.path.join(folder, index)) if index.endswith(".index.json") else {}
        files = dict.fromkeys(parts.values())
        if name in files and len(files) > 1:
            raise ReadError(f"one of the {len(files)} parts of a state that {index} lists", where=path, fix=f"pass the folder: {folder}")


def parts_of(index: str) -> dict[str, str]:
    """Return what an index file maps to files of its folder; nothing for one that is no such index."""
    if not is_file(index) or size_of(index) > MOST_INDEX:
        return {}
    try:
        listed = parse_json(read_at(index, 0, size_of(index)))
    except ValueError:
        return {}
    found = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(found, dict):
        return {}
    files = {key: file for key, file in found.items() if isinstance(file, str) and os.path.basename(file) == file}
    return files if len(files) == len(found) else {}
