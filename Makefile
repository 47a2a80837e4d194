# make demo          see it work, in half a minute
# make test          everything that has to pass
# make test-matrix   the end-to-end tests on etcd 3.5 as well
# make faults        the same faults on dlock and its peers, as one table (seven minutes)
# make bench         what dlock costs beside its peers and beside a bare client, as tables and as JSON (ten minutes)
# make soak SECONDS= random faults for that long, with a seed that is printed and replays by SEED=
# make mutants       the tests themselves: each promise is broken once, and a test must notice
# make install [PREFIX=/usr/local] [DESTDIR=]

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# The end-to-end tests wait more than they work.
export RUST_TEST_THREADS ?= 4
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help build demo test test-matrix mutants faults bench soak install tools-build tools-demo tools-test tools-bench \
    tools-mutants

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

build: tools-build
	$(CARGO) build --release --locked

demo: tools-demo
	$(CARGO) build --release --locked
	tests/demo.sh target/release/dlock

# Debug builds: the checks for overflow and the like stay in.
test: tools-test
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --no-run
# The guard is promised to run within half a second: not while the disk still writes down what was built.
	sync
	$(CARGO) test --locked

# Beside the installed one, not over it.
ETCD35 := $(CURDIR)/target/etcd-3.5
test-matrix: tools-test
	tests/etcd35.sh $(ETCD35)
	sync
	DLOCK_TEST_ETCD=$(ETCD35)/usr/bin/etcd DLOCK_TEST_ETCDCTL=$(ETCD35)/usr/bin/etcdctl \
	    $(CARGO) test --locked --test integration

# At random, and so the more the longer.
SECONDS ?= 600
soak: tools-test
	DLOCK_TEST_SOAK=$(SECONDS) $(if $(SEED),DLOCK_TEST_SEED=$(SEED)) \
	    $(CARGO) test --locked --test integration chaos -- --nocapture

faults: tools-test
	$(CARGO) bench --locked --bench faults -- --json target/faults.json

bench: tools-bench
	$(CARGO) bench --locked --bench speed -- --json target/speed.json

mutants: tools-mutants
	CARGO=$(CARGO) tests/mutants.sh

install: build
	install -Dm755 target/release/dlock "$(DESTDIR)$(PREFIX)/bin/dlock"
	for page in man/*.1; do \
	    install -Dm644 "$$page" "$(DESTDIR)$(PREFIX)/share/man/man1/$${page##*/}" || exit 1; \
	done
	install -Dm644 completions/dlock.bash "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dlock"
	install -Dm644 completions/_dlock "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dlock"
	install -Dm644 completions/dlock.fish "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dlock.fish"

# What is missing comes from Debian; where nothing is missing, nothing is asked of anybody.
# $(call need,program=package /a/file=package ...)
define need
	@missing=; \
	for pair in $(1); do \
	    case $$pair in \
	    /*) test -e "$${pair%%=*}" ;; \
	    *) command -v "$${pair%%=*}" >/dev/null ;; \
	    esac || missing="$$missing $${pair##*=}"; \
	done; \
	if [ -n "$$missing" ]; then \
	    $(SUDO) apt-get update && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
endef

# Debian's compiler only recommends the package that has what protocol files import.
PROTOC := protoc=protobuf-compiler /usr/include/google/protobuf/descriptor.proto=libprotobuf-dev
ETCD := etcd=etcd-server etcdctl=etcd-client

tools-build:
	$(call need,$(PROTOC))

tools-demo:
	$(call need,$(PROTOC) $(ETCD))

tools-test:
	$(call need,$(PROTOC) $(ETCD) faketime=faketime openssl=openssl setsid=util-linux unshare=util-linux script=bsdutils \
	    strace=strace)

tools-bench: tools-test
	$(call need,hyperfine=hyperfine flock=util-linux)

tools-mutants: tools-test
	$(call need,patch=patch timeout=coreutils)
