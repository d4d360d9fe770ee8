# make train [CONFIG=configs/digits.yaml] [DATA=folder] [ARGS="--trainer.max_epochs 3"]
# make test | test-all | test-core [PYTEST="tests/test_functional.py -k fifty_digits"]
# make test-matrix [PYTEST=...] [PYTHONS="3.11 3.14"]: with each of these, if it is here, on its oldest and newest torch
# make stress [CASES=100000] [STATE=stress.json]: random compositions; goes on where STATE stopped
# make lint | make bench [ARGS="--only gaussian"] | make dist | make constraints
# Each sets up what it needs in .venv, once, with a Python of 3.11 or newer: PYTHON=... names another.

CONFIG ?= configs/digits.yaml
VENV ?= .venv
PYTHON ?=
PYTEST ?=
ARGS ?=
# constraints-oldest.txt: the oldest versions that are supported, for Python 3.11
CONSTRAINTS ?= constraints.txt
# what test-matrix tries
PYTHONS ?= 3.11 3.12 3.13 3.14
# processes that share the tests: 0 runs them in one, for a debugger
WORKERS ?= auto
# how many cases make stress runs, and where it notes what it ran
CASES ?= 100000
STATE ?= stress.json

BIN := $(VENV)/bin
INSTALL := sh tools/install "$(VENV)" "$(CONSTRAINTS)"
# processes that share the cores take a thread each, or they would wait for one another
RUN_TESTS := $(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1 MKL_NUM_THREADS=1) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
CHECK_SCHEMA := $(BIN)/check-jsonschema --quiet --default-filetype yaml --builtin-schema

.PHONY: train test test-all test-core test-matrix stress lint bench dist constraints clean

train: $(VENV)/.examples
	@$(BIN)/python -m examples.vae.train fit --config "$(CONFIG)" $(if $(DATA),--data.root "$(DATA)") $(ARGS)

# what is quick
test: $(VENV)/.test
	@$(RUN_TESTS) -m "not slow" $(PYTEST)

test-all: $(VENV)/.test
	@$(RUN_TESTS) $(PYTEST)

# the tests of the core, in a Python that cannot import what only the examples need
test-core: $(VENV)/.test
	@$(BIN)/python -m tests.without_examples $(PYTEST)

test-matrix: $(VENV)/.dev
	@PATH="$(abspath $(BIN)):$$PATH" MAKE="$(MAKE)" sh tools/test-matrix "$(BIN)/uv" $(PYTHONS)

# random compositions against their oracles, at length
stress: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress --cases $(CASES) --state "$(STATE)"

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(CHECK_SCHEMA) vendor.github-workflows .github/workflows/*.yml
	@$(CHECK_SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	@$(CHECK_SCHEMA) vendor.citation-file-format CITATION.cff

# every speed that is promised, as ratios in one run
bench: $(VENV)/.examples
	@$(BIN)/python -m benchmarks.speed $(ARGS)

# what is published, in dist/
dist: $(VENV)/.dev
	@rm -rf dist
	@PIP_CONSTRAINT="$(abspath $(CONSTRAINTS))" $(BIN)/python -m build

# the newest versions that go together, and the oldest that pyproject.toml allows
constraints: $(VENV)/.dev
	@sh tools/constraints "$(BIN)/uv" newest > constraints.new
	@mv constraints.new constraints.txt
	@sh tools/constraints "$(BIN)/uv" oldest 3.11 > constraints.new
	@mv constraints.new constraints-oldest.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.examples: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing kldiv with what the examples need into $(VENV)"
	@$(INSTALL) examples
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing kldiv with what the tests need into $(VENV)"
	@$(INSTALL) examples,test
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "Installing what reads and builds the code into $(VENV)"
	@$(INSTALL) examples,test,dev
	@touch $@

$(BIN)/python:
	@sh tools/make-venv "$(VENV)" $(PYTHON)
