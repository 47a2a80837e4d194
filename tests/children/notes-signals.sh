#!/bin/sh
# notes-signals.sh: prints the name of each signal it gets, and ends after TERM.
for signal in HUP INT QUIT USR1 USR2 ALRM WINCH; do trap "echo $signal" $signal; done
trap 'echo TERM; exit 7' TERM
echo on
while :; do sleep 0.02; done
