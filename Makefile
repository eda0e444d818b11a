# `make quickstart` and `make test` are all one needs; the rest is for people who change things. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: gpu-1 gpu-2 gpu-3 gpu-carry gpu-tiny gpu-publish
.PHONY: publish bench-vllm help quickstart example test test-fast test-517 test-triton test-vllm lint types check docs wheel-check smoke baseline lock soak bench accept clean prove regress-example

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.venv/ready: pyproject.toml constraints.txt constraints.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.lock torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.lock --editable '.[dev]'
	@touch .venv/ready

quickstart: .venv/ready ## set up and run the main job on the demo models
	$(BIN)/moeprof run workloads/quickstart.yaml

example: .venv/ready ## dense against sparse: an MoE, its twins, lock-step, ladder and sweep (about eight minutes)
	rm -rf reports/example reports/example-compare
	$(BIN)/moeprof run workloads/dense-vs-sparse.yaml --output-dir reports/example
	$(BIN)/moeprof compare reports/example --write md,html,json --output-dir reports/example-compare

# Two processes, whole files in each, the longest first (tests/conftest.py): what tests time, they time against each other
# or by planted clocks.
JOBS ?= 2
test: .venv/ready ## set up and pass the tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: .venv/ready ## the quick part: nothing that runs a model or starts a process (about a minute on two cores)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not process and not browser" tests/core tests/sources tests/analysis tests/render

test-517: ## the engine's tests under the oldest supported transformers
	bash .ci/transformers-517

# Beside the environment, not in it: 190 MB that only these tests need, and torch acts differently where it finds Triton.
.venv-triton: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv-triton triton==3.6.0

test-vllm: .venv/ready .venv-vllm/ready ## the demo models through vLLM's CPU build in process, eager and compiled (minutes; 4 GB once)
	MOEPROF_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python bash .ci/vllm

test-triton: .venv-triton ## our GPU kernels on the CPU: interpreted, and compiled for an H200 (two minutes)
	MOEPROF_TEST_TRITON=1 $(BIN)/pytest tests/capture/kernels/test_kernels_interpreted.py

lint: .venv/ready ## style, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/ready ## types
	$(BIN)/mypy

check: lint types test ## everything before a commit

docs: .venv/ready ## write the parts of docs/ that repeat what the code says
	$(BIN)/python -m tests.helpers.docs_reference

# constraints.txt says what we choose, constraints.lock what comes with it. Versions of builds (+cpu) are cut off.
lock: ## the versions of everything that CI installs, from a fresh environment, into constraints.lock: commit it
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-lock/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	(echo "# Everything that CI installs, to the version; made by \`make lock\` from constraints.txt and pyproject.toml."; \
	  .venv-lock/bin/pip freeze --exclude-editable --exclude moeprof | sed 's/+.*//') > constraints.lock
	rm -rf .venv-lock

soak: .venv/ready ## does it lose, hang or obey a stranger? kills, damaged files, bombs, starved machines (20 minutes on two cores)
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),20)

wheel-check: ## the whole path of a CI job from a wheel, outside of this repository (a minute)
	.ci/check_wheel

smoke: .venv/ready ## the smoke workload against the committed baseline
	rm -rf reports/smoke
	$(BIN)/moeprof run workloads/ci-smoke.yaml --quiet --output-dir reports/smoke >/dev/null
	$(BIN)/moeprof regress reports/smoke --baseline main --baselines .ci/baselines

baseline: .venv/ready ## make that baseline anew, when a change is wanted: commit it
	rm -rf reports/smoke
	$(BIN)/moeprof run workloads/ci-smoke.yaml --quiet --output-dir reports/smoke >/dev/null
	$(BIN)/moeprof baseline save reports/smoke main --folder .ci/baselines --replace

bench: .venv/ready ## the speed targets as ratios measured side by side
	$(BIN)/python -m benchmarks.bench

.venv-vllm/ready: .venv/ready
	$(BIN)/moeprof engine install vllm --build cpu --folder $(CURDIR)/.venv-vllm
	@touch .venv-vllm/ready

bench-vllm: .venv/ready .venv-vllm/ready ## replay throughput beside generate, generate_batch and vLLM's CPU build (its own environment), 1 and 2 threads
	$(BIN)/python -m benchmarks.bench --only short long shape --threads 1 2 --json reports/bench-vllm.json
	$(BIN)/python -m benchmarks.vllm_kind --python $(CURDIR)/.venv-vllm/bin/python

regress-example: .venv/ready ## the demo MoE against itself with a dead expert, in turn (two minutes); ends in 3, as it should
	test -d reports/demo-dead || $(BIN)/python workloads/models/perturb_demo.py reports/demo-dead --kind dead
	rm -rf reports/regress-example
	$(BIN)/moeprof regress --ab workloads/regress-power.yaml workloads/regress-dead.yaml \
	  --write comment,html,junit,json --output-dir reports/regress-example

PROOFS := reports/power
prove: .venv/ready ## can `moeprof regress` be believed? A/A and power, measured and judged (two hours; goes on where it was)
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind slow-3 --comparisons 10
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind tail --comparisons 10
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind slow-10 --comparisons 10 --mode processes
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind slow-25 --comparisons 2 --mode stored
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind slow-10 --comparisons 2 --mode stored
	$(BIN)/python -m benchmarks.regress_power measure $(PROOFS) --kind aa --comparisons 40 --load 3
	$(BIN)/python -m benchmarks.regress_power judge $(PROOFS)

AZURE := ../shared/data/traces/AzureLLMInferenceTrace_conv.csv
accept: .venv/ready ## a minute of the real Azure trace: open loop at a quarter length, offline at full length (minutes)
	rm -rf reports/accept-open reports/accept-full
	$(BIN)/moeprof run workloads/azure-conv.yaml --output-dir reports/accept-open
	$(BIN)/python .ci/check_azure.py reports/accept-open $(AZURE) 0.25
	$(BIN)/moeprof run workloads/azure-conv-full.yaml --output-dir reports/accept-full
	$(BIN)/python .ci/check_azure.py reports/accept-full $(AZURE) 1.0

# On a machine with one card of 141 GB the environment is that machine's own: GPU_PYTHON needs torch, transformers, triton.
GPU_PYTHON ?= python3
GPU_OUT ?= reports/gpu-out
gpu-carry: .venv/ready ## for the card: the minute of traffic and the popularity counts that the repository does not hold
	$(BIN)/python -m benchmarks.gpu.carry ../shared/data

gpu-1: ## on the card, under ten minutes: limits, kernels, rooflines, cost of the instruments; into reports/gpu-out
	$(GPU_PYTHON) -m benchmarks.gpu.evidence --part 1 --out $(GPU_OUT)/1

gpu-2: ## on the card, under ten minutes: Mixtral 8x7B against dense
	$(GPU_PYTHON) -m benchmarks.gpu.evidence --part 2 --out $(GPU_OUT)/2

gpu-3: ## on the card, under ten minutes: Qwen3-30B against dense, Azure traffic through OLMoE
	$(GPU_PYTHON) -m benchmarks.gpu.evidence --part 3 --out $(GPU_OUT)/3

gpu-tiny: .venv/ready ## the same path with tiny models on the CPU (a few minutes)
	rm -rf reports/gpu-tiny reports/gpu-tiny-pages
	$(BIN)/python -m benchmarks.gpu.evidence --part all --tiny --budget-s 1200 --work reports/gpu-tiny/work --out reports/gpu-tiny/out
	$(BIN)/python -m benchmarks.gpu.publish reports/gpu-tiny/out --allow-tiny --to reports/gpu-tiny-pages

PUBLISHED := reports/published
CHROMIUM ?= chromium
PICTURE = command -v $(CHROMIUM) >/dev/null && $(CHROMIUM) --headless --no-sandbox --hide-scrollbars --window-size=1280,1500 \
	--screenshot=$(PUBLISHED)/$(1)/$(2).png file://$(CURDIR)/$(PUBLISHED)/$(1)/$(2).html >/dev/null 2>&1 || true
publish: .venv/ready ## write the pages (and pictures, where there is a Chromium) of the committed records anew
	rm -rf reports/pages
	$(BIN)/moeprof report $(PUBLISHED)/quickstart-cpu --write md,html,json --output-dir reports/pages/quickstart >/dev/null
	$(BIN)/moeprof compare $(PUBLISHED)/dense-vs-sparse-cpu --write html --output-dir reports/pages/compare >/dev/null
	-$(BIN)/moeprof regress $(PUBLISHED)/regress-ab-cpu --write html,junit,comment --output-dir reports/pages/regress >/dev/null
	cp reports/pages/quickstart/* $(PUBLISHED)/quickstart-cpu/
	cp reports/pages/compare/* $(PUBLISHED)/dense-vs-sparse-cpu/
	cp reports/pages/regress/* $(PUBLISHED)/regress-ab-cpu/
	rm -rf reports/pages
	@$(call PICTURE,quickstart-cpu,report)
	@$(call PICTURE,dense-vs-sparse-cpu,compare)
	@$(call PICTURE,regress-ab-cpu,regress)

gpu-publish: .venv/ready ## what was brought back into reports/published, with pages and the block of docs/gpu.md
	$(BIN)/python -m benchmarks.gpu.publish $(wildcard $(GPU_OUT)/*)

clean: ## remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build ./*.egg-info
