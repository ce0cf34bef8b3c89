# make demo     set up, then FedDGM, FedAvg and PriorOnly on digits, compared on one page
# make quick    tests that take no more than some seconds each
# make test     every test
# make check    style, formatting, types, import floors
# make bench    time and memory
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo quick test check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fedstill needs Python 3.11 or newer and '$(PYTHON)' is not: run  make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev,hub,flower,onnx]'
	@touch $@

demo: $(READY)
	$(BIN)/fedstill demo

quick: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
