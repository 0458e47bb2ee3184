# The four things one does here. Everything else is `.venv/bin/tunnel --help`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: venv demo dashboard test test-faults test-exports bench clean

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

# Every first-class export in its real package, each in an environment of its own; prints target x parses x schedule
# equal x selfcheck. megatron-core 0.19 is of Python 3.12, and its pure part runs on ours.
EXPORTS ?= $(HOME)/.cache/tunnel/exports
EXPORT_LISTS = tests/exports/environments
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps

test-exports: venv $(patsubst $(EXPORT_LISTS)/%.txt,$(EXPORTS)/%/installed,$(wildcard $(EXPORT_LISTS)/*.txt))
	TUNNEL_EXPORTS=$(EXPORTS) PYTHONPATH=tests/exports $(BIN)/pytest -q -p contract_table -n 2 --dist loadgroup -m slow tests/exports

$(EXPORTS)/%/installed: $(EXPORT_LISTS)/%.txt
	$(BIN)/python -m venv --without-pip $(EXPORTS)/$*
	$(BIN)/python -c 'import glob, sysconfig; open(glob.glob("$(EXPORTS)/$*/lib/python3*/site-packages")[0] + "/project.pth", "w").write(sysconfig.get_paths()["purelib"])'
	$(BIN)/pip --python $(EXPORTS)/$*/bin/python install --quiet --disable-pip-version-check --no-deps --requirement $<
	$(if $(filter megatron,$*),$(INSTALL) --target $$(echo $(EXPORTS)/$*/lib/python3*/site-packages) --python-version 3.12 --only-binary=:all: --ignore-requires-python megatron-core==0.19.2)
	touch $@

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
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
