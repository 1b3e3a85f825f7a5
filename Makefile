# make demo: see hostprep at work.    make test: all tests, the real engine's included.
# Both set up what they need: a virtual environment in .venv and, as root, Debian's packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST = $(BIN)/python -m pytest

# COMMAND=PACKAGE of Debian's; a command that is there is left alone. Newer releases have the client apart.
ENGINE := dockerd=docker.io docker=docker-cli busybox=busybox-static
TOOLS := $(ENGINE) systemd-analyze=systemd docker-compose=docker-compose docker-registry=docker-registry \
	mmdebstrap=mmdebstrap

# Where the engine cannot be had, its tests say so and are skipped; with CI=true that is an error.
PACKAGES = if [ "$$(id -u)" = 0 ] || [ -n "$(CI)" ]; then demo/packages $(TOOLS); fi

GUEST_PACKAGES = if [ "$$(id -u)" = 0 ] || [ -n "$(CI)" ]; then \
	demo/packages $(ENGINE) qemu-system-x86_64=qemu-system-x86 mmdebstrap=mmdebstrap mke2fs=e2fsprogs; fi

.PHONY: help check install uninstall test test-selinux test-unit test-engine bench bench-tree demo clean plugin plugin-push

help:
	@sed -n 's/^# //p' Makefile | head -2
	@echo "also: make install uninstall plugin plugin-push check test-unit test-engine test-selinux bench bench-tree clean"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hostprep needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 ...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell
	PATH="$(BIN):$$PATH" shellcheck $$(git grep --untracked -lIE '^#!.*[/ ](ba)?sh$$')

test: $(STAMP)
	$(PACKAGES)
	$(PYTEST)
	@$(MAKE) --no-print-directory test-selinux

# In a guest whose kernel enforces SELinux, under QEMU. 77: this machine cannot run it, and has said why.
test-selinux:
	$(GUEST_PACKAGES)
	@tests/vm/run || { status=$$?; [ $$status = 77 ] && [ -z "$(CI)" ] && echo "SKIPPED: tests/enforcing (see above)" || exit $$status; }

test-unit: $(STAMP)
	$(PYTEST) tests/unit

test-engine: $(STAMP)
	$(PACKAGES)
	$(PYTEST) tests/engine tests/managed

# Under systemd; again to upgrade. systemd/setup lists the variables (PREFIX, DESTDIR, SYSTEM_PACKAGES ...).
install uninstall:
	@systemd/setup $@

# Docker's managed plugin, on the engine that `docker` reaches. managed/build lists the variables (PLUGIN_NAME ...).
plugin:
	@managed/build create

plugin-push:
	@managed/build push

bench: $(STAMP)
	demo/packages $(ENGINE)
	$(BIN)/python -m bench

# Half an hour, most of it at a million files.
bench-tree: $(STAMP)
	demo/packages strace=strace
	$(BIN)/python -m bench tree 100000 1000000

demo: $(STAMP)
	demo/packages $(ENGINE)
	@$(BIN)/python -m demo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
