# Everything that a fresh machine needs: `make demo` shows the server at work, `make test` checks it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests start thousands of Python processes; without bytecode, each of them would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup install-dev env engine engines image upstreams agents conformance leaderboard rivals openapi deployment-tools browser screenshots docs packages package-tools lock demo test acceptance test-all lint check attack fuzz coverage bench bench-smoke bench-gate bench-report load bench-llm bench-skills clean

help:  ## these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## the virtual environment .venv, with this package and all tools

install-dev: setup upstreams  ## what developing needs: .venv, and MCP servers for the tests

env: setup  ## a settings file with every setting, commented out; one that exists stays
	@$(BIN)/mcpruntime-server config init --if-none

$(READY): requirements-dev.lock pyproject.toml
	@scripts/make-venv $(PYTHON) .venv
	@scripts/install-packages .venv
	@touch $@

engine:  ## a Docker engine, installed and started where none answers
	@scripts/docker-engine

image: setup engine  ## the image of the sandboxes
	@$(BIN)/mcpruntime-server image build

engines: image  ## Podman and gVisor beside Docker, for the tests of the sandbox
	@scripts/test-engines

upstreams: setup  ## real MCP servers for tests and demo
	@scripts/test-upstreams

agents:  ## coding agents for the tests
	@scripts/test-agents

conformance:  ## the conformance suite and the inspector of MCP
	@scripts/test-conformance

leaderboard: setup  ## the leaderboard that the bench runs
	@scripts/test-bfcl

rivals: setup  ## other runtimes for code, for the suite `rivals`
	@$(BIN)/python -m bench.rivals.install

openapi: setup  ## the tools that check the HTTP API
	@scripts/test-openapi

deployment-tools:  ## what the tests of the deployment need
	@scripts/deployment-tools

browser:  ## a browser for the tests of the pages
	@scripts/test-browser

docs: setup  ## the documentation, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html. With its search: $(BIN)/python -m http.server --directory site"

packages: setup  ## dist/: wheel, sdist, the bundle for MCP clients, SBOM and licences
	@scripts/build-packages

package-tools:  ## the validator of bundles for MCP clients
	@scripts/package-tools

# The exact versions of all packages of development, from the ranges in pyproject.toml. UPGRADE=1 takes newer ones.
lock: setup  ## requirements-dev.lock, from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --extra otel --group dev \
		$(if $(UPGRADE),--upgrade) --no-annotate --custom-compile-command "make lock" --output-file requirements-dev.lock

screenshots: setup browser  ## docs/images
	.venv/bin/python -m tests.viewer.screenshots

demo: setup engine  ## the main use on real servers, from nothing; ACT=undo shows one act
	@scripts/prepare-demo
	@$(BIN)/mcpruntime-server demo $(if $(ACT),--act $(ACT))

test: image upstreams lint check  ## the tests of the package, lint included

# What takes long because it uses the whole server: the bench, the examples, the documents, and the programs of others,
# such as coding agents and browsers.
ACCEPTANCE := tests/bench tests/clients tests/deployment tests/documents/test_site.py tests/documents/test_snippets.py \
	tests/examples tests/packages tests/capabilities/tools/test_real_servers.py tests/sandbox/test_image.py \
	tests/scripts/test_aliases.py tests/service/conformance tests/service/test_openapi.py tests/viewer

acceptance: image upstreams browser agents conformance leaderboard openapi deployment-tools package-tools  ## the bench, the examples, and programs of others that use the server
	$(call run_tests,$(ACCEPTANCE),$(call find_alone,$(ACCEPTANCE)))

# The same tests, but the random and repeated ones are much longer.
test-all: export LONG_TESTS = 1
test-all: export PYTEST_TIMEOUT = 0
test-all: test acceptance  ## all tests, with long random tests

lint: setup  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2

# A test that fails while another one loads the machine runs once more without it. What fails twice fails.
AGAIN := --last-failed --last-failed-no-failures none

# Only these files are collected for the second part; collecting all of them takes as long as some folders of tests.
find_alone = $(shell grep --recursive --files-with-matches --include='test_*.py' 'pytest.mark.alone' $(1))

# Tests also wait: three processes leave two cores idle for a seventh of the time, six for a hundredth.
PROCESSES := 6

# The tests in some places: first those that can run beside others, then the files with those that cannot.
define run_tests
$(BIN)/pytest $(1) -m "not alone" --numprocesses $(PROCESSES) --dist worksteal || $(BIN)/pytest $(1) -m "not alone" $(AGAIN)
$(BIN)/pytest $(2) -m alone || $(BIN)/pytest $(2) -m alone $(AGAIN)
endef

check: setup  ## the tests alone
	$(call run_tests,tests $(ACCEPTANCE:%=--ignore=%),$(filter-out $(call find_alone,$(ACCEPTANCE)),$(call find_alone,tests)))

# What attacks do to others, measured: nothing else may work on the machine.
attack: image upstreams  ## what attacks do to others, measured; alone on the machine
	ATTACKS=1 PYTEST_TIMEOUT=0 $(BIN)/pytest tests/attacks

# Changed inputs for the readers of what strangers send, so many minutes for each of them.
MINUTES := 10

fuzz: setup  ## changed inputs for the readers, MINUTES=10 each
	$(BIN)/python -m tests.fuzzing --minutes $(MINUTES)

coverage: image upstreams agents conformance leaderboard openapi deployment-tools browser  ## the tests, and what they do not reach
	$(BIN)/coverage run -m pytest
	@$(BIN)/coverage report --skip-covered

bench: image upstreams  ## time and memory
	@$(BIN)/python -m bench perf

# Every part of the bench once, small, with the scripted model and no network: under three minutes, because two run at
# once. Their figures mean nothing.
SMOKE := bench/results/smoke
ONE_OF_EACH := --categories calculator filesystem database chained --limit 1
ONE_OR_TWO := --categories calculator database --limit 1
define SMOKE_RUNS
run mrbs $(ONE_OF_EACH) --json $(SMOKE)/mrbs-baseline.json
run mrbs $(ONE_OR_TWO) --mode llm --json $(SMOKE)/mrbs-llm.json
run mrbs $(ONE_OR_TWO) --mode recursive --json $(SMOKE)/mrbs-recursive.json
run mrbs $(ONE_OR_TWO) --mode function-calling --json $(SMOKE)/mrbs-functions.json
run skills --condition curated --limit 1 --json $(SMOKE)/skills.json
run bfcl --limit 1 --json $(SMOKE)/bfcl.json
run same-tape --limit 4 --json $(SMOKE)/same-tape.json
run kill-anywhere --targets worker --limit 1 --rounds 1 --json $(SMOKE)/kill-anywhere.json
run undo --quick --json $(SMOKE)/undo.json
run density --quick --json $(SMOKE)/density.json
perf --quick --only warm_run --json $(SMOKE)/perf.json
endef
export SMOKE_RUNS

bench-smoke: image leaderboard  ## every part of the bench once, small
	@echo "$$SMOKE_RUNS" | xargs --max-procs=2 --max-lines=1 $(BIN)/python -m bench
	@$(BIN)/python -m bench report $(SMOKE)/*.json --into $(SMOKE)

# Fails if a row of the performance budget is worse than twice its bound, and stays so when it is measured again. Bounds that
# are times are longer on a machine that is slower than that of the budget (bench/perf_gate.py).
# Rows without a bound are left out, and those that take long or need an image of their own.
BUDGET := warm_run inside_call inside_write fan_out pool_hit cold_session start_up idle_memory first_line tool_list \
	checkpoint_small checkpoint_large rewind_session fork_session rerun_steps

bench-gate: image  ## whether the server has become much slower; alone on the machine
	@$(BIN)/python -m bench perf --quick $(BUDGET:%=--only %) --json $(SMOKE)/perf-gate.json

# docs/benchmarks.md and the figures of the README, from all results in bench/results.
bench-report: setup  ## docs/benchmarks.md, from all results
	@$(BIN)/python -m bench report

# Fifty clients for five minutes over HTTP: nothing else may work on the machine.
load: image upstreams  ## fifty clients for five minutes; alone on the machine
	@$(BIN)/python -m bench run load

bench-llm: image  ## long contexts, with the scripted model
	@$(BIN)/python -m bench run long-context

bench-skills: upstreams image  ## skills from recorded sessions
	@$(BIN)/python -m bench run skill-gate
	@$(BIN)/python -m bench run skill-gate --held-out
	@$(BIN)/python -m bench run retrieval
	@$(BIN)/python -m bench run second-task

clean:  ## remove all that was made
	rm -rf .venv .venvs site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
