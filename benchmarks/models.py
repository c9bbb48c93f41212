"""All measurements of the networks that are born small, one after the other; what is done already is not run again.

    python benchmarks/models.py [bias] [isp] [isp-long] [arm] [anomaly-features] [anomaly] [anomaly-speed] [develop]

Each part is a script of its own with settings of its own (`python benchmarks/models_isp.py --help`): the published schedules are there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = {
    "bias": "models_bias.py",
    "isp": "models_isp.py",
    "isp-long": "models_isp.py --long",
    "arm": "models_isp_arm.py",
    "anomaly-features": "models_anomaly_features.py",
    "anomaly": "models_anomaly.py",
    "anomaly-speed": "models_anomaly_speed.py",
    "develop": "models_develop.py",
}


def main() -> int:
    """The exit code of the first part that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    wanted = parser.parse_args().parts or list(PARTS)
    if unknown := [part for part in wanted if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    for part in wanted:
        script, *options = PARTS[part].split()
        if code := subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *options], check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
