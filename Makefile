# make demo | test | test-peers | coverage | bench | bench-quick | lint | dist | clean        (CONTRIBUTING.md says more)
#
# Everything runs against the wheel, built from this tree and installed in a virtual environment.
# Environments are made when they are missing, the wheel when a source has changed.

PYTHON ?= python3
VENV ?= .venv
VENV_PEERS ?= $(VENV)-peers
VENV_BENCH ?= $(VENV)-bench
DIST ?= dist
PIP = bin/python -m pip --disable-pip-version-check
PYTEST = env -u PYTHONPATH CNN_TEST_WHEEL=1 # the tests assert that they import the wheel

SOURCES := pyproject.toml setup.py MANIFEST.in README.md LICENSE $(shell find src -type f \
    ! -name '*.so' ! -name '*.pyc' ! -path '*.egg-info/*')

.PHONY: demo test test-peers coverage bench bench-quick lint dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(VENV)/bin/python examples/digits.py

test: $(VENV)/test.stamp
	$(PYTEST) $(VENV)/bin/python -m pytest tests

test-peers: $(VENV_PEERS)/peers.stamp
	$(PYTEST) $(VENV_PEERS)/bin/python -m pytest tests/peers

coverage: $(VENV)/test,coverage.stamp
	env -u PYTHONPATH $(VENV)/bin/python tools/coverage_report.py

bench: $(VENV_BENCH)/bench.stamp
	env -u PYTHONPATH $(VENV_BENCH)/bin/python bench/report.py --wheel $(VENV)/wheel/cnn-*.whl

bench-quick: $(VENV_BENCH)/bench.stamp
	env -u PYTHONPATH $(VENV_BENCH)/bin/python bench/report.py --quick

lint: $(VENV)/test,lint.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(abspath $(VENV)/bin):$$PATH" cython-lint src/cnn
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m mypy.stubtest cnn --ignore-missing-stub --mypy-config-file pyproject.toml

# The sdist, and the wheel built from that sdist.
dist: | $(VENV)/bin/pip
	$(VENV)/$(PIP) install --quiet build
	$(VENV)/bin/python -m build --outdir $(DIST) .

clean:
	rm -rf build dist src/cnn.egg-info src/cnn/*.so .venv .venv-peers .venv-bench
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .benchmarks .pytest_cache .hypothesis .mypy_cache .ruff_cache

%/bin/pip:
	@echo "$(PYTHON) -m venv $*"
	@$(PYTHON) -m venv $* || { echo "$(PYTHON) -m venv failed. On Debian and Ubuntu:" \
	  "apt-get install python3-venv python3-dev gcc; or: make PYTHON=another-python" >&2; exit 1; }

# Of earlier builds only compiled modules are kept, and those that are older than their sources are rebuilt.
$(VENV)/wheel.stamp: $(SOURCES) | $(VENV)/bin/pip
	rm -rf $(VENV)/wheel
	find build -type f -path 'build/lib*' ! -name '*.so' -delete 2>/dev/null || true
	$(VENV)/$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	touch $@

# ENVIRONMENT/EXTRAS.stamp: the wheel is installed there with these extras.
define install
$(1)/%.stamp: $(VENV)/wheel.stamp | $(1)/bin/pip
	$(1)/$(PIP) install --quiet "$$$$(echo $(VENV)/wheel/cnn-*.whl)[$$*]"
	$(1)/$(PIP) install --quiet --force-reinstall --no-deps $(VENV)/wheel/cnn-*.whl
	touch $$@
endef
$(eval $(call install,$(VENV)))
$(eval $(call install,$(VENV_PEERS)))
$(eval $(call install,$(VENV_BENCH)))
.PRECIOUS: %/bin/pip %.stamp
