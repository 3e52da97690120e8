# make run    makes .venv, installs the project into it and starts the server; images go to ./received
#             make run ARGS="--port 104 --ae-title ARCHIVE"     see: make run ARGS=--help
# make test   installs what the tests need (system packages too, as root), then lint, types and tests
# make test-oldest  tests with the oldest versions of what setup.cfg requires; TESTS="tests.test_pdu ..." are which
# make docs   builds the documents as pages, in build/html
# make bench  measures this server beside others; ARGS are its options
# make torture  kills the server, cuts its power, fills its disk, for as long as ARGS="--seconds 600" says
# make attack  stores beside a crowd of hostile connections, and says what it costs
# make fuzz   looks for bytes that break a decoder or a conversation, for as long as ARGS="--seconds 600" says
# make bench-plots  draws what make bench ARGS="--json docs/NAME.json" left in docs/, as SVG
# make reference  writes what in docs/ is made of the code: options.rst, metrics.rst, and the lists of conformance.rst
#             and the picture of architecture.rst
# make clean  removes what the above made, except the images received
#
# PYTHON=/path/to/python3 chooses the interpreter; otherwise the first of 3.11 or newer is taken.

# Tests wait for servers more than they compute; those with the oldest versions take what the others leave.
CORES := $(shell nproc 2>/dev/null || echo 2)
JOBS ?= $(shell echo $$((2 * $(CORES))))
# The tests of what uses those versions.
OLDEST := $(addprefix tests.test_,authentication config end_to_end logs operator_run protocol scp sop_classes store tls \
	worker)
PYTHON ?=
BIN := .venv/bin

# Servers start many hundred times in the tests: what Python compiles is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-oldest docs reference bench bench-plots torture attack fuzz clean

run: ARGS ?= --port 11112
run:
	@tools/prepare venv run $(PYTHON)
	$(BIN)/twistd -n --pidfile= storescp $(ARGS)

test:
	@tools/prepare tests $(PYTHON)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(wildcard storescp twisted/plugins tests bench fuzz tools)
	$(BIN)/python tools/run_trial.py $(BIN)/trial -j$(JOBS) tests -- .venv-oldest/bin/trial -j$(CORES) $(OLDEST)

test-oldest:
	@tools/prepare peers
	@tools/prepare venv oldest $(PYTHON)
	.venv-oldest/bin/python tools/run_trial.py .venv-oldest/bin/trial -j$(JOBS) $(or $(TESTS),$(OLDEST))

docs:
	@tools/prepare venv test $(PYTHON)
	$(BIN)/python -m sphinx -W -n -E -q docs $(or $(INTO),build/html)

reference:
	@tools/prepare venv test $(PYTHON)
	PYTHONPATH=. $(BIN)/python tools/options_reference.py > docs/options.rst
	$(BIN)/python tools/conformance.py
	PYTHONPATH=. $(BIN)/python tools/architecture.py
	PYTHONPATH=. $(BIN)/python tools/metrics_reference.py > docs/metrics.rst

bench:
	@tools/prepare peers bench
	@tools/prepare venv test $(PYTHON)
	$(BIN)/python -m bench $(ARGS)

torture:
	@tools/prepare peers
	@tools/prepare venv test $(PYTHON)
	$(BIN)/python -m tests.torture $(ARGS)

attack:
	@tools/prepare venv test $(PYTHON)
	$(BIN)/python -m tests.attack $(ARGS)

fuzz:
	@tools/prepare venv fuzz $(PYTHON)
	$(BIN)/python -m fuzz $(ARGS)

bench-plots:
	@tools/prepare venv plot $(PYTHON)
	.venv-plot/bin/python -m bench.plots $(or $(ARGS),$(sort $(wildcard docs/*.json)))

clean:
	rm -rf .venv .venv-plot .venv-oldest .node build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .fuzz _trial_temp*
	rm -f twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
