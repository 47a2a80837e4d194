# throwaway.sh: what the shell tests share: a directory and an etcd that go with the test, and words for its course. Sourced.
# It must not know what is tested.

work=$(mktemp -d)
etcd=
throw_away() {
    [ -z "$etcd" ] || kill "$etcd"
    rm -rf "$work"
}
trap throw_away EXIT

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

say() {
    printf '%s\n' "-- $*"
}

# await COMMAND...: until it succeeds, for at most a minute.
await() {
    local end=$((SECONDS + 60))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "not within a minute: $*"
        sleep 0.1
    done
}

# runner ARCH: the words, a line each, that run a program of that architecture here: none if it is this machine's. QEMU is for
# aarch64.
runner() {
    [ "$1" = "$(uname -m)" ] || echo "$QEMU"
}

# An etcd on two ports that nobody has, which only trying shows.
start_etcd() {
    export ETCDCTL_API=3 DLOCK_ENDPOINTS
    local peer
    for _ in 1 2 3 4 5; do
        read -r port peer < <(shuf -i 20000-32000 -n 2 | xargs)
        DLOCK_ENDPOINTS=http://127.0.0.1:$port
        rm -rf "$work/etcd"
        local name=throwaway-$$-$port
        ETCD_UNSUPPORTED_ARCH=arm64 etcd --name "$name" --data-dir "$work/etcd" \
            --listen-client-urls "$DLOCK_ENDPOINTS" --advertise-client-urls "$DLOCK_ENDPOINTS" \
            --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
            --initial-cluster "$name=http://127.0.0.1:$peer" >"$work/etcd.log" 2>&1 &
        etcd=$!
        # By its name: somebody else's etcd may answer there.
        until etcdctl --endpoints "$DLOCK_ENDPOINTS" member list 2>/dev/null | grep -q ", $name, "; do
            kill -0 "$etcd" 2>/dev/null || continue 2
            sleep 0.1
        done
        return
    done
    fail "no etcd: $(tail -n 1 "$work/etcd.log")"
}
