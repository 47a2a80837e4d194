#!/bin/sh
# ignores-term.sh: says "on" and lives on through every signal that can be ignored.
trap '' HUP INT QUIT TERM USR1
echo on
while :; do sleep 1; done
