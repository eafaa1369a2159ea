# Needs python3 and make; everything else is installed into .venv from the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format bench lock resolve clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or later is needed, this is {v.major}.{v.minor}. Use: make PYTHON=/path/to/python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# compiled bytecode: an import of torch, Lightning and MLflow takes a third of the time
$(VENV)/.demo: $(BIN)/uv pyproject.toml $(LOCK)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c $(LOCK) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml $(LOCK)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c $(LOCK) -e '.[dev,models,pretrained,delta]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## train, evaluate, register and predict on scanned digits
	$(BIN)/cvpipe demo --folder demo

test: $(VENV)/.dev  ## all tests, with branch coverage
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --cov=cvpipe --cov-branch --cov-report=term --cov-fail-under=85

test-fast: $(VENV)/.dev  ## unit tests only
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not integration'

check: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## let ruff format and mend the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the other loaders: what they share with the development environment comes from there
$(VENV)/.peers: $(VENV)/.dev benchmarks/requirements.txt benchmarks/overrides.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/peers
	$(BIN)/uv pip install --quiet --python $(VENV)/peers/bin/python --overrides benchmarks/overrides.txt -r benchmarks/requirements.txt
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(VENV)/peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cvpipe-dev.pth"
	@touch $@

bench: $(VENV)/.dev $(VENV)/.peers  ## benchmarks against peers: prints ratios, writes benchmarks/results/
	$(BIN)/python -m benchmarks

lock: $(BIN)/uv  ## compile requirements/lock.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url --no-annotate \
		--all-extras pyproject.toml -o $(LOCK)

resolve: $(BIN)/uv  ## show that requirements.txt leaves the Databricks Runtime's packages alone
	$(BIN)/python requirements/resolve.py

clean:  ## remove what runs and tests have written
	rm -rf demo runs .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
