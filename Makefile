# make demo | make test | make bench | make gpu. PYTHON picks the interpreter of a new .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# Where a CPU-only machine gets a torch without CUDA: the URL of PyTorch's CPU wheel index.
# Empty: torch comes from wherever pip looks, as constraints.txt pins it.
TORCH_INDEX ?=

# Processes that run the tests: as many as there are cores. Modules stay whole, so what their tests
# share is made once.
WORKERS ?= auto

.PHONY: setup demo test lint bench gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PY) -m pip install -q -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/oat-edge demo

test: setup lint
	$(PY) -m pytest -q -n $(WORKERS) --dist loadscope

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(PY) -m benchmarks.inference --threads 1
	$(PY) -m benchmarks.inference
	$(PY) -m benchmarks.lambda_variants
	$(PY) -m benchmarks.train_step --arch wrn-16-1 --batch 32 --rounds 10
	$(PY) -m benchmarks.train_step --arch resnet34 --batch 32 --rounds 3

# What needs an NVIDIA GPU, with the packages of the interpreter PYTHON: a GPU machine has its own
# torch, and one onnxruntime distribution excludes the other.
gpu:
	$(PYTHON) -m pytest -q -m gpu -rs
	$(PYTHON) -m benchmarks.gpu --format trt
	$(PYTHON) -m benchmarks.gpu --format trt-rtx

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
