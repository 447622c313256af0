# Everything on a fresh Debian, Ubuntu or macOS machine with Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm lint types docs clean

help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## environment, install, language model and the main job on a real survey (minutes)
	$(BIN)/personae demo

test: $(VENV)/installed-dev ## environment, install and all tests
	$(BIN)/python -m pytest

test-vllm: $(VENV)/installed-dev ## tests on a real vLLM; PERSONAE_VLLM_PYTHON is the Python that has it
	$(BIN)/python -m pytest -m vllm src/personae/serving/tests

lint: $(VENV)/installed-dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev ## type checks
	$(BIN)/mypy

docs: $(VENV)/installed ## write docs/cli.md from the commands' help
	$(BIN)/python scripts/write_cli_docs.py

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find src scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second call instant; they age when the dependencies change.
$(VENV)/installed: pyproject.toml scripts/install_torch.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'personae needs Python 3.11 or newer; say which one with: make PYTHON=python3.12' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	{ echo 'the environment could not be made; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	sh scripts/install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@
