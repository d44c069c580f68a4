# Two commands: `make demo` and `make test`. Each sets the environment up once, in .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test setup lint lock tables clean

demo: $(READY)
	@exec $(BIN)/python -m benchmarks.demo

test: $(READY) lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

setup: $(READY)

# uv comes from the package index into the environment, by the hash in the lock.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1 || echo not found): make PYTHON=python3.11" >&2; exit 1; }
	@echo "setting up .venv, once (some 6 GB; a minute or more)"
	$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --python .venv --constraint requirements.lock --compile-bytecode \
	  --requirements pyproject.toml --all-extras
	@# Ray brings a command named serve, too, so the project's own commands come last.
	$(BIN)/uv pip install --quiet --python .venv --build-constraint requirements.lock \
	  --no-deps --reinstall --editable .
	@touch $(READY)

# One lock for all extras, Python 3.11 and newer, Linux and macOS; hashes, no addresses.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --all-extras --no-header \
	  --no-annotate --python-version 3.11 pyproject.toml -o requirements.lock

tables: $(READY)
	$(BIN)/python -m benchmarks.documents

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
