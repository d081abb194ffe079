#!/bin/sh
# PID 1 of the guest, on its root disk: makes what a Debian machine has at this point, runs every
# part of the matrix between two marks, and ends the machine. What reads it: console.rs.
#
# A part's end says its exit status; a part that is missing, or whose end is, counts as failed.
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8
user=nanoclaw-test

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
ln -sf /proc/self/fd /dev/fd
slow=$(tr ' ' '\n' < /proc/cmdline | sed -n 's/^matrix_slow=//p')
hostname matrix
busybox ip link set lo up
ldconfig
chown -R "$user:$user" "/home/$user"
chmod 1777 /tmp

# A group of its own for the plain user, delegated as systemd does it with `Delegate=yes`: the
# folder and these three files belong to the user; processes sit one level deeper.
group=/sys/fs/cgroup/plain
echo "+memory +cpu +pids" > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p "$group/shell"
for folder in "$group" "$group/shell"; do
    chown "$user" "$folder" "$folder/cgroup.procs" "$folder/cgroup.subtree_control" \
        "$folder/cgroup.threads"
done

# part NAME SECONDS COMMAND…
part() {
    name=$1 seconds=$2
    shift 2
    printf '\n@@ begin %s\n' "$name"
    timeout -k 10 "$seconds" "$@" < /dev/null 2>&1
    printf '\n@@ end %s %s\n' "$name" $?
}
plain() {
    name=$1 seconds=$2
    shift 2
    part "$name" "$seconds" setpriv --reuid "$user" --regid "$user" --init-groups -- \
        env -i "PATH=$PATH" "HOME=/home/$user" "LANG=$LANG" "NANOCLAW_SLOW=$slow" "$@"
}
# In the delegated group. The file is the user's, and so is the group below which it is moved: both
# must be, and only root may move it out of where it is now.
delegated() {
    name=$1 seconds=$2
    shift 2
    # shellcheck disable=SC2016 # the inner shell expands them
    part "$name" "$seconds" sh -c 'echo $$ > "$0/shell/cgroup.procs" && exec "$@"' "$group" \
        setpriv --reuid "$user" --regid "$user" --init-groups -- \
        env -i "PATH=$PATH" "HOME=/home/$user" "LANG=$LANG" "NANOCLAW_SLOW=$slow" "$@"
}
facts() {
    echo "kernel=$(uname -r)"
    echo "cgroup=$(stat -f -c %T /sys/fs/cgroup)"
    echo "cgroup_v1=$(grep -c ' - cgroup ' /proc/self/mountinfo)"
    echo "controllers=$(cat /sys/fs/cgroup/cgroup.controllers)"
    echo "cpus=$(nproc)"
    echo "memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
}
# What the parts before it left behind.
left() {
    found=$(
        find /sys/fs/cgroup -name 'nanoclaw-*'
        find /tmp -mindepth 1 -maxdepth 1 -name 'nanoclaw*'
        grep -c nanoclaw /proc/self/mountinfo | sed -n '/^0$/!s/$/ mounts/p'
        for folder in /proc/[0-9]*; do
            case $(readlink "$folder/exe") in *nanoclaw* | *sandbox-tests*) echo "$folder" ;; esac
        done
    )
    echo "$found"
    [ -z "$found" ]
}

export NANOCLAW_SLOW="$slow"
product=/matrix/nanoclaw tests=/matrix/sandbox-tests
printf '\n@@ begin facts\n'
facts
printf '\n@@ end facts 0\n'
part doctor-root 120 $product --home /root/home doctor --json
part probe-root 300 $product --home /root/home sandbox probe --json
plain doctor-user 120 $product --home "/home/$user/home" doctor --json
plain probe-user 300 $product --home "/home/$user/home" sandbox probe --json
delegated doctor-delegated 120 $product --home "/home/$user/home" doctor --json
delegated probe-delegated 300 $product --home "/home/$user/home" sandbox probe --json
part tests-root 900 $tests --one-user
delegated tests-delegated 900 $tests --as-user
printf '\n@@ begin left\n'
left
printf '\n@@ end left %s\n' $?
echo "@@ done"
sync
busybox reboot -f
