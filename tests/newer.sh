#!/usr/bin/env bash
# newer.sh SUITE DIR PACKAGE...: unpacks packages of another suite of Debian into DIR, beside whatever is installed. It must not
# know what they are for.
set -euo pipefail
suite=$1 dir=$2
shift 2
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
(cd "$work" && "${apt[@]}" -qq download "$@")
mkdir -p "$dir"
for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$dir"
done
