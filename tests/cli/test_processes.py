import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_two_processes_train_and_prune_into_one_bundle(tiny_npz, tmp_path):
    """torch's launcher over the whole command: one writer, one voice, one Bundle."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "-m",
        "trimtab",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    train = [
        "train",
        "resnet8",
        "--data",
        f"npz:{tiny_npz}",
        "--set",
        "epochs=2",
        "--set",
        "batch_size=40",
        "--set",
        "amp=off",
        "-o",
        str(tmp_path / "a"),
    ]
    (tmp_path / "r.toml").write_text(
        'format = 1\n[[step]]\nkind = "structured"\nmac_ratio = 0.6\n[[step]]\nkind = "finetune"\nepochs = 1\namp = "off"\n'
    )
    compress = ["compress", str(tmp_path / "a"), "--recipe", str(tmp_path / "r.toml"), "-o", str(tmp_path / "b")]
    for command in (train, compress):
        done = subprocess.run([*launch, *command], env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("Bundle: ") == 1
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["metrics"]["accuracy"] >= 0
