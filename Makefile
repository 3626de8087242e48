# camlake: `make help` lists the targets. Each sets up what it needs and is safe to repeat.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.camlake-ready
OUT ?= demo-output
PYTEST_ARGS ?=
CHAOS_ARGS ?=

.PHONY: help setup demo test chaos docs lint types check format schemas clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the pinned dependencies (torch is large: a few minutes the first time)

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) with $$($(PYTHON) --version) and the versions of constraints.txt (torch is large: some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m tests.browser
	@touch $@
	@echo "== $(VENV) is ready"

demo: $(READY) ## Run the main job on scenes made here: six CAM methods on Ray, a lake, a query, a contact sheet
	$(BIN)/camlake demo --output $(OUT)

test: $(READY) ## Pass the tests (the slow ones too)
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadgroup -m 'not ray' $(PYTEST_ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -m ray $(PYTEST_ARGS) || [ $$? -eq 5 ]

chaos: $(READY) ## Kill workers, nodes and the driver of a run at random, and compare its lake (CHAOS_ARGS="--seed 7")
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

docs: $(READY) ## Build the site into docs/_build/html; a broken link or heading is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html
	@echo "== docs/_build/html/index.html"

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check types
	$(BIN)/mypy

check: lint types test ## Lint, types and tests: what CI runs

format: $(READY) ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(READY) ## Export the JSON Schemas, and the page of the job file, after a change of a contract
	$(BIN)/python -m schemas.export
	$(BIN)/python -m schemas.reference

clean: ## Remove the environment, caches and demo output
	rm -rf $(VENV) $(OUT) docs/_build .pytest_cache .mypy_cache .ruff_cache *.egg-info
