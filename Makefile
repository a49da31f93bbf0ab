# Plungepool. `make help` lists the targets; each installs what it needs by toolkit/set-up.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# Hundreds of processes import the same: what an image of a container sets to stay small would have each compile it anew.
unexport PYTHONDONTWRITEBYTECODE
# The environments hold all that the targets need; what these name would go before it, or take the assertions away.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONSTARTUP

.PHONY: help
help: ## Show the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One environment for the demo, the tests and the checks; made anew when a pinned file changes.
.venv/.ready: requirements/dev.txt requirements/uv.txt toolkit/pyproject.toml layers/plungepool/pyproject.toml toolkit/set-up
	@toolkit/set-up venv .venv requirements/dev.txt
	@toolkit/set-up develop .venv
	@touch $@

# Tools that must not share an environment with each other or with ours.
TOOLS := .venv-sam/.ready .venv-checkov/.ready .venv-ministack/.ready .venv-release/.ready .venv-cdk/.ready .venv-docs/.ready .mermaid/mermaid.min.js
$(filter-out .venv-sqlalchemy-%,$(filter .venv-%,$(TOOLS))): .venv-%/.ready: requirements/%.txt toolkit/set-up
	@toolkit/set-up venv .venv-$* requirements/$*.txt
	@touch $@

.mermaid/mermaid.min.js: toolkit/set-up
	@toolkit/set-up mermaid .mermaid
	@touch $@

# Another SQLAlchemy in an environment like ours has a recipe of its own, below.
TOOLS += .venv-sqlalchemy-2.0/.ready

.PHONY: setup
setup: .venv/.ready ## Make the virtual environment that the other targets use

.PHONY: demo
demo: .venv/.ready ## Run every sample function against a real PostgreSQL on this machine
	@$(PYTHON) -m plungepool_toolkit demo

.PHONY: verify-aws
verify-aws: .venv/.ready .venv-sam/.ready ## Settle on an AWS account what only an account can: asks first, costs, deletes all it made
	@$(PYTHON) -m plungepool_toolkit verify-aws $(OPTIONS)

.PHONY: sam-local
sam-local: .venv/.ready .venv-sam/.ready ## Run every function by `sam local` in containers, and the API over HTTP
	@$(PYTHON) -m plungepool_toolkit sam-local

.PHONY: check
check: .venv/.ready ## Lint, formatting and types (ruff, mypy strict), and whether the reference is what the code says
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@$(PYTHON) docs/extension/write_reference.py

.PHONY: format
format: .venv/.ready ## Format, and mend what the linter can mend
	@.venv/bin/ruff check --fix --quiet . || true
	@.venv/bin/ruff format .

# Every other supported Python found on this machine has an environment of its own.
.venv-3.%/.ready: requirements/dev.txt requirements/uv.txt toolkit/pyproject.toml layers/plungepool/pyproject.toml toolkit/set-up
	@toolkit/set-up venv .venv-3.$* requirements/dev.txt "$$(toolkit/set-up pythons | sed -n 's/^3\.$* //p')"
	@toolkit/set-up develop .venv-3.$*
	@touch $@

# From Debian sid, run where they lie; nothing of them is installed on the machine.
.debian/postgresql-18/.ready: toolkit/set-up
	@toolkit/set-up postgresql .debian/postgresql-18 18
	@touch $@

.debian/python3.14/.ready: toolkit/set-up
	@toolkit/set-up python .debian/python3.14 3.14
	@touch $@

.PHONY: postgresql-18
postgresql-18: .debian/postgresql-18/.ready ## Get PostgreSQL 18 with TLS from Debian sid, into .debian (half a minute)

.PHONY: services
services: postgresql-18
	@toolkit/set-up apt postgresql pgbouncer iproute2 chromium-headless-shell

# The tests in parts that share nothing, so that several of them can run at a time; the longest first.
CORE := tests/unit tests/integration
# In halves that take about as long; the last test looks for secrets in what the others have written.
CORE_A := tests/unit $(wildcard tests/integration/test_[a-l]*.py)
CORE_B := $(wildcard tests/integration/test_[m-z]*.py) tests/integration/test_credentials_output.py
WIRE := tests/wire
TOOLKIT := tests/toolkit
FUNCTIONS := tests/functions tests/environment tests/documentation
CHAOS := tests/chaos
# A run that lives on the real clock, beside which there must be room.
CHAOS_RUN := tests/chaos/test_randomised.py
STORIES := $(filter-out $(CHAOS_RUN),$(wildcard tests/chaos/test_*.py))
LOCAL := tests/local
TEMPLATE := $(filter-out $(CORE) $(WIRE) $(TOOLKIT) $(FUNCTIONS) $(CHAOS) $(LOCAL) tests/mutants tests/shared %.py %__pycache__,$(wildcard tests/*))
# What depends on the Python that runs it: each module as it is imported, in what order objects end and threads are interrupted,
# signals, forks and exits, TLS sockets, and what reads or writes every byte. Of the rest what takes seconds and runs most lines.
OLDEST := tests/unit tests/wire/test_protocol.py tests/wire/test_types.py tests/wire/test_parameters.py tests/wire/test_large_values.py \
	$(patsubst %,tests/integration/test_%.py,cold_start_modules deadline engine_options exit first_errors guard lifecycle_hooks observe \
	pinning_guard plans pool pool_strikes rds_proxy reader shutdown_strikes slow tenants tls transaction)
# Most tests wait for something (a server, a network that is cut, a time-out): with two at a time, two cores idle half the time; but
# many parts at a time crowd them, so that some tests run into their time limits.
JOBS := 3

# Every other supported Python on this machine, the oldest first.
OTHER_PYTHONS = main=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	toolkit/set-up pythons | sort -V | while read -r version path; do \
		case $$version:$$path in "$$main":* | *:$(CURDIR)/.debian/*) ;; *) echo "$$version";; esac; \
	done

.PHONY: test
test: check services $(TOOLS) ## Run the checks and every test, and say once a minute how far it is; installs all that it needs
	@oldest=$$($(OTHER_PYTHONS) | head -n 1); \
	[ -z "$$oldest" ] || $(MAKE) --no-print-directory ".venv-$$oldest/.ready" || exit 1; \
	exec $(PYTHON) tests/run_parts.py --at-once $(JOBS) --calm chaos-run \
		--part chaos-run $(PYTHON) $(CHAOS_RUN) \
		--part template $(PYTHON) $(TEMPLATE) \
		--part toolkit $(PYTHON) $(TOOLKIT) \
		--part core-a $(PYTHON) $(CORE_A) \
		$${oldest:+--part python-$$oldest .venv-$$oldest/bin/python $(OLDEST)} \
		--part local $(PYTHON) $(LOCAL) \
		--part functions $(PYTHON) $(FUNCTIONS) \
		--part core-b $(PYTHON) $(CORE_B) \
		--part wire $(PYTHON) $(WIRE) \
		--part stories $(PYTHON) $(STORIES)

# What finds most in the least time: the settings, the engine, the pool and the wire on a real PostgreSQL. Left out are the poolers,
# the fuzzed and the dead networks, the commands, the functions, the template, SQLAlchemy's own suite and the other Pythons.
FAST := tests/unit tests/wire/test_wire.py tests/wire/test_round_trips.py tests/integration/test_pool.py \
	tests/integration/test_engine_options.py tests/integration/test_lifecycle_hooks.py

.PHONY: test-fast
test-fast: check ## In a minute: the checks, the unit tests, and those of pool and wire; not functions, commands, template
	@$(PYTHON) -m pytest -q --ignore tests/unit/test_verify_aws.py $(FAST)

.PHONY: chaos
chaos: .venv/.ready services ## Environments that trade while all around them fails, for SECONDS=300 by SEED=… (drawn): is anything lost or done twice?
	@$(PYTHON) tests/chaos/history/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(OPTIONS)

.PHONY: mutants
mutants: .venv/.ready services ## Change the code place by place, to find what no test would notice (TOPICS="engine tls"; see docs/mutants.md)
	@$(PYTHON) tests/mutants/run.py $(TOPICS) $(if $(SAMPLE),--sample $(SAMPLE))

.PHONY: test-core
test-core: .venv/.ready services ## Run the tests of the package
	@$(PYTHON) -m pytest $(CORE)

.PHONY: test-toolkit
test-toolkit: .venv/.ready services ## Run the tests of the toolkit and its commands
	@$(PYTHON) -m pytest $(TOOLKIT)

.PHONY: test-functions
test-functions: .venv/.ready services .venv-docs/.ready .mermaid/mermaid.min.js ## Run the tests of the functions, their environments and the documents
	@$(PYTHON) -m pytest $(FUNCTIONS)

.PHONY: test-chaos
test-chaos: .venv/.ready services ## Run the stories of failures, and the randomised run
	@$(PYTHON) -m pytest $(CHAOS)

.PHONY: test-wire
test-wire: .venv/.ready .venv-sqlalchemy-2.0/.ready services ## Run the tests of the wire: protocol, poolers, dead networks, SQLAlchemy's own suite
	@$(PYTHON) -m pytest $(WIRE)

.PHONY: test-application
test-application: .venv/.ready $(TOOLS) services ## Run the tests of the template: build, checks, deploy, sam local, sam init
	@$(PYTHON) -m pytest $(TEMPLATE) $(LOCAL)

# What works on the oldest and on the newest works between.
.PHONY: test-oldest-python
test-oldest-python: .venv/.ready services ## Run on the oldest supported Python installed here what depends on it, as `make test` does
	@$(MAKE) --no-print-directory test-pythons HOW_MANY="head -n 1" OF="$(OLDEST)"

.PHONY: test-pythons
test-pythons: HOW_MANY := cat
test-pythons: OF := $(CORE)
test-pythons: .venv/.ready services ## Run all unit and integration tests on every other supported Python installed here
	@$(OTHER_PYTHONS) | $(HOW_MANY) | { failed=; while read -r version; do \
		$(MAKE) --no-print-directory ".venv-$$version/.ready" || exit 1; \
		echo "Tests on Python $$version"; \
		".venv-$$version/bin/python" -m pytest -q -p no:cacheprovider $(OF) </dev/null || failed="$$failed $$version"; \
	done; [ -z "$$failed" ] || { echo "failed on Python$$failed"; exit 1; }; }

# What `make test` does not run on them: it takes this machine's own Pythons, and PostgreSQL 18 where a test asks for it.
.PHONY: test-versions
test-versions: .venv/.ready .venv-sam/.ready .venv-sqlalchemy-2.0/.ready services ## Test on every Python, 3.14 too, and on PostgreSQL 18 with TLS, both from Debian sid if not here (not in `make test`)
	@toolkit/set-up pythons | grep -q '^3\.14 ' || $(MAKE) --no-print-directory .debian/python3.14/.ready
	@$(MAKE) --no-print-directory .venv-3.14/.ready
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=line test-on-python-3.14 test-on-postgresql-18 \
		$(EARLIER:%=test-on-postgresql-%) test-on-sqlalchemy-2.0 test-pythons

# dev.txt's, with SQLAlchemy's line before the one that the layer holds.
.venv-sqlalchemy-2.0/.ready: requirements/dev.txt requirements/sqlalchemy-2.0.txt requirements/uv.txt toolkit/pyproject.toml layers/plungepool/pyproject.toml toolkit/set-up
	@toolkit/set-up venv .venv-sqlalchemy-2.0 requirements/dev.txt
	@toolkit/set-up instead .venv-sqlalchemy-2.0 requirements/sqlalchemy-2.0.txt
	@toolkit/set-up develop .venv-sqlalchemy-2.0
	@touch $@

.PHONY: test-on-sqlalchemy-2.0
test-on-sqlalchemy-2.0: .venv-sqlalchemy-2.0/.ready
	@.venv-sqlalchemy-2.0/bin/python -m pytest -p no:cacheprovider \
		$(call REPORT,SQLAlchemy $$(.venv-sqlalchemy-2.0/bin/python -c "import sqlalchemy; print(sqlalchemy.__version__)")) tests/unit tests/integration tests/wire </dev/null

.PHONY: test-on-python-3.14
test-on-python-3.14:
	@.venv-3.14/bin/python -m pytest -p no:cacheprovider \
		$(call REPORT,$$(.venv-3.14/bin/python --version)) tests/unit tests/integration tests/wire </dev/null
	@$(PYTHON) -m pytest -p no:cacheprovider -k bytecode_for_every_python tests/infrastructure/test_build.py </dev/null

# 14 to 17: every server of these tests, with TLS or without, is that one. What does not depend on the server is left out.
.postgresql/%/.ready: requirements/postgresql.txt toolkit/set-up
	@toolkit/set-up earlier-postgresql .postgresql/$* $*
	@touch $@

ON_POSTGRESQL := $(filter-out %fuzzed_server.py %dead_networks.py %asynchronous_exceptions.py,$(wildcard tests/wire/test_*.py)) \
	$(addprefix tests/integration/test_,$(addsuffix .py,deadline default_schema doctor doctor_rls drain observe plans pool slow \
	tenants thaw tls transaction))
# Needs pg_basebackup, which npm's packages do not hold.
STANDBY := a_writer_that_has_moved
EARLIER := 14 15 16 17
.PHONY: $(EARLIER:%=test-on-postgresql-%)
$(EARLIER:%=test-on-postgresql-%): test-on-postgresql-%: .postgresql/%/.ready
	@POSTGRES_BINARIES="$(CURDIR)/.postgresql/$*/bin" POSTGRES_WITH_TLS="$(CURDIR)/.postgresql/$*/bin" $(PYTHON) -m pytest \
		-p no:cacheprovider $(call REPORT,$$(.postgresql/$*/bin/postgres --version | tr -d '()' | cut -d' ' -f2-)) -k "not $(STANDBY)" $(ON_POSTGRESQL) </dev/null

# What ran, by which docs/versions.md is written: pytest's report, under the version's name.
REPORT = --junitxml build/versions/$@.xml -o "junit_suite_name=$(1)"

.PHONY: versions
versions: .venv/.ready ## Write the table in docs/versions.md anew, from what `make test-versions` has left
	@$(PYTHON) docs/write_versions.py

.PHONY: test-on-postgresql-18
test-on-postgresql-18:
	@POSTGRES_WITH_TLS="$(CURDIR)/.debian/postgresql-18/lib/postgresql/18/bin" $(PYTHON) -m pytest -p no:cacheprovider \
		$(call REPORT,$$(.debian/postgresql-18/lib/postgresql/18/bin/postgres --version | tr -d '()' | cut -d' ' -f2-3)) \
		tests/wire tests/integration/test_tls.py tests/integration/test_doctor.py </dev/null

.PHONY: docs
docs: .venv-docs/.ready .mermaid/mermaid.min.js ## Build the documentation site into build/docs (REPOSITORY=https://… for links to the code)
	@rm -rf build/docs
	@.venv-docs/bin/sphinx-build -q -W --keep-going -n -d build/docs-cache $(if $(REPOSITORY),-D repository=$(REPOSITORY)) docs build/docs
	@echo "build/docs/index.html"

# Bytecode for each of Lambda's Pythons: what this machine lacks comes from Debian sid, as for `test-versions`.
.PHONY: release
release: .venv/.ready ## Build wheels, source distributions, the layer's zip, its bill of materials and checksums into dist/, twice; try them out
	@toolkit/set-up pythons | grep -q '^3\.14 ' || $(MAKE) --no-print-directory .debian/python3.14/.ready
	@PATH="$$PATH:$(CURDIR)/.debian/python3.14/usr/bin" $(PYTHON) release/release.py

.PHONY: version
version: .venv/.ready ## Write VERSION=… into each file that holds it
	@$(PYTHON) release/release.py "$(VERSION)"

.PHONY: screenshots
screenshots: docs services .venv-sam/.ready ## Take the pictures of the site, the storm's report and the dashboard for docs
	@$(PYTHON) docs/extension/take_screenshots.py

.PHONY: reference
reference: .venv/.ready ## Write docs/reference anew from the code
	@$(PYTHON) docs/extension/write_reference.py --write

.PHONY: requirements
requirements: .venv/.ready ## Renew the pinned, hashed requirements from the .in files
	@for file in layers/plungepool/requirements requirements/dev requirements/uv requirements/sam requirements/bench requirements/checkov requirements/budget requirements/release requirements/sqlalchemy-2.0 requirements/docs requirements/cdk; do \
		.venv-uv/bin/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-header --quiet $$file.in --output-file $$file.txt || exit 1; \
	done
	@.venv-uv/bin/uv pip compile --upgrade --universal --python-version 3.12 --generate-hashes \
		--no-emit-index-url --no-header --quiet requirements/ministack.in --output-file requirements/ministack.txt
	@# The runtime brings what this layer leaves out.
	@.venv-uv/bin/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --no-emit-package botocore --no-emit-package boto3 --no-emit-package s3transfer --no-emit-package urllib3 \
		--no-emit-package python-dateutil --no-emit-package six --constraint requirements/dev.txt \
		layers/powertools/requirements.in --output-file layers/powertools/requirements.txt

.PHONY: clean
clean: ## Remove what the other targets made
	@rm -rf .venv .venv-* .aws-sam .debian .postgresql .mermaid .mypy_cache .pytest_cache .ruff_cache build dist
