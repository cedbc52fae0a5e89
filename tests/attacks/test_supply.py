"""What CI installs and may do: every file by its digest, no more rights than a job needs, nothing that anybody's pull request could steer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
HOME = Path(__file__).parents[2]
ROOM = HOME / ".github"
LOCKS = ("locked.txt", "tools.txt")


def requirements(name: str) -> dict[str, list[str]]:
    """Return name==version -> digests."""
    text = (ROOM / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {words[0]: [word for word in words[1:] if word != ";"] for words in lines}


def workflow() -> dict:
    return yaml.safe_load((ROOM / "workflows" / "ci.yml").read_text())


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_with_its_digests(name):
    found = requirements(name)
    assert len(found) > 20
    for requirement, digests in found.items():
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+", requirement), requirement
        assert digests, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), requirement


def test_the_digests_are_of_the_versions_that_development_uses():
    def plain(name):
        return name.lower().replace("_", "-")

    locked = {plain(name): version for name, _, version in (one.partition("==") for one in requirements("locked.txt"))}
    pinned = dict(line.split("==") for line in (HOME / "constraints.txt").read_text().splitlines() if "==" in line)
    added = (HOME / "pyproject.toml").read_text().split("test-frameworks = [")[1].split("]")[0]
    # torch: by version from its own index; what `make frameworks` adds, deepspeed built where it is used, is not in CI
    elsewhere = {"torch", "bergson", "dattri-llm", "nemo-automodel"} | set(re.findall(r'"([\w-]+)"', added))
    assert {plain(name): version for name, version in pinned.items() if plain(name) not in elsewhere}.items() <= locked.items()
    assert not {"torch", "deepspeed", "bergson", "dattri-llm", "nemo-automodel"} & set(locked)


def test_no_job_may_more_than_it_needs():
    flow = workflow()
    assert flow["permissions"] == {}
    rights = {name: job.get("permissions", {}) for name, job in flow["jobs"].items()}
    assert rights.pop("publish") == {"id-token": "write"}
    assert rights.pop("release") == {"contents": "write"}
    assert all(own == {"contents": "read"} for own in rights.values())
    for name in ("publish", "release"):
        assert flow["jobs"][name]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_nothing_of_a_pull_request_becomes_a_command():
    flow = workflow()
    assert set(flow[True]) == {"push", "pull_request", "schedule"}  # YAML 1.1 reads `on` as true
    for job in flow["jobs"].values():
        for step in job["steps"]:
            assert not re.search(r"\$\{\{(?!\s*matrix\.)", step.get("run", ""))  # the matrix stands in the file itself
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_the_bill_of_materials_goes_into_the_release():
    jobs = workflow()["jobs"]
    runs = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    assert "cyclonedx_py" in runs["audit"]
    assert "pip_audit" in runs["audit"]
    assert "gh release create" in runs["release"]
    assert jobs["release"]["needs"] == "publish"
    assert {"audit", "test", "lint"} <= set(jobs["publish"]["needs"])
