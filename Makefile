# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up .venv themselves, once.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SWEEPS := .venv-sweeps
# A process per core, but no more than four: each loads torch. The tests of one file stay together and share fixtures.
# Files go out in order of their names: the long ones of integration/ and slurm/ come before the many short ones.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format setup sweeps

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(READY) ## train all three stages on embedded data, evaluate, show a table, a picture sheet and a report
	$(PY) -m pipelines.demo

test: $(READY) ## run the tests
	$(PY) -m pytest -m "not slow" $(PARALLEL)

test-slow: $(READY) ## run the long forms of the tests too
	$(PY) -m pytest $(PARALLEL)

lint: $(READY) ## ruff, mypy --strict, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(READY) ## let ruff fix what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(READY) ## make .venv with the pinned CPU dependencies

sweeps: $(SWEEPS)/.ready ## make .venv-sweeps with W&B's sweep engine, for pipelines.sweep

$(SWEEPS)/.ready: Makefile
	@echo "setting up $(SWEEPS) (320 MB, once): the engine wants numpy below 2, of which there are wheels up to Python 3.12"
	$(PYTHON) -m venv $(SWEEPS)
	$(SWEEPS)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary numpy sweeps==0.3.0
	@touch $@

$(READY): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: %s is Python %d.%d; this project needs 3.11 or newer: make PYTHON=/path/to/python3.11" % (sys.executable, *sys.version_info[:2]))'
	@echo "setting up $(VENV) (2.1 GB, about two minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints-cpu.txt --editable ".[dev]"
	@touch $@
