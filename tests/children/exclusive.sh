#!/bin/sh
# exclusive.sh DIR [COMMAND...]: fails loudly if anything of an earlier holder still runs, then becomes COMMAND.
# The flock is on descriptor 9, which every descendant inherits, so the kernel keeps it until the last one is dead.
# With ORACLE_SHARED=-s, COMMAND may run beside others that share.
dir=$1; shift
exec 9>>"$dir/oracle.lock"
flock -n $ORACLE_SHARED 9 || { echo "OVERLAP ${DLOCK_FENCING_TOKEN-$ETCD_LOCK_REV}" >>"$dir/tokens"; exit 99; }
echo "${DLOCK_FENCING_TOKEN-$ETCD_LOCK_REV}" >>"$dir/tokens"
[ $# -eq 0 ] || exec "$@"
