# Everything a developer types. Plain `make` lists the targets.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-strip-extras --group install

# Whole files to three processes; those that start real processes come first, as they wait most.
PYTEST := $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: help demo up test test-fast test-dagster model model-breaks check clean requirements schema pictures

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# A stamp per requirement set: installing again only when the pins or the package metadata changed.
$(VENV)/.run: requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("stats-pipeline needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say `make PYTHON=python3.12 …`.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a minute or two the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

demo: $(VENV)/.run ## Set everything up, run one real job, show its result (ARGS="--exit --json")
	@$(BIN)/stats-pipeline demo $(ARGS)

up: $(VENV)/.run ## Database, migrations, Dagster daemon and UI, until Ctrl-C
	@$(BIN)/stats-pipeline up $(ARGS)

test: $(VENV)/.dev ## All tests (ARGS="-k sensor" passes arguments on to pytest)
	@$(PYTEST) $(ARGS)

test-fast: $(VENV)/.dev ## The quicker tests: no whole pipelines, fewer random histories
	@MODEL_MINUTES=0.1 $(PYTEST) -m "not slow" --ignore=stats_pipeline_tests/acceptance $(ARGS)

# The other packages as they are pinned, without hashes: pip would ask for one of each package, Dagster's included.
DAGSTER_VENV := .venv-dagster-$(VERSION)
TOUCHES_DAGSTER := unit/test_definitions.py unit/test_private_names.py \
	$(addprefix integration/test_,executor.py launcher.py storage.py hooks.py sensor.py upkeep.py) \
	$(addprefix acceptance/test_,stock_dagster.py main_job.py dg.py)

test-dagster: ## What touches Dagster, on another version of it (VERSION=1.13.3)
	@test -n "$(VERSION)" || { echo "Say which: make test-dagster VERSION=1.13.3"; exit 2; }
	@test -x $(DAGSTER_VENV)/bin/python || $(PYTHON) -m venv $(DAGSTER_VENV)
	@sed -nE 's/^([a-z0-9][^ ]*==[^\\]*).*/\1/p' requirements/dev.txt | grep -v '^dagster' > $(DAGSTER_VENV)/others.txt
	@echo "Installing Dagster $(VERSION) into $(DAGSTER_VENV) (some minutes the first time) ..."
	@$(DAGSTER_VENV)/bin/pip install --quiet --disable-pip-version-check -r $(DAGSTER_VENV)/others.txt \
		dagster==$(VERSION) dagster-postgres dagster-webserver==$(VERSION) dagster-dg-cli==$(VERSION)
	@$(DAGSTER_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(DAGSTER_VENV)/bin/pytest $(addprefix stats_pipeline_tests/,$(TOUCHES_DAGSTER)) $(ARGS)

model: $(VENV)/.dev ## Random histories of the job protocol for longer than `make test` (MINUTES=30)
	@MODEL_MINUTES=$(or $(MINUTES),30) $(BIN)/pytest stats_pipeline_tests/model $(ARGS)

model-breaks: $(VENV)/.dev ## Break the job protocol in twenty-three ways, and see the model find each
	@$(BIN)/pytest -rA stats_pipeline_tests/model/breaks.py $(ARGS)

check: $(VENV)/.dev ## Formatting, lint, types, import rules, SQL style, dependencies, links of the documentation
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint --disable-progress-bar sql
	@$(BIN)/deptry . --extend-exclude "stats_pipeline_tests|benchmarks"
	@$(BIN)/deptry . --extend-exclude "stats_pipeline/" --ignore DEP002,DEP004
	@$(BIN)/python -m stats_pipeline_tests.links

pictures: $(VENV)/.dev ## Take the pictures of the README anew (needs chromium)
	@$(BIN)/python -m stats_pipeline_tests.write_pictures

schema: $(VENV)/.dev ## Write sql/schema.json anew, after a new migration
	@$(BIN)/python -m stats_pipeline_tests.write_schema

requirements: ## Pin every dependency again, with hashes (needs uv in the venv)
	$(COMPILE) pyproject.toml -o requirements/run.txt
	$(COMPILE) --all-extras -c requirements/run.txt pyproject.toml -o requirements/dev.txt

clean: ## Remove the virtual environment, the embedded database and caches
	@if [ -x $(BIN)/stats-pipeline ]; then $(BIN)/stats-pipeline down; fi
	@rm -rf $(VENV) .venv-dagster-* .stats-pipeline .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info dist
