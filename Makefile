# Plungepool. `make help` lists the targets; each installs what it needs by toolkit/set-up.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

.PHONY: help
help: ## Show the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One environment for the demo, the tests and the checks; made anew when a pinned file changes.
.venv/.ready: requirements/dev.txt requirements/uv.txt toolkit/pyproject.toml layers/plungepool/pyproject.toml toolkit/set-up
	@toolkit/set-up venv .venv requirements/dev.txt
	@toolkit/set-up develop .venv
	@touch $@

.venv-sam/.ready: requirements/sam.txt toolkit/set-up
	@toolkit/set-up venv .venv-sam requirements/sam.txt
	@touch $@

.PHONY: setup
setup: .venv/.ready ## Make the virtual environment that the other targets use

.PHONY: demo
demo: .venv/.ready ## Run every sample function against a real PostgreSQL on this machine
	@$(PYTHON) -m plungepool_toolkit demo

.PHONY: check
check: .venv/.ready ## Lint, formatting and types (ruff, mypy strict)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

.PHONY: format
format: .venv/.ready ## Format, and mend what the linter can mend
	@.venv/bin/ruff check --fix --quiet . || true
	@.venv/bin/ruff format .

.PHONY: test
test: check ## Run the checks and every test; installs all that it needs
	@toolkit/set-up apt postgresql pgbouncer iproute2
	@$(PYTHON) -m pytest

.PHONY: requirements
requirements: .venv/.ready ## Renew the pinned, hashed requirements from the .in files
	@for file in layers/plungepool/requirements requirements/dev requirements/uv requirements/sam; do \
		.venv-uv/bin/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-header --quiet $$file.in --output-file $$file.txt || exit 1; \
	done
	@.venv-uv/bin/uv pip compile --upgrade --universal --python-version 3.12 --generate-hashes \
		--no-emit-index-url --no-header --quiet requirements/ministack.in --output-file requirements/ministack.txt

.PHONY: clean
clean: ## Remove what the other targets made
	@rm -rf .venv .venv-* .aws-sam .mypy_cache .pytest_cache .ruff_cache build
