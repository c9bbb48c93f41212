"""Training an ISP network without pairs, against a fixed rendering and against training with pairs.

    python benchmarks/models_isp.py [--seeds 3] [--steps 500] [--side 64] [--batch 8] [--long] [--published] [--out isp]

Photographs of two Debian packages (lomiri-wallpapers-16.04, mate-backgrounds; licences below) are found where the packages put them,
never copied. Synthetic RAW is made of them, split by photograph: mosaics to train on, pictures of other scenes as the unpaired targets,
and photographs that are held out for validation and test. EfficientISP (3,060 parameters) learns from scratch; every arm has the same
steps. `--long` takes four times as many for the arms that say most, all else unchanged, and writes isp_long; `--published` is the
paper's schedule (lr, critics' rate and width, batch, patches) in place of the short one.

Figures are of held-out photographs: of the iterate that the rule chose, of the last one, and of the one with the best PSNR on paired
validation patches (an oracle). "perceptual" is a distance of frozen EfficientNet-Lite0 features built like LPIPS, without LPIPS's
weights fitted to people's judgements.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trials import Claim

from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.method import Context
from trimtab.compress.procedures.isp_run import rendered_in_order
from trimtab.compress.procedures.isp_selection import Candidates
from trimtab.compress.procedures.unpaired_isp import IspConfig, isp
from trimtab.compress.runtime import Runtime
from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet, open_backbone
from trimtab.models.tasks.task import tasks

LOMIRI, MATE = Path("/usr/share/backgrounds"), Path("/usr/share/backgrounds/mate/nature")
PHOTOGRAPHS = {
    LOMIRI: {
        "Bridge_by_Sander_Klootwijk": "CC-BY-SA-4.0",
        "Dragonfly_by_Bolly": "CC-BY-SA-4.0",
        "Picture_0B_by_freespace": "CC-BY-4.0",
        "Picture_1A_by_freespace": "CC-BY-4.0",
        "Wine_by_Jakkub_Mede": "CC-BY-4.0",
        "aitzgorri_by_Aitzol_Berasategi": "CC-BY-4.0",
        "free_by_Peter_Nerlich": "CC-BY-SA-4.0",
        "friends_by_Aitzol_Berasategi": "CC-BY-4.0",
        "greentock_by_Peter_Nerlich": "CC-BY-SA-4.0",
        "life_by_Aitzol_Berasategi": "CC-BY-4.0",
        "picosdeeuropa_by_Aitzol_Berasategi": "CC-BY-4.0",
        "seeding_by_Clements_Engelhardt": "CC0-1.0",
        "sunset_by_Aitzol_Berasategi": "CC-BY-4.0",
    },
    MATE: dict.fromkeys(
        (
            *("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow"),
            *("LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower"),
        ),
        "GPL-2+",
    ),
}
"""Name and licence, as the packages' copyright files have them. Left out: analogpattern, umang (drawn), everything outside nature/."""
PLAIN = {"texture_shallow": 0.0, "texture_deep": 0.0, "colour": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "unpaired": {},
    "paired": {"mode": "paired"},
    "paired, no critics": {"mode": "paired", "content_channels": "rgb", **PLAIN},
    "no content": {"content": 0.0},
    "no variation": {"tv": 0.0},
    "no shallow texture": {"texture_shallow": 0.0},
    "no deep texture": {"texture_deep": 0.0},
    "no colour": {"colour": 0.0},
    "not balanced": {"balance": "none"},
    "code's penalty": {"penalty": 1000.0},
}
"""What differs from the unpaired run. Beside them: "rendering" (nothing is trained) and "paired L1" (the step finetune)."""
LONG, LONGER = ("unpaired", "code's penalty", "paired", "paired L1"), 2000
"""Arms of `--long`, and its steps."""
MEAN_GAINS = (2.15, 1.0, 1.7)
"""The middle of the ranges that the synthetic camera's white-balance gains are drawn from: what a maker would put in."""
STAGES = (3, 5, 11)
VALIDATION, TEST = 64, 96


@contextmanager
def photographs() -> Iterator[Path]:
    """A folder of links to the photographs that are installed. Ends the script in words when one is missing."""
    with tempfile.TemporaryDirectory() as name:
        for folder, listed in PHOTOGRAPHS.items():
            for photo in listed:
                if not (source := folder / f"{photo}.jpg").exists():
                    raise SystemExit(f"{source} is missing: apt install lomiri-wallpapers-16.04 mate-backgrounds")
                (Path(name) / source.name).symlink_to(source)
        yield Path(name)


def perceptual(net: FeatureNet, made: Tensor, true: Tensor) -> float:
    """Like LPIPS: features of unit length at every position, squared differences summed over channels, averaged over positions and
    stages. 0 for equal pictures."""
    with torch.inference_mode():
        pairs = zip(net(made), net(true), strict=True)
        unit = [[m / (m.norm(dim=1, keepdim=True) + 1e-10) for m in pair] for pair in pairs]
        return float(torch.stack([(a - b).square().sum(1).mean() for a, b in unit]).mean())


class Bench:
    """The data, the network and the figures of one seed."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        self.net = open_backbone("efficientnet_lite0", stages=STAGES)
        self.opened: dict[int, Any] = {}
        self.runtime = Runtime("cpu")

    def task(self, seed: int) -> Any:
        """The photographs split by `seed`."""
        if seed not in self.opened:
            self.opened = {seed: self.open(seed)}
        return self.opened[seed]

    def open(self, seed: int, **more: Any) -> Any:
        """The task, with options beside the patches' size."""
        size = (self.args.side, self.args.side)
        return tasks.get("isp")(data=f"photos:{self.folder}", seed=seed, size=size, **more)

    def config(self, seed: int, **more: Any) -> dict[str, Any]:
        """What all arms share."""
        args, samples = self.args, len(self.task(seed).samples("train"))
        batch = min(args.batch, samples)
        return {
            "epochs": args.steps / (samples // batch),
            "batch_size": batch,
            "lr": args.lr,
            "max_eval": VALIDATION,
            "checkpoint_s": 1e6,
            **more,
        }

    def figures(self, seed: int, develop: Callable[[Tensor], Tensor], prefix: str = "") -> dict[str, float]:
        """PSNR, SSIM, ΔE and the perceptual distance on held-out photographs."""
        task = self.task(seed)
        samples = task.samples("test")
        count = min(TEST, len(samples))
        made: list[Tensor] = []

        def kept_too(inputs: Tensor) -> Tensor:
            made.append(develop(inputs))
            return made[-1]

        found = task.evaluate(kept_too, "test", limit=count, batch_size=16)
        targets = samples.__getitems__(range(count)).targets.split(16)
        distances = []
        for pictures, true in zip(made, targets, strict=True):
            distances += [perceptual(self.net, pictures.clamp(0, 1), true)] * len(true)
        kept = {name: found[name] for name in ("psnr", "ssim", "delta_e")}
        return {prefix + name: value for name, value in (kept | {"perceptual": sum(distances) / count}).items()}

    def of_network(self, seed: int, net: nn.Module, prefix: str = "") -> dict[str, float]:
        """The same of a network."""

        def develop(inputs: Tensor) -> Tensor:
            with torch.inference_mode():
                return net.eval()(inputs)

        return self.figures(seed, develop, prefix)

    def trial(self, arm: str, seed: int) -> dict[str, float]:
        """One arm with one seed, trained and measured."""
        task = self.task(seed)
        if arm == "rendering":
            return self._rendering(seed)
        if arm == "rendering, the camera's gains":
            return self._rendering(seed, gains=MEAN_GAINS)
        torch.manual_seed(seed)
        net = architectures.get("efficient_isp")()
        with tempfile.TemporaryDirectory() as work:
            context = Context(workdir=Path(work), parent=None, seed=seed, device="cpu")  # type: ignore[arg-type]
            if arm == "paired L1":
                plain = {"optimizer": "adamw", "betas": (0.5, 0.9), "weight_decay": 0.0, "schedule": "constant", "amp": "off"}
                finetune(net, task, FinetuneConfig(**self.config(seed, **plain)), context)
                return self.of_network(seed, net)
            warmup = self.args.warmup / (len(task.samples("train")) // min(self.args.batch, len(task.samples("train"))))
            config = IspConfig(
                **self.config(seed, candidates=self.args.candidates, judged=VALIDATION),
                discriminator_lr=self.args.critic_lr,
                discriminator_width=self.args.critic_width,
                critic_every=self.args.critic_every,
                schedule=self.args.schedule,
                **{"content": self.args.content, "warmup_epochs": warmup, **self._stages(), **ARMS[arm]},
            )
            result = isp(net, task, config, context)
            found = self.of_network(seed, net)
            iterates = result.figures["selection"]["iterates"]
            candidates = Candidates(Path(work) / "isp-candidates", total=iterates[-1]["step"], count=config.candidates)
            for prefix, step in (("last ", iterates[-1]["step"]), ("oracle ", result.figures["oracle"]["step"])):
                candidates.load(step, net)
                found |= self.of_network(seed, net, prefix)
            found |= {"step": result.figures["selection"]["step"], "oracle step": result.figures["oracle"]["step"]}
            return found | {"collapsed": len(result.figures["collapsed"]), "still": result.figures["still"]}

    def _stages(self) -> dict[str, Any]:
        """Which maps of the frozen networks are looked at: the backbone's usual ones, or earlier ones for small patches."""
        content, shallow, deep, colour = map(int, self.args.stages.split(",")) if self.args.stages else (-1, -1, -1, -1)
        return {"content_stage": content, "texture_stages": (shallow, deep) if deep > 0 else (), "colour_stage": colour}

    def _rendering(self, seed: int, **more: Any) -> dict[str, float]:
        """The fixed rendering, with other settings of the task."""
        return self.figures(seed, rendered_in_order(self.open(seed, **more) if more else self.task(seed), "test"))


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--side", type=int, default=64, help="of the mosaic patches")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--lr", type=float, default=2e-3)
    options.add_argument("--schedule", default="cosine", help="of the network's learning rate")
    options.add_argument("--critic-lr", type=float, default=1e-3)
    options.add_argument("--critic-width", type=float, default=0.25)
    options.add_argument("--critic-every", type=int, default=2)
    options.add_argument("--content", type=float, default=3.0, help="strength of the content term; 1 is published")
    options.add_argument("--warmup", type=int, default=80, help="steps over which the network's learning rate rises")
    options.add_argument(
        "--stages", default="3,1,3,0", help="of content, shallow and deep texture, and colour; empty: the backbone's usual ones"
    )
    options.add_argument("--candidates", type=int, default=10)
    options.add_argument("--long", action="store_true", help=f"{LONGER} steps of {', '.join(LONG)}, to isp_long")
    options.add_argument("--published", action="store_true", help="side 256, batch 32, lr 5e-4, critics 1e-5 at full width")
    options.add_argument("--arms", default="", help="some of the arms, with semicolons (default: all)")
    options.add_argument("--out", default="isp", help="name of the result file")
    return options


def main() -> None:
    args = parser().parse_args()
    if args.published:
        args.side, args.batch, args.lr, args.critic_lr, args.critic_width = 256, 32, 5e-4, 1e-5, 1.0
        args.critic_every, args.stages, args.schedule, args.content, args.warmup = 10, "", "constant", 1.0, 0
    torch.set_num_threads(1)
    arms = ["rendering", "rendering, the camera's gains", "paired L1", *ARMS]
    if args.long:
        args.steps, args.out, arms = LONGER, "isp_long" if args.out == "isp" else args.out, list(LONG)
    if args.arms:
        arms = [arm.strip() for arm in args.arms.split(";")]
    with photographs() as folder:
        bench = Bench(folder, args)
        about = {
            "network": "efficient_isp",
            "photographs": {name: licence for listed in PHOTOGRAPHS.values() for name, licence in sorted(listed.items())},
            "features": bench.net.source,
            "perceptual": "LPIPS-like distance of these features, not calibrated on people's judgements",
            **{name: value for name, value in vars(args).items() if name not in ("seeds", "arms", "out", "published", "long")},
            "validation": VALIDATION,
            "test": TEST,
            "arms": {
                "rendering": "nothing is trained",
                "rendering, the camera's gains": list(MEAN_GAINS),
                "paired L1": "finetune",
                **ARMS,
            },
        }
        Claim(args.out, about, folder="models").run(arms, args.seeds, bench.trial)


if __name__ == "__main__":
    main()
