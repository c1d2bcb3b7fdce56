# On a fresh machine with Python >= 3.10 each target alone makes .venv, installs with the constraints, and runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-zoo test-clients test-oldest check docs docs-serve soak studies-smoke

train: .venv/training ## the default run; more on the command line: make train ARGS="optimizer=sgdw"
	$(BIN)/python recipes/train.py $(ARGS)

test: .venv/installed ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-zoo: .venv-zoo/installed ## the suite, the zoo of architectures and docs/coming_from, on the newest torch (several GB)
	.venv-zoo/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-oldest: .venv-oldest/installed ## the suite on the oldest supported versions; PYTHON=python3.10 (several GB)
	.venv-oldest/bin/python -m pytest -W default::DeprecationWarning -W "default:unclosed <socket:ResourceWarning" -n 2 --dist loadgroup $(ARGS)

test-clients: .venv-clients/installed ## our callbacks in other projects' own LightningModules (several GB)
	.venv-clients/bin/python -m pytest tests/clients $(ARGS)

check: .venv/installed ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict lightning_wd recipes
	$(BIN)/mypy --cache-dir .mypy_cache/tests tests benchmarks docs

docs: .venv-docs/installed ## the documentation site, in site/; a warning fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

docs-serve: .venv-docs/installed ## the same at http://127.0.0.1:8000, built again when a page changes
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

soak: .venv/installed ## kill a sweep of distributed jobs 20 times and rerun it; at the end each cell is there exactly once
	$(BIN)/python tests/soak.py $(ARGS)

studies-smoke: .venv/installed ## every study of docs/studies at toy size, under three minutes
	$(BIN)/python recipes/studies/run.py --smoke $(ARGS)

.venv/training: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python >= 3.10 is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[recipes]"
	touch $@

.venv/installed: .venv/training
	$(BIN)/python -m pip install -c constraints.txt -e ".[test,check]"
	touch $@

.venv-zoo/installed: pyproject.toml
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --upgrade --upgrade-strategy eager -e ".[zoo]"
	touch $@

.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -c constraints.txt -e ".[docs]"
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install uv
	.venv-oldest/bin/uv pip compile --upgrade --resolution lowest-direct --extra test --python .venv-oldest/bin/python pyproject.toml -o .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install -c .venv-oldest/oldest.txt -e ".[test]"
	touch $@

.venv-clients/installed: pyproject.toml
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install -e ".[clients]"
	touch $@
