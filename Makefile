# make train [CONFIG=configs/digits.yaml] [DATA=folder] [ARGS="--trainer.max_epochs 3"]
# make test | make lint | make bench [ARGS="--only gaussian"]
# Each target sets up what it needs in .venv, once, with a Python of 3.10 or newer: PYTHON=... names another.

CONFIG ?= configs/digits.yaml
VENV ?= .venv
PYTHON ?=
PYTEST ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train test test-core lint bench clean

train: $(VENV)/.examples
	@$(BIN)/python -m examples.vae.train fit --config "$(CONFIG)" $(if $(DATA),--data.root "$(DATA)") $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest $(PYTEST)

# the tests of the core, in a Python that cannot import what only the examples need
test-core: $(VENV)/.test
	@$(BIN)/python -m tests.without_examples $(PYTEST)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

# every speed that is promised, as ratios in one run
bench: $(VENV)/.examples
	@$(BIN)/python -m benchmarks.speed $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.examples: $(BIN)/python pyproject.toml
	@echo "Installing kldiv with what the examples need into $(VENV) (PyTorch is large: some minutes)"
	@$(PIP) --editable ".[examples]"
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	@echo "Installing kldiv with what the tests need into $(VENV) (PyTorch is large: some minutes)"
	@$(PIP) --editable ".[examples,test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(PIP) --editable ".[examples,test,dev]"
	@touch $@

$(BIN)/python:
	@sh tools/make-venv "$(VENV)" $(PYTHON)
