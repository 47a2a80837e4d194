#!/bin/sh
# daemonises.sh [SECONDS]: leaves a child in a session of its own, another after a double fork, and says "on".
setsid -f sleep "${1:-600}" >/dev/null 2>&1
(setsid sh -c 'sleep "$0" & sleep "$0"' "${1:-600}" >/dev/null 2>&1 &)
echo on
