#!/usr/bin/env bash
# mutants.sh [NAME...]: checks the tests. Each patch in tests/mutants breaks one promise in a copy of the tree, and the
# tests that its first line names must fail then. Without names: all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
limit=300 # seconds for the tests of one mutant, far more than they need
patches=$PWD/tests/mutants
export CARGO_TARGET_DIR=$PWD/target/mutants CARGO_PROFILE_DEV_DEBUG=0
# Always in the same place, so that cargo builds only what has changed.
copy=$CARGO_TARGET_DIR/tree
trap 'exit 130' INT TERM

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Some mutants leave processes behind: they end with their pid namespace, and their files with its tmpfs. Its first
# process is a shell that reaps, and ends when we are interrupted. What it starts gets a session of its own, and would
# ignore INT if bash had its way.
user=()
[ "$(id -u)" = 0 ] || user=(--user --map-root-user)
contain() {
    timeout --foreground --signal=KILL "$limit" \
        unshare "${user[@]}" --mount --pid --fork --mount-proc --kill-child bash -c '
            trap "exit 130" INT TERM
            mount -t tmpfs tmpfs /dev/shm || exit
            TMPDIR=/dev/shm env --default-signal setsid "$@" &
            wait "$!"' bash "$@"
}

caught_by() {
    sed -n '1s/^# caught by: //p' "$patches/$1.patch" | grep . ||
        fail "$1.patch: the first line has to be '# caught by: ' and what follows cargo test"
}

# What these tests do: pass, fail, or neither (not built, none of that name, stuck).
result() {
    local log=$CARGO_TARGET_DIR/$1.log tests
    read -ra tests <<<"$2"
    if ! "$cargo" test --quiet --locked --no-run "${tests[@]::${#tests[@]}-1}" >"$log" 2>&1; then
        echo "not built: $log"
    elif contain "$cargo" test --locked "${tests[@]}" </dev/null >"$log" 2>&1; then
        if grep -q '^test result: ok\. [1-9]' "$log"; then echo pass; else echo "no such test: $log"; fi
    elif grep -q '^test result: FAILED' "$log"; then
        echo fail
    else
        echo "neither passed nor failed within $limit s: $log"
    fi
}

contain true || fail 'cannot make namespaces: run this as root, or allow user namespaces'
[ $# -gt 0 ] || set -- $(cd "$patches" && printf '%s\n' *.patch | sed 's/\.patch$//')

rm -rf "$copy"
mkdir -p "$copy"
# With new times, for what is there may be older than the mutant that was built last.
git ls-files -z | tar --create --null --files-from=- | tar --extract --touch --directory="$copy"
cd "$copy"

for name; do caught_by "$name"; done | sort -u | while read -r tests; do
    found=$(result unmutated "$tests")
    [ "$found" = pass ] || fail "without a mutant, cargo test $tests: $found"
done

survivors=0 undecided=0
for name; do
    tests=$(caught_by "$name")
    patch --strip=1 --fuzz=0 --batch --silent <"$patches/$name.patch" ||
        fail "$name.patch does not apply any more: make the same mistake in the code as it is now, and store it with" \
            "git diff, below the two comment lines; remove the patch if the mistake cannot be made any more"
    found=$(result "$name" "$tests")
    patch --strip=1 --reverse --batch --silent <"$patches/$name.patch"
    case $found in
        fail) echo "caught    $name ($tests)" ;;
        pass) echo "SURVIVED  $name ($tests)" && survivors=$((survivors + 1)) ;;
        *) echo "NEITHER   $name: $found" && undecided=$((undecided + 1)) ;;
    esac
done
[ "$survivors" = 0 ] || fail "$survivors survived: no test would notice these mistakes"
[ "$undecided" = 0 ] || fail "$undecided neither passed nor failed: mend the test or the patch"
