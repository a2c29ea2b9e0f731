# ViRB's commands; `make help` lists them. Nothing is needed but Python 3.10 or newer and make.
#   make quickstart PYTHON=python3.12     another interpreter
#   make test WORKERS=8                   more test processes
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env quickstart test test-all lint format bench clean

VENV ?= .venv
WORKERS ?= 2
export VENV
PY := $(VENV)/bin/python
QUICKSTART := main.py --experiment_list configs/experiment_lists/quickstart.yaml --task_configs configs/task_configs/quickstart.yaml --out out/quickstart
# One thread per test process: they share the cores. No display, no hub.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed ## set everything up and run five encoders on the built-in data (out/quickstart)
	@echo '$$ python $(QUICKSTART)'
	@$(PY) $(QUICKSTART)

env: $(VENV)/.installed-dev ## set up .venv with the tools for tests and checks, run nothing

test: lint ## set everything up, check the code and run the tests (ten minutes at most on two cores)
	$(PYTEST) -m 'not slow'

test-all: lint ## the same with the slow tests
	$(PYTEST)

lint: $(VENV)/.installed-dev ## ruff (rules, layout), mypy (types), import-linter (the floors)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/.installed-dev ## let ruff lay out the code and mend what it can
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

bench: $(VENV)/.installed ## run the benchmarks and write their tables into docs/performance.md (an hour on two quiet cores)
	$(PY) benchmarks/run.py

clean: ## remove .venv and every cache; results (out/) and features stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once, and again only when the files that say what to install change.
$(VENV)/.installed: requirements.txt pyproject.toml scripts/make_env.sh
	@scripts/make_env.sh base
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@scripts/make_env.sh dev
	@touch $@
