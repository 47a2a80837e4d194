#!/bin/sh
# held.sh JOURNAL RUN ORACLE BEATS STAY CHILDREN LAST -- HOLD...: takes a lock for itself with the command HOLD, which prints
# what to evaluate; runs so many children that ignore TERM, and one that beats, for STAY seconds under the oracle; and ends
# with the status of the command LAST, if there is one. A HOLD for nobody has no oracle.
journal=$1 run=$2 oracle=$3 beats=$4 stay=$5 children=$6 last=$7; shift 8
note() { read -r up _ </proc/uptime; echo "$1 $run $DLOCK_FENCING_TOKEN $DLOCK_KEY $up" >>"$journal"; }
eval "$("$@" --pid $$)"
[ -n "$DLOCK_FENCING_TOKEN" ] || exit 98
exec 9>>"$oracle/oracle.lock"
flock -n 9 || { echo "OVERLAP $DLOCK_FENCING_TOKEN" >>"$oracle/tokens"; exit 99; }
echo "$DLOCK_FENCING_TOKEN" >>"$oracle/tokens"
note start
# It has ended, and so its last child, before the lock is released: nothing of this script then holds the oracle.
(while [ ! -e "$HOME/enough" ]; do echo "$DLOCK_KEY" >>"$beats"; sleep 0.02; done) &
while [ "$children" -gt 0 ]; do
    sh -c 'trap "" TERM; sleep "$1"' child "$stay" &
    children=$((children - 1))
done
# This one is in the foreground.
sh -c 'trap "" TERM; sleep "$1"' child "$stay"
: >"$HOME/enough"
wait
note end
exec 9>&-
$last
