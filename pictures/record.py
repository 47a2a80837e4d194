#!/usr/bin/python3
"""Records a real run of dlock in two terminals, with a real etcd, and draws it as an animated SVG.

Usage: record.py DLOCK SVG. It knows the keys that a user types and how a terminal looks; it must not know what dlock prints.

Two shells run in pseudo-terminals, each with a host name of its own (a UTS namespace). The second host reaches etcd through a
relay, which the script cuts: that is the lost network. The emulator is pyte; CSS shows each row of each terminal at its time.
"""

import fcntl
import html
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

import pyte

COLUMNS, ROWS = 88, 9
TYPING = 0.035  # seconds per key
LIMIT = 60  # seconds for a text to appear
TTL = "5s"

DEPLOY = """#!/bin/sh
echo "deploying with token $DLOCK_FENCING_TOKEN"
for host in app1 app2 app3 app4 app5 app6 app7 app8 app9; do
    sleep 0.7
    echo "  $host is up to date"
    [ "$host" != "$LAST" ] || break
done
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Relay:
    """Forwards connections to etcd until it is cut; from then on it accepts bytes and delivers none."""

    def __init__(self, port):
        self.target, self.cut = port, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.forward, args=(source, sink), daemon=True).start()

    def forward(self, source, sink):
        try:
            while data := source.recv(65536):
                if not self.cut:
                    sink.sendall(data)
        except OSError:
            pass


class Terminal:
    """A shell in a pseudo-terminal, and its screen at each moment."""

    def __init__(self, host, home, environment):
        self.host, self.output, self.history = host, b"", []
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a caller may ignore it
            namespace = ["--uts", "--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--uts", "--mount"]
            shell = f"hostname {host}; mount --bind {home}/hosts /etc/hosts; exec bash --norc --noprofile --noediting"
            os.execvpe("unshare", ["unshare", *namespace, "sh", "-c", shell], environment)
        os.set_inheritable(self.master, False)  # the next terminal's shell would keep this one open
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def rows(self):
        """The text and style of each row, without trailing blanks."""
        rows = []
        for number in range(ROWS):
            line = self.screen.buffer[number]
            cells = [(line[column].data, line[column].bold, line[column].fg) for column in range(COLUMNS)]
            while cells and cells[-1][0] in (" ", ""):
                cells.pop()
            rows.append(tuple(cells))
        return rows

    def feed(self, data, now):
        self.output += data
        self.stream.feed(data)
        self.history.append((now, self.rows()))

    def hang_up(self):
        os.close(self.master)
        os.waitpid(self.pid, 0)


class Recording:
    def __init__(self, terminals):
        self.terminals, self.began, self.captions = terminals, 0.0, []

    def begin(self):
        self.began = time.monotonic()
        for terminal in self.terminals:
            terminal.history = [(0.0, terminal.rows())]

    def now(self):
        return time.monotonic() - self.began

    def watch(self, seconds=LIMIT, until=None):
        """Reads both terminals for so long, or until a terminal has printed the text that many times."""
        end = time.monotonic() + seconds
        by_master = {terminal.master: terminal for terminal in self.terminals}
        while not (until and until[0].output.count(until[1].encode()) >= until[2]):
            left = end - time.monotonic()
            if left <= 0:
                if until:
                    sys.exit(f"record.py: {until[1]!r} does not appear:\n" + "\n".join(until[0].screen.display))
                return
            for master in select.select(list(by_master), [], [], min(left, 0.05))[0]:
                by_master[master].feed(os.read(master, 65536), self.now())

    def type(self, terminal, line):
        for key in line:
            os.write(terminal.master, key.encode())
            self.watch(TYPING)
        self.watch(0.3)
        os.write(terminal.master, b"\n")

    def caption(self, text):
        self.captions.append((self.now(), text))


def start_etcd(directory):
    """A server with one member, once it answers; its process and its client port."""
    port, peer = free_port(), free_port()
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    etcd = subprocess.Popen(
        ["etcd", "--data-dir", directory + "/etcd", "--listen-client-urls", client_url,
         "--advertise-client-urls", client_url, "--listen-peer-urls", peer_url,
         "--initial-advertise-peer-urls", peer_url, "--initial-cluster", "default=" + peer_url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    health = ["etcdctl", "--endpoints", client_url, "endpoint", "health"]
    while subprocess.run(health, env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, check=False).returncode:
        if etcd.poll() is not None:
            sys.exit("record.py: etcd does not start")
        time.sleep(0.1)
    return etcd, port


def play(directory, dlock):
    """The scene: a waiter, a hand-over, a loss. Returns the recording."""
    home = directory + "/home"
    os.makedirs(home + "/bin")
    os.symlink(os.path.abspath(dlock), home + "/bin/dlock")
    with open(home + "/deploy.sh", "w", encoding="utf-8") as script:
        script.write(DEPLOY)
    os.chmod(home + "/deploy.sh", 0o755)
    with open(home + "/hosts", "w", encoding="utf-8") as hosts:
        hosts.write("127.0.0.1 localhost etcd\n")
    etcd, port = start_etcd(directory)
    relay = Relay(port)

    def terminal(host, port, last):
        return Terminal(host, home, {
            "PATH": home + "/bin:/usr/bin:/bin", "HOME": home, "USER": "ci", "TERM": "linux", "LANG": "C.UTF-8",
            "PS1": f"\\[\\e[32m\\]{host}$\\[\\e[0m\\] ", "LAST": last,
            "DLOCK_ENDPOINTS": f"http://etcd:{port}", "DLOCK_TTL": TTL})

    web1, web2 = terminal("web1", port, "app6"), terminal("web2", relay.port, "app9")
    recording = Recording([web1, web2])
    run = "dlock run deploy -- ./deploy.sh"
    try:
        for shell in (web1, web2):
            recording.watch(until=(shell, shell.host + "$", 1))
        recording.begin()
        recording.caption("Two hosts share a lock in etcd (with a short TTL here: 5 s).")
        recording.watch(0.8)
        recording.type(web1, run)
        recording.watch(until=(web1, "app1", 1))
        recording.type(web2, run)
        recording.watch(until=(web2, "waiting", 1))
        recording.caption("The lock is held, so the second host waits.")
        recording.watch(until=(web2, "token", 1))
        recording.caption("The lock is released, and the second command starts at once.")
        recording.watch(until=(web2, "app1", 1))
        recording.type(web1, run)
        recording.watch(until=(web1, "waiting", 1))
        recording.watch(0.5)
        relay.cut = True
        recording.caption("web2 loses its network. Its command runs on while the lock is certainly held ...")
        recording.watch(until=(web2, "lost", 1))
        recording.caption("... and is stopped before etcd can give the lock to anybody else.")
        recording.watch(until=(web2, "web2$", 2))
        recording.watch(0.8)
        recording.type(web2, "echo $?")
        recording.watch(until=(web2, "121", 1))
        recording.watch(until=(web1, "token", 2))
        recording.caption("Then etcd frees the lock, and the next command starts with a higher token.")
        recording.watch(until=(web1, "app2", 2))
        recording.watch(3.0)
    finally:
        for shell in recording.terminals:
            shell.hang_up()
        etcd.kill()
        etcd.wait()
    return recording


# The picture. Lengths are in pixels.
FONT, ADVANCE, LINE, PADDING, TITLE, GAP, CAPTION = 14, 8.4, 19, 14, 26, 8, 36
WIDTH = round(COLUMNS * ADVANCE) + 2 * PADDING
PANE = TITLE + ROWS * LINE + PADDING
STYLE = """
svg { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.frame { fill: #161b22; stroke: #6e7681; } .bar { fill: #30363d; } .title { fill: #9da7b3; }
.row { fill: #e6edf3; white-space: pre; } .green { fill: #7ee787; } .red { fill: #ff7b72; } .brown { fill: #e3b341; }
.bold { font-weight: bold; } .caption { fill: #79c0ff; }
.shown { animation-timing-function: step-end; animation-iteration-count: infinite; visibility: hidden; }
.last { visibility: visible; }
@media (prefers-reduced-motion: reduce) { .shown { animation: none !important; } }
"""


def spans(cells):
    """The text of a row, with one element for each change of style."""
    parts, classes = [], None
    for data, bold, colour in cells:
        names = ("bold " if bold else "") + (colour if colour in ("green", "red", "brown") else "")
        if names != classes:
            parts.append((names.strip(), ""))
            classes = names
        parts[-1] = (parts[-1][0], parts[-1][1] + data)
    return "".join(f'<tspan class="{names}">{html.escape(text)}</tspan>' if names else html.escape(text)
                   for names, text in parts)


def intervals(history, end):
    """For each content that is not empty: (content, from, to). Contents that nobody could read are left out."""
    found = []
    for (began, content), (ended, _) in zip(history, history[1:] + [(end, None)]):
        if found and found[-1][0] == content:
            found[-1] = (content, found[-1][1], ended)
        elif ended - began >= 0.03:
            found.append((content, found[-1][2] if found else began, ended))
        elif found:
            found[-1] = (*found[-1][:2], ended)
    return [interval for interval in found if interval[0]]


class Picture:
    def __init__(self, end):
        self.end, self.rules, self.names, self.body = end, [], {}, []

    def shown(self, began, ended):
        """The classes of an element that is visible in this interval."""
        key = (round(began / self.end * 100, 2), round(ended / self.end * 100, 2))
        name = self.names.setdefault(key, f"t{len(self.names)}")
        if name not in [rule[0] for rule in self.rules]:
            steps = "" if key[0] == 0 else "0%{visibility:hidden}"
            steps += f"{key[0]}%{{visibility:visible}}"
            steps += "" if key[1] >= 100 else f"{key[1]}%,100%{{visibility:hidden}}"
            self.rules.append((name, f"@keyframes {name}{{{steps}}} .{name}{{animation-name:{name};animation-duration:{self.end:.2f}s}}"))
        return f"shown {name}" + (" last" if key[1] >= 100 else "")

    def text(self, x, y, classes, content, columns=None):
        fixed = f' textLength="{columns * ADVANCE:.1f}" lengthAdjust="spacingAndGlyphs"' if columns else ""
        self.body.append(f'<text x="{x}" y="{y}" class="{classes}" xml:space="preserve"{fixed}>{content}</text>')

    def pane(self, top, terminal):
        self.body.append(f'<rect x=".5" y="{top + .5}" width="{WIDTH - 1}" height="{PANE - 1}" rx="8" class="frame"/>')
        self.body.append(f'<path d="M1 {top + TITLE}V{top + 9}a8 8 0 0 1 8-8H{WIDTH - 9}a8 8 0 0 1 8 8V{top + TITLE}z" class="bar"/>')
        self.text(PADDING, top + 18, "title", f"host {terminal.host}")
        for number in range(ROWS):
            history = [(at, rows[number]) for at, rows in terminal.history]
            for cells, began, ended in intervals(history, self.end):
                y = top + TITLE + LINE * (number + 1)
                self.text(PADDING, y, "row " + self.shown(began, ended), spans(cells), len(cells))

    def svg(self, description):
        height = 2 * PANE + 2 * GAP + CAPTION
        style = STYLE + "\n".join(rule for _, rule in self.rules) + "\n"
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">\n'
                f"<title>{html.escape(description)}</title>\n<style>{style}</style>\n" + "\n".join(self.body) + "\n</svg>\n")


def draw(recording):
    picture = Picture(recording.now())
    for number, terminal in enumerate(recording.terminals):
        picture.pane(number * (PANE + GAP), terminal)
    top = 2 * (PANE + GAP)
    picture.body.append(f'<rect x=".5" y="{top + .5}" width="{WIDTH - 1}" height="{CAPTION - 1}" rx="8" class="frame"/>')
    for text, began, ended in intervals(recording.captions, picture.end):
        picture.text(PADDING, top + 23, "caption " + picture.shown(began, ended), html.escape(text), len(text))
    return picture.svg("Two terminals: one host waits for the lock, gets it, loses its network, and its command is stopped "
                       "with exit status 121 before the other host's command starts.")


def main():
    _, dlock, target = sys.argv
    directory = tempfile.mkdtemp()
    try:
        recording = play(directory, dlock)
    finally:
        shutil.rmtree(directory)
    with open(target, "w", encoding="utf-8") as file:
        file.write(draw(recording))


main()
