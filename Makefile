# Every target keeps its environment in .venv (.venv-NAME for PYTHON=NAME) and
# builds it on the first call. Needs CPython >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXTRAS ?=
# The package alone, with an extra (EXTRAS=cuda13), and with the test tools.
PACKAGE := .$(if $(EXTRAS),[$(EXTRAS)])
RUN_STAMP := $(VENV)/run$(if $(EXTRAS),-$(EXTRAS)).stamp
RUNS ?= runs
SCALE ?= demo

.PHONY: help setup demo figures test test-slow lint format docs notebooks bench bench-gpu clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(RUN_STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable "$(PACKAGE)"
	@touch $@

$(VENV)/test.stamp: $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".[test]"
	@touch $@

$(VENV)/cluster.stamp: $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".[cluster]"
	@touch $@

$(VENV)/docs.stamp: $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable ".[docs]"
	@touch $@

setup: $(RUN_STAMP)  ## build the environment

demo: $(RUN_STAMP)  ## data, training, evaluation and pictures in minutes
	$(BIN)/python -m experiments.demo --workdir=$(RUNS)/demo

figures: $(RUN_STAMP)  ## every figure of the paper, SCALE=demo, cpu or paper
	$(BIN)/python -m experiments.figures --scale=$(SCALE) --directory=$(RUNS)/figures_$(SCALE)

test: $(VENV)/test.stamp  ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/test.stamp $(VENV)/cluster.stamp $(VENV)/docs.stamp  ## the slow tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/test.stamp  ## style, common mistakes and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp  ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs.stamp  ## the documentation site, build/site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet

notebooks: $(VENV)/test.stamp  ## run the notebooks, and write their copies in docs/notebooks
	$(BIN)/python -m experiments.drawing.notebooks docs/notebooks

bench: $(RUN_STAMP)  ## the CPU benchmarks; EXTRAS=bench: against MultiVae
	$(BIN)/python -m benchmarks.step --turns 2 --steps 4 --out results/bench_step.json
	$(BIN)/python -m benchmarks.profile --model mopoe --out results/bench_profile_mopoe.json
	$(BIN)/python -m benchmarks.sweep --setting polydigits --members 8 --steps 100 --turns 3 --mappings auto --out results/bench_sweep_polydigits.json
	$(BIN)/python -m benchmarks.sweep --setting polymnist --members 8 --steps 4 --turns 1 --mappings auto --out results/bench_sweep_polymnist.json
	$(BIN)/python -m benchmarks.sweep --setting polydigits --members 8 --steps 5 --turns 1 --mappings vmap --out results/bench_sweep_vmap.json
	$(BIN)/python -m benchmarks.growth --steps 20 --turns 2 --out results/bench_growth.json --plot docs/growth.png
	$(BIN)/python -m benchmarks.evaluation --examples 500 --turns 1 --out results/bench_evaluation.json
	$(BIN)/python -m benchmarks.data --out results/bench_data.json
	$(BIN)/python -m benchmarks.startup --turns 1 --out results/bench_startup.json

bench-gpu: $(RUN_STAMP)  ## what to measure on a GPU, in 10 minutes; EXTRAS=cuda13,bench
	$(BIN)/python -m benchmarks.gpu --out $(RUNS)/bench_gpu

clean:  ## remove environments and caches, keep data and runs
	rm -rf .venv* .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
