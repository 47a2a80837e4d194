#!/bin/sh
# fork-chain.sh: a process that is replaced by a child in another session without end, so that no pid lives long.
[ "$1" = link ] || echo on
setsid -f "$0" link </dev/null >/dev/null 2>&1
[ "$1" = link ] || exec sleep 600
