# `make run` and `make test` each work as the first command on a machine that has python3 (3.11 or newer) and make.

PYTHON ?= python3
READY := .venv/.ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# A run or the tests start dozens of Python processes that import the same: none of them is to compile it once more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run test lock

setup: $(READY)

run: $(READY)
	r1flow run

# Tests compute on tiny tensors: one thread each and a test process per core is several times faster than the reverse.
# They also wait, for servers and for what they have killed: so there are twice as many processes as cores. The
# order is that of tests/conftest.py: slow files first.
test: $(READY)
	OMP_NUM_THREADS=1 pytest --numprocesses $$(python -c 'import os; print(os.cpu_count() * 2)') --dist loadfile --no-loadscope-reorder

# The stamp is written last: an interrupted set-up is done again, a finished one costs nothing. A new pip resolves in a
# third of the time that the one beside Python 3.11 takes. Byte code is written for what is imported: see flows/prepare.py.
$(READY): pyproject.toml requirements.lock
	@echo "Setting up .venv: a few minutes the first time, and about 5 GB on a machine with CUDA"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "r1flow needs Python 3.11 or newer, not " + sys.version)'
	@$(PYTHON) -m venv --upgrade-deps .venv
	@DS_BUILD_OPS=0 .venv/bin/pip install --quiet --no-compile --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@.venv/bin/python -m flows.prepare
	@touch $(READY)

# The versions in .venv, which the tests have passed with, become the constraints of every later set-up.
lock: $(READY)
	.venv/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock
