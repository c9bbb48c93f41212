"""Several processes of one run (`accelerate launch`, `torchrun`): one of them writes, the others wait for it."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes this run has; 1 when it was started plainly."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True in the process that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """None, once every process of the run has come here."""
    if count() > 1:
        import torch.distributed as dist
        from accelerate import PartialState

        if not dist.is_initialized():
            PartialState()  # joins the processes over the backend that fits the machine
        dist.barrier()
