# Everything runs inside .venv, which is made on first use and brought up to date whenever
# pyproject.toml or constraints.txt changes. Needs Python >= 3.11 (PYTHON=...) and make.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
EXTRAS := dev,examples,numba,torch,triton,graph
BENCH  := $(VENV)/.installed-benchmarks
DOCS   := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help $(VENV) demo compare test test-versions bench bench-gpu docs lint format check-release \
	clean

help: ## List the targets
	@awk -F ':.*## ' '/^[$$().A-Za-z_-]+:.*## / { sub(/^\$$\(VENV\)/, "$(VENV)", $$1); \
		printf "  make %-13s %s\n", $$1, $$2 }' Makefile

$(VENV): $(STAMP) ## Make the development environment (or bring it up to date)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing the development environment into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## Cluster handwritten digits; pictures go to examples/output/digits/
	$(PY) -m examples.deep_clustering digits --seeds 3 --batch 256 --restart --output examples/output/digits

compare: $(STAMP) ## Cluster disease names and languages by all methods (two hours; goes on where it stopped)
	$(PY) -m examples.deep_clustering icd languages --seeds 5 --output examples/output/compare

test: $(STAMP) ## Run the tests (ARGS='-k name' and the like are passed to pytest)
	$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

test-versions: $(STAMP) ## Test with the oldest and newest dependencies (ARGS='-- ...' are passed to pip)
	$(VENV)/bin/nox -s oldest newest $(ARGS)

bench: $(BENCH) ## Time ssot against other solvers (half an hour; ARGS=--quick is a check)
	$(PY) -m benchmarks $(ARGS)

bench-gpu: $(BENCH) ## Time the Torch backend on a CUDA device (ARGS as above)
	$(PY) -m benchmarks.gpu $(ARGS)

$(BENCH): $(STAMP)
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[benchmarks]'
	@touch $@

docs: $(DOCS) ## Build the documentation in docs/_build/html, warnings as errors
	$(PY) -m sphinx -W --keep-going --nitpicky --quiet docs docs/_build/html

$(DOCS): $(STAMP)
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[docs]'
	@touch $@

lint: $(STAMP) ## Check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## Format the code and apply the safe fixes
	$(VENV)/bin/ruff check --fix-only --exit-zero .
	$(VENV)/bin/ruff format .

check-release: $(STAMP) ## Build dist/, and use the wheel alone and with each extra
	$(VENV)/bin/nox -s wheel $(ARGS)

clean: ## Remove the environment, caches and everything that was generated
	rm -rf $(VENV) .nox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.benchmarks examples/output benchmarks/output docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
