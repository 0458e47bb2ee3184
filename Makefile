# The four things one does here. Everything else is `.venv/bin/tunnel --help`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: venv demo dashboard test test-faults bench clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=python3.12 venv")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dashboard,data,dev]'
	touch $@

demo: venv
	$(BIN)/tunnel run studies/quickstart.toml

dashboard: venv
	$(BIN)/tunnel dashboard runs

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile

# The faults of FAULTS.md, the slow ones too: prints how many were survived.
test-faults: venv
	$(BIN)/python tests/faults.py

# About 40 minutes on two cores; TABLE is a runs table such as Chinchilla's points.
bench: venv
	$(BIN)/python benchmarks/calibration.py
	$(if $(TABLE),$(BIN)/python benchmarks/fit.py $(TABLE))
	$(BIN)/python benchmarks/coverage.py $(TABLE)
	$(BIN)/python benchmarks/halving.py
	-$(BIN)/python benchmarks/search.py --seeds 10 $(RUNS)
	$(BIN)/python benchmarks/optimum.py
	$(BIN)/python benchmarks/next_runs.py
	$(BIN)/python benchmarks/train.py --compiled
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
