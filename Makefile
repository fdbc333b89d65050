# make quickstart and make test set up everything that they need; nothing is installed outside .venv.
PYTHON ?= python3
EXTRAS ?= onnx,serve,service,quickstart,dev
BIN := .venv/bin
# One thread a process, a process a core: tests are many and small. A file stays together, for what its tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
# pip reads PIP_FIND_LINKS, uv does not: where a machine offers its own wheels (a CPU build of torch), uv takes them too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup quickstart test test-all lint bench torture torture-service docs clean

help:  ## Show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.complete  ## Make .venv with everything

# A CPU build of torch stays: uv keeps an installed version that the bounds allow. On Linux without a GPU and
# without wheels of its own, TORCH_BACKEND=cpu takes PyTorch's CPU index instead of gigabytes of CUDA.
.venv/.complete: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -e ".[$(EXTRAS)]" \
	  || $(BIN)/python -m pip install -e ".[$(EXTRAS)]"
	touch $@

quickstart: setup  ## Distil a sentiment classifier from a real teacher on real data, offline; print the table
	HF_HUB_OFFLINE=1 $(BIN)/nlp-distill run quickstart

test: setup  ## All tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: setup  ## All tests
	$(PYTEST)

lint: setup  ## Style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup  ## Speed ratios, measured side by side; what exact resume costs
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/safety_cost.py

torture: setup  ## Kill N=60 runs at random moments; all must end with the same bits
	$(BIN)/python benchmarks/torture.py $(or $(N),60) --keep benchmarks/torture.result.json

torture-service: setup  ## Kill the job service at random moments; nothing may be lost, doubled or left behind
	$(BIN)/python benchmarks/torture_service.py --keep benchmarks/torture_service.result.json

docs: setup  ## Write the generated pages
	$(BIN)/python -m nlp_distill.reference docs/recipes.md
	$(BIN)/python -m nlp_distill.service.api.description

clean:  ## Remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist build
