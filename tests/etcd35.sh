#!/usr/bin/env bash
# etcd35.sh DIR: unpacks etcd 3.5 of Debian's next suite into DIR, beside whatever etcd is installed, and prints where.
set -euo pipefail
dir=$1
suite=trixie
if [ ! -x "$dir/usr/bin/etcd" ] || [ ! -x "$dir/usr/bin/etcdctl" ]; then
    # The mirror that this machine uses anyway, for a suite that it must not install from.
    mirror() {
        apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
            awk '$2 == "Debian" && $3 == "main" && $1 !~ /security/ { print $1; exit }'
    }
    mirror=$(mirror)
    # What a mirror is, apt knows only after the first update.
    [ -n "$mirror" ] || { apt-get -qq update && mirror=$(mirror); }
    [ -n "$mirror" ] || { echo "no Debian mirror among apt's sources" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/parts"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/list"
    apt=(apt-get -o Dir::Etc::sourcelist="$work/list" -o Dir::Etc::sourceparts="$work/parts"
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root)
    "${apt[@]}" -qq update
    (cd "$work" && "${apt[@]}" -qq download etcd-server etcd-client)
    mkdir -p "$dir"
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$dir"
    done
fi
# Not head(1): it would close the pipe while etcd still writes, and pipefail would make a failure of it.
"$dir/usr/bin/etcd" --version | sed -n 1p
