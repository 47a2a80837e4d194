#!/usr/bin/env bash
# image.sh: loads this machine's container image into a container daemon of its own, and runs dlock as the first process of
# containers, under the default seccomp profile, read-only, without any capability, as nobody. Needs root. It must not know how the
# image is made.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    echo "the container image is not tested: this needs root, for a container daemon" >&2
    exit 0
fi
. tests/throwaway.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
archive=target/image/dlock-$version-$(uname -m).tar
start_etcd

say "a container daemon, with no network of its own"
export DOCKER_HOST=unix://$work/daemon/socket DOCKER_BUILDKIT=0 DOCKER_CONFIG=$work/config
mkdir "$work/daemon"
dockerd --data-root "$work/daemon/data" --exec-root "$work/daemon/run" --host "$DOCKER_HOST" --pidfile "$work/daemon/pid" \
    --bridge=none --iptables=false --ip6tables=false --storage-driver=vfs >"$work/daemon/log" 2>&1 &
daemon=$!
finish() {
    docker ps --quiet | xargs --no-run-if-empty docker rm --force >/dev/null || :
    kill "$daemon" && wait "$daemon" || :
    umount "$work/daemon/run/netns/default" 2>/dev/null || :
    throw_away
}
trap finish EXIT
answers() {
    if ! kill -0 "$daemon"; then
        echo "the container image is not tested: no container daemon runs here: $(tail -n 1 "$work/daemon/log")" >&2
        exit 0
    fi
    docker version >/dev/null 2>&1
}
await answers

say "the image alone"
docker load --quiet --input "$archive" >/dev/null
[ "$(skopeo inspect "oci-archive:$archive" --format '{{.Labels}}')" = "$(docker image inspect "dlock:$version" --format '{{.Config.Labels}}')" ] ||
    fail "the archive's two forms differ"
strict=(--network host --read-only --cap-drop ALL --security-opt no-new-privileges --env DLOCK_ENDPOINTS)
[ "$(docker run --rm "${strict[@]}" "dlock:$version" --version)" = "dlock $version" ] || fail "it has no version"
docker run --rm "${strict[@]}" "dlock:$version" ls >/dev/null || fail "it lists no locks"

say "an image that copies dlock from it"
mkdir "$work/job"
cp /bin/busybox "$work/job/"
cat >"$work/job/Dockerfile" <<END
FROM scratch
COPY --from=dlock:$version /usr/bin/dlock /usr/bin/
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
USER 65534:65534
ENTRYPOINT ["/usr/bin/dlock"]
END
docker build --quiet --network host --tag job "$work/job" >"$work/build" 2>&1 || fail "$(cat "$work/build")"
# dlock as the first process, and its command.
[ "$(docker run --rm "${strict[@]}" job run order sh -c 'grep -E "^(Seccomp|CapBnd):" /proc/self/status; cat /proc/1/comm; id -u; echo x 2>/dev/null >/x || echo read-only' |
    tr -s '\t\n' ' ')" = "CapBnd: 0000000000000000 Seccomp: 2 dlock 65534 read-only " ] || fail "not the wanted container"

say "the exit status"
status=0
docker run --rm "${strict[@]}" job run exit sh -c 'exit 7' || status=$?
[ "$status" = 7 ] || fail "status $status, not 7"

# wrote NAME LINE: whether the container has written this line.
wrote() {
    docker logs "$1" 2>&1 | grep -q -x "$2"
}

say "a signal"
docker run --detach --name stopped "${strict[@]}" job run stopped \
    sh -c 'trap "echo stopped; exit 5" TERM; echo on; while :; do sleep 0.1; done' >/dev/null
await wrote stopped on
docker stop --time 30 stopped >/dev/null
wrote stopped stopped || fail "the command did not get the signal"
[ "$(docker inspect --format '{{.State.ExitCode}}' stopped)" = 5 ] || fail "not the command's status after docker stop"

say "orphans are reaped"
docker run --detach --name orphans "${strict[@]}" job run --ttl 5 --kill-after 1 orphans \
    sh -c 'for n in 1 2 3 4 5 6 7 8 9; do sh -c "sleep 0.2 &"; done; echo on; exec sleep 600' >/dev/null
await wrote orphans on
one_left() {
    # The processes of the container: dlock, its guard, the command and what that waits for.
    [ "$(docker exec orphans sh -c 'cat /proc/[0-9]*/stat 2>/dev/null | grep -c -E "\(sleep\)|\) Z "')" -le 1 ]
}
await one_left

say "a container that is killed"
docker kill orphans >/dev/null
docker run --rm "${strict[@]}" job run --wait 60 orphans true || fail "the lock of the killed container is never free"

say "a container that is paused for longer than the TTL"
docker run --detach --name paused "${strict[@]}" job run --ttl 5 --kill-after 1 paused sh -c 'echo on; sleep 600; echo late' >/dev/null
await wrote paused on
docker pause paused >/dev/null
docker run --rm "${strict[@]}" job run --wait 60 paused true || fail "the lock of the paused container is never free"
docker unpause paused >/dev/null
[ "$(docker wait paused)" = 121 ] || fail "not the status of a lost lock: $(docker logs paused 2>&1)"
! wrote paused late || fail "the command ran on"
say "all is well"
