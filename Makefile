# The two commands that matter: `make demo` and `make test`. Each installs what it needs (root or sudo).
CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=
# A figure that fails shall fail `make bench`, whatever comes behind it in a pipe.
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c
BINARY = $(or $(CARGO_TARGET_DIR),target)/release/tailwater
VERIFIER = $(BINARY)-verify

.PHONY: demo test test-localstripe test-matrix lint bench bench-convergence soak fuzz install release dependencies

demo: dependencies release
	$(BINARY) demo $(DEMO)

test: dependencies
	$(CARGO) test --locked -- --test-threads=2

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-deny
	$(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources
	@# The database of known vulnerabilities is a repository of its own; where it cannot be had, that is said.
	@if timeout 30 git ls-remote -q https://github.com/RustSec/advisory-db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check advisories; \
	else echo "lint: the advisory database cannot be reached; known vulnerabilities were not looked for"; fi

# One line per figure: name value unit bar OP NUMBER ok|short. How loads converge has a command of its own, below.
bench: dependencies release
	TAILWATER_BENCH=1 $(CARGO) test --locked --release --test tests -- --nocapture --test-threads=1 bench --skip convergence | grep -E '^(bench|#)'

# Four loads under the quotas of Stripe and Zendesk: calls, time, and both against the best and against one call for each row.
bench-convergence: dependencies release
	TAILWATER_BENCH=1 TAILWATER_CONVERGENCE=1 $(CARGO) test --locked --release --test tests -- --nocapture --test-threads=1 \
		convergence | grep -E '^(bench|#)'

# The campaigns of the tests, longer: 200 kills of the daemon with Stripe and Zendesk and 1,000 with vendors of all four kinds, at which
# 10,000 answers are swallowed, 20 processes put to sleep, a target down for a minute, 50 restarts and killed walsenders, and one
# transaction of ten million rows (takes 60 GB of disk below TMPDIR, and most of an hour). Then 500 changes on three sides with 25 kills,
# 100,000 records of a feed that reorders, delays by a minute and doubles, and 100,000 objects to reconcile. Last, 10,000 tamperings of a
# ledger of 100,000 entries, and 100 kills after each of which the ledger has to be sound. Vendors give 100,000 answers at random.
soak: dependencies
	TAILWATER_KILLS=200 TAILWATER_DOWN_SECONDS=60 TAILWATER_TIMES=50 \
		$(CARGO) test --locked -- --nocapture --test-threads=1 crash:: faults:: loads:: source::
	TAILWATER_KILLS=1000 TAILWATER_SWALLOWED=10000 TAILWATER_SLEEPS=20 \
		$(CARGO) test --locked -- --nocapture --test-threads=1 kinds:: processes::
	TAILWATER_LARGE_ROWS=10000000 $(CARGO) test --locked --release --test tests -- --nocapture large_transaction
	TAILWATER_CHANGES=500 TAILWATER_RECORDS=100000 TAILWATER_LATE_SECONDS=60 TAILWATER_OBJECTS=100000 \
		$(CARGO) test --locked --release --test tests -- --nocapture --test-threads=1 echo:: poll_gaps:: reconcile::
	TAILWATER_ENTRIES=100000 TAILWATER_TAMPERINGS=10000 TAILWATER_CLEAN_RUNS=100 TAILWATER_BENCH=1 \
		$(CARGO) test --locked --release --test tests -- --nocapture --test-threads=1 tampering:: checkpoints:: proofs::
	TAILWATER_FUZZED_ANSWERS=100000 $(CARGO) test --locked --release --test tests -- --nocapture vendors_that_answer_at_random

# What is written at Stripe, against a Stripe that others wrote (from PyPI, into a directory of its own below the build's).
LOCALSTRIPE = $(or $(CARGO_TARGET_DIR),target)/localstripe
test-localstripe: dependencies
	python3 -m venv $(LOCALSTRIPE)
	$(LOCALSTRIPE)/bin/pip install --quiet localstripe==1.15
	TAILWATER_LOCALSTRIPE=$(abspath $(LOCALSTRIPE))/bin/python $(CARGO) test --locked -- localstripe

# What depends on the ERP's PostgreSQL, against versions 14 to 18. Needs npm, which brings the binaries.
test-matrix: dependencies
	tests/matrix.sh

# Coverage-guided, for FUZZ_SECONDS each. Needs cargo-fuzz and a nightly compiler, or RUSTC_BOOTSTRAP=1.
FUZZ_SECONDS ?= 600
fuzz:
	for target in frames pgoutput values pages answers mapping commands; do \
		$(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

release:
	$(CARGO) build --release --locked

dependencies:
	./dependencies.sh

install: release
	install -D -m 0755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/tailwater
	install -D -m 0755 $(VERIFIER) $(DESTDIR)$(PREFIX)/bin/tailwater-verify
	install -D -m 0644 docs/verify.py $(DESTDIR)$(PREFIX)/share/doc/tailwater/verify.py
	install -D -m 0644 docs/ledger.md $(DESTDIR)$(PREFIX)/share/doc/tailwater/ledger.md
	cd mappings && find . -type f -exec install -D -m 0644 {} $(DESTDIR)$(PREFIX)/share/tailwater/mappings/{} \;
	install -D -m 0644 systemd/tailwater.service $(DESTDIR)/lib/systemd/system/tailwater.service
	install -D -m 0644 systemd/tailwater.sysusers $(DESTDIR)/usr/lib/sysusers.d/tailwater.conf
	install -d -m 0750 $(DESTDIR)/etc/tailwater $(DESTDIR)/etc/tailwater/secrets
	test -e $(DESTDIR)/etc/tailwater/tailwater.toml || \
		install -m 0640 tailwater.example.toml $(DESTDIR)/etc/tailwater/tailwater.toml
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(BINARY) man > $(DESTDIR)$(PREFIX)/share/man/man1/tailwater.1
