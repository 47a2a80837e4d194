#!/bin/sh
# host.sh NAME DIR: a host of that name with systemd as its first process, which starts multi-user.target from the units in
# DIR/units. It shares the network and the files of this machine, but not /etc, /run and the control groups. Needs root.
set -e
name=$1 dir=$2
if [ "$3" = inside ]; then
    hostname "$name"
    mount -t cgroup2 none /sys/fs/cgroup
    mount -t tmpfs none /run
    # The name that systemd sets, the id that it would else write, and the user that the unit's programs run as.
    mount --bind "$dir/etc" /etc
    exec env -i PATH="$PATH" container=dlock-test SYSTEMD_UNIT_PATH="$dir/units" /lib/systemd/systemd --system \
        --unit=multi-user.target --log-target=console --show-status=0
fi
mkdir -p "$dir/etc" "$dir/cgroup"
echo "$name" >"$dir/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$dir/etc/machine-id"
echo root:x:0:0::/root:/bin/sh >"$dir/etc/passwd"
echo root:x:0: >"$dir/etc/group"
mount -t cgroup2 none "$dir/cgroup"
group=$dir/cgroup/dlock-test-$$
mkdir "$group"
echo $$ >"$group/cgroup.procs"
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child --mount-proc -- "$0" "$name" "$dir" inside
