# Each target sets up what it needs. PYTHON is any CPython 3.11 or later.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Most tests wait for processes that they start: more of them at once use the cores better.
TEST_PROCESSES ?= 2
PROTOS := $(shell find protos -name '*.proto')

.PHONY: setup demo test test-compose lint format up down bench clean

setup: $(READY)

# The editable install generates the stubs; they are made again when a contract changes.
$(READY): pyproject.toml constraints.txt protos/generate.py $(PROTOS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m benchmarks demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

test-compose: $(READY)
	$(BIN)/python -m pytest -m compose tests/compose

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint protos
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up:
	docker compose up --build --detach --wait

down:
	docker compose down

bench: $(READY)
	$(BIN)/python -m benchmarks serving

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find clients/python -name '*_pb2*' -delete
