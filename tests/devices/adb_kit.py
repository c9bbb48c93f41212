"""A program in adb's place whose "phone" is a folder of this machine, and a benchmark_model that makes its figures up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FAKE = '''#!{python} -IS
"""Talks like adb. $FAKE_ADB holds devices.txt; a command that a file there names fails with the file's text."""
import os, shutil, subprocess, sys, time
home = os.environ["FAKE_ADB"]
words = sys.argv[1:]
def text(name):
    try:
        return open(os.path.join(home, name)).read()
    except OSError:
        return None
def there():
    return "\\tdevice" in (text("devices.txt") or "")
if words == ["devices", "-l"]:
    print("* daemon not running; starting now at tcp:5037\\n* daemon started successfully\\nList of devices attached")
    print(text("devices.txt") or "")
    sys.exit(0)
assert words[0] == "-s", words
serial, verb, rest = words[1], words[2], words[3:]
if not there():
    sys.exit(f"error: device '{{serial}}' not found")
if text(verb + ".fails") is not None:
    sys.exit(text(verb + ".fails"))
if verb == "features":
    print(text("features.txt") or "shell_v2\\ncmd")
elif verb == "push":
    source, target = rest
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copytree(source, target) if os.path.isdir(source) else shutil.copy(source, target)
elif verb == "pull":
    shutil.copy(*rest)
elif verb == "shell":
    child = subprocess.Popen(["sh", "-c", rest[0]], start_new_session=True)
    while child.poll() is None:
        try:
            child.wait(0.02)
        except subprocess.TimeoutExpired:
            if not there():
                os.killpg(child.pid, 9)
                sys.exit(255)
    sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
'''
PROPS = """[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 8]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G3]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
"""
TOOL = """#!/bin/sh
# Takes the arguments of benchmark_model and prints what it would; a run takes as many µs as the model has bytes.
runs=50 gpu= ops=
for word in "$@"; do
  case $word in
    --graph=*) graph=${word#*=} ;;
    --num_runs=*) runs=${word#*=} ;;
    --use_gpu=true) gpu=1 ;;
    --enable_op_profiling=true) ops=1 ;;
    --use_nnapi=true) echo 'WARN: Unconsumed cmdline flags: --use_nnapi=true' ;;
  esac
done
echo "INFO: Graph: [$graph]"
case $(head -c 8 "$graph" | tail -c 4) in
  TFL3) ;;
  *) echo "ERROR: Model provided has model identifier 'xxxx', should be 'TFL3'"; echo "Failed to load model $graph"; exit 1 ;;
esac
us=$(($(wc -c < "$graph") + $$ % 7))
taken='VERBOSE: Replacing 1 out of 1 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for subgraph 0.'
if [ $gpu ]; then
  taken='INFO: Replacing 1 out of 1 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions for subgraph 0.'
  echo 'INFO: Initialized OpenCL-based API.'
  echo 'INFO: Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.'
fi
echo "$taken"
echo "INFO: Initialized session in 4.5ms."
echo "INFO: count=1 curr=$((us * 2)) p5=1 median=1 p95=1"
echo "INFO: count=$runs first=$us curr=$us min=$us max=$((us + 9)) avg=$us.5 std=1 p5=$us median=$us p95=$us"
echo "INFO: Inference timings in us: Init: 4500, First inference: $((us * 2)), Warmup (avg): $((us * 2)), Inference (avg): $us.5"
echo "INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=2"
if [ $ops ]; then
  echo 'INFO: Operator-wise Profiling Info for Regular Benchmark Runs:'
  echo '============================== Run Order =============================='
  printf '\\t[node type]\\t[first]\\t[avg ms]\\t[%%]\\t[cdf%%]\\t[mem KB]\\t[times called]\\t[Name]\\n'
  printf '\\tFully Connected (NC, F32) GEMM\\t0.1\\t0.25\\t100%%\\t100%%\\t0.0\\t1\\tDelegate/Fully Connected (NC, F32) GEMM:0\\n'
fi
"""


def fake_adb(folder: Path, monkeypatch: Any) -> Path:
    """The folder of a fake adb with one phone, whose shell is this machine's; its programs lie beside it."""
    home, programs = folder / "fake-adb", folder / "programs"
    home.mkdir()
    programs.mkdir()
    (home / "devices.txt").write_text("R5CT1234567\tdevice usb:1-1 product:shiba model:Pixel_8 device:shiba transport_id:3\n")
    for name, text in {
        "adb": FAKE.format(python=sys.executable),
        "getprop": f"#!/bin/sh\ncat <<'.'\n{PROPS}.\n",
        "dumpsys": "#!/bin/sh\necho '  USB powered: false'; echo '  level: 12'; echo '  temperature: 291'\n",
        "settings": "#!/bin/sh\necho 1\n",
        "benchmark_model": TOOL,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ADB", str(home))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return home


def settings(folder: Path) -> dict[str, Any]:
    """Settings for a phone whose shell is this machine's: another folder, and this Python."""
    return {"folder": str(folder / "on phone/trimtab"), "anywhere": True, "python": sys.executable}


def add(name: str, **fields: Any) -> None:
    """Writes devices.toml with one device of kind adb."""
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "trimtab/devices.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    path.write_text(f'[{name}]\nkind = "adb"\n{rows}')


class Unplugging:
    """A progress whose meter pulls the cable after some rounds."""

    def __init__(self, pull, *, after):
        self.pull, self.after, self.timing = pull, after, False

    def meter(self, title, **_):
        self.timing = title.startswith("timing")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, amount):
        self.after -= self.timing
        if self.after == 0:
            self.pull()

    def __getattr__(self, name):
        return lambda *_, **__: None
