# Every target runs in .venv, which is made on first use and remade when pyproject.toml or constraints.txt change.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The newest of these that runs; a shim may be there and not run.
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11,$(shell $(name) -c "print('$(name)')" 2>/dev/null)))
SCALE ?= published
VENV := .venv
BIN := $(VENV)/bin
ASKED := $(if $(filter command environment,$(origin PYTHON)),$(PYTHON))
SUM := $(shell { cat pyproject.toml constraints.txt; echo "$(ASKED)"; } | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-16)
READY := $(VENV)/.ready-$(SUM)

.PHONY: help env data mini book test browser pdf lint format check golden lab clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */make \1\t/' | expand -t 14

$(READY):
	@test -z "$(ASKED)" || test ! -x $(BIN)/python || test "$$($(BIN)/python -V)" = "$$($(ASKED) -V)" || rm -rf $(VENV)
	@test -x $(BIN)/python || command -v "$(PYTHON)" >/dev/null || { echo "make: this book needs Python 3.11, 3.12 or 3.13; name one by PYTHON=/path/to/python3.13" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), with $$($(BIN)/python --version) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@rm -f $(VENV)/.ready-*
	@touch $@

env: $(READY) ## the Python environment, in .venv

data: $(READY) ## the embedded world's images and captions, in data/mini/world
	$(BIN)/dfl data

book: data ## the published book; SCALE=ci or quick computes it afresh, full publishes anew, paper: a GPU
	$(BIN)/dfl book --scale $(SCALE)

test: data ## all tests, on up to four cores
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

browser: $(READY) ## the built book in Chromium: the system's, or CHROMIUM=/path/to/it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -p no:cacheprovider browser

pdf: $(READY) ## the built book as _build/book.pdf, printed by Chromium
	$(BIN)/python -m dfl_utils.build.pdf

lint: $(READY) ## style of the code, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@shopt -s nullglob; notebooks=(book/*.ipynb); test $${#notebooks[@]} -eq 0 || $(BIN)/nbstripout --verify "$${notebooks[@]}"

format: $(READY) ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: data ## regenerate results/ci/exhibits.csv, which every change is compared with
	$(BIN)/dfl book --scale ci --no-html
	$(BIN)/dfl golden --write

check: $(READY) ## which files have changed since the published results were made?
	$(BIN)/dfl check

lab: data ## JupyterLab on the chapters
	$(BIN)/jupyter lab book --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

mini: $(READY) ## train the embedded models from nothing: hours, resumes after a kill
	$(BIN)/python -m dfl_utils.mini.pretrain

clean: ## forget what was built; the run store, the data and .venv stay
	rm -rf _build
