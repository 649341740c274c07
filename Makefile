# Everything a person needs from a checkout. Python 3.11+ and Linux; `make PYTHON=python3.12 demo` picks another one.
PYTHON ?= python3
# Processes of tests: for two cores three, as many tests wait. Their deadlines stand a machine that is several times as busy.
TESTERS ?= 3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
GGUF   := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
TOOLS  := .venv-clients/.installed

.PHONY: help demo test test-all test-clients check torture soak bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(STAMP) ## fetch a small model, serve it from disk with far too little RAM, ask it a question
	@$(BIN)/python demo/demo.py

# Programs are started by the hundred: each would compile our modules anew where nothing that is compiled is kept.
test test-all: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP) $(GGUF) $(TOOLS) ## the whole test suite: every value of everything that can vary, not all with all
	$(BIN)/python -m pytest -q -n $(TESTERS) --dist worksteal

test-all: $(STAMP) $(GGUF) $(TOOLS) ## the same, all with all: every claim about every family in every dtype
	POTATO_ALL=1 $(BIN)/python -m pytest -q -n $(TESTERS) --dist worksteal

test-clients: $(STAMP) $(TOOLS) ## the tools of docs/CLIENTS.md, each as it is, that for node too (needs npm)
	@npm install --silent --no-save --prefix .venv-clients openai@6.49.0
	$(BIN)/python -m pytest -q tests/pipeline/test_gateway_clients.py

check: $(STAMP) ## lint, types and unit tests: what a change must pass before it is shown
	$(BIN)/ruff check .
	@MYPYPATH=$(VENV)/typed $(BIN)/mypy -p potatod -p potato_client & types=$$!; \
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/unit; tests=$$?; wait $$types && exit $$tests

torture: export POTATO_STATE = .torture-counts.json
torture: $(STAMP) ## kills, power cuts, failing disks, damaged folders and frames in full numbers: three hours; goes on from .torture*.json
	POTATO_KILLS=1000 POTATO_CUTS=10000 POTATO_ENGINE_KILLS=100 POTATO_CONNECTIONS=2000 $(BIN)/python -m pytest -q --timeout 3600 \
		tests/pipeline/test_front_torture.py tests/faults/test_power_cuts.py tests/faults/test_job_disk.py \
		tests/faults/test_kills.py::test_kills_of_the_engine_change_no_token tests/pipeline/test_gateway_guard.py \
		tests/pipeline/test_front_hostile.py
	POTATO_DAMAGES=2000 POTATO_FRAMES=200000 POTATO_DISK_CALLS=1000000 $(BIN)/python -m pytest -q --timeout 7200 \
		tests/faults/test_damaged_folders.py tests/pipeline/test_front_frames.py tests/faults/test_store_disk.py
	$(BIN)/python tests/torture/kills.py --kills 1000 --resume .torture.json
	$(BIN)/python tests/torture/kills.py --kills 100 --models 2 --resume .torture-models.json

soak: $(STAMP) ## mixed work for five minutes (MINUTES=120 for two hours): memory, descriptors and database stay as they are
	$(BIN)/python tests/torture/soak.py --minutes $(or $(MINUTES),5)

bench: $(STAMP) ## measure; prints tables and writes bench-out/*.json
	$(BIN)/python benchmarks/pipeline.py

clean: ## remove the environment and everything fetched or prepared
	rm -rf $(VENV) .venv-clients .cache build *.egg-info bench-out

# A real model for the tests that compare with transformers on real weights.
$(GGUF): | $(STAMP)
	@$(BIN)/python demo/demo.py --fetch-only

# Tools that ask over HTTP, as they are: with what they depend on, which is not ours.
$(TOOLS): tests/clients.txt | $(STAMP)
	@test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/pip install -q -r tests/clients.txt
	@touch $@

# The environment is made anew when what is installed changes. Exact versions: constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@mkdir -p $(VENV)/typed && ln -sfn ../../potatod $(VENV)/typed/potatod && ln -sfn ../../client $(VENV)/typed/potato_client
	@touch $@
