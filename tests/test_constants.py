"""The numbers that a verdict, a written file or a refusal rests on, written down a second time: changing one is a decision, not a slip.

A test that imports the constant it should hold moves along with it.
"""

from __future__ import annotations

from importlib import import_module

import pytest

PINNED = {
    # what makes a verdict (docs/decisions/one-in-a-million.md, docs/evidence.md)
    "evidence.order.MOST_CHANCE": 1e-6,
    "evidence.order.ENUMERATED": 5,
    "evidence.exchanged.DRAWS": 1023,
    "evidence.exchanged.ENUMERATED": 10,
    "evidence.gauge.BLOCK": 4,
    "evidence.gauge.PROJECTED": 2,
    "evidence.likelihood.TRUST": 1e-4,
    "evidence.likelihood.RARE": 1e-12,
    "evidence.judge.MAX_FALSE_NAME_ODDS": 1e-6,
    "evidence.judge.MAX_SUSPECT_ODDS": 1e-3,
    "evidence.judge.FEWEST_MODULES": 4,
    "evidence.judge.LEAST_RANK": 4,
    "evidence.significance.ABOVE": 5.0,
    "evidence.statistics.FLOOR": 1e-6,
    "evidence.statistics.SKETCH_ROWS": (8, 16),
    "evidence.master_weights.TEST": "master weights",
    "ordering.family.MOST_ALTERNATIVES": 256,
    "core.master_weights.RELATIVE": 2**-7,
    "core.master_weights.ABSOLUTE": 1e-6,
    "probe.fill.same_run.SMALLEST_CHANCE": 1e-3,
    "probe.fill.same_run.ENOUGH_DIGITS": 5.0,
    # what the probe does to a number
    "probe.fill.fill.ENOUGH": 0.9,
    "report.numbers.CAP": 1e3,
    "report.numbers.BIN": 0.05,
    "checks.numbers.UNDERFLOW": 1e-18,
    # what a file of ours looks like (docs/format.md)
    "store.manifest.VERSION": 1,
    "store.header.PAGE": 4096,
    "store.plan.HEADER_BYTES": 90_000_000,
    "store.plan.SHARD_BYTES": 50_000_000_000,
    "core.named_file.MANIFEST": "ostate",
    "core.named_file.INDEX": ".safetensors.index.json",
    "core.names_list.NAMES_FILE": "optimizer_param_names.json",
    # where reading a hostile file ends (docs/threats.md)
    "core.safetensors.LARGEST_HEADER": 100_000_000,
    "core.safetensors.MOST_AXES": 64,
    "core.names_list.LARGEST": 1 << 28,
    "read.pickle.opcodes.MOST_MARKS": 1000,
    "read.pickle.opcodes.MOST_INT_BYTES": 128,
    "read.pickle.globals.MOST_BYTES": 1 << 28,
    "read.pickle.numpy_values.MOST_ITEMS": 1 << 20,
    "read.container.zip.MOST_DIRECTORY": 1 << 28,
    "read.detect.MOST_DEPTH": 4,
    "read.detect.MOST_FOLDERS": 2000,
    # what a caller sees
    "cli.failures.REFUSED": 3,
    "cli.failures.FAULT": 70,
    "cli.failures.INTERRUPTED": 130,
}


@pytest.mark.parametrize("name", PINNED)
def test_a_constant_is_what_it_was(name):
    module, _, constant = name.rpartition(".")
    assert getattr(import_module(f"ostate.{module}"), constant) == PINNED[name]
