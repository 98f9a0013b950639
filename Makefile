# The two main commands are `make serve` and `make test`. `make help` lists the others.
# The server's settings come from the environment: EASEL_PORT=9000 make serve.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
PROMETHEUS := .venv-prometheus
LOCK := .venv-lock
CONSTRAINTS := constraints.txt
MINUTES ?= 10
SEED ?= 1
SCHEMAS ?= 420
# torch is installed first. If pip finds a CPU build of this release, it takes that build, which also
# satisfies the range in pyproject.toml. Otherwise it installs PyPI's CUDA build.
TORCH := torch==2.13.0
# PyPI's CUDA build of that release asks for exactly this one; a CPU build brings none.
TRITON := triton==3.7.1

.PHONY: help serve test coverage soak chaos fuzz schemas image-test cluster-test gpu-check check fmt \
	lock browser screenshots vendored demo-accuracy clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

serve: $(VENV)/.installed ## Start the server with the demo model on 127.0.0.1:8000
	@$(BIN)/easel serve

test: check $(CLIENTS)/.installed $(PROMETHEUS)/.installed ## Run lint, types, import rules and every test, on the CPU
	$(BIN)/pytest

coverage: $(VENV)/.installed-dev $(CLIENTS)/.installed $(PROMETHEUS)/.installed ## Run every test and report which lines of app/ and engine/ they ran
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

soak: $(VENV)/.installed-dev ## Send mixed traffic for MINUTES (10), then judge the results (docs/reliability.md)
	$(BIN)/python -m tests.soak $(MINUTES)

chaos: MINUTES = 20
chaos: $(VENV)/.installed-dev ## Send signals and hostile input for MINUTES (20), then judge the answers; SEED and JSON are optional
	$(BIN)/python -m tests.chaos $(MINUTES) $(SEED) $(JSON)

fuzz: $(VENV)/.installed-dev ## Send generated requests for MINUTES (10), for example: make fuzz MINUTES=30
	FUZZ_SECONDS=$$((60 * $(MINUTES))) $(BIN)/pytest tests/server/test_fuzz.py

schemas: $(VENV)/.installed-dev ## Judge answers by random schemas: of random canvases for MINUTES (10), of the demo model by SCHEMAS (420)
	SCHEMAS_SECONDS=$$((60 * $(MINUTES))) SCHEMAS_TRIED=$$(($(SCHEMAS) / 3)) \
		$(BIN)/pytest -n 0 -s tests/app/constraint/test_canvases.py tests/server/test_random_schemas.py

image-test: $(VENV)/.installed-dev ## Build and run the image without Docker (needs Debian and root; takes minutes)
	$(BIN)/pytest -n 0 -s tests/image/test_image.py

cluster-test: $(VENV)/.installed-ray ## Run two replicas behind one address on Ray Serve, and kill one (docs/cluster.md)
	$(BIN)/pytest -n 0 tests/ray_cluster/test_cluster.py

gpu-check: MINUTES = 9
gpu-check: $(VENV)/.installed-dev ## Check kernels, answers, speed and server on an NVIDIA GPU in MINUTES (9), and write a report (docs/gpu.md)
	$(BIN)/easel bench gpu --minutes $(MINUTES)

check: $(VENV)/.installed-dev ## Run lint, types and import rules only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.installed-dev ## Format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Write the newest versions that pyproject.toml allows to constraints.txt
	rm -rf $(LOCK) && $(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(LOCK)/bin/pip install --quiet --disable-pip-version-check '$(TORCH)' '$(TRITON)' --editable '.[dev]'
	{ sed -n '/^#/p' $(CONSTRAINTS); $(LOCK)/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > $(LOCK)/new
	mv $(LOCK)/new $(CONSTRAINTS) && rm -rf $(LOCK)

# tests/page/browser.py looks for the same names.
browser: ## Install a Chromium for the tests of the web page, if there is none (needs Debian and root)
	@for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v $$name > /dev/null; then exit 0; fi; \
	done; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install --yes --no-install-recommends -qq chromium-headless-shell > /dev/null

screenshots: $(VENV)/.installed-dev ## Take the pictures of the web page in docs/ again (docs/page.md)
	$(BIN)/python -m tests.page.screenshots

vendored: $(VENV)/.installed-dev ## Fetch the web page's libraries in the versions of tests/page/vendored.json
	$(BIN)/python -m tests.page.vendored

demo-accuracy: $(VENV)/.installed ## Measure the demo model's accuracy per task, of which it knows the easy ones (demo/README.md)
	$(BIN)/python -m demo.evaluate

clean: ## Remove the virtual environments and every cache
	rm -rf $(VENV) $(CLIENTS) $(PROMETHEUS) $(LOCK) .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Easel needs Python 3.11 or newer. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python cannot create virtual environments. On Debian: apt install python3-venv"; exit 1; }
	@echo "Creating $(VENV) and installing Easel. This happens once and takes a few minutes."
	$(PYTHON) -m venv $(VENV)

PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

$(VENV)/.torch: | $(BIN)/python
	$(PIP_INSTALL) '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(VENV)/.torch
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) $(VENV)/.torch
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# Ray is not in constraints.txt, because neither the image nor any other test has it.
$(VENV)/.installed-ray: $(VENV)/.installed-dev
	$(PIP_INSTALL) --editable '.[ray]'
	@touch $@

# The clients that docs/clients.md shows and the tests run: for Python, and for Node.
$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json \
		tests/clients/package-lock.json | $(BIN)/python
	@echo "Creating $(CLIENTS) and installing the tested clients. This happens once and takes about a minute."
	@set -e; start=$$(date +%s); \
	$(BIN)/python -m venv --clear $(CLIENTS); \
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r $<; \
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS); \
	PATH="$(CURDIR)/$(CLIENTS)/bin:$$PATH" npm ci --prefix $(CLIENTS) --silent --no-audit --no-fund; \
	echo "Installed the clients in $$(($$(date +%s) - start)) s."
	@touch $@

# Prometheus and promtool for the tests, if they are not installed: from Debian's or Ubuntu's package,
# which is unpacked here and not installed, so that this needs no root.
$(PROMETHEUS)/.installed:
	@mkdir -p $(PROMETHEUS)/lists/partial $(PROMETHEUS)/cache/archives/partial
	@cd $(PROMETHEUS); \
	if command -v prometheus > /dev/null && command -v promtool > /dev/null; then :; \
	elif command -v apt-get > /dev/null; then \
		echo "Creating $(PROMETHEUS) from the package prometheus. This happens once."; \
		own="-o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache -o APT::Sandbox::User="; \
		apt-get -qq $$own update && apt-get -qq $$own download prometheus && \
			dpkg-deb -x prometheus_*.deb . && rm -rf lists cache prometheus_*.deb; \
	else false; \
	fi && touch .installed || echo "Without prometheus, the tests that need it are skipped."
