# make demo          see it work, in half a minute
# make test          everything that has to pass
# make test-matrix   the end-to-end tests on etcd 3.5 as well; DLOCK_TEST_BIN=FILE tests that dlock
# make faults        the same faults on dlock and its peers, as one table (seven minutes; ten with consul)
# make late          how late a lost command is dead on a machine that has too much to do, as root (five minutes)
# make bench         what dlock costs beside its peers and beside a bare client, as tables and as JSON (six minutes)
# make soak SECONDS= random faults for that long, with a seed that is printed and replays by SEED=
# make fuzz SECONDS= random bytes for all that others may have written: each target of fuzz/ for that long, else a minute
# make sbom          the list of all that is compiled into dlock, in CycloneDX's form, in target/dist
# make pictures      records the animated terminals of the README anew, from a real run
# make mutants       the tests themselves: each promise is broken once, and a test must notice
# make install [PREFIX=/usr/local] [DESTDIR=]     program, manual pages, completions; make uninstall takes them away
# make html          the manual pages as HTML in target/html, with an index
# make dist          static programs for every Linux on x86_64 and aarch64, packed with pages and completions in target/dist, and
#                    the list of make sbom
# make deb, make rpm Debian's and Red Hat's packages of the static programs, in target/debian and target/rpm
# make image         container images of the static programs, in target/image
# make dist-test     each of these as a user gets it: installed into scratch directories, used, removed without a trace
#                    ARCHES=x86_64 limits all of these to one architecture

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# The end-to-end tests wait more than they work.
export RUST_TEST_THREADS ?= 4
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help build demo test test-matrix mutants faults late bench pictures soak install lay uninstall html static dist deb rpm image dist-test \
    tools-build tools-demo tools-test tools-html tools-late tools-bench tools-pictures tools-mutants tools-static tools-deb tools-rpm tools-image tools-dist-test

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

build: tools-build
	$(CARGO) build --release --locked

demo: tools-demo
	$(CARGO) build --release --locked
	tests/demo.sh target/release/dlock

# The tests note here what the kernel refuses them, and so what is not tested; .ci/run fails of it.
export DLOCK_TEST_NOT_RUN := $(CURDIR)/target/not-run
define not_run
	@[ ! -e $(DLOCK_TEST_NOT_RUN) ] || sort -u $(DLOCK_TEST_NOT_RUN) | awk -F '\t' \
	    '{ tests[$$1] = tests[$$1] (count[$$1]++ ? ", " : "") $$2 } \
	    END { for (it in tests) printf "%d %s %s, not run: %s\n", count[it], count[it] == 1 ? "test needs" : "tests need", it, tests[it] }'
endef

# Debug builds: the checks for overflow and the like stay in.
test: tools-test
	@rm -f $(DLOCK_TEST_NOT_RUN)
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --no-run
# The guard is promised to run within half a second: not while the disk still writes down what was built.
	sync
	$(CARGO) test --locked
	$(not_run)

# Beside the installed one, not over it.
ETCD35 := $(CURDIR)/target/etcd-3.5
test-matrix: tools-test
	@rm -f $(DLOCK_TEST_NOT_RUN)
	tests/etcd35.sh $(ETCD35)
	sync
	DLOCK_TEST_ETCD=$(ETCD35)/usr/bin/etcd DLOCK_TEST_ETCDCTL=$(ETCD35)/usr/bin/etcdctl \
	    $(CARGO) test --locked --test integration
	$(not_run)

# At random, and so the more the longer. Several may run side by side. With GO_ON=1 a failure is no end; there may be others.
soak: SECONDS ?= 600
soak: tools-test
	DLOCK_TEST_SOAK=$(SECONDS) $(if $(SEED),DLOCK_TEST_SEED=$(SEED)) $(if $(GO_ON),DLOCK_TEST_GO_ON=$(GO_ON)) \
	    $(CARGO) test --locked --test integration chaos -- --nocapture

faults: tools-test
	$(CARGO) bench --locked --bench faults -- --json target/faults.json

# etcd's own files stand in memory: it must be quick until it is stopped.
late: tools-late
	TMPDIR=/dev/shm $(CARGO) bench --locked --bench late -- --json $(CURDIR)/target/late.json

bench: tools-bench
	$(CARGO) bench --locked --bench speed -- --json target/speed.json $(BENCH)

pictures: build tools-pictures
	pictures/record.py target/release/dlock pictures/run.svg

# Without a sanitizer, the stable compiler is enough. A finding is in fuzz/artifacts: it becomes a seed, and the tests run it.
CARGO_FUZZ := $(CURDIR)/target/tools/bin/cargo-fuzz
.PHONY: fuzz tools-fuzz
fuzz: SECONDS ?= 60
fuzz: tools-fuzz
	@for program in fuzz/fuzz_targets/*.rs; do \
	    target=$$(basename "$$program" .rs); corpus=target/fuzz/corpus/$$target; \
	    mkdir -p "$$corpus"; \
	    PATH="$(dir $(CARGO_FUZZ)):$$PATH" $(CARGO) fuzz run --sanitizer none --target-dir target/fuzz "$$target" \
	        "$$corpus" "fuzz/seeds/$$target" -- -max_total_time=$(SECONDS) -max_len=4096 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

mutants: tools-mutants
	CARGO=$(CARGO) tests/mutants.sh

# Where each file goes: MODE SOURCE TARGET, below PREFIX.
PROGRAM := target/release/dlock
MANUALS := $(foreach page,$(wildcard man/*.[1-8]),644 $(page) share/man/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))
FILES := 755 $(PROGRAM) bin/dlock $(MANUALS) \
    644 completions/dlock.bash share/bash-completion/completions/dlock \
    644 completions/_dlock share/zsh/site-functions/_dlock \
    644 completions/dlock.fish share/fish/vendor_completions.d/dlock.fish \
    $(foreach schema,$(wildcard contrib/schemas/*.json),644 $(schema) share/dlock/schemas/$(notdir $(schema))) \
    644 contrib/prometheus/dlock.rules.yml share/dlock/prometheus/dlock.rules.yml \
    644 contrib/grafana/dlock.json share/dlock/grafana/dlock.json \
    644 contrib/github/action.yml share/dlock/github/action.yml \
    644 contrib/gitlab/dlock.yml share/dlock/gitlab/dlock.yml \
    $(foreach unit,$(wildcard contrib/systemd/*),644 $(unit) share/dlock/systemd/$(notdir $(unit))) \
    644 LICENSE share/doc/dlock/LICENSE

# As root nothing is compiled: its owner could not build again in a target directory with root's files.
install: $(if $(SUDO),build) lay

lay:
	@[ -f "$(PROGRAM)" ] || { echo "there is no $(PROGRAM); run make build first, as the owner of this directory" >&2; exit 1; }
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

# What is given to others: one static file per architecture, which starts on every Linux, and what is packed of it. The same
# source makes the same bytes; all dates are that of the last commit.
ARCHES ?= x86_64 aarch64
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH
static: tools-static
	packaging/static.sh $(ARCHES)

# With the list of what is in the programs.
dist: static tools-sbom
	rm -rf target/dist
	$(MAKE) --no-print-directory sbom
	packaging/dist.sh $(ARCHES)

CARGO_DEB := $(CURDIR)/target/tools/bin/cargo-deb
deb: static tools-deb
	PATH="$(dir $(CARGO_DEB)):$$PATH" packaging/deb.sh $(ARCHES)

rpm: static tools-rpm
	packaging/rpm.sh $(ARCHES)

image: static tools-image
	packaging/image.sh $(ARCHES)

# Older ones do not know the system calls that dlock needs.
QEMU := $(CURDIR)/target/qemu/usr/bin/qemu-aarch64
dist-test: dist deb rpm image build tools-dist-test
	CARGO="$(CARGO)" QEMU=$(QEMU) tests/install.sh $(ARCHES)
	CARGO="$(CARGO)" QEMU=$(QEMU) tests/dist.sh $(ARCHES)
	tests/image.sh

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
	    echo "installing with $(SUDO) apt-get:$$missing"; \
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
	    strace=strace mandoc=mandoc crontab=cron systemd-analyze=systemd jq=jq zsh=zsh fish=fish /usr/sbin/haproxy=haproxy prometheus=prometheus \
	    curl=curl wget=wget /usr/bin/python3=python3 \
	    /usr/lib/python3/dist-packages/jsonschema=python3-jsonschema /usr/lib/python3/dist-packages/yaml=python3-yaml $(STORES))
	@[ -x $(ETCD35)/usr/bin/etcdutl ] || tests/etcd35.sh $(ETCD35)

tools-html:
	$(call need,mandoc=mandoc)

# rustup brings musl; the C compilers are for the parts of ring that are C.
tools-static:
	$(call need,$(PROTOC) x86_64-linux-musl-gcc=musl-tools aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu \
	    /usr/aarch64-linux-gnu/include/stdint.h=libc6-dev-arm64-cross)

tools-deb:
	$(call need,dpkg-deb=dpkg)
	@[ -x $(CARGO_DEB) ] || $(CARGO) install --locked --root $(CURDIR)/target/tools cargo-deb@^3

tools-rpm:
	$(call need,rpmbuild=rpm)

tools-image:
	$(call need,jq=jq /etc/ssl/certs/ca-certificates.crt=ca-certificates)

tools-dist-test:
	$(call need,$(ETCD) lintian=lintian dpkg=dpkg rpm=rpm /usr/share/doc/busybox-static=busybox-static \
	    readelf=binutils dockerd=docker.io skopeo=skopeo)
	@[ -x $(QEMU) ] || tests/newer.sh testing $(CURDIR)/target/qemu qemu-user

tools-bench: tools-test
	$(call need,hyperfine=hyperfine flock=util-linux)

tools-pictures:
	$(call need,$(ETCD) unshare=util-linux mount=mount hostname=hostname /usr/bin/python3=python3 \
	    /usr/lib/python3/dist-packages/pyte=python3-pyte)

tools-late: tools-test
	$(call need,stress-ng=stress-ng setpriv=util-linux)

tools-mutants: tools-test
	$(call need,patch=patch timeout=coreutils)

tools-fuzz:
	$(call need,$(PROTOC) c++=g++)
	@[ -x $(CARGO_FUZZ) ] || $(CARGO) install --locked --root $(CURDIR)/target/tools cargo-fuzz@^0.13

# The same lock file makes the same list: without a random number, and with the day of the last commit (SOURCE_DATE_EPOCH).
CARGO_CYCLONEDX := $(CURDIR)/target/tools/bin/cargo-cyclonedx
SBOM := dlock-$(VERSION).cdx
.PHONY: sbom tools-sbom
sbom: tools-sbom
	@mkdir -p target/dist
	PATH="$(dir $(CARGO_CYCLONEDX)):$$PATH" $(CARGO) cyclonedx --format json --spec-version 1.5 --no-build-deps \
	    --target x86_64-unknown-linux-musl --override-filename $(SBOM)
	sed 's|path+file://$(CURDIR)|path+file://|g' $(SBOM).json >target/dist/$(SBOM).json
	rm $(SBOM).json

tools-sbom:
# It runs once; to optimise it takes longer than that.
	@[ -x $(CARGO_CYCLONEDX) ] || $(CARGO) install --locked --debug --root $(CURDIR)/target/tools cargo-cyclonedx@^0.5
