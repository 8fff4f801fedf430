# golf: two commands do all the set-up on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch is pinned here. On a CUDA machine: make setup CONSTRAINTS=   (takes the registry's CUDA build)
CONSTRAINTS ?= constraints/cpu.txt
READY := $(VENV)/.ready
SWEEP ?= smoke
# One thread a test process: spinning threads on shared cores cost more than they bring.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# What is dear is made once for all test processes (tests/helpers/runs.py), so any process may take any test.
TEST_DIST := -n auto --dist worksteal

# Bytecode is kept, whatever the environment says: else each process compiles golf anew, and tests rewrite their asserts.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup train sweep report test test-slow test-all test-costs mutants test-gpu test-slurm slurm-packages lint typecheck bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install what golf needs

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

train: $(READY) ## train on the laptop track: real text, CPU, minutes (ARGS="seed=2 ..." for overrides)
	$(BIN)/python golf/train.py $(ARGS)

sweep: $(READY) ## run the smoke sweep: two rows, two seeds, real text (SWEEP=name, ARGS=overrides)
	$(BIN)/python golf/train.py +sweep=$(SWEEP) $(ARGS)

report: $(READY) ## what a sweep says, with statistics and plots (SWEEP=name, ARGS=options)
	$(BIN)/python golf/report.py outputs/$(SWEEP) $(ARGS)

test: $(READY) ## the tests of every commit: minutes, no GPU
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_DIST) $(ARGS)

test-slow: $(READY) ## process and signal matrices, whole products, full sizes (ARGS="--part=3/30" for a part of them)
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_DIST) --tier=slow $(ARGS)

test-all: $(READY) ## all of both, with every combination and many more examples
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_DIST) --tier=all $(ARGS)

test-costs: $(READY) ## which tests of `make test ARGS=--costs=outputs/costs.json` take more than 1.5 tiny runs (trains one)
	$(BIN)/python benchmarks/suite.py outputs/costs.json

mutants: $(READY) ## break golf in a hundred ways, one line each, and count what the tests of every commit notice (some 15 minutes)
	$(TEST_ENV) $(BIN)/python -m tests.mutants.run $(ARGS)

test-gpu: $(READY) ## bf16, compile, flash attention and nccl on a CUDA device (skips what is not there)
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-slurm: $(READY) ## sweeps on a real SLURM of one node, started for them (root, Debian; skips what can't be had)
	-@$(MAKE) --no-print-directory slurm-packages
	$(TEST_ENV) $(BIN)/python -m pytest -m slurm -n0 -rs $(ARGS)

slurm-packages:
	@(command -v munged && command -v slurmctld && command -v sbatch) >/dev/null || \
	{ timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends \
	  slurm-wlm slurmctld slurmd slurm-client munge >/dev/null; }

lint: $(READY) ## ruff
	$(BIN)/ruff check golf hydra_plugins tests benchmarks
	$(BIN)/ruff format --check golf hydra_plugins tests benchmarks

typecheck: $(READY) ## mypy
	$(BIN)/mypy

bench: $(READY) ## tokens per second of training step and loaders, makespan of the launcher, cost of parts and loss, as ratios
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/launchers.py
	$(BIN)/python benchmarks/parts.py
	$(BIN)/python benchmarks/loss.py

clean: ## remove the virtual environment and caches; data/ and outputs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info build
	find golf hydra_plugins tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
