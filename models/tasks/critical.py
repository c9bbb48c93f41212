"""Critical classes, where a missed positive costs more than a false alarm: scores, error rates and operating points.

A network with several classes becomes a detector of the critical ones through one number per sample, the score s = the
highest critical logit − the highest of the others. The sample is decided critical when s ≥ threshold. At threshold 0 this is the
network's own argmax; subtracting t from the critical logits moves the threshold by t and nothing else. A threshold is chosen
on the validation split and reported on the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, did_you_mean

BEYOND = 1.0
"""How far outside all scores a threshold is put that lets everything or nothing through, in units of a logit."""


@dataclass(frozen=True)
class Critical:
    """Which classes are critical: their names and positions among all `classes`, in the order of `classes`."""

    names: tuple[str, ...]
    indices: tuple[int, ...]
    classes: tuple[str, ...]

    def positive(self, targets: np.ndarray) -> np.ndarray:
        """bool (N,): the sample belongs to a critical class, from int targets (N,)."""
        return np.isin(np.asarray(targets), self.indices)

    def score(self, logits: np.ndarray) -> np.ndarray:
        """float64 (N,): the highest critical logit − the highest of the others, from logits (N, classes).

        The decision is critical when score ≥ threshold; threshold 0 is the argmax (a tie counts as critical). Raises
        UserError for logits without one column per class.
        """
        values = np.asarray(logits, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.classes):
            raise UserError(
                f"logits of shape {values.shape} do not have one column for each of the {len(self.classes)} classes",
                hint="score the network on the data that it was trained on",
            )
        columns = np.zeros(len(self.classes), dtype=bool)
        columns[list(self.indices)] = True
        return np.asarray(values[:, columns].max(1) - values[:, ~columns].max(1))


def critical_classes(names: Sequence[str], classes: Sequence[str]) -> Critical:
    """The critical classes by name. Raises UserError for an unknown name, one named twice, none, and all of them."""
    wanted = (names,) if isinstance(names, str) else tuple(names)
    known = tuple(classes)
    if not wanted:
        raise UserError("no critical class is named", hint="critical=NAME; known: " + ", ".join(known))
    for name in wanted:
        if name not in known:
            raise UserError(f"critical class {name!r} is not one of this data's classes", hint=did_you_mean(name, known))
        if wanted.count(name) > 1:
            raise UserError(f"critical class {name!r} is named twice", hint="name each critical class once")
    if len(wanted) == len(known):
        raise UserError(
            f"all {len(known)} classes are named critical, so there is nothing to tell them from",
            hint="name the classes whose misses cost most, and leave out at least one",
        )
    indices = tuple(place for place, name in enumerate(known) if name in wanted)
    return Critical(names=tuple(known[place] for place in indices), indices=indices, classes=known)


def named_classes(value: object, classes: Sequence[str]) -> tuple[str, ...]:
    """The names in an option's value: a class name, several in one text with commas between, or a list of names; () for none.

    A text that is itself a class name is that class, whatever commas it has; a number stands for the class of that name.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(str(name) for name in value)
    text = str(value)
    return (text,) if text in classes else tuple(part.strip() for part in text.split(","))


@dataclass(frozen=True)
class Rates:
    """What the decision score ≥ threshold gets wrong. A rate is None where its class is absent; `note` then says so.

    fnr = missed / positives, fpr = false alarms / negatives, accuracy = that of the two-way decision, auc = the area under
    the ROC curve over all thresholds (a tie counts half).
    """

    threshold: float
    fnr: float | None
    fpr: float | None
    auc: float | None
    accuracy: float
    positives: int
    negatives: int
    missed: int
    false_alarms: int
    note: str = ""


def rates(score: np.ndarray, positive: np.ndarray, threshold: float = 0.0) -> Rates:
    """The error rates of score ≥ threshold on samples of which `positive` (bool (N,)) are critical.

    A class without samples leaves its rate and the AUC None, with a note in words. Raises UserError for no samples at all,
    for scores that are not finite, and for a threshold that is not a number.
    """
    score, positive = checked(score, positive)
    if np.isnan(threshold):
        raise UserError("the decision threshold is not a number (NaN)", hint="0 is the argmax")
    decided = score >= threshold
    positives = int(positive.sum())
    negatives = len(positive) - positives
    missed = int((positive & ~decided).sum())
    false_alarms = int((~positive & decided).sum())
    absent = [word for word, count in (("critical", positives), ("other", negatives)) if not count]
    return Rates(
        threshold=float(threshold),
        fnr=missed / positives if positives else None,
        fpr=false_alarms / negatives if negatives else None,
        auc=None if absent else area_under_roc(score, positive),
        accuracy=1 - (missed + false_alarms) / len(score),
        positives=positives,
        negatives=negatives,
        missed=missed,
        false_alarms=false_alarms,
        note=f"no sample of the {absent[0]} classes among these {len(score)}: its error rate and the AUC are not defined"
        if absent
        else "",
    )


def area_under_roc(score: np.ndarray, positive: np.ndarray) -> float:
    """P(score of a positive > score of a negative) + ½ P(equal), over all pairs (Mann and Whitney 1947).

    Raises UserError when one of the two is absent.
    """
    score, positive = checked(score, positive)
    require_samples(positive, "these samples")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # 1-based; tied scores share their mean rank
    positives = int(positive.sum())
    excess = rank[place][positive].sum() - positives * (positives + 1) / 2
    return float(excess / (positives * (len(score) - positives)))


def threshold_for_fpr(score: np.ndarray, positive: np.ndarray, max_fpr: float, *, where: str = "validation") -> float:
    """The lowest threshold whose false-positive rate on these samples is ≤ max_fpr: with it, no lower FNR is possible.

    It lies halfway between two neighbouring scores (of either class), or `BEYOND` outside all of them; always finite.
    Raises UserError for max_fpr outside 0 … 1 and when the positives or the negatives are absent from `where`.
    """
    score, positive = checked(score, positive)
    _share("max_fpr", max_fpr)
    require_samples(positive, where)
    negative = np.sort(score[~positive])[::-1]
    allowed = _allowed(max_fpr, len(negative))
    if allowed == len(negative):
        return float(score.min() - BEYOND)
    return _above(score, negative[allowed])


def threshold_for_fnr(score: np.ndarray, positive: np.ndarray, max_fnr: float, *, where: str = "validation") -> float:
    """The highest threshold whose false-negative rate on these samples is ≤ max_fnr: with it, no lower FPR is possible.

    Placed as by `threshold_for_fpr`, with the same errors.
    """
    score, positive = checked(score, positive)
    _share("max_fnr", max_fnr)
    require_samples(positive, where)
    hits = np.sort(score[positive])
    allowed = _allowed(max_fnr, len(hits))
    if allowed == len(hits):
        return float(score.max() + BEYOND)
    lower = score[score < hits[allowed]]
    return _above(score, lower.max()) if lower.size else float(score.min() - BEYOND)


def require_samples(positive: np.ndarray, where: str, *, critical: Critical | None = None) -> None:
    """Nothing, when both sides have samples. Raises UserError that names the side (the classes, with `critical`) otherwise."""
    mask = np.asarray(positive, dtype=bool)
    if mask.any() and not mask.all():
        return
    side = "every other class" if mask.any() else "every critical class"
    if critical is not None:
        absent = [repr(name) for name in critical.classes if (name in critical.names) != bool(mask.any())]
        side = f"class {absent[0]}" if len(absent) == 1 else f"{side} ({', '.join(absent)})"
    raise UserError(
        f"{side} is absent from {where}, so misses and false alarms cannot be weighed against each other",
        hint="more samples: more data, a larger val_fraction, or no limit",
    )


def checked(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores as float64 (N,) and the positives as bool (N,). Raises UserError when empty, unlike long or not finite."""
    values = np.asarray(score, dtype=np.float64)
    mask = np.asarray(positive, dtype=bool)
    if values.ndim != 1 or values.shape != mask.shape:
        raise UserError(
            f"scores of shape {values.shape} and labels of shape {mask.shape} must be two equally long lists",
            hint="one score and one label per sample",
        )
    if not len(values):
        raise UserError("there is no sample to judge", hint="use a split that has samples")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(values)} scores are not finite (NaN or infinite)",
            hint="the network gives such outputs: look at its weights with `trimtab inspect`",
        )
    return values, mask


def _allowed(share: float, count: int) -> int:
    """The most errors of `count` whose rate is ≤ share, exact where share is itself a quotient k / count."""
    most = int(np.floor(share * count))
    return most + 1 if most < count and (most + 1) / count <= share else most


def _above(score: np.ndarray, floor: float) -> float:
    """Halfway between `floor` and the next higher score, never equal to `floor`; `BEYOND` above it where none is higher."""
    higher = score[score > floor]
    if not higher.size:
        return float(floor + BEYOND)
    following = float(higher.min())
    middle = float(floor) + (following - float(floor)) / 2
    return middle if middle > floor else following  # two neighbouring floats have no number between them


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value} must be in 0 … 1", hint=f"{name}=0.05 allows 5 %")
