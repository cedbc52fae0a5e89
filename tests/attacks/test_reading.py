"""Every way to do harm through a file: a clear refusal, no code run, little memory, little time, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import jail, pickles, tensors, zips
from tests.attacks.jail import Outcome

ROOMS = {"pickle": pickles.ATTACKS, "zip": zips.ATTACKS, "tensor": tensors.ATTACKS}
ALL = [(folder, name) for folder, attacks in ROOMS.items() for name in attacks]
MOST_MEGABYTES = 330
"""Of these, some thirty are the interpreter's own; the largest attack is a file of 60 MB."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, str], Outcome]:
    root = tmp_path_factory.mktemp("attacks")
    jobs, before = [], {}
    for index, (folder, name) in enumerate(ALL):
        (root / str(index)).mkdir()
        path = ROOMS[folder][name](root / str(index))
        assert path.name == "optimizer.pt"
        jobs.append(("read", path))
        before[path] = sorted(path.parent.iterdir())
    done = jail.run(jobs)
    assert all(sorted(path.parent.iterdir()) == files for path, files in before.items()), "something was written"
    return dict(zip(ALL, done))


@pytest.mark.parametrize(("folder", "name"), ALL, ids=[f"{folder}: {name}" for folder, name in ALL])
def test_an_attack_ends_in_a_clear_refusal(outcomes, folder, name):
    outcome = outcomes[folder, name]
    assert outcome.events == ()
    assert outcome.megabytes < MOST_MEGABYTES
    assert "OstateError" in outcome.tree, f"{outcome.error}: {outcome.text}"
    assert outcome.fix
    assert "optimizer.pt" in outcome.text
    assert outcome.text.count("\n") == 2
    assert all(line.isprintable() for line in outcome.text.split("\n"))
    assert len(outcome.text) < 1000


def test_a_sound_archive_is_read(tmp_path):
    (outcome,) = jail.run([("read", zips.sound(tmp_path))])
    assert outcome.error == "", outcome.text


def test_the_jail_sees_what_python_itself_would_have_done(tmp_path):
    """The attacks are real: torch's own loader without its safety runs them."""
    import torch

    path = pickles.real_reduce(tmp_path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_a_file_that_is_a_link_to_another_tells_nothing_of_it(tmp_path: Path):
    (tmp_path / "secret").write_text("the password is swordfish")
    (tmp_path / "optimizer.pt").symlink_to(tmp_path / "secret")
    (outcome,) = jail.run([("read", tmp_path / "optimizer.pt")])
    assert "OstateError" in outcome.tree
    assert "swordfish" not in outcome.text


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "optimizer.pt")
    for path in (tmp_path, tmp_path / "optimizer.pt"):
        (outcome,) = jail.run([("read", path)])
        assert "OstateError" in outcome.tree, outcome
