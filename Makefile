# Every target sets up what it needs; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
PYTEST = GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-1000} $(BIN)/pytest
FAST := -m "not slow and not real_model"
VERSIONS := 3.11 3.12 3.13
# The first Python that fits; override with `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& command -v "$$name" && break; done)

.PHONY: help docs serve test test-fast test-pythons coverage check audit format bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

serve: $(VENV)/.installed ## Set up and serve the default model; flags in ARGS="--port 8123"
	@exec $(BIN)/steerserve serve $(ARGS)

test: $(VENV)/.installed-dev ## Set up and run all tests; pytest's flags in ARGS
	@$(BIN)/steerserve models fetch $(MODEL)
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.installed-dev ## Run what takes two minutes on two idle cores: all but `slow` and `real_model`
	$(PYTEST) $(FAST) $(ARGS)

# Each version gets an environment of its own with the pinned versions: some gigabytes where the index's torch brings CUDA.
test-pythons: ## Run the fast tests on each of Python 3.11, 3.12 and 3.13 that is on the PATH, each in .venv-VERSION
	@for version in $(VERSIONS); do \
		python=$$(command -v "python$$version") && "$$python" -c '' 2>/dev/null || { echo "Python $$version: not installed"; continue; }; \
		echo "Python $$version: $$python"; \
		$(MAKE) --no-print-directory test-fast PYTHON="$$python" VENV=".venv-$$version"; \
	done

coverage: $(VENV)/.installed-dev ## Run all tests and say which lines and branches none of them reaches
	@$(BIN)/steerserve models fetch $(MODEL)
	$(PYTEST) --cov --cov-report=term $(ARGS)

check: $(VENV)/.installed-dev audit ## Format, lint, types, layers and known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Where the service cannot be asked, this warns and goes on; AUDIT_STRICT=1 makes that an error.
audit: $(VENV)/.installed-dev ## Look the pinned versions up among known vulnerabilities
	@$(BIN)/python -m tools.audit constraints.txt

format: $(VENV)/.installed-dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev ## Build the docs site into build/site, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

bench: $(VENV)/.installed ## Measure a running server; flags in ARGS
	@exec $(BIN)/steerserve bench $(ARGS)

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) .venv-3.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "steerserve needs Python 3.11, 3.12 or 3.13 on the PATH (or make PYTHON=...)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The pins keep pip from taking a newer torch with its own CUDA libraries.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing steerserve into $(VENV) (once, some minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
