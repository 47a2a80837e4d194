#!/usr/bin/python3
"""daemon.py DIR: a daemon that must be active once. It notes in DIR/log what happens to it, each line with its host.

HUP reloads it, TERM stops it, and USR1 makes it hang: it does not answer the watchdog of systemd any more.
"""
import fcntl
import os
import signal
import socket
import sys
import time

directory = sys.argv[1]


def note(word):
    with open(f"{directory}/log", "a") as log:
        log.write(f"{os.uname().nodename} {word}\n")


def notify(message):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        manager.send(message.encode())


def stop(*_):
    note("stopped")
    sys.exit()


hangs = []
signal.signal(signal.SIGHUP, lambda *_: note("reloaded"))
signal.signal(signal.SIGUSR1, lambda *_: hangs.append(True))
signal.signal(signal.SIGTERM, stop)
# The kernel keeps it as long as this process lives.
alone = open(f"{directory}/alone", "a")
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("OVERLAP")
    sys.exit(1)
# As sd_watchdog_enabled(3): another process may be meant.
watched = os.environ.get("WATCHDOG_PID") == str(os.getpid())
note("active" if watched else "active without a watchdog")
while True:
    if watched and not hangs:
        notify("WATCHDOG=1")
    time.sleep(int(os.environ.get("WATCHDOG_USEC", "1000000")) / 1e6 / 8)
