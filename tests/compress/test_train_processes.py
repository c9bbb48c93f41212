"""Two processes through torch's launcher (`accelerate launch` starts several on GPUs alone): one run, one result, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_kit import CONFIG, make_net, make_task, train, weights

torch.set_num_threads(1)

SCRIPT = """
import faulthandler
faulthandler.dump_traceback_later(100, exit=True)
import json, os, sys
from pathlib import Path
import torch
from training_kit import CONFIG, make_net, make_task, train, weights
from trimtab.compress import checkpointing

out = Path(sys.argv[1])
rank = os.environ["RANK"]
written = []
write = checkpointing.write_bytes
checkpointing.write_bytes = lambda path, data: (written.append(path.name), write(path, data))[1]
config = CONFIG.model_copy(update={"augment": False, "checkpoint_s": 0, "evaluate_every": 1})
net, history = train(out / "work", config, net=make_net(dropout=0.0))
torch.save(weights(net), out / f"weights{rank}.pt")
summary = {"written": len(written), "history": history.as_dict()}
(out / f"summary{rank}.json").write_text(json.dumps(summary))
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_one_of_them_writes(tmp_path):
    """Gloo on the CPU. Against one process: only batch norm differs (statistics of half a batch), so the loss curve is close
    (within 10 %) and the data order, epochs and steps are the same."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    main, other = (json.loads((tmp_path / f"summary{rank}.json").read_text()) for rank in (0, 1))
    assert (main["written"], other["written"]) == (12, 0)
    assert main["history"]["runtime"]["processes"] == 2
    assert [e["val"] for e in main["history"]["epochs"]] == [e["val"] for e in other["history"]["epochs"]]
    assert [e["train_loss"] for e in main["history"]["epochs"]] == [e["train_loss"] for e in other["history"]["epochs"]]
    config = CONFIG.model_copy(update={"augment": False, "evaluate_every": 1})
    alone, history = train(tmp_path / "alone", config, net=make_net(dropout=0.0), task=make_task())
    for mine, its in zip(history.epochs, main["history"]["epochs"], strict=True):
        assert its["train_loss"] == pytest.approx(mine.train_loss, rel=0.1)
    assert set(weights(alone)) == set(first)
