# The two commands of the README, and what developers run.

CARGO ?= cargo
export PROCTOR_STACK ?= /tmp/proctor-stack

.PHONY: run test test-slow bench lint promtool3-verdicts

## Builds Proctor and starts it with nothing configured: it looks at the host and watches what it finds.
run:
	$(CARGO) build --release --locked
	target/release/proctor serve

## Installs what the tests need, starts it, runs everything a change needs, and stops it.
test:
	tests/stack/stack install
	@set -e; trap 'tests/stack/stack stop' EXIT; tests/stack/stack start; \
	REQUIRE_SERVICES=1 $(CARGO) test --locked

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
