# Two commands: `make demo` and `make test`. Each sets the environment up once, in .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check lowest mutants setup lint lock tables clean

demo: $(READY)
	@exec $(BIN)/python -m benchmarks.demo

test: $(READY) lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  --durations 25 --durations-min 10

# For the inner loop: lint, types, and the tests that start no process.
check: $(READY) lint
	$(BIN)/pytest -q -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# The fast tests of all that touches torch and ONNX Runtime, with the oldest versions that
# pyproject.toml allows: those of CUDA 12. In a separate environment, 3 GB of downloads.
LOWEST := .venv/lowest
lowest: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps -r requirements-lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) --build-constraint requirements.lock \
	  --no-deps --editable .
	$(LOWEST)/bin/python -m pytest -q -p no:locust -p no:cacheprovider --numprocesses auto \
	  --maxprocesses 4 --dist loadfile tests/bundle tests/training/models tests/serving/models

# Mutation testing of a pure module, changed in place and restored: commit first (docs/log.md).
#   make mutants MODULE=bundle/text.py TESTS=tests/bundle/test_text.py
COSMIC := $(BIN)/uv tool run --python $(BIN)/python --from cosmic-ray
mutants: $(READY)
	@printf '[cosmic-ray]\nmodule-path = "$(MODULE)"\ntimeout = 120.0\nexcluded-modules = []\n' > .venv/mutants.toml
	@printf 'test-command = "$(BIN)/python -m pytest -q -x -n0 $(TESTS)"\n' >> .venv/mutants.toml
	@printf '[cosmic-ray.distributor]\nname = "local"\n' >> .venv/mutants.toml
	$(COSMIC) cosmic-ray init --force .venv/mutants.toml .venv/mutants.sqlite
	$(COSMIC) cosmic-ray exec .venv/mutants.toml .venv/mutants.sqlite
	$(COSMIC) cr-report .venv/mutants.sqlite --surviving-only --show-diff

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
	$(BIN)/uv pip install --quiet --python .venv --build-constraint requirements.lock \
	  --no-deps --editable .
	@touch $(READY)

# One lock for all extras, Python 3.11 and newer, Linux and macOS; hashes, no addresses. A second one
# for older drivers has the last torch and ONNX Runtime built with CUDA 12, all else alike. The
# oldest versions that are allowed, for `make lowest`, have no hashes.
COMPILE := $(BIN)/uv pip compile --quiet --all-extras --no-header --no-annotate --python-version 3.11
lock: $(READY)
	$(COMPILE) --universal --generate-hashes pyproject.toml -o requirements.lock
	cp requirements.lock requirements-cuda12.lock
	printf 'torch<2.11\nonnxruntime-gpu<1.27\n' > .venv/cuda12.txt
	$(COMPILE) --universal --generate-hashes --constraint .venv/cuda12.txt pyproject.toml \
	  -o requirements-cuda12.lock
	$(COMPILE) --resolution lowest-direct --upgrade pyproject.toml -o requirements-lowest.txt

tables: $(READY)
	$(BIN)/python -m benchmarks.study.documents

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
