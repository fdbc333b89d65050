# make quickstart and make test set up everything that they need; nothing is installed outside .venv.
PYTHON ?= python3
EXTRAS ?= onnx,openvino,executorch,serve,service,ray,quickstart,dev
BIN := .venv/bin
# One thread a process, a process a core: tests are many and small. A file stays together, for what its tests share.
# Files in their own order: those with few and long tests come first, the many short ones of tests/unit fill the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# pip reads PIP_FIND_LINKS, uv does not: where a machine offers its own wheels (a CPU build of torch), uv takes them too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup quickstart test test-all javascript lint bench bench-ablations bench-exports bench-serving bench-long bench-safety bench-environments torture torture-service load-service docs clean

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

test-all: setup javascript  ## All tests
	$(PYTEST)

javascript: tests/browser/node_modules/.package-lock.json  ## The JavaScript libraries that tests load models with

# Only CPU libraries, which lie in the package; the install script would fetch those of CUDA.
tests/browser/node_modules/.package-lock.json: tests/browser/package-lock.json
	cd tests/browser && ONNXRUNTIME_NODE_INSTALL=skip npm ci --no-audit --no-fund

lint: setup  ## Style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: bench-environments  ## The table of goals: speed, memory, whole jobs, against what people use (20 minutes)
	$(BIN)/python benchmarks/bench.py

bench-ablations: setup  ## What each gain is worth: everything on, minus one
	$(BIN)/python benchmarks/ablations.py

bench-exports: setup $(if $(RUN),,runs/trimmed/results.json)  ## The table of goals of exports, of the trimmed quickstart or of RUN=folder
	$(BIN)/python benchmarks/exports.py $(or $(RUN),runs/trimmed)

EXPORTED := onnx, profile: fast}, {format: onnx, profile: small}, {format: onnx, profile: mobile}, {format: openvino, profile: fast}, {format: executorch, profile: mobile}, {format: executorch, profile: small

runs/trimmed/results.json: | setup
	HF_HUB_OFFLINE=1 $(BIN)/nlp-distill run quickstart --out $(@D) -o student.vocabulary=trim -o 'export=[{format: $(EXPORTED)}]'

bench-serving: setup  ## Requests a second beside a naive server, and overload: RUN=runs/quickstart (wants wrk)
	$(BIN)/python benchmarks/serving.py $(or $(RUN),runs/quickstart) --keep

bench-long: setup  ## 10 minutes of training on the whole of SST-2 against a tuned loop's 10 and 60: DATA=folder
	$(BIN)/python benchmarks/long.py $(DATA)

bench-safety: setup  ## What exact resume costs
	$(BIN)/python benchmarks/safety_cost.py

# TextBrewer needs tensorboardX; torchdistill asks for torchvision, which a CPU build of this torch has none of.
bench-environments: setup .bench/textbrewer/.complete .bench/torchdistill/.complete

BENCH_STACK := "torch<2.14" "transformers>=4.57.6,<4.58" numpy

.bench/textbrewer/.complete:
	$(BIN)/uv venv -q --allow-existing --python $(BIN)/python $(@D)
	VIRTUAL_ENV=$(@D) $(BIN)/uv pip install -q $(BENCH_STACK) textbrewer==0.2.1
	touch $@

.bench/torchdistill/.complete:
	$(BIN)/uv venv -q --allow-existing --python $(BIN)/python $(@D)
	VIRTUAL_ENV=$(@D) $(BIN)/uv pip install -q $(BENCH_STACK) pyyaml scipy cython pillow
	VIRTUAL_ENV=$(@D) $(BIN)/uv pip install -q --no-deps "torchdistill>=1.1,<1.2"
	touch $@

torture: setup  ## Kill N=60 runs at random moments; all must end with the same bits
	$(BIN)/python benchmarks/torture.py $(or $(N),60) --keep benchmarks/torture.result.json

torture-service: setup  ## Kill the job service at random moments; nothing may be lost, doubled or left behind
	$(BIN)/python benchmarks/torture_service.py --keep benchmarks/torture_service.result.json

load-service: setup  ## 200 requests a second and 100 event streams on the job service; needs wrk
	$(BIN)/python benchmarks/load_service.py --keep benchmarks/load_service.result.json

docs: setup  ## Write the generated pages
	$(BIN)/python -m nlp_distill.reference docs/recipes.md
	$(BIN)/python -m nlp_distill.service.api.description

clean:  ## Remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist build
