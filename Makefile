# All commands of this project, for people and for CI.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check gpu-check gpu-bench

# uv installs no bytecode: where Python may not write it either, each of many processes compiles its libraries again,
# which doubles or triples the CPU time of their imports.
export PYTHONDONTWRITEBYTECODE =

help:   ## this list
	@sed -n 's/^\([a-z-]*\): *[a-z ]*##/  make \1\t/p' $(MAKEFILE_LIST)

setup:   ## make .venv with the exact versions of requirements.lock, unless it is up to date
	@for python in $${PYTHON:-} python3.11 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    exec $$python tools/environment.py; \
	  fi; \
	done; \
	echo "setup: Python 3.11 was not found; install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2

demo: setup   ## set up, then run the main job on the embedded default
	@.venv/bin/reca demo

test: setup   ## set up, then run the tests (make test ARGS="tests/unit -k name")
	@.venv/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup   ## static checks: style, types, import contracts, docstrings
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

# Without setup: a GPU machine often has its own torch and no other dependency. PYTHON names the interpreter.
gpu-check:   ## on a GPU: parity replays, and losses and gradients against the CPU's
	@$${PYTHON:-python3} -m bench.gpu_check $(ARGS)

gpu-bench:   ## on a GPU: speed of training and extraction, plain and compiled (under 25 minutes)
	@$${PYTHON:-python3} -m bench.gpu $(ARGS)
