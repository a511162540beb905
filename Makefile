# The two commands of the README, and what developers run.

CARGO ?= cargo
export PROCTOR_STACK ?= /tmp/proctor-stack

.PHONY: run demo test bench test-slow fuzz deb image lint promtool3-verdicts dashboards docs

## Builds Proctor and starts it with nothing configured: it looks at the host and watches what it finds.
run:
	$(CARGO) build --release --locked
	target/release/proctor serve

## Breaks one thing after the other of a real site and shows what Proctor says and does: five minutes; Ctrl-C ends it.
demo:
	tests/stack/stack demo-install
	$(CARGO) build --release --locked
	deploy/demo

## Installs what the tests need, starts it, runs everything a change needs, and stops it.
test:
	tests/stack/stack install
	@set -e; trap 'tests/stack/stack stop' EXIT; tests/stack/stack start; \
	REQUIRE_SERVICES=1 $(CARGO) test --locked

## Measures Proctor beside nginx, blackbox_exporter, Monit and Celery itself, and fails where it misses what is wanted (docs/performance.md).
bench:
	tests/stack/stack bench-install
	$(CARGO) build --release --locked
	benches/peers.py $(PARTS)

## Makes the Debian package, target/debian/proctor_VERSION_ARCHITECTURE.deb; cargo-deb is built once, in target/tools.
deb:
	test -x target/tools/bin/cargo-deb || $(CARGO) install -q --locked cargo-deb --root target/tools
	$(CARGO) build --release --locked
	rm -rf target/debian/*.deb target/shell && mkdir -p target/shell/man
	target/release/proctor render man target/shell/man
	target/release/proctor render completions bash >target/shell/proctor.bash
	target/release/proctor render completions zsh >target/shell/_proctor
	target/release/proctor render completions fish >target/shell/proctor.fish
	PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) deb --no-build

BASE ?= debian:12-slim
IMAGE ?= proctor
BUILT ?= target/release
## Makes the docker image IMAGE of the binary in BUILT, on BASE.
image:
	$(CARGO) build --release --locked
	tar -c -C $(BUILT) proctor -C $(CURDIR)/deploy Dockerfile | docker build --build-arg BASE=$(BASE) -t $(IMAGE) -

CASES ?= 20000
## What is too slow for every change: hostile input for every parser of ours, in many cases (CASES) and by fuzzing
## (FUZZ_SECONDS for each), a soak (SOAK_MINUTES, default 5), and an ordinary hour of a site that may give no mail (ten minutes).
test-slow:
	tests/stack/stack install
	tests/stack/stack slow-install
	PROPTEST_CASES=$(CASES) REQUIRE_SERVICES=1 $(CARGO) test --locked --lib
	$(CARGO) test --locked --lib -- --ignored --nocapture
	PROPTEST_CASES=$(CASES) $(CARGO) test --locked --test it -- hostile_text promql::no_ mail::whatever_the_texts probes_broker::no_
	fuzz/run
	$(MAKE) deb
	@set -e; trap 'tests/stack/stack stop' EXIT; tests/stack/stack start; \
	REQUIRE_SERVICES=1 $(CARGO) test --locked --test it -- --ignored --nocapture

## Runs the fuzz targets TARGETS, without them all, each for FUZZ_SECONDS (30) from where it stopped the last time.
fuzz:
	fuzz/run $(TARGETS)

## Writes the JSON of the dashboards from dashboards/dashboards.yml.
dashboards:
	UPDATE_DASHBOARDS=1 $(CARGO) test --locked --test it -- dashboards::the_json

## Writes what is written from sources: docs/alerts.md from the rules, docs/configuration.md from the structs, a table of docs/dashboards.md.
docs:
	UPDATE_DOCS=1 $(CARGO) test --locked --test it -- rules::page docs::the_reference dashboards::public

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

## Asks promtool of Prometheus 3 about every PromQL case and writes its verdicts down, and about every test of rules (about 5 minutes the first time).
promtool3-verdicts:
	mkdir -p target/promtool3 && cd target/promtool3 && { test -f go.mod || go mod init x; } && \
	  GOFLAGS=-p=1 go get -tool github.com/prometheus/prometheus/cmd/promtool@v0.314.0 && \
	  go build -o promtool3 github.com/prometheus/prometheus/cmd/promtool
	PROMTOOL3=$(CURDIR)/target/promtool3/promtool3 $(CARGO) test --test it -- promql::corpus::promtool_3 rules::unit
