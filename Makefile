# `make sweep` and `make test` set everything up and do the whole of it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test faults lint docs setup

sweep: setup
	$(BIN)/python -m orchestrator.sweep sweeps/digits_quick.yaml

# Two at a time, as most tests compute with one thread or wait for other processes; the long ones first.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

faults: setup
	FAULTS=whole $(BIN)/python -m pytest tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/mkdocs build --strict --site-dir build/docs

setup: .venv/installed .venv/compiled

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed, this is ' + sys.version.split()[0] + '; name another with PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,export,timm]'
	touch $@

# Apart from the rest, which the tests need on every machine.
.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Without a C++ compiler, this says so and torch's own operators are used.
.venv/compiled: .venv/installed testbed/compiled/operators.cpp
	-$(BIN)/python -m testbed.compiled
	touch $@
