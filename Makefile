# The only interface: CI, the README and people use these targets and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/mesh/v1/*.proto)

help:  ## this list
	@grep -hE '^[a-z0-9][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.runtime  ## a virtual environment with what serving needs
$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

install-dev: $(VENV)/.dev
$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.runtime

demo: install  ## start the mesh, send a photo and texts, show answers and the trace
	$(BIN)/trtmesh demo

up: install  ## run the mesh on this machine until Ctrl-C
	$(BIN)/trtmesh up

protos: install-dev  ## generate the code beside protos/mesh/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

fmt: install-dev  ## format the code
	$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

lint: install-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check -q .

type: install-dev
	$(BIN)/mypy

test: lint type  ## lint, types and all quick tests
	$(BIN)/pytest -q -m "not gpu and not compose and not slow"

e2e: install-dev  ## containers and chaos: minutes; needs Docker with Compose 2 for the first
	$(BIN)/pytest -q -m "compose or slow"

bench: install-dev  ## measure on this machine's CPU; writes benchmarks/results/
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.tracing
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.oip
	$(BIN)/python -m benchmarks.swaps

gpu:  ## tests and measurements on this machine's GPU; needs TensorRT, PyCUDA and torch in PYTHON
	$(PYTHON) -m pytest -q -m gpu tests
	$(PYTHON) -m benchmarks.gpu

.PHONY: help install install-dev demo up protos fmt lint type test e2e bench gpu
