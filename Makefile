# netd: what can be done here. As root, or as a user with sudo, on Debian 12 or later; less is possible elsewhere.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -rs
AS_INSTALLED := tests/machine/as-installed
SECONDS ?= 60
GB ?= 10
LOSS ?= 0 1 5
MTU ?= 1500
PREFIX ?= $(HOME)/.local
UNITS = $(or $(XDG_CONFIG_HOME),$(HOME)/.config)/systemd/user
# What needs Podman, a service manager, or time.
SLOW := tests/guest tests/podman tests/systemd tests/fuzz

.PHONY: help demo test check lint unit guest podman genuine fuzz bench soak profile compiled venv packages install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: packages venv ## a rootless container on netd, shown step by step, from nothing
	@tests/machine/rootless -s -p $(PYTHON) tests/demo/demo

test: packages lint ## everything that this machine can test; names what it skipped, and why
	@tests/machine/test

check: lint unit ## the fast part: style, types, who imports whom, unit tests

lint: venv ## style, types, who imports whom
	$(PYTHON) -m ruff check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

unit: venv ## the tests that need neither Podman nor a service manager
	$(PYTEST) -q $(SLOW:%=--ignore=%)

guest: packages compiled ## the real kernel as guest, in namespaces of its own: no root, no Podman
	$(AS_INSTALLED) -m pytest -rs tests/guest

podman: packages compiled ## rootless Podman end to end
	$(AS_INSTALLED) -m pytest -rs tests/podman

genuine: packages compiled ## the same with the packaged slirp4netns: checks the tests, not netd
	NETD_PODMAN_CMD=genuine $(AS_INSTALLED) -m pytest -rs tests/podman

fuzz: compiled ## random and mutated input for SECONDS (60) each
	FUZZ_SECONDS=$(SECONDS) $(AS_INSTALLED) -m pytest -rs --timeout=0 tests/fuzz

bench: packages compiled ## netd beside slirp4netns and pasta: bench/RESULTS.md (QUICK=1: the short one)
	$(PYTHON) bench/run.py

soak: packages compiled ## GB (10) gigabytes each way, md5 at both ends, with LOSS ("0 1 5") percent of the frames lost
	GB="$(GB)" LOSS="$(LOSS)" MTU="$(MTU)" $(PYTHON) bench/soak.py

profile: packages compiled ## where netd's CPU time goes under load
	$(PYTHON) bench/profile.py

compiled: venv ## build/compiled: netd as an installation has it, its packet path as machine code
	@tests/machine/compiled

venv: ## .venv, with netd and what its tests need
	@tests/machine/venv

packages: ## the Debian packages that tests, demo and bench need
	@tests/machine/install

install: ## for yourself, under PREFIX (~/.local): the daemon, the shim, the units
	/usr/bin/python3 -m venv --clear "$(PREFIX)/lib/netd"
	NETD_COMPILE=$$(tests/machine/compiled --can /usr/bin/python3) PIP_CONSTRAINT=constraints.txt \
		"$(PREFIX)/lib/netd/bin/python" -m pip install --quiet --disable-pip-version-check .
	install -d "$(PREFIX)/bin" "$(PREFIX)/libexec/netd" "$(UNITS)"
	ln -sf ../lib/netd/bin/netd "$(PREFIX)/bin/netd"
	cp -R -P --remove-destination plugin/* "$(PREFIX)/libexec/netd/"
	/usr/bin/python3 -m compileall -q "$(PREFIX)/libexec/netd/shim"
	cp systemd/netd.socket "$(UNITS)/"
	sed 's|@NETD@|$(PREFIX)/bin/netd|' systemd/netd.service >"$(UNITS)/netd.service"
	-systemctl --user daemon-reload
	@echo "Next: systemctl --user enable --now netd.socket, and containers.conf.example."

uninstall: ## takes that away again
	-systemctl --user disable --now netd.socket netd.service
	rm -rf "$(PREFIX)/lib/netd" "$(PREFIX)/libexec/netd"
	rm -f "$(PREFIX)/bin/netd" "$(UNITS)/netd.socket" "$(UNITS)/netd.service"

clean: ## what was made here, .venv included
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info build
	find . -name __pycache__ -prune -exec rm -rf {} +
