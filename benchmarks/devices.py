"""Can the devices' figures be trusted, and what do they cost? Six studies, each with a file of its own in results/devices/.

    python benchmarks/devices.py agreement     trimtab against the runtimes' own tools, pinned, in pairs (about 15 minutes)
    python benchmarks/devices.py detection     an A/A pair and a planted 5 % slow-down, alone and beside a busy process (about 8 minutes)
    python benchmarks/devices.py setup         from `profile` to the first timed call, over ssh and in a browser (about 3 minutes)
    python benchmarks/devices.py ops           what looking at single operations costs on six runtimes (about 8 minutes)
    python benchmarks/devices.py counts        instructions of the zoo on three emulated Arm cores, twice (about 10 minutes)
    python benchmarks/devices.py examples      the README's examples, run for real (about 3 minutes; root on Debian, for adbd)

The tables of docs/devices.md are made of these files by benchmarks/tables.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices_agreement
import devices_counts
import devices_detection
import devices_examples
import devices_ops
import devices_setup
from host import host

from trimtab.devices import conditions
from trimtab.export.manifest import write_json

RESULTS = Path(__file__).parent / "results" / "devices"
STUDIES: dict[str, Callable[..., dict[str, Any]]] = {
    "agreement": devices_agreement.study,
    "detection": devices_detection.study,
    "setup": devices_setup.study,
    "ops": devices_ops.study,
    "counts": devices_counts.study,
    "examples": devices_examples.study,
}
VERSIONS = ("numpy", "scipy", "onnxruntime", "openvino", "ai-edge-litert")


def main() -> None:
    """Runs the studies named, all without a name, and writes their files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=list(STUDIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, help="Pairs, trials or set-ups. Default: each study's own.")
    given = parser.parse_args()
    for name in given.studies:
        begin, load = time.monotonic(), conditions.load_average().value
        found = STUDIES[name](seed=given.seed, **({"repeats": given.repeats} if given.repeats else {}))
        result = {
            "command": f"python benchmarks/devices.py {' '.join(sys.argv[1:])}".strip(),
            "seed": given.seed,
            "conditions": {
                **host(VERSIONS),
                "load_average": [load, conditions.load_average().value],
            },
            "seconds": round(time.monotonic() - begin, 1),
            **found,
        }
        print(write_json(RESULTS / f"{name}.json", result))


if __name__ == "__main__":
    main()
