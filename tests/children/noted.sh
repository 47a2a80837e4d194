#!/bin/sh
# noted.sh JOURNAL RUN CODE COMMAND: notes when and with which key it starts, runs the line of shell COMMAND, notes its end
# and ends with CODE. The times are those of the boot clock, in seconds, as this host counts them.
journal=$1 run=$2 code=$3
note() { read -r up _ </proc/uptime; echo "$1 $run $DLOCK_FENCING_TOKEN $DLOCK_KEY $up" >>"$journal"; }
note start
eval "$4"
note end
exit "$code"
