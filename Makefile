# Each target does all of its own set-up in .venv, once. A stamp named after
# the contents of the requirements says that it was done.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SETUP_FILES := setup.py pyproject.toml $(sort $(wildcard requirements/*.txt))
KEY := $(shell cat $(SETUP_FILES) | cksum | cut -d' ' -f1)
RUNTIME_STAMP := $(VENV)/.installed-$(KEY)
VIDEO_STAMP := $(VENV)/.installed-video-$(KEY)
VQA_STAMP := $(VENV)/.installed-vqa-$(KEY)
TESTS_STAMP := $(VENV)/.installed-tests-$(KEY)
# Applies to packages that pip builds from source, too.
PIP := PIP_CONSTRAINT=requirements/constraints.txt \
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
PYTEST_ARGS ?= -n auto --maxprocesses 8
# By name, so that results and builds in the same folder are left alone.
SOURCES := $(wildcard benchmarks configs demo docs setup.py tests tools \
	transmamba_mm)

.DEFAULT_GOAL := test
.PHONY: test quickstart quickstart-retrieval quickstart-vqa lint format clean

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

quickstart: $(RUNTIME_STAMP)
	@$(BIN)/python tools/quickstart.py

quickstart-retrieval: $(VIDEO_STAMP)
	@$(BIN)/python tools/quickstart_retrieval.py

quickstart-vqa: $(VQA_STAMP)
	@$(BIN)/python tools/quickstart_vqa.py

lint: $(TESTS_STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

format: $(TESTS_STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf build dist *.egg-info work_dirs docs/_build transmamba_mm/.mim \
		.import_linter_cache .pytest_cache .ruff_cache .hypothesis $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.9 or newer not found' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo '$(PYTHON) is older than Python 3.9' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME_STAMP): | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VIDEO_STAMP): | $(BIN)/python
	$(PIP) -e '.[video]'
	@touch $@ $(RUNTIME_STAMP)

$(VQA_STAMP): | $(BIN)/python
	$(PIP) -e '.[vqa]'
	@touch $@ $(RUNTIME_STAMP)

$(TESTS_STAMP): | $(BIN)/python
	$(PIP) -e '.[tests]'
	@touch $@ $(RUNTIME_STAMP)
