"""Google's benchmark_model, a program that the user brings: its command line, and what it prints, read.

It is the way to a phone's GPU and to NNAPI. Its output has changed little since TensorFlow 1.13; what differs between versions is
named where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..export.manifest import UserError
from .device import Offer
from .runtime import RejectedError

BENCHMARK_MODEL = "benchmark_model"
OPTIONS: Mapping[str, tuple[str, ...]] = {"delegate": ("xnnpack", "gpu", "nnapi", "plain"), "gpu_precision": ("fp16", "fp32")}
OFFER = Offer("benchmark_model", ("tflite",), options=OPTIONS)
FLAGS: Mapping[str, tuple[str, ...]] = {
    "xnnpack": ("--use_xnnpack=true",),
    "gpu": ("--use_gpu=true",),
    "nnapi": ("--use_nnapi=true",),
    "plain": ("--use_xnnpack=false",),
}
ELF: Mapping[str, tuple[int, ...]] = {"arm64-v8a": (183, 40), "armeabi-v7a": (40,), "x86_64": (62, 3), "x86": (3,)}
"""ABI → the e_machine numbers of programs that it runs."""
CPU_NAMES = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86"}
MIB = 1 << 20
INSIDE = "Delegate/"
"""What the names of operations inside a delegate begin with."""
LEVEL = re.compile(r"^\s*(?:INFO|VERBOSE|WARN(?:ING)?|ERROR|FATAL): ")
TIMINGS = re.compile(r"nference timings in us: (.*)$")
STATS = re.compile(r"^count=(\d+)\b(.*)$")
REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\) node, yielding (\d+) partitions")
APPLIED = re.compile(r"pplied (\S+) delegate, and the model graph will be (completely|partially) executed")
NOT_APPLIED = re.compile(r"Though (\S+) delegate is explicitly applied, the model graph will not be")
MEMORY = re.compile(
    r"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): init=(\S+) overall=(\S+)"
)
PEAK = re.compile(r"Overall peak memory footprint \(MB\) via periodic monitoring: (\S+)")
BACKEND = re.compile(r"Initialized (\S+)-based API")
UNKNOWN_FLAGS = re.compile(r"Unconsumed cmdline flags: (.*)$|Unknown flag: (\S+)", re.MULTILINE)
UNSTARTED = re.compile(
    r"CANNOT LINK EXECUTABLE.*|.*not executable: .*|.*[Ee]xec format error.*|.*\bPermission denied.*"
    r"|.*inaccessible or not found.*|.*: not found$",
    re.MULTILINE,
)
FAILED = re.compile(r"^ERROR: |Failed to |^Benchmarking failed|^Error: |failed to prepare|not supported", re.MULTILINE)


@dataclass(frozen=True)
class Stats:
    """Microseconds of `count` runs."""

    count: int
    first: float
    min: float
    max: float
    avg: float
    std: float


@dataclass(frozen=True)
class ToolOp:
    """A row of the table of operations: ms per inference, all of its calls together."""

    kind: str
    name: str
    ms: float


@dataclass(frozen=True)
class Taken:
    """What a delegate took: `nodes` of `total` operations (None in old versions), in `partitions` parts."""

    delegate: str
    nodes: int
    total: int | None
    partitions: int


@dataclass(frozen=True)
class ToolRun:
    """One run of the program. `extent`: whether the delegate asked for took the graph "completely", "partially", or "none" of it.

    `memory_bytes`: the rise of its memory, by its own account approximate; `peak_bytes` where it watched it.
    """

    init_us: float
    first_us: float
    runs: Stats
    memory_bytes: float | None = None
    peak_bytes: float | None = None
    taken: tuple[Taken, ...] = ()
    asked: str = ""
    extent: str = ""
    backend: str = ""
    ops: tuple[ToolOp, ...] = ()


def parse(text: str, *, file: str = "the model") -> ToolRun:
    """What the program found. Raises RejectedError when the model or a delegate failed, UserError for what is no such output."""
    lines = [LEVEL.sub("", line).rstrip() for line in text.splitlines()]
    told = _timings(lines)
    stats = [entry for line in lines if (entry := _stats(line))]
    if told is None or not stats:
        raise failure(text, file)
    _refuse_unknown_flags(text)
    memory = _first(MEMORY, lines)
    peak = _first(PEAK, lines)
    applied, missed, backend = _first(APPLIED, lines), _first(NOT_APPLIED, lines), _first(BACKEND, lines)
    found = applied or missed
    try:
        return ToolRun(
            init_us=told["Init"],
            first_us=told.get("First inference", stats[0].first),
            runs=stats[-1],
            memory_bytes=float(memory[2]) * MIB if memory else None,
            peak_bytes=float(peak[1]) * MIB if peak else None,
            taken=tuple(_taken(match) for line in lines if (match := REPLACED.search(line))),
            asked=found[1] if found else "",
            extent=applied[2] if applied else "none" if missed else "",
            backend=backend[1] if backend else "",
            ops=_ops(lines),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"benchmark_model printed what this trimtab can't read: {error}",
            hint="please report its whole output; which version is it?",
        ) from None


def arguments(
    graph: str,
    *,
    threads: int,
    options: Mapping[str, str],
    runs: int,
    warm_runs: int,
    ops: bool = False,
    shapes: Mapping[str, Sequence[int]],
) -> list[str]:
    """The program's arguments: exactly `runs` timed runs after `warm_runs` others. `shapes` of inputs are set where there are any."""
    delegate = options.get("delegate", OPTIONS["delegate"][0])
    words = [f"--graph={graph}", f"--num_threads={threads}", f"--num_runs={runs}", f"--warmup_runs={warm_runs}"]
    words += ["--min_secs=0", "--warmup_min_secs=0", *FLAGS[delegate]]
    if delegate == "gpu":
        words.append(f"--gpu_precision_loss_allowed={'true' if options.get('gpu_precision', 'fp16') == 'fp16' else 'false'}")
    if shapes:
        words.append("--input_layer=" + ",".join(re.sub(r"[,:]", "_", name) for name in shapes))
        words.append("--input_layer_shape=" + ":".join(",".join(map(str, shape)) for shape in shapes.values()))
    if ops:
        words.append("--enable_op_profiling=true")
    return words


def check_program(given: str, abi: str) -> Path:
    """The program's path. Raises UserError when it is not there, or made for another processor than one of `abi`."""
    path = Path(given).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise UserError(
            f"benchmark_model = {given!r} can't be read: {error.strerror}", hint="give the path of the program on this computer"
        ) from None
    if head[:2] == b"#!":
        return path
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise UserError(f"{path} is no program", hint="see docs/devices-adb.md for where benchmark_model comes from")
    made_for = int.from_bytes(head[18:20], "little")
    if abi in ELF and made_for not in ELF[abi]:
        raise UserError(
            f"{path} is made for {CPU_NAMES.get(made_for, f'processor {made_for}')}, the phone runs {abi}",
            hint=f"get the build for {abi} (android_aarch64 is arm64-v8a, android_arm is armeabi-v7a)",
        )
    return path


def _timings(lines: Sequence[str]) -> dict[str, float] | None:
    """Init, first inference and averages in µs, from the line at the end; versions name different ones."""
    for line in reversed(lines):
        if match := TIMINGS.search(line):
            pairs = re.findall(r"([A-Z][A-Za-z ()]*|no stats): ([-+0-9.eE]+)", match[1])
            try:
                return {name.strip(): float(value) for name, value in pairs}
            except ValueError:
                return None
    return None


def _stats(line: str) -> Stats | None:
    """The runs of a line such as `count=50 first=4 curr=3 min=3 max=5 avg=3.5 std=1`, or `count=50 curr=3(all same)`."""
    match = STATS.match(line)
    if not match or match[1] == "0":
        return None
    told = dict(re.findall(r"(\w+)=([-+0-9.eE]+|nan|inf)", match[2]))
    try:
        same = float(told["curr"])
        first, least, most, mean = (float(told.get(name, same)) for name in ("first", "min", "max", "avg"))
        return Stats(int(match[1]), first=first, min=least, max=most, avg=mean, std=float(told.get("std", 0.0)))
    except (KeyError, ValueError):
        return None


def _taken(match: re.Match[str]) -> Taken:
    return Taken(match[3], int(match[1]), int(match[2]) if match[2] else None, int(match[4]))


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    return next((match for line in lines if (match := pattern.search(line))), None)


def _ops(lines: Sequence[str]) -> tuple[ToolOp, ...]:
    """The table of operations in running order: that of the runs, not that of the initialisation, and of the primary graph."""
    headed = [k for k, line in enumerate(lines) if "Profiling Info for Regular Benchmark Runs" in line]
    starts = [k for k, line in enumerate(lines) if "Run Order" in line and line.startswith("=") and k > (headed or [-1])[-1]]
    if not starts:
        return ()
    columns: list[str] = []
    found = []
    for line in lines[starts[0] + 1 :]:
        if not line.strip() or line.startswith("="):
            break
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else re.split(r"\s{2,}", line)) if cell.strip()]
        if not columns:
            columns = [cell.strip("[] ") for cell in cells]
            continue
        row = dict(zip(columns, cells, strict=False))
        calls = max(1.0, float(row["times called"]))  # old versions always tell 0
        name = re.sub(r"^\[?(.*?)\]?(?::\d+)?$", r"\1", row.get("Name", row["node type"]))
        found.append(ToolOp(row["node type"], name, float(row["avg ms"]) * calls))
    if any(op.name.startswith(INSIDE) for op in found):  # the delegate's own row holds the same time once more
        found = [op for op in found if op.name.startswith(INSIDE) or not re.fullmatch(r"TfLite\w*Delegate\w*", op.kind)]
    return tuple(found)


def _refuse_unknown_flags(text: str) -> None:
    """None, when the program knew all that was asked for. It goes on without a delegate that it does not know. Raises UserError."""
    if match := UNKNOWN_FLAGS.search(text):
        flags = (match[1] or match[2]).strip()
        raise UserError(
            f"this benchmark_model does not know {flags}",
            hint="it was built without that delegate, or is too old: get another build",
        )


def failure(text: str, file: str) -> UserError:
    """Why there are no figures."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if match := UNSTARTED.search(text):
        return UserError(
            f"benchmark_model can't be started on the phone: {match[0].strip()}",
            hint="is it the Android build, for this phone's processor?",
        )
    if any(line.startswith(("usage:", "Usage:")) for line in lines):
        unknown = next((line for line in lines if "lag" in line), lines[0])
        return UserError(
            f"this benchmark_model does not take what it was given: {unknown}", hint="it is too old: get a newer build"
        )
    said = [LEVEL.sub("", line) for line in lines if FAILED.search(line)]
    if said:
        words = " · ".join(dict.fromkeys(said[:3]))
        hint = "export it again, or take another delegate: --set benchmark_model.delegate=xnnpack"
        return RejectedError.told(f"benchmark_model rejects {file}: {words}", hint)
    last = lines[-1] if lines else "nothing"
    return UserError(
        f"benchmark_model gave no figures; it printed {last[:120]!r}", hint="is it Google's benchmark_model?", exit_code=1
    )
