# Commands of the repository; each sets up what it needs. `make up` and `make test` are the two to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOURS ?= 4
MUTANTS ?= 3

.PHONY: help install up test plane fuzz lint gen lock chaos endurance e2e-node e2e-kind mutants bench bench-growth bench-page profile clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## .venv with everything in it, from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python %d.%d is found, 3.11 or newer is needed: make PYTHON=/path/to/python3.11" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "This Python has no venv module. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

up: install ## start all of Logweir here; Ctrl-C stops it (ARGS="--port 8080" and more)
	@$(BIN)/logweir up $(ARGS)

test: install ## all tests that need no root, but for those of `make chaos` and `make endurance` (WORKERS=1: one after the other)
	$(BIN)/pytest -m "not chaos and not node and not endurance" --numprocesses $(or $(WORKERS),2) --dist load $(ARGS)

plane: install ## build the Kubernetes that tests use now, not when they first want it (needs Go; NAMES="helm" for others)
	PYTHONPATH=tests $(BIN)/python -m controlplane.build $(NAMES)

chaos: install ## faults, and five times too much load: nothing lost, nothing doubled (ten minutes; SIZE=soak HOURS=4)
ifeq ($(SIZE),soak)
	PYTHONPATH=tests $(BIN)/python -m chaos.soak --hours $(HOURS) $(ARGS)
else
	$(BIN)/pytest -m chaos -s tests/chaos $(ARGS)
	@$(MAKE) --no-print-directory mutants ONLY=$(MUTANTS)
endif

endurance: install ## the operator for minutes: a thousand pipelines, deaths at each write, an API server that dies, two at once (ten minutes)
	$(BIN)/pytest -m endurance -s tests/operator $(ARGS)

e2e-node: install ## the chart and the image on a real Kubernetes node, in namespaces of its own (root, Linux)
	$(BIN)/pytest -m node -q tests/e2e
	PYTHONPATH=tests $(BIN)/python -m e2e.run $(ARGS)

e2e-kind: install ## the same script on kind, for who has Docker
	PYTHONPATH=tests $(BIN)/python -m e2e.run kind $(ARGS)

mutants: install ## broken copies of the product, each of which must be caught (ONLY=3: some of them; ONLY="NAME, NAME")
	PYTHONPATH=tests $(BIN)/python -m chaos.mutation $(ONLY)

fuzz: install ## one decoder with coverage: TARGET=logql SECONDS=600; targets are in tests/fuzz (Linux on x86-64)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirement requirements-fuzz.lock
	$(BIN)/python tests/fuzz/run.py $(or $(TARGET),native) $(or $(SECONDS),60)

bench: install ## the goals of the design, measured against their limits (SIZE=quick: two minutes)
	$(BIN)/python bench/run.py --size $(or $(SIZE),full) $(ARGS)

bench-growth: install ## what it costs as work grows, and when idle (SIZE=quick for a look)
	$(BIN)/python bench/growth.py --size $(or $(SIZE),full) $(ARGS)

bench-page: install ## docs/benchmarks.md from what `bench` and `bench-growth` found
	$(BIN)/python bench/page.py docs/benchmarks.md

profile: install ## flame graph under load (ROLE=ingest, collector, query or all; OUT=folder)
	$(BIN)/python bench/flame.py $(or $(ROLE),all) --size $(or $(SIZE),full) --out $(or $(OUT),bench/out) $(ARGS)

lint: install ## format, rules, types, arrows between packages, the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/python charts/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/scaling_picture.py --check
	$(BIN)/python -m logweir_operator.crdgen . --check

gen: install ## what follows from something else: CRDs and their reference, the chart's table and schema of values, the picture of scaling
	$(BIN)/python -m logweir_operator.crdgen .
	$(BIN)/python charts/generate.py
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/scaling_picture.py

LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --generate-hashes

lock: ## requirements.lock and those of `make fuzz` and of the image anew, from pyproject.toml
	$(LOCK) --group test --group lint --group bench --output-file requirements.lock pyproject.toml
	$(LOCK) --group fuzz --output-file requirements-fuzz.lock
	$(LOCK) --constraints requirements.lock --output-file image/requirements.lock pyproject.toml
	$(LOCK) --group build --output-file image/build.lock

clean: ## remove what install and the tools made; data of `up` stays
	rm -rf $(VENV) bench/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz dist build
