# The two commands are `make serve` and `make test`; `make help` lists the rest.
# Settings of the server come from the environment: EASEL_PORT=9000 make serve.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
MINUTES ?= 10
# Installed first and with pip: where a CPU build of this release lies at hand, pip takes it, and
# the project's own range is then satisfied. On a machine with an NVIDIA GPU and no such build it
# is PyPI's CUDA build.
TORCH := torch==2.13.0

.PHONY: help serve test soak fuzz image-test check fmt demo-accuracy clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

serve: $(VENV)/.installed ## Start the server with the demo model on 127.0.0.1:8000
	@$(BIN)/easel serve

test: check $(CLIENTS)/.installed ## Lint, types, import rules and every test, on the CPU
	$(BIN)/pytest

soak: $(VENV)/.installed-dev ## Mixed traffic for MINUTES (10), then a verdict (docs/reliability.md)
	$(BIN)/python -m tests.soak $(MINUTES)

fuzz: $(VENV)/.installed-dev ## Send made-up requests for so many minutes: make fuzz MINUTES=30
	FUZZ_SECONDS=$$((60 * $(MINUTES))) $(BIN)/pytest tests/server/test_fuzz.py

image-test: $(VENV)/.installed-dev ## Build the image and run it, without Docker (root, Debian; minutes)
	$(BIN)/pytest -s tests/image/test_image.py

check: $(VENV)/.installed-dev ## Lint, types and import rules only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.installed-dev ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-accuracy: $(VENV)/.installed ## Measure the demo model's accuracy per task (demo/README.md)
	$(BIN)/python -m demo.evaluate

clean: ## Remove the virtual environments and every cache
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Easel needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	@echo "Making $(VENV) and installing Easel (once; a few minutes)."
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# What docs/clients.md shows and the tests run: clients for Python, and Node with those for it.
$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json \
		tests/clients/package-lock.json | $(BIN)/python
	@echo "Making $(CLIENTS) and installing the clients that are tested (once; about a minute)."
	@set -e; start=$$(date +%s); \
	$(BIN)/python -m venv --clear $(CLIENTS); \
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r $<; \
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS); \
	PATH="$(CURDIR)/$(CLIENTS)/bin:$$PATH" npm ci --prefix $(CLIENTS) --silent --no-audit --no-fund; \
	echo "Installed the clients in $$(($$(date +%s) - start)) s."
	@touch $@
