# `make demo` and `make test` do everything on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned: a machine without a GPU gets the CPU build; on a GPU machine set TORCH= to keep your own.
TORCH ?= torch==2.13.0

.PHONY: install demo test test-slow lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(if $(TORCH),$(BIN)/python -m pip install -q $(TORCH))
	$(BIN)/python -m pip install -q $(if $(TORCH),-c constraints.txt) -e '.[test,bench]'
	# Without what it depends on: torchvision, which has no build for the pinned torch, is wanted for names only.
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt timm
	touch $@

demo: install
	$(BIN)/tubelet demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes: one holds the session's Ray cluster, the other runs what does without.
test: lint
	$(BIN)/pytest -n 2 --no-loadscope-reorder

test-slow: install
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) demo-out mlflow.db mlruns
