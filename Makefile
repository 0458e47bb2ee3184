# The four things one does here. Everything else is `.venv/bin/tunnel --help`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: venv chinese demo dashboard test test-faults test-exports bench shots clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=python3.12 venv")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dashboard,data,dev]'
	touch $@

# The corpus and the tasks of studies/narrow_deep.toml, from Debian's packages; nothing is installed.
chinese: venv
	mkdir -p data/zh
	cd data && apt-get download manpages-zh debian-reference-zh-cn && for f in *.deb; do dpkg -x $$f zh; done
	$(BIN)/python studies/man_tasks.py data/zh data/tasks

demo: venv
	$(BIN)/tunnel run studies/quickstart.toml

dashboard: venv
	$(BIN)/tunnel dashboard runs

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

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

# Over an hour of two idle cores; every benchmark exits 1 where it misses what was asked. TABLE is a runs table such as
# Chinchilla's points, TABLES more of them and PORIAN points and optima; RUNS are tables that vary settings, STUDIES folders.
# The dashboard's first view and memory are skipped, and said to be, without chromium and optuna-dashboard ('.[bench]').
bench: venv
	@missed=0; run() { echo; echo "python benchmarks/$$*"; name=$$1; shift; $(BIN)/python benchmarks/$$name "$$@" || missed=1; }; \
	run calibration.py; \
	$(if $(TABLE),run fit.py $(TABLE);) \
	run coverage.py $(TABLE) $(TABLES) $(if $(STUDIES),--studies $(STUDIES)); \
	$(if $(TABLE)$(PORIAN),run extrapolation.py $(if $(TABLE),--chinchilla $(TABLE)) $(if $(PORIAN),--porian $(PORIAN));) \
	run halving.py; \
	run search.py; \
	$(if $(RUNS),run search.py $(RUNS);) \
	run optimum.py; \
	run next_runs.py; \
	run train.py --compiled; \
	run sweep.py; \
	run dashboard.py; \
	run demo.py; \
	run live.py runs/bench/quickstart-???; \
	exit $$missed

# README's pictures, by a real browser, from the demo's study; Japanese ones want a Japanese font (fonts-noto-cjk).
SHOTS ?= runs/quickstart
shots: venv
	$(BIN)/python docs/shots.py $(SHOTS)

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
