# Two commands on a fresh machine with python3 and pip: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
SEED ?= 1

.PHONY: demo test test-long faults frameworks lint coverage bench calibrate soak fuzz mutants clean

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[test]'
	touch $@

# What the demo trains and probes with, a third of what the tests need; nothing is installed where the tests' packages are there already.
.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -e .venv/ready || $(PIP) -e '.[demo]'
	touch $@

# DeepSpeed, optimizers and programs that read states; with them `make test` runs the tests that are skipped without. The last three ask for much that
# the tests do not use, so they come without what they need.
frameworks: .venv/frameworks

.venv/frameworks: .venv/ready
	$(PIP) -e '.[test-frameworks]'
	$(PIP) --no-deps bergson dattri-llm nemo-automodel
	touch $@

demo: .venv/demo
	$(BIN)/ostate demo

test: .venv/ready
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Every test, those that take minutes too.
test-long: .venv/ready
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "long or not long"

# Of these: 400 writers killed, every byte of a repair flipped, hostile files at full size.
faults: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m long tests/store tests/attacks

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The tests with branch coverage; fails where a package falls below its floor (tests/coverage_floors.py). Half as long again as `make test`.
coverage: .venv/ready
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage json -q -o coverage.json
	$(BIN)/python -m tests.coverage_floors coverage.json

# Whether the commands stay within their limits, on 80 MB; `$(BIN)/python benchmarks/limits.py` does it on 1.3 GB.
bench: .venv/ready
	$(BIN)/python benchmarks/limits.py --small

# Whether the proof keeps its word: 10,000 p values of each kind against the uniform, 10,000 small healthy runs through the verdict. An hour.
calibrate: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.calibrate --seed $(SEED) --jobs $(JOBS)

clean:
	rm -rf .venv build dist *.egg-info

# Long runs. `mutants`: one operator of FILE changed at a time, against TESTS. `soak`: every case damaged at random, for minutes; no wrong name may come out. `fuzz`: guided by coverage where atheris can be installed; MINUTES a target.
MINUTES ?= 10

soak: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

FILE ?= ostate/ordering/resolve.py ostate/ordering/keys.py ostate/ordering/grouping/refute.py ostate/evidence/master_weights.py ostate/ordering/sources/recorded.py
TESTS ?= $(addprefix tests/ordering/test_,resolve.py keys.py small_rules.py recorded.py) tests/evidence/test_master_weights.py

mutants: .venv/ready
	$(BIN)/python -m tests.mutate $(FILE) --tests $(TESTS) --minutes $(MINUTES) --seed $(SEED)

fuzz: .venv/ready
	$(BIN)/python -c "import atheris" || $(BIN)/python -m pip install --quiet atheris || echo "no atheris here: inputs are changed at random"
	$(BIN)/python -m fuzz.seeds
	for target in pickle zip dcp safetensors manifest config beside dcp_values zero; do $(BIN)/python -m fuzz.run $$target -max_total_time=$$(($(MINUTES) * 60)) || exit 1; done
