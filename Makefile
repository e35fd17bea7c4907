# `make study` and `make test` work in a fresh clone with Python 3.11+ and make; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
# What meets the dependencies; what is logic alone is tested by `make test`.
OLDEST_TESTS := $(patsubst %,tests/%.py,config/test_config store/test_store data/test_text \
  analysis/test_tables tuning/test_methods tuning/test_contracts tuning/test_train \
  tuning/test_fused_loss tuning/test_folded_lora \
  models/test_hub models/test_internals studies/test_ray_internals \
  measuring/test_measure_callback measuring/test_measure_losses measuring/test_measure_command \
  capabilities/test_capabilities_items capabilities/test_capabilities_evaluate \
  analysis/test_fit_engine analysis/test_fit_cli reporting/test_report cli/test_cli test_packaging)
OLDEST_TESTS += tests/studies/test_engine_ray.py::test_a_study_on_ray_gives_the_numbers_of_one_here
# One worker more than cores, since some tests wait for processes. A worker without tests takes half of another's, so that
# what a file's tests share is made once or twice.
WORKERS := -n $(shell $(PYTHON) -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))') --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: study test test-fast test-oldest test-slow lint types docs notebooks dist clean new-enough

study: .venv/.installed
	$(BIN)/forgetting study

test: .venv/.dev
	$(BIN)/python -m pytest $(WORKERS)

# At most a minute on two cores: what needs no model or a random tiny one, and no process of its own.
test-fast: .venv/.dev
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not full"

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(WORKERS) $(OLDEST_TESTS)

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/windows

# The site, in site/: a warning is an error.
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Runs docs/notebooks again, some minutes, and stores their outputs; the pictures need a Chromium.
notebooks: .venv/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/run_notebooks.py

# What is published, in dist/.
dist: .venv/.dev
	rm -rf dist
	$(BIN)/pip install --quiet twine
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# torch first, pinned: otherwise another package's looser range may bring a newer one with gigabytes of CUDA.
.venv/.installed: pyproject.toml constraints.txt | new-enough
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt | new-enough
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt --editable ".[trl,ray,quantized]" \
	  tensorboard mlflow-skinny openpyxl pytest pytest-xdist hypothesis
	@touch $@

new-enough:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }

clean:
	rm -rf .venv $(OLDEST) site dist .mypy_cache .ruff_cache .pytest_cache
