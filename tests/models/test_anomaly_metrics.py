"""AUROC, AU-PRO and thresholds against direct formulas: every region and every threshold by itself, in Python loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trimtab.models.errors import UserError
from trimtab.models.tasks.anomaly_metrics import (
    au_pro,
    image_figures,
    operating_point,
    pixel_curve,
    pixel_figures,
    threshold_at,
)

RNG = np.random.default_rng(3)


def scene(count=5, side=12):
    """Maps and masks: two regions in some pictures (one touches itself by a corner only), none in one."""
    masks = np.zeros((count, side, side), dtype=np.uint8)
    for mask in masks[1:]:
        r, c = RNG.integers(0, side - 5, 2)
        mask[r : r + 2, c : c + 3] = 1
        mask[r + 2, c + 3] = 1  # joined over a corner
    masks[2, -1, -1] = 1
    maps = RNG.normal(size=masks.shape).astype(np.float32) + masks
    return np.round(maps, 1), masks  # rounded: values that tie


def regions_by_hand(mask):
    """Sets of (row, column), grown from each pixel over its eight neighbours."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    found = []
    while left:
        grown, edge = set(), [left.pop()]
        while edge:
            r, c = edge.pop()
            grown.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(grown)
    return found


def slow_au_pro(maps, masks, limit=0.3):
    """The definition: at every threshold, overlap of each region and share of normal pixels; trapezia up to the limit."""
    thresholds = sorted(set(maps.ravel().tolist()), reverse=True)
    parts = [[(m, s) for s in regions_by_hand(k)] for m, k in zip(maps, masks, strict=True)]
    points = [(0.0, 0.0)]
    for t in thresholds:
        overlap = [np.mean([m[p] >= t for p in s]) for pairs in parts for m, s in pairs]
        points.append((float((maps[masks == 0] >= t).mean()), float(np.mean(overlap))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


class TestPixels:
    def test_au_pro_and_pixel_auroc_by_definition(self):
        maps, masks = scene()
        figures = pixel_figures(maps, masks)
        assert figures["au_pro"] == pytest.approx(slow_au_pro(maps, masks), abs=1e-12)  # float64 sums of some hundred terms
        assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)

    def test_perfect_and_useless_maps(self):
        _, masks = scene()
        assert pixel_figures(masks.astype(np.float32), masks) == pytest.approx({"pixel_auroc": 1, "au_pro": 1}, abs=1e-12)
        flat = pixel_figures(np.zeros(masks.shape, np.float32), masks)
        # one threshold: the curves are the diagonal, whose area up to 0.3 is 0.3²/2
        assert flat["pixel_auroc"] == pytest.approx(0.5, abs=1e-12)
        assert flat["au_pro"] == pytest.approx(0.15, abs=1e-12)

    def test_many_pixels_take_levels_and_stay_near(self):
        """With 400 thresholds in place of thousands a curve moves by less than two of its steps of 1/400."""
        masks = np.zeros((6, 32, 32), dtype=np.uint8)
        masks[:3, 4:12, 4:20] = 1
        maps = RNG.normal(size=masks.shape).astype(np.float32) + 1.5 * masks
        exact, rough = pixel_curve(maps, masks), pixel_curve(maps, masks, exact_pixels=10, levels=400)
        assert len(rough.fpr) <= 401 < len(exact.fpr)
        assert abs(au_pro(exact.fpr, exact.pro) - au_pro(rough.fpr, rough.pro)) < 2 / 400
        assert abs(np.trapezoid(exact.tpr, exact.fpr) - np.trapezoid(rough.tpr, rough.fpr)) < 2 / 400
        assert rough.fpr[-1] == rough.tpr[-1] == pytest.approx(1)

    def test_maps_are_enlarged_bilinearly_over_blocks(self):
        import torch
        from torch.nn import functional as F

        small = RNG.normal(size=(70, 3, 4)).astype(np.float32)  # more than one block of 64
        masks = (RNG.random((70, 12, 16)) > 0.9).astype(np.uint8)
        large = F.interpolate(torch.from_numpy(small)[:, None], (12, 16), mode="bilinear", align_corners=False)[:, 0].numpy()
        assert pixel_figures(small, masks) == pytest.approx(pixel_figures(large, masks), abs=1e-12)
        assert pixel_figures(small, masks)["pixel_auroc"] == pytest.approx(
            roc_auc_score(masks.ravel(), large.ravel()), abs=1e-12
        )

    def test_nothing_masked_gives_nothing(self):
        assert pixel_figures(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)) == {}

    def test_a_curve_is_cut_at_the_limit(self):
        fpr, pro = np.array([0, 0.2, 0.4, 1.0]), np.array([0, 0.5, 0.9, 1.0])
        # 0.2·0.25 + 0.1·(0.5 + 0.7)/2
        assert au_pro(fpr, pro) == pytest.approx((0.05 + 0.06) / 0.3)


class TestPictures:
    def test_kinds_and_groups_are_each_against_all_normals(self):
        kinds = np.array(["good"] * 6 + ["dent"] * 3 + ["swap"] * 2 + ["gone"] * 2)
        targets = (kinds != "good").astype(int)
        scores = RNG.normal(size=13)
        found = image_figures(scores, targets, kinds, {"swap": "logical", "gone": "logical"})
        assert set(found) == {"auroc", "ap", "auroc_dent", "auroc_swap", "auroc_gone", "auroc_logical"}
        logical = np.isin(kinds, ["good", "swap", "gone"])
        assert found["auroc_logical"] == pytest.approx(roc_auc_score(targets[logical], scores[logical]))
        pairs = [np.mean(s > scores[:6]) for s in scores[6:9]]  # the definition of AUROC without ties
        assert found["auroc_dent"] == pytest.approx(np.mean(pairs))

    def test_one_kind_alone_is_not_repeated(self):
        found = image_figures(np.array([0.0, 1.0]), np.array([0, 1]), np.array(["good", "dent"]), {})
        assert found == {"auroc": 1.0, "ap": 1.0}

    @pytest.mark.parametrize(("target", "word"), [(0, "normal"), (1, "anomalous")])
    def test_one_side_alone_is_refused(self, target, word):
        with pytest.raises(UserError, match=f"all 3 pictures are {word}"):
            image_figures(np.arange(3.0), np.full(3, target), np.array(["good"] * 3), {})


class TestThreshold:
    @pytest.mark.parametrize(("fpr", "above"), [(0.01, 0), (0.1, 1), (0.25, 2), (0.3, 3)])
    def test_at_most_the_share_lies_above_and_no_lower_threshold_does(self, fpr, above):
        scores = RNG.permutation(10).astype(float)
        threshold = threshold_at(scores, fpr)
        assert (scores > threshold).sum() == above
        assert (scores >= threshold).sum() == above + 1

    def test_ties_stay_below(self):
        assert threshold_at(np.ones(10), 0.5) == 1.0

    def test_rates(self):
        found = operating_point(np.array([0.1, 0.9, 0.5, 0.8]), np.array([0, 0, 1, 1]), 0.5)
        assert found == {"tpr": 0.5, "fpr": 0.5, "threshold": 0.5}
