"""Every way to do harm through JSON and indexes, by the command line: a clear refusal, no code run, nothing written, little memory and time."""

from __future__ import annotations

import pytest

from tests.attacks import console, headers, indexes

ALL = {**headers.REFUSED, **indexes.REFUSED, **headers.STRANGE}
LONG = {**headers.LONG, **indexes.LONG}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root, jobs, before = tmp_path_factory.mktemp("console"), [], {}
    for number, (name, make) in enumerate(ALL.items()):
        folder = root / str(number)
        folder.mkdir()
        jobs.append((folder, make(folder)))
        before[name] = files(folder)
    done = dict(zip(ALL, console.run(jobs)))
    after = {name: files(folder) for name, (folder, _) in zip(ALL, jobs)}
    written = [name for name in ALL if name not in headers.STRANGE and after[name] != before[name]]
    assert written == []
    assert files(root.parent) == files(root.parent) | {root}
    return done


def files(folder):
    return set(folder.rglob("*")) if folder.name != "out" else set()


@pytest.mark.parametrize("name", ALL)
def test_a_command_ends_in_a_clear_refusal(outcomes, name):
    judge(name, outcomes[name])


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_a_command_ends_in_a_clear_refusal_at_full_size(tmp_path, name):
    (said,) = console.run([(tmp_path, LONG[name](tmp_path))])
    judge(name, said)


def judge(name, said):
    assert said.events == ()
    assert said.code == 3 or (name in headers.STRANGE and said.code in (0, 1)), f"{said.code}\n{said.out[-500:]}\n{said.err[-2000:]}"
    text = said.out + said.err
    assert all(line.isprintable() for line in text.split("\n")), text[:500]
    if said.code == 3:
        assert said.err.startswith("Error: ")
        assert "\n  at:  " in said.err
        assert "\n  fix: " in said.err
        assert len(said.err) < 2000
