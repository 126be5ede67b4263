# The one task runner.  `make demo` and `make test` each work as the first and only command.
#
#   make demo        train a bidirectional LSTM on film reviews, and look inside it
#   make test        everything that CI runs but for the page in a browser: format, lint, types, layers, all tests
#   make check       the same without the slow tests
#   make mutants     plant bugs in the kernels; each must fail the contract suite
#   make published   train the recipes on the benchmarks, several seeds each; runs written down are kept (hours)
#   make lab         run the laboratory by its protocols (half an hour)
#   make page        build the local page; needs node 20.19 or newer
#   make page-test   drive the built page in Chromium; screenshots go to build/page-shots
#   make docs        run the guide's commands again and put in what they say (minutes)
#   make bench       time the engine against torch, interleaved
#   make soak        the verification tests, the long versions
#   make sanitize    the tests on engines built with gcc's sanitizers
#   make thirdparty  others' models and algorithms with our layers in them, in an environment of its own
#   make gpu         a GPU's results beside this processor's; needs CUDA
#   make exchange-test  conversions beside live Keras and Flax, in an environment of its own; ONNX's figures
#   make clean       remove what make has made, but for runs/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GUESTS ?= .venv-thirdparty
LIVE ?= .venv-live
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILT := native/*.cpp native/*.h CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo test check format lint mutants published bench soak sanitize neon thirdparty gpu exchange-test clean lab docs page page-test

demo: $(VENV)/demo-installed
	$(BIN)/unspool train sentiment --output runs/demo --force
	$(BIN)/unspool inspect runs/demo/best "The movie was terribly exciting!" --output runs/demo/inspect.html

test: lint
	REQUIRE=native $(BIN)/python -m pytest -q

check: lint
	REQUIRE=native $(BIN)/python -m pytest -q -m "not slow"

lint: $(VENV)/dev-installed
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev-installed
	$(BIN)/ruff format src tests benchmarks examples docs
	$(BIN)/ruff check --fix src tests benchmarks examples docs

mutants: $(VENV)/dev-installed
	$(BIN)/python tests/mutants.py

published: $(VENV)/dev-installed
	$(BIN)/python benchmarks/quality.py

lab: $(VENV)/dev-installed
	$(BIN)/python benchmarks/lab.py

docs: $(VENV)/dev-installed
	$(BIN)/python docs/refresh.py

page: src/unspool/page/static/index.html

src/unspool/page/static/index.html: page/node_modules/installed page/index.html page/vite.config.js $(shell find page/src page/public -type f)
	cd page && npm run --silent build

page/node_modules/installed: page/package.json page/package-lock.json
	@command -v npm >/dev/null || { echo "The page is built with node and npm, which are not here."; \
	  echo "  Fix: install node 20.19 or newer (nodejs.org, or your system's packages) and run make page again."; exit 1; }
	cd page && npm ci --silent
	touch $@

# Chromium is Debian's own; what is there already is used.
page-test: page $(VENV)/dev-installed
	@test -x "$${CHROMIUM:-/usr/bin/chromium}" || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
	cd page && npm run --silent check
	cd page && UNSPOOL_PYTHON=$(abspath $(BIN))/python node --test test/page.test.mjs

bench: $(VENV)/dev-installed
	$(BIN)/python benchmarks/kernels.py

soak: $(VENV)/dev-installed
	$(BIN)/python benchmarks/verification.py soak

sanitize: $(VENV)/dev-installed
	$(BIN)/python benchmarks/verification.py sanitize

# For 64-bit ARM: cross-compiled, and run under qemu; all of it in build/neon.
neon: $(VENV)/dev-installed
	$(BIN)/python tests/neon.py

thirdparty: $(GUESTS)/installed
	$(GUESTS)/bin/python -m pytest -c tests/thirdparty/pytest.ini tests/thirdparty

# Others' packages ask for newer and older tools than ours: pinned in a list of their own, without what they drag in.
$(GUESTS)/installed: constraints.txt tests/thirdparty/constraints.txt $(wildcard $(BUILT))
	$(PYTHON) -m venv $(GUESTS)
	$(GUESTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scikit-build-core nanobind cmake ninja
	$(GUESTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/thirdparty/constraints.txt
	$(GUESTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings build-dir=build/thirdparty --editable .
	touch $@

# In the environment that is there: one with a build of torch for CUDA.
gpu: $(VENV)/dev-installed
	$(BIN)/python -m pytest -q tests/gpu

exchange-test: $(VENV)/dev-installed $(LIVE)/installed
	$(BIN)/python benchmarks/exchange.py
	$(LIVE)/bin/python -m pytest -c tests/live/pytest.ini tests/live

$(LIVE)/installed: constraints.txt tests/live/constraints.txt $(wildcard $(BUILT))
	$(PYTHON) -m venv $(LIVE)
	$(LIVE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scikit-build-core nanobind cmake ninja
	$(LIVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/live/constraints.txt
	$(LIVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings build-dir=build/live --editable .
	touch $@

# Built without isolation, so that the pinned build tools are used and nothing is fetched twice.
$(VENV)/build-tools: constraints.txt
	@echo "making the environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) scikit-build-core nanobind cmake ninja
	touch $@

$(VENV)/demo-installed: $(VENV)/build-tools $(wildcard $(BUILT))
	@echo "building the engine and installing torch; a few minutes, once"
	$(INSTALL) --no-build-isolation --editable '.[train,plot]'
	touch $@

$(VENV)/dev-installed: $(VENV)/build-tools $(wildcard $(BUILT))
	@echo "building the engine and installing the development tools; a few minutes, once"
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@ $(VENV)/demo-installed

clean:
	rm -rf $(VENV) $(GUESTS) page/node_modules src/unspool/page/static build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
