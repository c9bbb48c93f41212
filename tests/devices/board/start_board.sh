#!/bin/bash
# sshd of an emulated arm64 board, in the foreground; it ends, with everything that it started, when it is killed.
#
# usage: start_board.sh ROOT CONFIG CORE      (as root)
#
# ROOT is what make_root.sh made, and is not written to. CONFIG is a folder with sshd_config, host_key and authorized_keys, seen
# as /run/board there. All mounts are private to it. CORE is the imitated CPU, e.g. cortex-a76.
set -euo pipefail
root=$1 config=$2 core=$3 here=$(cd "$(dirname "$0")" && pwd)

if [ "${4:-}" != inside ]; then
    exec unshare --mount --propagation private --pid --fork --kill-child -- "$0" "$root" "$config" "$core" inside
fi

# flag F of Debian's registration: the kernel has opened the emulator, so none need lie inside the root
binfmt=/proc/sys/fs/binfmt_misc
mountpoint -q $binfmt || mount -t binfmt_misc binfmt_misc $binfmt
[ -e $binfmt/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64
[ -e $binfmt/qemu-aarch64 ] || { echo "the kernel takes no interpreter for arm64 programs (binfmt_misc)" >&2; exit 3; }

mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
for folder in tmp run root dev; do mount -t tmpfs tmpfs "$root/$folder"; done
mount -t tmpfs -o size=64k tmpfs "$root/small"
for device in null zero random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
# the host's own would make the runtimes' CPU detection crash; it must be that of the imitated core
mount --bind "$here/cpuinfo-$core" "$root/proc/cpuinfo"
mount -t sysfs -o ro sysfs "$root/sys"
mkdir -p "$root/run/sshd" "$root/run/board"
chmod 755 "$root/run/sshd"
cp "$config"/* "$root/run/board/"
chown -R 0:0 "$root/run/board"
chmod 600 "$root"/run/board/*
export QEMU_CPU=$core # sshd hands it to its own children; those of a log-in have it from SetEnv in its configuration
exec chroot "$root" /usr/sbin/sshd -D -e -f /run/board/sshd_config
