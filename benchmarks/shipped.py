"""Trains the Bundle that ships with the package, and writes its card from what the Bundle itself says.

python benchmarks/shipped.py            trains (about 12 minutes on 2 cores with native bf16) and writes both
python benchmarks/shipped.py --card     writes the card again from the Bundle that is there
"""

from __future__ import annotations

import sys
from pathlib import Path

from trimtab.app import main as trimtab
from trimtab.models import files
from trimtab.models.bundle import load_bundle

FOLDER = Path(__file__).parent.parent / "cli" / "assets" / "bundles" / "fashion-mnist"
COMMAND = ["train", "resnet20", "--data", "fashion-mnist", "--set", "epochs=12", "--set", "lr=0.1", "--seed", "0"]


def card() -> str:
    """The Bundle's card."""
    bundle = load_bundle(FOLDER)
    step = bundle.manifest.lineage[-1]
    config = step.config
    tools = ", ".join(f"{name} {number}" for name, number in step.tool_versions.items() if name != "trimtab")
    return f"""# ResNet-20 on Fashion-MNIST

| | |
|---|---|
| network | `{bundle.manifest.architecture.name}` {bundle.manifest.architecture.kwargs} |
| data | Fashion-MNIST (Xiao et al., 2017, MIT licence), 28×28 grey, 54,000 of the training images; 6,000 for validation |
| test accuracy, 10,000 images | {100 * bundle.manifest.metrics["accuracy"]:.2f} % |
| training | {config["epochs"]:g} epochs, {config["optimizer"]} lr {config["lr"]:g} {config["schedule"]}, batch {config["batch_size"]}, \
weight decay {config["weight_decay"]:g}, random crops and flips |
| seed | {step.seed} |
| command | `trimtab {" ".join(COMMAND)} -o OUT` |
| tools | {tools} |
| licence | Apache-2.0, as the repository |

Made for the demonstration. Its last digits depend on the processor: training runs in bf16 where the CPU has it.
"""


def main() -> int:
    """0 when the card is written."""
    if "--card" not in sys.argv and (code := trimtab([*COMMAND, "-o", str(FOLDER), "--force"])):
        return code
    files.write_text(FOLDER / "CARD.md", card())
    return 0


if __name__ == "__main__":
    sys.exit(main())
