# Every target sets up what it needs, so a fresh machine needs Python 3.10+ and make, nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: help demo test lint format bench aot-report quality clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        train on the built-in sprites for 5 minutes, then draw every label"
	@echo "make test        run all tests"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make format      let ruff format the sources"
	@echo "make bench       time ops, networks and training against others (many minutes), into benchmarks/RESULTS.md"
	@echo "make aot-report  compile the GPU kernels, no GPU needed: registers and traffic, into docs/aot.md"
	@echo "make quality     train and judge the samples by an independent classifier (many minutes)"
	@echo "make clean       remove the environment and what tools left behind; runs/ and samples/ stay"

demo: $(VENV)/.run
	$(RUN) -m fastcond.train --data sprites --preset tiny --minutes 5 --out runs/demo --resume
	$(RUN) -m fastcond.sample --run runs/demo --label all --cfg 2.5 --n 8 --out samples/demo

test: $(VENV)/.dev
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal --benchmark-disable

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(VENV)/.dev
	@mkdir -p build
	$(RUN) -m pytest benchmarks --benchmark-only --benchmark-columns median,iqr,rounds --benchmark-json build/bench.json
	$(RUN) -m benchmarks.report build/bench.json

aot-report: $(VENV)/.dev
	$(RUN) -m benchmarks.aot_report

quality: $(VENV)/.dev
	$(RUN) -m pytest -m quality -s --timeout 0

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps stand for an installed environment, of which a user's part (.run) is the smaller. An edit of a native
# source or of a requirement installs again; Python sources are used where they lie.
$(VENV)/.run: $(SOURCES) | $(RUN)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(RUN)
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.run $@

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "fastcond needs Python 3.10 or newer, as PYTHON=/path/to/python3 make ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
