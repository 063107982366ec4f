# `make help` lists the targets. Every target installs what it needs first; PYTHON=... names the interpreter,
# FOR_CUDA=12 takes the lock for older GPUs and drivers.
# Works from any folder (make -C, make -f), and nothing of another active environment reaches the commands.
ROOT := $(dir $(lastword $(MAKEFILE_LIST)))
BIN := $(ROOT).venv/bin
export PYTHON FOR_CUDA
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint demo docs links bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' "$(ROOT)Makefile"

install: ## make .venv with the pinned environment and this project (5 GB; FOR_CUDA=12: for a V100, or a driver older than 580)
	@bash "$(ROOT)extra_scripts/install.sh"

# JOBS processes, each with whole test files: what a file's tests share is made once.
JOBS ?= 2
PYTEST = .venv/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile

test: install ## run the fast tests, in JOBS processes (default 2)
	cd "$(ROOT)" && $(PYTEST) -m "not slow"

# pytest exits with 5 when it finds no test: a failure above, and nothing to complain about here.
test-slow: install ## run the slow tests
	cd "$(ROOT)" && $(PYTEST) -m slow || [ $$? -eq 5 ]

lint: install ## check style and formatting with ruff, types with mypy
	cd "$(ROOT)" && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

demo: install ## train and show PIRL on a CPU: make demo [DATA=folder] [BUDGET_MINUTES=n]
	@"$(BIN)/pirl" demo $(if $(DATA),--data "$(DATA)") $(if $(BUDGET_MINUTES),--budget-minutes "$(BUDGET_MINUTES)")

docs: install ## build the site into docs/_build/html; a warning is an error
	cd "$(ROOT)" && .venv/bin/sphinx-build -W --keep-going -b html docs docs/_build/html

links: install ## check the site's links to other sites, which needs a network
	cd "$(ROOT)" && .venv/bin/sphinx-build -q -b linkcheck docs docs/_build/links

bench: install ## measure side by side with VISSL
	@"$(BIN)/python" "$(ROOT)benchmarks/run.py"

clean: ## remove the environment, builds and caches; outputs of runs stay
	cd "$(ROOT)" && rm -rf .venv .venv.lock build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	cd "$(ROOT)" && find . -name __pycache__ -type d -prune -exec rm -rf {} +
