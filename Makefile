# On a fresh machine with Python >= 3.10 each target alone makes .venv, installs with the constraints, and runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-zoo test-clients check soak studies-smoke

train: .venv/training ## the default run; more on the command line: make train ARGS="optimizer=sgdw"
	$(BIN)/python recipes/train.py $(ARGS)

test: .venv/installed ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-zoo: .venv-zoo/installed ## the suite and the zoo of architectures on the newest torch and torchvision (several GB)
	.venv-zoo/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-clients: .venv-clients/installed ## our callbacks in other projects' own LightningModules (several GB)
	.venv-clients/bin/python -m pytest tests/clients $(ARGS)

check: .venv/installed ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict lightning_wd recipes
	$(BIN)/mypy --cache-dir .mypy_cache/tests tests benchmarks docs

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

.venv-clients/installed: pyproject.toml
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install -e ".[clients]"
	touch $@
