VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check unit ui clean
help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/ready: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/ready            ## tokenize, train, evaluate, tune and register on real pictures
	$(BIN)/mar run emoji-32

ui: $(VENV)/ready              ## MLflow UI over the demo's store
	$(BIN)/mar ui

check: $(VENV)/ready-dev       ## lint, format, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

unit: $(VENV)/ready-dev        ## tests that need no cluster, under two minutes
	$(BIN)/pytest -m "not ray and not e2e and not gpu"

test: $(VENV)/ready-dev        ## the whole suite, fast tests first
	$(BIN)/pytest -m "not gpu"

clean:           ## remove the environment; artifacts stay
	rm -rf $(VENV)
