# Each target is one or two visible commands. On Windows, README.md has the same commands without make.
PYTHON ?= python3
BIN := .venv/bin
PAPERMILL := $(BIN)/papermill --log-output --no-progress-bar

.PHONY: run test lab site bench bench-guard

run: .venv/ready
	mkdir -p runs/notebooks
	$(PAPERMILL) notebooks/04_pretraining.ipynb runs/notebooks/04_pretraining.ipynb -p budget quick
	$(BIN)/python -m mae_helpers recipe mnist-quick --stages knn,probe,finetune,scratch
	$(PAPERMILL) notebooks/05_reconstruction.ipynb runs/notebooks/05_reconstruction.ipynb -p budget quick
	$(PAPERMILL) notebooks/06_mnist_classification.ipynb runs/notebooks/06_mnist_classification.ipynb -p budget quick
	$(BIN)/python -m mae_helpers report

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=900 tests notebooks

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

site: .venv/ready
	$(BIN)/sphinx-build -q -W -c docs -d build/doctrees . build/site
	@echo "Open build/site/index.html"

# PARTS: all, goals, or some of the parts of .venv/bin/python -m benchmarks --help
PARTS ?= goals
bench: .venv/bench
	$(BIN)/python -m benchmarks $(PARTS)
	$(BIN)/python -m benchmarks.show --write

bench-guard: .venv/bench
	$(BIN)/python -m benchmarks.guard

.venv/bench: .venv/ready
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[bench]"
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[notebooks,dev,site,sweep]"
	touch $@
