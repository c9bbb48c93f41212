"""Rounds of a lottery: every one trains under its mask and becomes a Bundle of its own; finished ones are not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ...models import files
from ...models.bundle import CODE, WEIGHTS, Bundle, Lineage, bare, load_bundle, save_bundle
from ...models.checkpoint import load_state
from ...models.masks import attach_masks, density, masks_of
from ..method import Context
from ..sampling import derived_seed
from .config import Emphasis, LotteryConfig
from .judging import Judge
from .losses import class_rank_loss, effective_weights, weighted_cross_entropy
from .pruning import Pruned, prune
from .scores import UNTRAINED, prunable, random_scores, snip_scores, weight_scores
from .shape import Pattern

if TYPE_CHECKING:
    from ...models.tasks.task import Task
    from ..loop import Objective, TrainBatch
    from ..runtime import Runtime

STAGE, SCORES, REWIND = "round.json", "scores.npz", "rewind.safetensors"


@dataclass(frozen=True)
class Round:
    """A finished round: its number (0: all weights), its folder with a Bundle, its figures and its decision scores by split."""

    number: int
    folder: Path
    figures: dict[str, Any]
    scores: dict[str, np.ndarray]
    reused: bool

    @property
    def bundle(self) -> Bundle:
        """The network as it was trained in this round, with its masks."""
        return load_bundle(self.folder / "bundle")


@dataclass
class Lottery:
    """One run of rounds on `module`: `label` names its checkpoints, `emphasis` gives every round's loss."""

    label: str
    module: nn.Module
    task: Task
    config: LotteryConfig
    context: Context
    runtime: Runtime
    judge: Judge
    folder: Path
    densities: tuple[float, ...]
    emphasis: Callable[[int], Emphasis]

    def run(self) -> Iterator[Round]:
        """Every round in turn. After each, `module` has its weights and its masks."""
        net = bare(self.module)
        start = {name: t.detach().clone() for name, t in net.state_dict().items()}
        weights = prunable(net, biases=self.config.biases, keep=self.config.keep)
        own = masks_of(net)
        masks = {name: own.get(name, torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
        others = {name: mask for name, mask in own.items() if name not in masks}
        cut = Pruned(masks)
        for number, share in enumerate(self.densities):
            folder = self.folder / f"round-{number:02d}"
            if number:
                cut = self._cut(start, cut.masks, share, number)
                self._rewind(net, start)
            attach_masks(net, {**others, **cut.masks})
            yield self._reuse(folder, number) or self._make(folder, number, cut)

    def _cut(self, start: Mapping[str, Tensor], masks: Mapping[str, Tensor], share: float, number: int) -> Pruned:
        """The next masks, from the weights at the end of a round (or, by criteria that look before training, at its start)."""
        config, net = self.config, bare(self.module)
        trained = {name: net.get_parameter(name).detach().clone() for name in masks}
        if config.criterion == "random":
            scores = random_scores(trained, derived_seed(self.context.seed, "lottery", number))
        elif config.criterion in UNTRAINED:
            self._rewind(net, start)
            attach_masks(net, masks)
            scores = snip_scores(self.module, self.task, masks, images=config.snip_images, seed=self.context.seed)
        else:
            before = self._rewound(start)
            scores = weight_scores(config.criterion, trained, {name: before[name] for name in masks})
        return prune(scores, masks, density=share, scope=config.scope, pattern=Pattern.parse(config.pattern))

    def _rewound(self, start: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The state that survivors go back to."""
        return load_state(self.folder / REWIND) if self.config.rewind_epoch else start

    def _rewind(self, net: nn.Module, start: Mapping[str, Tensor]) -> None:
        if self.config.rewind == "start":
            net.load_state_dict(self._rewound(start))

    def _reuse(self, folder: Path, number: int) -> Round | None:
        """The round as it was finished before, its weights in the module; or None."""
        if not (folder / STAGE).exists():
            return None
        with np.load(folder / SCORES, allow_pickle=False) as stored:
            scores = {name: stored[name] for name in stored.files}
        bundle = load_bundle(folder / "bundle")
        bare(self.module).load_state_dict(load_state(bundle.folder / WEIGHTS))
        return Round(number, folder, files.read_json(folder / STAGE), scores, reused=True)

    def _make(self, folder: Path, number: int, cut: Pruned) -> Round:
        """One round: trained, judged, saved whole or not at all."""
        from ..train import fit

        emphasis = self.emphasis(number)
        history = fit(
            self.module,
            self.task,
            self.config.training(number),
            objective=self._objective(emphasis, snapshot=number == 0 and bool(self.config.rewind_epoch)),
            context=self.context,
            label=f"{self.label}-{number:02d}",
            identity={"emphasis": vars(emphasis), "rank": self.config.rank, "critical": list(self.judge.names)},
            runtime=self.runtime,
        )
        metrics, scores = self.judge.measure(self.module)
        kept = {name: int(mask.sum()) for name, mask in cut.masks.items()}
        figures = {
            "round": number,
            "density": density(cut.masks),
            "kept": sum(kept.values()),
            "weights": sum(mask.numel() for mask in cut.masks.values()),
            "layers": {name: [mask.numel(), kept[name]] for name, mask in cut.masks.items()},
            "minimum": list(cut.minimum),
            "whole": list(cut.whole),
            "gamma": emphasis.gamma,
            "rank_weight": emphasis.rank_weight,
            "metrics": metrics,
            "seconds": history.seconds,
            "train_loss": history.epochs[-1].train_loss,
        }
        self._save(folder, number, figures, scores)
        return Round(number, folder, figures, scores, reused=False)

    def _save(self, folder: Path, number: int, figures: dict[str, Any], scores: Mapping[str, np.ndarray]) -> None:
        current = self.context.current
        lineage = Lineage(
            step=f"lottery round {number}",
            parent=current.hash,
            config=self.config.model_dump(mode="json"),
            seed=self.context.seed,
            data_id=self.task.data_id,
        )
        manifest = current.manifest.model_copy(
            update={"metrics": figures["metrics"]["val"], "lineage": (*current.manifest.lineage, lineage)}
        )
        code = current.folder / CODE if manifest.architecture.is_file else None
        with files.new_folder(folder, force=True) as temp:
            save_bundle(temp / "bundle", self.module, manifest, code=code)
            np.savez(temp / SCORES, **dict(scores))  # type: ignore[arg-type]  # numpy's stub takes the names for its own option
            files.write_json(temp / STAGE, figures)

    def _objective(self, emphasis: Emphasis, *, snapshot: bool) -> Objective:
        loss = round_loss(self.task, emphasis, self.config, self.judge)
        path = self.folder / REWIND

        def objective(network: nn.Module, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
            if snapshot and batch.epoch >= self.config.rewind_epoch and not path.exists():
                state = {n: t.detach().cpu().clone().contiguous() for n, t in bare(self.module).state_dict().items()}
                files.write_bytes(path, safetensors.torch.save(state))
            return loss(network(batch.inputs), batch.targets)

        return objective


Loss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def round_loss(task: Task, emphasis: Emphasis, config: LotteryConfig, judge: Judge) -> Loss:
    """(outputs, targets) → the loss and its parts: Σ γ_c cross-entropy + λ ranking hinge; the task's own loss where γ = 1."""
    if judge.critical is None or emphasis.plain:
        return lambda outputs, targets: (task.loss(outputs, targets), {})
    indices, rank = judge.critical.indices, config.rank
    gamma = torch.ones(len(judge.critical.classes))
    if emphasis.gamma != 1:
        gamma[list(indices)] = emphasis.gamma
        if config.class_weights == "effective":
            counts = np.bincount(judge.targets("train"), minlength=len(gamma))
            gamma = effective_weights(torch.from_numpy(counts), config.beta).float()

    def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        plain = emphasis.gamma == 1
        label = task.loss(outputs, targets) if plain else weighted_cross_entropy(outputs, targets, gamma.to(outputs.device))
        if not emphasis.rank_weight:
            return label, {"label": label}
        ranked = class_rank_loss(outputs, targets, indices, rank)
        return label + emphasis.rank_weight * ranked, {"label": label, "rank": ranked}

    return loss
