#!/bin/bash
# An arm64 Debian root with Python, sshd and the aarch64 wheels of the runtimes, made without running one arm64 instruction.
#
# usage: make_root.sh FOLDER PYTHON      (as root; PYTHON is one with pip, used to fetch and unpack wheels)
#
# debootstrap's first stage fetches and checks the packages; they are unpacked from this side, so that no emulated
# post-installation script (which takes minutes) is needed. FOLDER appears whole or not at all.
set -euo pipefail
folder=$1 python=$2
wheels="numpy==2.3.5 onnxruntime==1.32.0 ai-edge-litert==2.3.0"
if [ -e "$folder/complete" ]; then exit 0; fi

. /etc/os-release
if [ "${ID:-}" != debian ]; then
    echo "the emulated board is made from Debian packages, and this is ${PRETTY_NAME:-another system}" >&2
    exit 3
fi
mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$VERSION_CODENAME" '$2 == suite && $3 == "main" { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "apt knows no mirror of Debian $VERSION_CODENAME: run apt-get update" >&2
    exit 3
fi

mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
debootstrap --arch=arm64 --variant=minbase --foreign \
    --include=python3,openssh-server,openssh-sftp-server,libgomp1,libstdc++6 "$VERSION_CODENAME" "$root" "$mirror" >&2

# dpkg-deb -x would replace the link lib -> usr/lib with a folder, and nothing would start any more
for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
done
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/debootstrap "$root"/usr/share/doc "$root"/usr/share/locale "$root"/usr/share/man
printf 'root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n' >"$root/etc/shadow"
rm -f "$root/proc" "$root/sys" 2>/dev/null || true # inside a container debootstrap links them to the host's
mkdir -p "$root"/{proc,sys,dev,run,tmp,root,small}
# what ldconfig would make is not needed: the loader looks into /lib/aarch64-linux-gnu by itself

version=$(ls "$root"/usr/lib | sed -n 's/^python\(3\.[0-9]*\)$/\1/p')
fetched=$work/wheels
platforms=()
for tag in manylinux2014 manylinux_2_17 manylinux_2_26 manylinux_2_27 manylinux_2_28 manylinux_2_31 manylinux_2_34 manylinux_2_35; do
    platforms+=(--platform "${tag}_aarch64")
done
# shellcheck disable=SC2086 (the list is split on purpose)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
    "${platforms[@]}" --dest "$fetched" $wheels >&2
packages=$root/usr/local/lib/python$version/dist-packages
mkdir -p "$packages"
for wheel in "$fetched"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$packages"
done
rm -rf "$fetched"
# NPU compilers and the GPU accelerator of LiteRT, 200 MB that nothing here loads
rm -rf "$packages"/ai_edge_litert/vendors "$packages"/ai_edge_litert/libLiteRtWebGpuAccelerator.so

touch "$work/complete"
rm -rf "$folder"
mv "$work" "$folder"
trap - EXIT
