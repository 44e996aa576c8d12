# Each target is one or two visible commands. On Windows, README.md has the same commands without make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lab

run: .venv/ready
	mkdir -p runs/notebooks
	for notebook in 04_pretraining 05_reconstruction 06_mnist_classification; do $(BIN)/papermill \
		notebooks/$$notebook.ipynb runs/notebooks/$$notebook.ipynb -p budget quick --log-output --no-progress-bar || exit 1; done
	$(BIN)/python -m mae_helpers report

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=900 tests notebooks

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[notebooks,dev]"
	touch $@
