# Two commands to know: `make demo` (from nothing to a report) and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test bench lint types schema clean

demo: $(VENV)/installed
	$(BIN)/tokkata run recipes/quickstart.yaml

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Speed beside other projects on this machine, which should do nothing else. `make bench BENCH=--quick` is short.
bench: $(VENV)/installed
	$(BIN)/python tests/benchmarks/bench_tokenize.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_compare.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_scores.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_samples.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_generation.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_training.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_diffusion.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_codec_training.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_gan.py $(BENCH)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy resolves the package's relative imports only where the repository goes by the package's name.
types: $(VENV)/installed
	mkdir -p build/types
	ln -sfn ../.. build/types/tokkata
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p tokkata.core -p tokkata.tokenize -p tokkata.lm -p tokkata.diffusion -p tokkata.gan -p tokkata.eval -m tokkata.cli

# After a change of core/schema.py.
schema: $(VENV)/installed
	$(BIN)/python -m tokkata.core.schema_file recipes/schema.json

# The stamp makes a second call start at once, and a changed list of packages install again.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
