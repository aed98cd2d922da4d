VENV := .venv
BIN := $(VENV)/bin
# uv installs several times faster; pip is there for whoever's index settings only pip knows
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || $(BIN)/pip install --quiet $(1)

# a run starts dozens of Python processes; where this is set, each would compile torch, Ray and MLflow anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check unit chaos bench gpu ui clean
help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/ready: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(call install,--editable '.[demo]')
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(call install,--editable '.[dev]')
	touch $@

demo: $(VENV)/ready            ## tokenize, train, evaluate, tune and register on real pictures
	$(BIN)/mar run emoji-32

ui: $(VENV)/ready              ## MLflow UI over the demo's store
	$(BIN)/mar ui

check: $(VENV)/ready-dev       ## lint, format, layers, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

unit: $(VENV)/ready-dev        ## tests that need no cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 -m "not ray and not e2e and not chaos and not gpu"

test: unit                     ## the whole suite but `chaos`, fast tests first
	$(BIN)/pytest -m "(ray or e2e) and not chaos and not gpu"

chaos: $(VENV)/ready-dev       ## kill nodes, actors and drivers, and what is slow beside them; takes an hour
	$(BIN)/pytest -m chaos

bench: $(VENV)/ready-dev       ## measured ratios: models against a transcription, latent store against npz and memmap
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.latents
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.recovery

gpu:             ## tests on a GPU and the GPU rows of the benchmark, in fifteen minutes; needs torch, numpy and pytest alone, of whichever python3
	python3 -m pytest --noconftest -c /dev/null --rootdir . -m gpu tests/gpu
	python3 -m benchmarks.gpu

clean:           ## remove the environment; artifacts stay
	rm -rf $(VENV)
