# make demo          see it work, in half a minute
# make test          everything that has to pass
# make test-matrix   the end-to-end tests on etcd 3.5 as well
# make faults        the same faults on dlock and its peers, as one table (seven minutes; ten with consul)
# make bench         what dlock costs beside its peers and beside a bare client, as tables and as JSON (ten minutes)
# make soak SECONDS= random faults for that long, with a seed that is printed and replays by SEED=
# make pictures      records the animated terminals of the README anew, from a real run
# make mutants       the tests themselves: each promise is broken once, and a test must notice
# make install [PREFIX=/usr/local] [DESTDIR=]     program, manual pages, completions; make uninstall takes them away
# make html          the manual pages as HTML in target/html, with an index
# make deb           a Debian package in target/debian
# make deb-test      installs all of that into scratch directories, uses it, and removes it without a trace

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# The end-to-end tests wait more than they work.
export RUST_TEST_THREADS ?= 4
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help build demo test test-matrix mutants faults bench pictures soak install uninstall html deb deb-test \
    tools-build tools-demo tools-test tools-bench tools-pictures tools-mutants tools-deb tools-deb-test

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

# At random, and so the more the longer. Several may run side by side. With GO_ON=1 a failure is no end; there may be others.
SECONDS ?= 600
soak: tools-test
	DLOCK_TEST_SOAK=$(SECONDS) $(if $(SEED),DLOCK_TEST_SEED=$(SEED)) $(if $(GO_ON),DLOCK_TEST_GO_ON=$(GO_ON)) \
	    $(CARGO) test --locked --test integration chaos -- --nocapture

faults: tools-test
	$(CARGO) bench --locked --bench faults -- --json target/faults.json

bench: tools-bench
	$(CARGO) bench --locked --bench speed -- --json target/speed.json

pictures: build tools-pictures
	pictures/record.py target/release/dlock pictures/run.svg

mutants: tools-mutants
	CARGO=$(CARGO) tests/mutants.sh

# Where each file goes: MODE SOURCE TARGET, below PREFIX.
MANUALS := $(foreach page,$(wildcard man/*.[1-8]),644 $(page) share/man/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))
FILES := 755 target/release/dlock bin/dlock $(MANUALS) \
    644 completions/dlock.bash share/bash-completion/completions/dlock \
    644 completions/_dlock share/zsh/site-functions/_dlock \
    644 completions/dlock.fish share/fish/vendor_completions.d/dlock.fish

install: build
	@set -- $(FILES); while [ $$# -gt 0 ]; do \
	    echo "$(DESTDIR)$(PREFIX)/$$3"; \
	    install -D -m "$$1" "$$2" "$(DESTDIR)$(PREFIX)/$$3" || exit 1; shift 3; \
	done

uninstall:
	@set -- $(FILES); while [ $$# -gt 0 ]; do \
	    rm -f "$(DESTDIR)$(PREFIX)/$$3" || exit 1; shift 3; \
	done

html: tools-html
	docs/html.sh target/html
	@echo target/html/index.html

# Debian's form of a changelog, with the day of the last commit: the same source makes the same package.
CARGO_DEB := $(CURDIR)/target/tools/bin/cargo-deb
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
deb: build tools-deb
	@mkdir -p target/deb
	@printf 'dlock (%s-1) unstable; urgency=medium\n\n  * New version; what is new stands in NEWS.md.\n\n -- %s  %s\n' \
	    "$(VERSION)" "$$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)" \
	    "$$(git log -1 --format=%aD 2>/dev/null || date -R)" >target/deb/changelog
	PATH="$(dir $(CARGO_DEB)):$$PATH" $(CARGO) deb --no-build --locked

deb-test: deb tools-deb-test
	CARGO=$(CARGO) tests/install.sh target/debian/dlock_$(VERSION)-1_$$(dpkg --print-architecture).deb

# What is missing comes from Debian; where nothing is missing, nothing is asked of anybody.
# $(call need,program=package /a/file=package /a/*/file=package ...)
define need
	@missing=; \
	for pair in $(1); do \
	    case $$pair in \
	    /*) ls -d $${pair%%=*} >/dev/null 2>&1 ;; \
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
# What fencing is tested on. The tests start servers of their own, beside those that the packages may have started.
STORES := /usr/lib/postgresql/*/bin/initdb=postgresql setpriv=util-linux redis-server=redis-server redis-cli=redis-tools

tools-build:
	$(call need,$(PROTOC))

tools-demo:
	$(call need,$(PROTOC) $(ETCD))

tools-test:
	$(call need,$(PROTOC) $(ETCD) faketime=faketime openssl=openssl setsid=util-linux unshare=util-linux script=bsdutils \
	    strace=strace mandoc=mandoc crontab=cron systemd-analyze=systemd jq=jq zsh=zsh fish=fish \
	    /usr/bin/python3=python3 /usr/lib/python3/dist-packages/yaml=python3-yaml $(STORES))
	@[ -x $(ETCD35)/usr/bin/etcdutl ] || tests/etcd35.sh $(ETCD35)

tools-html:
	$(call need,mandoc=mandoc)

tools-deb:
	$(call need,dpkg-shlibdeps=dpkg-dev)
	@[ -x $(CARGO_DEB) ] || $(CARGO) install --locked --root $(CURDIR)/target/tools cargo-deb@^3

tools-deb-test:
	$(call need,$(ETCD) lintian=lintian dpkg=dpkg)

tools-bench: tools-test
	$(call need,hyperfine=hyperfine flock=util-linux)

tools-pictures:
	$(call need,$(ETCD) unshare=util-linux mount=mount hostname=hostname /usr/bin/python3=python3 \
	    /usr/lib/python3/dist-packages/pyte=python3-pyte)

tools-mutants: tools-test
	$(call need,patch=patch timeout=coreutils)
