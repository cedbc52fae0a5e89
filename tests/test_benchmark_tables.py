"""What the tables of the benchmarks say of a limit."""

from __future__ import annotations

from benchmarks.measure import Cost, rows, table


def costs(*seconds: float, peak: float = 40.0) -> list[Cost]:
    return [Cost(cpu, 3 * cpu, peak, 0) for cpu in seconds]


def test_a_ratio_is_taken_within_a_round_and_judged_by_processor_time():
    peer, row = rows({"cp": costs(1.0, 2.0, 1.0), "repair": costs(5.0, 8.0, 4.0)}, "cp", {"repair": (4.0, 100)})
    assert (row.cpu, row.least, row.ratio, row.wall_ratio) == (5.0, 4.0, 4.0, 4.0)
    assert (peer.verdict, row.verdict) == ("", "met")
    (_, over) = rows({"cp": costs(1.0), "repair": costs(4.1)}, "cp", {"repair": (4.0, 100)})
    assert over.verdict == "MISSED"


def test_at_another_size_the_ratio_is_not_judged_and_memory_is():
    limits = {"repair": (4.0, 100), "export": (4.0, None)}
    found = {"cp": costs(1.0), "repair": costs(50.0), "export": costs(50.0)}
    made = rows(found, "cp", limits, judged=False)
    assert [row.verdict for row in made] == ["", "not judged at this size", "not judged at this size"]
    assert "MISSED" not in table("repair", made, "cp")
    assert not any(row.met is False for row in made)
    (_, large) = rows({"cp": costs(1.0), "repair": costs(1.0, peak=101.0)}, "cp", limits, judged=False)
    assert large.verdict == "MISSED"
