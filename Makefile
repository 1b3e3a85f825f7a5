# make demo       see hostprep at work
# make test       the tests, those on a real engine included: some minutes
# make test-all   also on engines of other releases, and where SELinux enforces: half an hour
# Each sets up what it needs: a virtual environment in .venv and, as root, Debian's packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST = $(BIN)/python -m pytest
SIDE_BY_SIDE = $(PYTEST) -n auto

# COMMAND=PACKAGE of Debian's; a command that is there is left alone. Newer releases have the client apart.
ENGINE := dockerd=docker.io docker=docker-cli busybox=busybox-static
TOOLS := $(ENGINE) rootlesskit=rootlesskit slirp4netns=slirp4netns newuidmap=uidmap \
	systemd-analyze=systemd docker-compose=docker-compose docker-registry=docker-registry \
	zsh=zsh fish=fish bash-completion man=man-db mandoc=mandoc \
	mmdebstrap=mmdebstrap ip=iproute2 setfacl=acl mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs

# Where the engine cannot be had, its tests say so and are skipped; with CI=true that is an error.
PACKAGES = if [ "$$(id -u)" = 0 ] || [ -n "$(CI)" ]; then testbed/packages $(TOOLS); fi

GUEST_PACKAGES = if [ "$$(id -u)" = 0 ] || [ -n "$(CI)" ]; then \
	testbed/packages $(ENGINE) qemu-system-x86_64=qemu-system-x86 mmdebstrap=mmdebstrap mke2fs=e2fsprogs; fi

.PHONY: help check lock audit install uninstall install-user uninstall-user plugin plugin-push test test-all test-thorough test-unit test-engine test-newest
.PHONY: test-engines test-selinux crash soak bench bench-tree demo screens clean

help:
	@sed -n 's/^# //p' Makefile | head -4
	@echo
	@echo "to use hostprep:  make install uninstall install-user uninstall-user plugin plugin-push"
	@echo "parts of test:    make test-unit test-engine"
	@echo "of test-all:      make test-thorough test-newest test-selinux"
	@echo "longer:           make test-engines crash soak"
	@echo "to work on it:    make check lock audit bench bench-tree screens clean"

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
	PATH="$(BIN):$$PATH" shellcheck completions/hostprep.bash $$(git grep --untracked -lIE '^#!.*[/ ](ba)?sh$$')

test: $(STAMP)
	@$(PACKAGES)
	$(SIDE_BY_SIDE)

# The guest has one processor, and tests of engines mostly wait: each is shown when it has ended.
test-all:
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-thorough
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-newest test-selinux

# More of the kinds that `make test` tries: it says how many it leaves out ("deselected").
test-thorough: $(STAMP)
	@$(PACKAGES)
	$(SIDE_BY_SIDE) -m thorough

# In a guest whose kernel enforces SELinux, under QEMU. 77: this machine cannot run it, and has said why.
test-selinux:
	@$(GUEST_PACKAGES)
	@tests/vm/run || { status=$$?; [ $$status = 77 ] && [ -z "$(CI)" ] && echo "SKIPPED: tests/enforcing (see above)" || exit $$status; }

test-unit: $(STAMP)
	$(SIDE_BY_SIDE) tests/unit tests/campaigns tests/project

test-engine: $(STAMP)
	@$(PACKAGES)
	$(SIDE_BY_SIDE) tests/engine tests/managed

# Each verb, killed, without power or with a broken disk, at each step: a quarter of an hour. `make test` tries some.
crash: $(STAMP)
	testbed/packages mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
	HOSTPREP_TEST_CRASH=full $(SIDE_BY_SIDE) -m '' tests/campaigns/test_crash.py tests/campaigns/test_power_loss.py tests/campaigns/test_faults.py

# The engines of other releases of Debian, each in a tree that is built once. The oldest may be this machine's own.
CORE := $(addprefix tests/engine/,test_lifecycle.py test_copy_up.py test_sharing.py test_homes.py test_crashes.py \
	test_telling.py test_recreating.py podman rootless)
SUBPATHS = $$(test $$release = bookworm || echo tests/engine/test_subpaths.py)
OLDEST = $$(dockerd --version 2>/dev/null | grep -q ' 20[.]10[.]' || echo bookworm)
OTHERS = if [ "$$(id -u)" = 0 ] || [ -n "$(CI)" ]; then testbed/packages $(filter-out dockerd=% docker=%,$(TOOLS)); fi

test-newest: $(STAMP)
	@$(OTHERS)
	set -e; for release in $(OLDEST) forky; do HOSTPREP_TEST_ENGINE=$$release $(SIDE_BY_SIDE) -m '' $(CORE) $(SUBPATHS); done

test-engines: $(STAMP)
	@$(OTHERS)
	set -e; for release in bookworm trixie forky; do HOSTPREP_TEST_ENGINE=$$release $(SIDE_BY_SIDE) -m '' tests/engine tests/managed/test_lifecycle.py; done

# Under systemd; again to upgrade. systemd/setup lists the variables (PREFIX, DESTDIR, SYSTEM_PACKAGES ...).
install uninstall:
	@systemd/setup $@

# For the rootless engines of the user who runs it.
install-user uninstall-user:
	@systemd/setup $(@:-user=) --user

# Docker's managed plugin, on the engine that `docker` reaches. managed/build lists the variables (PLUGIN_NAME ...).
plugin:
	@managed/build create

plugin-push:
	@managed/build push

# What make install takes besides hostprep itself: versions, and the hash of every file that the registry has of each.
lock: $(STAMP)
	$(BIN)/pip install --quiet 'pip-tools>=7.4'
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --output-file requirements.txt pyproject.toml

# Known vulnerabilities of these, as the package registry tells them. One that it does not know is an error.
audit: $(STAMP)
	$(BIN)/pip install --quiet 'pip-audit>=2.7'
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

# What make test does for some seconds each, for longer: an engine under load, histories against the model.
SOAK_SECONDS ?= 600
soak: $(STAMP)
	@$(PACKAGES)
	SOAK_SECONDS=$(SOAK_SECONDS) $(PYTEST) -s tests/engine/test_soak.py
	HISTORIES_SECONDS=$$(($(SOAK_SECONDS) / 4)) $(PYTEST) tests/campaigns/test_histories.py

bench: $(STAMP)
	testbed/packages $(ENGINE)
	$(BIN)/python -m bench

# Three quarters of an hour, most of it at a million files; every part has a fixed number of rounds.
bench-tree: $(STAMP)
	testbed/packages strace=strace mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
	$(BIN)/python -m bench disks tree 100000 1000000

demo: $(STAMP)
	testbed/packages $(ENGINE)
	@$(BIN)/python -m demo

# The pictures of README.md and docs/: real runs on a private engine.
screens: $(STAMP)
	testbed/packages $(ENGINE)
	$(BIN)/python -m demo.screens

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
