# Needs Python 3.11 or 3.12 with pip, and make. Everything else is built into .venv, once.
#
#   make demo        start a server, segment a phantom through it, show the result
#   make serve       pfms serve, with the settings of config.env
#   make test        the suite; make test-all adds the full matrix on the real plugin
#   make lint        ruff and mypy
#   make docs        build the manual, which the server shows at /manual
#   make bench       measure, and write bench/results/
#   make pictures    make the pictures of the manual again (needs npm and Chromium)
#   make audit       look up every pinned version in the database of known weaknesses
#   make demo-model  train the demo weights again (about 15 minutes)
#   make viewer      fetch the viewer of the page, with npm; demo, serve and test do, too
#   make install     build .venv, as the others do if needed
#   make install-ray add Ray to it, for PFMS_EXECUTOR=ray
#
#   TORCH_INDEX=URL  installs torch from there: PyTorch's CPU build, for a machine without a GPU
#   PYTHON=PATH      builds .venv with this Python

PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { echo $$p; break; }; done)
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed
RAY_STAMP := .venv/.installed-ray
MANUAL := pfms/manual/index.html
VIEWER := pfms/page/vendor/niivue.js

.DEFAULT_GOAL := help
.PHONY: help install install-ray demo serve docs viewer pictures test test-all lint audit bench demo-model another-index

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/install.py
	@if [ -z "$(PYTHON)" ]; then \
		echo "pfms needs Python 3.11 or 3.12, and none was found: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@"$(PYTHON)" tools/install.py --torch-index "$(TORCH_INDEX)"
	@touch $@

install-ray: $(RAY_STAMP)

$(RAY_STAMP): $(STAMP)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet 'pfms[ray]'
	@touch $@

# An index that differs from the one .venv was built with rebuilds it; without one, it stays as it is.
ifneq ($(TORCH_INDEX),)
ifneq ($(TORCH_INDEX),$(shell cat .venv/.torch-index 2>/dev/null))
$(STAMP): another-index
endif
endif

demo: $(STAMP) $(MANUAL) $(VIEWER)
	@$(BIN)/pfms demo

serve: $(STAMP) $(MANUAL) $(VIEWER)
	@$(BIN)/pfms serve

docs: $(MANUAL)

viewer: $(VIEWER)

# Without npm there is none, and it is tried again the next time.
$(VIEWER): $(wildcard tools/viewer/* tools/viewer/.npmrc) | $(STAMP)
	@$(BIN)/python -m tools.viewer

$(MANUAL): $(STAMP) $(wildcard *.md */README.md docs/* docs/pictures/* tools/manual/* pfms/errors.py pfms/api/*.py)
	@$(BIN)/python -m tools.manual

pictures: $(STAMP)
	@$(BIN)/python -m tools.pictures

test: $(STAMP) $(VIEWER)
	$(BIN)/python -m pytest -m "not every"

test-all: $(STAMP) $(VIEWER)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(STAMP)
	@$(BIN)/python tools/audit.py

bench: $(STAMP)
	$(BIN)/python -m bench

demo-model: $(STAMP)
	$(BIN)/python examples/train_demo_model.py
