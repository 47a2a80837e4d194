#!/bin/sh
# demo.sh DLOCK: shows dlock at work against a throw-away etcd, and cleans up.
set -eu

dlock=$(realpath "${1:-target/release/dlock}")
dir=$(mktemp -d)
etcd_pid=

clean_up() {
    trap '' INT TERM
    # Any dlock of ours first: it takes its command along.
    for pid in $(jobs -p); do [ "$pid" = "$etcd_pid" ] || kill "$pid" 2>/dev/null || :; done
    [ -z "$etcd_pid" ] || kill -KILL "$etcd_pid" 2>/dev/null || :
    wait 2>/dev/null || :
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m'); else bold='' dim='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
# What two processes write at once still comes line by line.
label() { sed -u "s/^/  $1 | /"; }

start_etcd() {
    port=$1 name=demo-$$-$1
    etcd --name "$name" --data-dir "$dir/data" \
        --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
        --listen-peer-urls "http://127.0.0.1:0" --initial-advertise-peer-urls "http://127.0.0.1:0" \
        --initial-cluster "$name=http://127.0.0.1:0" >"$dir/etcd.log" 2>&1 &
    etcd_pid=$!
    for _ in $(seq 150); do
        kill -0 "$etcd_pid" 2>/dev/null || return 1
        # By its name: somebody else's etcd may answer there.
        ETCDCTL_API=3 etcdctl --endpoints "127.0.0.1:$port" --command-timeout 1s member list 2>/dev/null |
            grep -q ", $name, " && return 0
        sleep 0.1
    done
    return 1
}

# How many hold or wait for the lock.
queue() { etcdctl --endpoints "127.0.0.1:$port" get --prefix dlock/lock/report/ --keys-only | grep -c . || :; }

for try in 1 2 3 4 5; do
    start_etcd "$((20000 + ($$ + try * 997) % 12000))" && break
    [ "$try" -lt 5 ] || { cat "$dir/etcd.log"; exit 1; }
done
export DLOCK_ENDPOINTS="http://127.0.0.1:$port" ETCDCTL_API=3
note "a throw-away etcd listens on 127.0.0.1:$port"

say "1. Two contenders, three rounds each: one at a time, and the fencing token grows."
note "   dlock run report -- sh -c 'echo token \$DLOCK_FENCING_TOKEN; ...'"
contend() {
    for round in 1 2 3; do
        "$dlock" run report -- sh -c 'echo "round $0: enter, token $DLOCK_FENCING_TOKEN"; sleep 0.5; echo "round $0: leave"' "$round"
    done
}
contend 2>&1 | label alice &
alice=$!
contend 2>&1 | label bob &
wait "$alice" $!

say "2. Busy? With -n dlock does not wait; 75 says that somebody else has the lock."
"$dlock" run report -- sleep 2 &
holder=$!
until [ "$(queue)" = 1 ]; do sleep 0.05; done
status=0
"$dlock" run -n report -- echo never 2>&1 | label carol || :
"$dlock" -q run -n report -- true || status=$?
note "   exit status $status"
wait "$holder"

say "3. A holder loses its lease: an operator revokes it. The command is killed, and 121 tells the caller."
(
    status=0
    "$dlock" run report -- sh -c '
        echo "enter, token $DLOCK_FENCING_TOKEN"
        echo "$DLOCK_LEASE" >"$0"
        while :; do sleep 0.2; echo "working"; done' "$dir/lease" || status=$?
    echo "exit status $status"
) 2>&1 | label dave &
dave=$!
until [ -s "$dir/lease" ]; do sleep 0.05; done
"$dlock" run report -- sh -c 'echo "enter, token $DLOCK_FENCING_TOKEN"' 2>&1 | label erin &
erin=$!
until [ "$(queue)" = 2 ]; do sleep 0.05; done
sleep 0.9
note "  etcdctl lease revoke $(cat "$dir/lease")"
etcdctl --endpoints "127.0.0.1:$port" lease revoke "$(cat "$dir/lease")" >/dev/null
wait "$dave" "$erin"

say "4. The same lock, taken by etcdctl and by dlock: they exclude each other."
etcdctl --endpoints "127.0.0.1:$port" lock dlock/lock/report -- sh -c 'echo enter; sleep 1; echo leave' 2>&1 | label etcdctl &
peer=$!
until [ "$(queue)" = 1 ]; do sleep 0.05; done
"$dlock" run report -- sh -c 'echo "enter, token $DLOCK_FENCING_TOKEN"' 2>&1 | label dlock
wait "$peer"

say "That was dlock. The promise and its limits: README.md"
