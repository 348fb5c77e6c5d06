# Every target keeps its environment in .venv (.venv-NAME for PYTHON=NAME) and
# builds it on the first call. Needs CPython >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXTRAS ?=
RUNS ?= runs

.PHONY: help setup demo test test-slow lint format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Stamps: the package alone, and the package with the test tools.
$(VENV)/run.stamp: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".$(EXTRAS)"
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".[test]"
	@touch $@

setup: $(VENV)/run.stamp  ## build the environment

demo: $(VENV)/run.stamp  ## data, training, evaluation and pictures in minutes
	$(BIN)/python -m experiments.demo --workdir=$(RUNS)/demo

test: $(VENV)/test.stamp  ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/test.stamp  ## the slow tests
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/test.stamp  ## style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/test.stamp  ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/run.stamp  ## the CPU benchmarks
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.data

clean:  ## remove environments and caches, keep data and runs
	rm -rf .venv* .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
