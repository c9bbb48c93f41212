"""The step anomaly-fit and the networks that it fits, against scikit-learn's own estimators on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from trimtab.compress.anomaly_fit import AnomalyFitConfig, fitting_contract
from trimtab.compress.apply import run_recipe
from trimtab.compress.recipe import parse_recipe
from trimtab.export.convert import convert, module_source
from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet
from trimtab.models.bundle import Manifest, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture
from trimtab.models.tasks.anomaly import anomaly, anomaly_contract
from trimtab.models.zoo.gaussian_ad import gaussian
from trimtab.models.zoo.memory_bank import coreset

SIDE = 32
STAGES = (0, 1, 2)
BACKBONE = {"backbone": "resnet8", "backbone_args": {"num_classes": 10}, "stages": STAGES, "image_size": SIDE}


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return FeatureNet("resnet8", stages=STAGES, kwargs={"num_classes": 10}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def normal():
    return torch.rand(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def probe():
    return torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) ** 2


def fit(name, features, normal, *, seed=0, options=None, batch=7, **kwargs):
    net = architectures.get(name)(**BACKBONE, **kwargs)
    return net.fitted(features, lambda: normal.split(batch), size=(SIDE, SIDE), seed=seed, options=options or {})


def pooled(features, pictures):
    with torch.no_grad():
        return [found.mean((2, 3)).double().numpy() for found in features(pictures)]


class TestGaussian:
    def test_the_score_is_the_sum_of_ledoit_wolf_mahalanobis_distances(self, features, normal, probe):
        found = fit("gaussian_ad", features, normal)
        with torch.no_grad():
            output = found.module(probe)
        wanted = sum(
            np.sqrt(LedoitWolf().fit(a).mahalanobis(b))
            for a, b in zip(pooled(features, normal), pooled(features, probe), strict=True)
        )
        # float32 matrices of condition below 1e4 and features of size 1: four of seven digits are left, at the worst
        np.testing.assert_allclose(output.score[:, 0], wanted, rtol=1e-3)
        assert output.map.shape == (5, 1, 1, 1)
        assert torch.equal(output.map[:, :, 0, 0], output.score)
        assert found.kwargs["components"] == []

    @pytest.mark.parametrize(("reduction", "kept"), [("pca", slice(0, 3)), ("npca", slice(1, None))])
    def test_pca_keeps_the_head_and_npca_the_tail(self, reduction, kept):
        """Variances 8, 4, 2, 1, 1: the share first exceeds 0.8 at j = 2; PCA keeps 0 … 2, NPCA 1 … 4 (published: from j − 1)."""
        rng = np.random.default_rng(0)
        scores = rng.normal(size=(4000, 5)) * np.sqrt([8, 4, 2, 1, 1])
        turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
        data = scores @ turn.T + 3
        mean, whiten = gaussian(data, reduction=reduction, variance=0.8)
        directions = PCA(svd_solver="full").fit(data).components_[kept]
        inside = (data - data.mean(0)) @ directions.T
        wanted = directions.T @ np.linalg.inv(LedoitWolf().fit(inside).covariance_) @ directions
        np.testing.assert_allclose(mean, data.mean(0))
        np.testing.assert_allclose(whiten.T @ whiten, wanted, rtol=1e-6, atol=1e-9)  # float64; two solvers of one eigenproblem
        assert len(whiten) == len(directions)

    def test_the_kept_directions_become_the_architecture(self, features, normal, probe):
        found = fit("gaussian_ad", features, normal, options={"reduction": "pca", "variance": 0.5})
        rows = [len(found.module.get_buffer(f"whiten_{i}")) for i in range(len(STAGES))]
        assert found.kwargs["components"] == rows
        assert any(row < channels for row, channels in zip(rows, features.channels, strict=True))
        again = architectures.get("gaussian_ad")(**found.kwargs)
        again.load_state_dict(found.module.state_dict())
        assert torch.equal(again.eval()(probe).score, found.module(probe).score)

    def test_fewer_pictures_than_channels(self, features, normal, probe):
        """The shrunk covariance has an inverse all the same."""
        few = fit("gaussian_ad", features, normal[:4])
        assert torch.isfinite(few.module(probe).score).all()

    def test_per_position_by_numpy(self, features, normal, probe):
        found = fit("gaussian_ad", features, normal, per_position=True, smooth=1, options={"epsilon": 0.05})
        with torch.no_grad():
            learned, seen, output = features(normal), features(probe), found.module(probe)
        total = np.zeros((5, SIDE, SIDE))
        for a, b in zip(learned, seen, strict=True):
            x, y = a.double().numpy(), b.double().numpy()
            part = ((y - x.mean(0)) ** 2 / (x.var(0, ddof=1) + 0.05)).sum(1)
            total += F.interpolate(torch.from_numpy(part)[:, None], (SIDE, SIDE), mode="bilinear")[:, 0].numpy()
        np.testing.assert_allclose(output.map[:, 0], np.sqrt(total), rtol=1e-4)  # float32 against float64
        assert torch.equal(output.score, output.map.amax((2, 3)))

    def test_smoothing_is_the_mean_of_the_neighbours(self, features, normal, probe):
        sharp, soft = (fit("gaussian_ad", features, normal, per_position=True, smooth=s).module(probe).map for s in (1, 3))
        torch.testing.assert_close(soft[:, 0, 5, 7], sharp[:, 0, 4:7, 6:9].mean((1, 2)))
        torch.testing.assert_close(soft[:, 0, 0, 0], sharp[:, 0, :2, :2].mean((1, 2)))

    def test_refusals(self, features, normal):
        with pytest.raises(UserError, match="has no sampling"):
            fit("gaussian_ad", features, normal, options={"sampling": "random"})
        with pytest.raises(UserError, match="1 normal picture"):
            fit("gaussian_ad", features, normal[:1])
        with pytest.raises(UserError, match="1 normal picture"):
            fit("gaussian_ad", features, normal[:1], per_position=True)
        with pytest.raises(UserError, match="the same for all 6"):
            fit("gaussian_ad", features, normal[:1].expand(6, -1, -1, -1))
        for wrong, said in (
            ({"components": (1,)}, "components="),
            ({"smooth": 2}, "smooth=2"),
            ({"image_size": 16}, "image_size=16"),
        ):
            with pytest.raises(UserError, match=said):
                architectures.get("gaussian_ad")(**{**BACKBONE, **wrong})
        with pytest.raises(UserError, match="per_position"):
            architectures.get("gaussian_ad")(**BACKBONE, per_position=True, components=(1, 1, 1))


class TestBank:
    def patches(self, features, pictures):
        """(N, P, C) float64 by the definition: 3×3 means over what there is, joined at the shallowest size."""
        with torch.no_grad():
            maps = [F.avg_pool2d(m, 3, 1, 1, count_include_pad=False) for m in features(pictures)]
        joined = torch.cat([F.interpolate(m, maps[0].shape[2:], mode="bilinear", align_corners=False) for m in maps], 1)
        return joined.flatten(2).transpose(1, 2).double().numpy()

    @pytest.mark.parametrize("neighbours", [1, 3])
    def test_distances_are_those_of_the_nearest_neighbours(self, features, normal, probe, neighbours):
        found = fit("memory_bank", features, normal, bank_size=50, neighbours=neighbours)
        bank = (found.module.bank.flatten(1) + found.module.centre.flatten()).double().numpy()
        own = self.patches(features, normal).reshape(-1, bank.shape[1])
        assert NearestNeighbors(n_neighbors=1).fit(own).kneighbors(bank)[0].max() < 1e-4  # the memories are normal patches
        seen = self.patches(features, probe)
        wanted = NearestNeighbors(n_neighbors=neighbours).fit(bank).kneighbors(seen.reshape(-1, bank.shape[1]))[0].mean(1)
        with torch.no_grad():
            output = found.module(probe)
        # squares of float32 that cancel: sqrt(1e-7 · |patch|²) with |patch| about 10
        np.testing.assert_allclose(output.map.flatten(), wanted, rtol=1e-3, atol=5e-3)
        assert torch.equal(output.score, output.map.amax((2, 3)))

    def test_coreset_is_greedy_k_centre(self):
        points = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        chosen = coreset(points, 12, rng=np.random.default_rng(1))
        assert len(set(chosen.tolist())) == 12
        for i in range(1, 12):
            near = np.linalg.norm(points[:, None] - points[chosen[:i]][None], axis=2).min(1)
            assert near[chosen[i]] == pytest.approx(near.max(), rel=1e-5)

    def test_coreset_of_equal_points_takes_none_twice(self):
        assert sorted(coreset(np.ones((6, 2)), 6, rng=np.random.default_rng(0)).tolist()) == list(range(6))

    def test_coreset_covers_better_than_chance(self, features, normal):
        every = self.patches(features, normal).reshape(-1, sum(features.channels))
        far = {}
        for sampling in ("coreset", "random"):
            module = fit("memory_bank", features, normal, bank_size=30, options={"sampling": sampling}).module
            bank = (module.bank.flatten(1) + module.centre.flatten()).double().numpy()
            far[sampling] = NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(every)[0].max()
        assert far["coreset"] < far["random"]

    def test_reweighting_is_equation_7(self, features, normal, probe):
        plain, weighted = (fit("memory_bank", features, normal, bank_size=40, reweight=b).module for b in (0, 4))
        bank = (plain.bank.flatten(1) + plain.centre.flatten()).double().numpy()
        with torch.no_grad():
            before, after = plain(probe), weighted(probe)
        for i, patches in enumerate(self.patches(features, probe)):
            oddest = patches[int(before.map[i].flatten().argmax())]
            to_bank = np.linalg.norm(bank - oddest, axis=1)
            m = bank[to_bank.argmin()]
            around = np.argsort(np.linalg.norm(bank - m, axis=1))[:4]
            weight = 1 - np.exp(to_bank.min()) / np.exp(to_bank[around]).sum()
            np.testing.assert_allclose(after.map[i], before.map[i] * weight, rtol=5e-3)  # exponentials of float32 distances
        assert not torch.allclose(before.score, after.score)

    def test_a_bank_larger_than_the_data_shrinks_with_a_note(self, features, normal):
        found = fit("memory_bank", features, normal, bank_size=100, options={"candidates": 20})
        assert found.kwargs["bank_size"] == len(found.module.bank) == 20
        assert "20 patches in place of 100" in found.notes[0]

    def test_the_seed_draws_and_the_batch_size_does_not(self, features, normal):
        banks = [
            fit("memory_bank", features, normal, bank_size=20, seed=seed, batch=batch, options={"candidates": 500}).module.bank
            for seed, batch in ((0, 7), (0, 40), (1, 7))
        ]
        torch.testing.assert_close(banks[0], banks[1], rtol=1e-4, atol=1e-5)  # convolutions sum in another order
        assert not torch.allclose(banks[0], banks[2])

    @pytest.mark.parametrize("wrong", [{"bank_size": 0}, {"bank_size": 5, "neighbours": 6}, {"reweight": -1}])
    def test_refusals(self, wrong):
        with pytest.raises(UserError, match="bank_size="):
            architectures.get("memory_bank")(**BACKBONE, **wrong)

    def test_unknown_options(self, features, normal):
        with pytest.raises(UserError, match="memory_bank has no reduction"):
            fit("memory_bank", features, normal, options={"reduction": "pca"})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("gaussian_ad", {}),
        ("gaussian_ad", {"per_position": True}),
        ("memory_bank", {}),
        ("memory_bank", {"neighbours": 2, "reweight": 3}),
    ],
)
def test_exported_files_compute_the_same(name, kwargs, features, normal, tmp_path):
    """ONNX and TFLite, map and score, within the project's own gate of 90 dB."""
    extra = {"bank_size": 12} if name == "memory_bank" else {}
    module = fit(name, features, normal, **kwargs, **extra).module
    contract = fitting_contract(module, anomaly_contract(SIDE, SIDE))
    made = convert(module_source(module, contract, label=name), [("onnx", "fp32"), ("tflite", "fp32")], tmp_path)
    assert [(one.ok, one.artifact.parity.sqnr_db > 90) for one in made] == [(True, True)] * 2


class TestStep:
    @pytest.fixture(scope="class")
    def task(self):
        return anomaly(data="scenes", counts=(16, 6, 12), size=(SIDE, SIDE))

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory):
        torch.manual_seed(3)
        path = tmp_path_factory.mktemp("weights") / "resnet8.pt"
        torch.save(architectures.get("resnet8")(num_classes=10).state_dict(), path)
        return path

    def bundle(self, folder, task, name="memory_bank", **kwargs):
        architecture = Architecture(name=name, kwargs={**BACKBONE, **kwargs})
        return save_bundle(folder, architecture.build(), Manifest(architecture=architecture, contract=task.contract))

    def run(self, bundle, task, folder, **config):
        steps = parse_recipe({"format": 1, "seed": 0, "step": [{"kind": "anomaly-fit", **config}]}, origin="test")
        return run_recipe(bundle, steps, task, folder, device="cpu")[0]

    def test_a_bundle_with_the_backbones_weights_and_its_map_size(self, task, checkpoint, tmp_path):
        done = self.run(
            self.bundle(tmp_path / "in", task, bank_size=64), task, tmp_path / "w", backbone=f"resnet8:{checkpoint}"
        )
        assert done.bundle.contract.outputs[0].shape == ("N", 1, SIDE, SIDE)
        state = torch.load(checkpoint)
        first = done.bundle.module().features.body[0][0].weight
        assert torch.equal(first, state["conv1.weight"])
        assert len(done.figures["weights_sha256"]) == 64
        module = done.bundle.module().eval()
        figures = task.evaluate(lambda x: module(x).map)
        assert {"auroc", "pixel_auroc", "au_pro", "auroc_logical", "tpr"} <= set(figures)
        assert figures["threshold"] == pytest.approx(done.figures["val_threshold"], rel=1e-5)

    def test_other_stages_and_another_backbone_are_written_down(self, task, checkpoint, tmp_path):
        start = self.bundle(tmp_path / "in", task, name="gaussian_ad")
        done = self.run(start, task, tmp_path / "w", backbone=f"resnet8:{checkpoint}", stages=[1])
        assert done.bundle.manifest.architecture.kwargs["stages"] == [1]
        assert done.bundle.contract.outputs[0].shape == ("N", 1, 1, 1)

    def test_the_weights_file_is_an_input_of_the_step(self, checkpoint):
        assert AnomalyFitConfig(backbone=f"resnet8:{checkpoint}").files() == (str(checkpoint),)
        assert AnomalyFitConfig(backbone="efficientnet_lite0").files() == ()

    def test_refusals(self, task, checkpoint, tmp_path, tiny_npz):
        from trimtab.loading import open_task

        start = self.bundle(tmp_path / "in", task)
        with pytest.raises(UserError, match="no weights are known for the backbone 'resnet8'"):
            self.run(start, task, tmp_path / "a")
        with pytest.raises(UserError, match="has the task classification"):
            self.run(start, open_task("classification", {"data": f"npz:{tiny_npz}"}), tmp_path / "b")
        with pytest.raises(UserError, match="memory_bank has no epsilon"):
            self.run(start, task, tmp_path / "c", backbone=f"resnet8:{checkpoint}", epsilon=0.1)
        plain = Architecture(name="resnet8", kwargs={"num_classes": 10})
        other = save_bundle(tmp_path / "other", plain.build(), Manifest(architecture=plain, contract=task.contract))
        with pytest.raises(UserError, match=r"cannot fit ResNet[\s\S]*efficientad"):
            self.run(other, task, tmp_path / "d")
