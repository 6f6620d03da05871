# make demo   set up, then convert the network that the repository carries
# make test   set up, then run the tests
# make fuzz   set up, then open 10,000 damaged and hostile files
#
# A clean clone needs python 3.11 or newer with venv, and make. PyPI's Linux build of torch
# brings CUDA along (gigabytes); the CPU build is enough for everything here:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

.PHONY: help setup demo figures docs test fuzz lint format dist clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
TORCH_INDEX ?=
PYTEST_ARGS ?= -n 2

help:
	@echo "make setup   make $(VENV) with dacconv and its development tools in it"
	@echo "make demo    convert the network in tests/assets; report and top-1 before and after"
	@echo "make figures draw docs/figures: the paper's two experiments"
	@echo "make docs    build the site of the documentation in site/"
	@echo "make test    run the tests (PYTEST_ARGS='-k word' picks some)"
	@echo "make fuzz    open damaged and hostile files of every format (FUZZ_ARGS='--formats pt2')"
	@echo "make lint    style, types and import contracts"
	@echo "make format  let ruff format the code"
	@echo "make dist    build the wheel and the source distribution, and check them"
	@echo "make clean   remove $(VENV) and every cache"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found="$$python"; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "dacconv needs Python 3.11 or newer; none of these is: $(PYTHONS)" >&2; \
	    echo "  install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$found cannot make virtual environments: its venv module is missing" >&2; \
	    echo "  Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV); \
	fi; \
	echo "installing dacconv and its tools into $(VENV)"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --constraint constraints.txt --editable '.[dev]'; \
	touch $(STAMP)

demo: setup
	@$(BIN)/python scripts/demo.py

figures: setup
	@$(BIN)/python scripts/figures.py

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: setup
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

fuzz: setup
	@$(BIN)/python scripts/fuzz.py $(FUZZ_ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dist: setup
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
