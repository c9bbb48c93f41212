"""What every test starts from: one thread, a private configuration folder, and a network of the user's own."""

import logging
import os
import sys
from pathlib import Path

import pytest

sys.modules.setdefault("openvino_telemetry", None)  # importing openvino reports its use; the suite tells nobody
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # so does importing onnxruntime

USER_NET = Path(__file__).parent / "user_net.py"


@pytest.fixture(autouse=True)
def _private_config(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setenv("TRIMTAB_LOCKS", str(tmp_path_factory.getbasetemp() / "locks"))  # workers beside each other don't wait


def _heard():
    root, ours = logging.getLogger(), logging.getLogger("trimtab")
    return root.level, root.filters[:], root.manager.disable, ours.level, ours.propagate, ours.disabled


@pytest.fixture(autouse=True)
def _later_warnings_are_heard():
    """Libraries silence the whole process in passing; a test that lets one do so would take the warnings from those after it."""
    before = _heard()
    yield
    assert _heard() == before


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch = sys.modules.get("torch")
    if torch is None:
        import torch
    torch.set_num_threads(1)


@pytest.fixture
def user_net():
    """The path of the user's file, as passed to --model."""
    return USER_NET


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory):
    """A learnable 3×16×16 data set of 10 classes, as an npz: class c has a bright square at place c, plus noise."""
    import numpy as np

    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 10
        images = rng.integers(0, 90, (n, 16, 16, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[row * 5 : row * 5 + 4, column * 4 : column * 4 + 4, label % 3] = 255
        return images, labels

    (x_train, y_train), (x_test, y_test) = split(400), split(100)
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path
