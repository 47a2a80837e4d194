#!/usr/bin/env bash
# install.sh ARCH...: installs in every way that the README names, into directories of its own, uses what is there, and
# removes it. Fails when something does not work, is missing, or stays. qemu runs a package's program for another architecture
# than this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/throwaway.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
start_etcd

# use WORDS...: what a person does first with a new program.
use() {
    "$@" --version | grep -q '^dlock ' || fail "$* has no version"
    [ "$("$@" run installed -- sh -c 'echo "$DLOCK_NAME"')" = installed ] || fail "$* runs nothing"
    [ "$("$@" completions bash | head -c 1)" = '#' ] || fail "$* has no completions"
}

# Manual pages for all that dlock can do, files for other programs, and completions; below a directory such as /usr.
look_at() {
    local page
    for page in man/*.[1-8]; do
        local section=${page##*.}
        ls "$1/share/man/man$section/${page##*/}"* >/dev/null || fail "no manual page ${page##*/}"
    done
    local file
    for file in schemas/report.schema.json prometheus/dlock.rules.yml grafana/dlock.json github/action.yml gitlab/dlock.yml \
        systemd/active-standby.service; do
        cmp "contrib/$file" "$1/share/dlock/$file" || fail "no ${file##*/}"
    done
    bash -n "$1/share/bash-completion/completions/dlock"
    ls "$1"/share/zsh/*/_dlock "$1/share/fish/vendor_completions.d/dlock.fish" >/dev/null
}

# All files below a directory, but those of the package managers themselves.
files() {
    (cd "$1" && find . -not -path './var/lib/dpkg*' -not -path './var/lib/rpm*' -not -path './var/log*' -not -name . | sort)
}

# As in a system of its own: any user may, since the packages have no scripts.
as_root=()
[ "$(id -u)" = 0 ] || as_root=(unshare --user --map-root-user)
export PATH=$PATH:/usr/sbin:/sbin

say "make install, and make uninstall"
# Nothing is compiled: it is the built program that root installs.
make --silent install CARGO=false SUDO= "DESTDIR=$work/made" PREFIX=/opt/dlock >/dev/null
use "$work/made/opt/dlock/bin/dlock"
look_at "$work/made/opt/dlock"
make --silent uninstall "DESTDIR=$work/made" PREFIX=/opt/dlock
[ -z "$(find "$work/made" -type f)" ] || fail "left behind: $(find "$work/made" -type f)"

say "cargo install"
${CARGO:-cargo} install --quiet --locked --path . --root "$work/cargo"
use "$work/cargo/bin/dlock"

# What the user wrote into the configuration file is kept by an upgrade and by a removal.
config=etc/dlock/config.toml
kept() {
    grep -q '# mine' "$root/$config"* || fail "$1 loses the configuration"
}

for arch; do
    mapfile -t run < <(runner "$arch")
    case $arch in
    x86_64) debian=amd64 ;;
    aarch64) debian=arm64 ;;
    esac

    package=target/debian/dlock_$version-1_$debian.deb
    say "${package##*/}, as lintian sees it"
    # It has no bug in Debian's list that it could close.
    lintian --fail-on error --suppress-tags initial-upload-closes-no-bugs "$package"

    say "${package##*/}: install, upgrade, remove, purge"
    root=$work/deb-$arch
    mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info"
    # What this machine has is what the package may depend on.
    cp /var/lib/dpkg/status "$root/var/lib/dpkg/status"
    cp -r /var/lib/dpkg/info/*.list "$root/var/lib/dpkg/info/"
    debian() {
        "${as_root[@]}" dpkg --root="$root" --force-architecture --force-not-root --force-script-chrootless --log=/dev/null "$@" \
            >"$work/dpkg.log" 2>&1 || fail "dpkg $*: $(cat "$work/dpkg.log")"
    }
    files "$root" >"$work/before"
    debian --install "$package"
    use "${run[@]}" "$root/usr/bin/dlock"
    look_at "$root/usr"
    [ -e "$root/$config" ] || fail "no configuration file"
    echo '# mine' >>"$root/$config"
    debian --install "$package"
    kept "an upgrade"
    "${run[@]}" "$root/usr/bin/dlock" --config "$root/$config" run installed -- true
    debian --remove "dlock:$debian"
    [ ! -e "$root/usr/bin/dlock" ] || fail "removed and still there"
    kept "a removal"
    debian --purge "dlock:$debian"
    files "$root" | diff "$work/before" - || fail "a purge leaves something"

    package=target/rpm/dlock-$version-1.$arch.rpm
    say "${package##*/}: install, upgrade, remove"
    root=$work/rpm-$arch
    redhat() {
        "${as_root[@]}" rpm --root "$root" --dbpath /var/lib/rpm "$@" >"$work/rpm.log" 2>&1 ||
            fail "rpm $*: $(cat "$work/rpm.log")"
    }
    mkdir -p "$root"
    redhat --initdb
    redhat --install --ignorearch "$package"
    redhat --verify dlock
    use "${run[@]}" "$root/usr/bin/dlock"
    look_at "$root/usr"
    [ -e "$root/$config" ] || fail "no configuration file"
    echo '# mine' >>"$root/$config"
    redhat --upgrade --ignorearch --force "$package"
    kept "an upgrade"
    redhat --erase dlock
    [ ! -e "$root/usr/bin/dlock" ] || fail "removed and still there"
    kept "a removal"
    rm -f "$root/$config"*
    # The directories belong to the system, which is not there.
    [ -z "$(files "$root" | while read -r file; do [ -d "$root/$file" ] || echo "$file"; done)" ] ||
        fail "a removal leaves something: $(files "$root")"
done
say "all is well"
