#!/usr/bin/env bash
# install.sh PACKAGE: installs in every way that the README names, into folders of its own, uses what is there, and
# removes it. Fails when something does not work, is missing, or stays.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$1
work=$(mktemp -d)
etcd=
trap '[ -z "$etcd" ] || kill "$etcd"; rm -rf "$work"' EXIT

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

say() {
    printf '%s\n' "-- $*"
}

# An etcd on two ports that nobody has, which only trying shows.
export ETCDCTL_API=3
for _ in 1 2 3 4 5; do
    read -r client peer < <(shuf -i 20000-32000 -n 2 | xargs)
    export DLOCK_ENDPOINTS=http://127.0.0.1:$client
    rm -rf "$work/etcd"
    ETCD_UNSUPPORTED_ARCH=arm64 etcd --data-dir "$work/etcd" \
        --listen-client-urls "$DLOCK_ENDPOINTS" --advertise-client-urls "$DLOCK_ENDPOINTS" \
        --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
        --initial-cluster "default=http://127.0.0.1:$peer" >"$work/etcd.log" 2>&1 &
    etcd=$!
    until etcdctl --endpoints "$DLOCK_ENDPOINTS" endpoint health >/dev/null 2>&1; do
        kill -0 "$etcd" 2>/dev/null || continue 2
        sleep 0.1
    done
    break
done
kill -0 "$etcd" 2>/dev/null || fail "no etcd: $(tail -n 1 "$work/etcd.log")"

# What a person does first with a new program.
use() {
    "$1" --version | grep -q '^dlock ' || fail "$1 has no version"
    [ "$("$1" run installed -- sh -c 'echo "$DLOCK_NAME"')" = installed ] || fail "$1 runs nothing"
    [ "$("$1" completions bash | head -c 1)" = '#' ] || fail "$1 has no completions"
}

# Manual pages for all that dlock can do, and completions; below a folder such as /usr.
look_at() {
    local page
    for page in man/*.[1-8]; do
        local section=${page##*.}
        ls "$1/share/man/man$section/${page##*/}"* >/dev/null || fail "no manual page ${page##*/}"
    done
    bash -n "$1/share/bash-completion/completions/dlock"
    ls "$1"/share/zsh/*/_dlock "$1/share/fish/vendor_completions.d/dlock.fish" >/dev/null
}

# All files below a folder, but those of the package manager itself.
files() {
    (cd "$1" && find . -not -path './var/lib/dpkg*' -not -path './var/log*' -not -name . | sort)
}

say "make install, and make uninstall"
make --silent install "DESTDIR=$work/made" PREFIX=/opt/dlock >/dev/null
use "$work/made/opt/dlock/bin/dlock"
look_at "$work/made/opt/dlock"
make --silent uninstall "DESTDIR=$work/made" PREFIX=/opt/dlock
[ -z "$(find "$work/made" -type f)" ] || fail "left behind: $(find "$work/made" -type f)"

say "cargo install"
${CARGO:-cargo} install --quiet --locked --path . --root "$work/cargo"
use "$work/cargo/bin/dlock"

say "the package, as lintian sees it"
# It has no bug in Debian's list that it could close.
lintian --fail-on error --suppress-tags initial-upload-closes-no-bugs "$package"

say "the package: install, upgrade, remove, purge"
root=$work/root
mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info"
# What this machine has is what the package may depend on.
cp /var/lib/dpkg/status "$root/var/lib/dpkg/status"
cp -r /var/lib/dpkg/info/*.list "$root/var/lib/dpkg/info/"
export PATH=$PATH:/usr/sbin:/sbin
# dpkg as in a system of its own. It may run as anybody, since the package has no scripts.
as_root=()
[ "$(id -u)" = 0 ] || as_root=(unshare --user --map-root-user)
debian() {
    "${as_root[@]}" dpkg --root="$root" --force-not-root --force-script-chrootless --log=/dev/null "$@" >"$work/dpkg.log" 2>&1 ||
        fail "dpkg $*: $(cat "$work/dpkg.log")"
}
files "$root" >"$work/before"
debian --install "$package"
use "$root/usr/bin/dlock"
look_at "$root/usr"
[ -e "$root/etc/dlock/config.toml" ] || fail "no configuration file"
# The user's own words survive an upgrade and a removal, and go with a purge.
echo '# mine' >>"$root/etc/dlock/config.toml"
debian --install "$package"
grep -q '# mine' "$root/etc/dlock/config.toml" || fail "an upgrade loses the configuration"
"$root/usr/bin/dlock" --config "$root/etc/dlock/config.toml" run installed -- true
debian --remove dlock
[ ! -e "$root/usr/bin/dlock" ] || fail "removed and still there"
grep -q '# mine' "$root/etc/dlock/config.toml" || fail "a removal loses the configuration"
debian --purge dlock
files "$root" | diff "$work/before" - || fail "a purge leaves something"
say "all is well"
