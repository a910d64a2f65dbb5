# Every target says what it does in `make help`. Python 3.11+, make and git are all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
STAMP  := $(VENV)/.installed

export DAGSTER_REDACT_USER_CODE_ERRORS := 1
export DAGSTER_DISABLE_TELEMETRY := 1
# Where it is set, each of the hundreds of processes that tests and demo start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo ui test check format soak truth reference faults bench peers lock docs clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(STAMP) ## install everything into .venv, from the lock file with hashes

$(STAMP): requirements.lock setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sis_pipeline needs Python 3.11 or newer; set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## pull four sandbox systems and a CSV bundle over two days, merge, and print what happened
	@$(BIN)/sis demo

ui: install ## open the Dagster UI on the demo's (or your) database, http://127.0.0.1:3000
	@$(BIN)/sis up

# On frames of a few rows a second thread of Polars costs a fifth of the processor's time.
test: install ## run the tests (about 10 minutes on 2 cores)
	@POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

check: install ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

soak: install ## 10,000 students at page size 100 and the true rate limit (about 22 minutes)
	@$(BIN)/python -m pytest -m soak -s

truth: install ## live ten days with every kind of system, prove the ledger against the truth, and write docs/truth.md (7 minutes)
	@$(BIN)/python -m sis_pipeline_tests.truth

reference: install ## 500 nasty small rosters and a large one: each row against a slow merge in plain words, and incremental against whole merges (about 20 minutes)
	@$(BIN)/python -m sis_pipeline_tests.reference --examples 500 --students 10000

faults: install ## provoke every fault the connections must survive, and write docs/faults.md (21 minutes)
	@$(BIN)/python -m sis_pipeline_tests.faults

bench: install ## seconds and memory of each stage, as ratios to floors measured in the same run
	@$(BIN)/python -m bench

peers: install ## the same pages through dlt and an ORM, beside the pipeline (needs the network)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers.txt
	@$(BIN)/python -m bench.peers --dlt-python $(PEERS)/bin/python

docs: install ## write the docs pages that are derived from the code
	@$(BIN)/python -m sis_pipeline.cli.reference docs

lock: install ## compile requirements.lock anew from setup.py
	@$(BIN)/uv pip compile setup.py --extra dev --universal --python-version 3.11 --no-strip-extras \
		--generate-hashes --no-header --quiet --output-file requirements.lock

clean: ## remove .venv and caches; .sis, which holds the key, the database and the snapshots, stays
	@rm -rf $(VENV) $(PEERS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
