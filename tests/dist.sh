#!/usr/bin/env bash
# dist.sh ARCH...: uses the archives in target/dist as a person who has downloaded one: compares the sums, unpacks it, and runs
# it where nothing is installed; qemu runs another architecture than this machine's. Then it builds this machine's archive again
# elsewhere, and compares the bytes. It must not know how anything is built.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
. tests/throwaway.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# One file that needs no other and keeps the kernel's protections: it is loaded at a random address, and no page is both
# written and executed.
examine() {
    local headers
    headers=$(readelf --file-header --program-headers --wide "$1")
    grep -q 'Type: *DYN' <<<"$headers" || fail "$1 is not position independent"
    ! grep -q INTERP <<<"$headers" || fail "$1 needs a dynamic linker"
    grep -q GNU_RELRO <<<"$headers" || fail "$1 has relocations that stay writable"
    grep GNU_STACK <<<"$headers" | grep -q 'RW ' || fail "$1 has an executable stack"
    ! grep LOAD <<<"$headers" | grep -q 'RWE' || fail "$1 has pages that are written and executed"
    ! grep -q --text --fixed-strings -e "$source" -e "${CARGO_HOME:-$HOME/.cargo}" "$1" || fail "$1 names its builder's directories"
}

# lock NAME DIR WORDS...: with the dlock of these words, a local lock in DIR, a lock in etcd, and one that is lost when its key
# is deleted: its command ends, and the status is 121.
lock() {
    local name=$1 locks=$2 status=0
    shift 2
    [ "$("$@" run --local="$locks" "$name" sh -c 'echo "$DLOCK_NAME"')" = "$name" ] || fail "no local lock: $*"
    [ "$("$@" run "$name" sh -c 'echo "$DLOCK_NAME"')" = "$name" ] || fail "no lock in etcd: $*"
    rm -f "$work/on"
    "$@" run --ttl 5 "$name" -- sh -c 'echo on; exec sleep 600' >"$work/on" 2>"$work/lost" &
    local holder=$!
    await test -s "$work/on"
    etcdctl --endpoints "http://127.0.0.1:$port" del --prefix "dlock/lock/$name/" >/dev/null
    wait "$holder" || status=$?
    [ "$status" = 121 ] || fail "status $status of a lost lock: $(cat "$work/lost")"
    grep -q "lost lock '$name'" "$work/lost" || fail "no word of the loss: $(cat "$work/lost")"
}

say "the sums"
(cd target/dist && sha256sum --check --quiet --strict SHA256SUMS)
grep -q "  dlock-$version.cdx.json$" target/dist/SHA256SUMS || fail "no list of the parts"

start_etcd
for arch; do
    say "the program for $arch"
    mkdir "$work/$arch"
    tar --extract --gzip --file "target/dist/dlock-$version-$arch-linux-musl.tar.gz" --directory "$work/$arch" --strip-components 1
    dlock=$work/$arch/bin/dlock
    examine "$dlock"
    [ -e "$work/$arch/share/doc/dlock/LICENSE" ] || fail "no licence"
    mapfile -t run < <(runner "$arch")
    [ "$("${run[@]}" "$dlock" --version)" = "dlock $version" ] || fail "$dlock has no version"
    lock "$arch" "$work/locks" "${run[@]}" "$dlock"
done

here=$(uname -m)
[[ " $* " == *" $here "* ]] || exit 0

say "a directory that has busybox, /proc and /dev/null, as a root directory"
root=$work/root
mkdir -p "$root"/{bin,dev,etc,proc,tmp}
cp /bin/busybox "$root/bin/"
ln -s busybox "$root/bin/sh"
ln -s busybox "$root/bin/sleep"
cp "$work/$here/bin/dlock" "$root/bin/"
touch "$root/dev/null"
echo '127.0.0.1 etcd.example.org' >"$root/etc/hosts"
bare() {
    DLOCK_ENDPOINTS=http://etcd.example.org:$port PATH=/bin "${alone[@]}" "$root" "$@"
}
alone=(unshare --mount --pid --fork --kill-child)
[ "$(id -u)" = 0 ] || alone+=(--map-root-user)
alone+=("$(command -v sh)" -c 'PATH=/usr/sbin:/usr/bin:/sbin
    mount -t proc proc "$0/proc" && mount --bind /dev/null "$0/dev/null" && exec chroot "$0" /bin/busybox env PATH=/bin "$@"')
lock bare /tmp/locks bare dlock
# Of an old etcd it warns.
bare dlock doctor >"$work/doctor" || [ $? = 1 ] || fail "$(cat "$work/doctor")"

say "the same bytes again, built in another directory"
again=$work/another/directory
mkdir -p "$again"
tar --create --exclude=./target --exclude=./.git . | tar --extract --directory "$again"
(umask 077 && cd "$again" && packaging/static.sh "$here" && packaging/dist.sh "$here") >"$work/again" 2>&1 ||
    fail "$(tail "$work/again")"
cmp "target/dist/dlock-$version-$here-linux-musl.tar.gz" "$again/target/dist/dlock-$version-$here-linux-musl.tar.gz" ||
    fail "a second build differs"
say "all is well"
