#!/bin/sh
# borrowed.sh JOURNAL RUN STAY -- HOLD...: takes a lock with the command HOLD, which prints what to evaluate, keeps it for
# STAY seconds, and ends with the status of `dlock release`. Nobody stops this one when the lock is lost.
journal=$1 run=$2 stay=$3; shift 4
note() { read -r up _ </proc/uptime; echo "$1 $run $DLOCK_FENCING_TOKEN $DLOCK_KEY $up" >>"$journal"; }
eval "$("$@")"
[ -n "$DLOCK_FENCING_TOKEN" ] || exit 98
note start
sleep "$stay"
note end
exec "$1" release
