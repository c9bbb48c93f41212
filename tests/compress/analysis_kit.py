"""A plausible analysis of any size, made without a network: for the tests of whatever reads one."""

from __future__ import annotations

import numpy as np

from trimtab.compress.analyse.analysis_record import FORMAT, AnalysisRecord, Info

KINDS = (
    ("gaussian_noise", "noise"),
    ("shot_noise", "noise"),
    ("impulse_noise", "noise"),
    ("gaussian_blur", "blur"),
    ("motion_blur", "blur"),
    ("brightness", "weather"),
    ("contrast", "digital"),
    ("pixelate", "digital"),
    ("jpeg", "digital"),
    ("rotate", "geometry"),
)


def synthetic_record(
    *,
    models: int = 3,
    corruptions: int = 4,
    samples: int = 200,
    classes: int = 4,
    severities: tuple[int, ...] = (1, 3, 5),
    images: int = 32,
    side: int = 28,
    channels: int = 1,
    seed: int = 0,
) -> AnalysisRecord:
    """Margins that fall with every model and with severity, by family; the other figures follow from them."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(corruptions)]
    kinds = [(name if i < len(KINDS) else f"{name} {i}", family) for i, (name, family) in enumerate(kinds)]
    targets = rng.integers(0, classes, samples).astype(np.int16)
    clean = rng.normal(1.5, 1.0, samples) - 0.25 * np.arange(models)[:, None] + rng.normal(0, 0.2, (models, samples))
    families = {family: rng.normal(0.4, 0.3, samples) for _, family in kinds}
    hit = np.stack([families[family] + rng.normal(0, 0.15, samples) for _, family in kinds])
    steps = np.asarray(severities) / 3
    margin = clean[:, None, None] - hit[None, :, None] * steps[None, None, :, None]  # (m, k, s, n)
    wrong = ((targets + rng.integers(1, max(classes, 2), samples)) % classes).astype(np.int16)
    right, kept = margin > 0, len(severities) // 2
    chosen = np.sort(rng.choice(samples, min(images, samples), replace=False)).astype(np.int32)
    confidence = np.clip(1 / (1 + np.exp(-np.abs(margin))), 1 / classes, 1)
    arrays = {
        "targets": targets,
        "clean_norm": (4 + np.abs(clean)).astype(np.float32),
        "clean_angle": np.clip(80 - 12 * clean, 0, 180).astype(np.float32),
        "clean_margin": clean.astype(np.float32),
        "clean_confidence": np.clip(1 / (1 + np.exp(-np.abs(clean))), 1 / classes, 1).astype(np.float32),
        "clean_predicted": np.where(clean > 0, targets, wrong).astype(np.int16),
        "norm": (4 + np.abs(margin[:, :, kept])).astype(np.float16),
        "angle": np.clip(80 - 12 * margin[:, :, kept], 0, 180).astype(np.float16),
        "margin": margin[:, :, kept].astype(np.float16),
        "confidence": confidence[:, :, kept].astype(np.float16),
        "predicted": np.where(right[:, :, kept], targets, wrong).astype(np.int16),
        "survived": (right & (clean > 0)[:, None, None]).sum(2).astype(np.uint8),
        "images": rng.integers(0, 256, (len(chosen), channels, side, side)).astype(np.uint8),
        "image_index": chosen,
    }
    return AnalysisRecord(_info(targets, clean, margin, kinds, severities, classes, seed), arrays)


def _info(targets, clean, margin, kinds, severities, classes, seed) -> Info:
    models = len(clean)
    names = ["dense", *(f"pruned {50 + 10 * i} %" for i in range(models - 1))]
    classes_ = [f"class {k}" for k in range(classes)]
    right, well = margin > 0, clean > 0
    shift = margin.mean(2) - clean[:, None]
    correlations = np.stack([np.atleast_2d(np.corrcoef(part)) for part in shift])
    fall = (margin.mean((1, 2))[0] - margin.mean((1, 2))[1:].mean(0)) if models > 1 else (clean - margin.mean((1, 2)))[0]
    order = np.argsort(-fall)[:20]

    def by_class(hits):
        return [float(hits[targets == k].mean()) if (targets == k).any() else None for k in range(classes)]

    return {
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "command": "trimtab analyze dense pruned --corruptions",
        "data": "synthetic",
        "data_id": f"synthetic-{seed}",
        "split": "test",
        "samples": len(targets),
        "classes": classes_,
        "models": [
            {
                "name": name,
                "hash": f"{i:064x}",
                "accuracy": float(well[i].mean()),
                "params": 12_000,
                "nonzero": 12_000 // (i + 1),
                "macs": 300_000,
            }
            for i, name in enumerate(names)
        ],
        "corruptions": [{"name": name, "family": family, "help": f"{name} of the {family} family"} for name, family in kinds],
        "severities": list(severities),
        "severity_kept": severities[len(severities) // 2],
        "accuracy": right.mean(3).tolist(),
        "clean_accuracy": well.mean(1).tolist(),
        "class_accuracy": {
            "clean": [by_class(part) for part in well],
            "corrupted": [[by_class(part) for part in model] for model in right.mean(2)],
        },
        "survival": [
            {
                "model": name,
                "corruption": kind,
                "n": int(well[i].sum()) * len(severities),
                "survived": int((right[i] & well[i]).sum() / (1 if kind == "all" else len(kinds))),
                "auc_margin": 0.90 - 0.01 * j,
                "auc_confidence": 0.88 - 0.01 * j,
                "auc_norm": 0.61,
                "auc_angle": 0.80,
                "difference": 0.02,
                "low": -0.005,
                "high": 0.045,
                "reason": "",
            }
            for i, name in enumerate(names)
            for j, kind in enumerate([*(name for name, _ in kinds), "all"])
        ],
        "redundancy": {
            "mean": correlations.mean(0).tolist(),
            "by_model": correlations.tolist(),
            "clusters": [[name for name, f in kinds if f == family] for family in dict.fromkeys(f for _, f in kinds)],
            "nearest": [name for name, _ in kinds[:2]],
        },
        "worst_classes": [
            {
                "index": k,
                "name": classes_[k],
                "model": names[-1],
                "benchmark": benchmark,
                "against": names[0] if models > 1 else "clean",
                "n": int((targets == k).sum()),
                "before": 0.9,
                "after": 0.8 - 0.02 * k,
                "fall": 0.1 + 0.02 * k,
            }
            for k in reversed(range(classes))
            for benchmark in ("clean", kinds[0][0])
        ],
        "worst_samples": [
            {
                "index": int(i),
                "target": int(targets[i]),
                "fall": float(fall[i]),
                "before": float(margin.mean((1, 2))[0][i]),
                "by_model": [float(v) for v in margin.mean((1, 2))[0][i] - margin.mean((1, 2))[:, i]],
                "against": names[0] if models > 1 else "clean",
            }
            for i in order
        ],
        "versions": {"trimtab": "0", "torch": "0"},
        "seed": seed,
    }
