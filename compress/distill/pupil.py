"""The student as the engine trains it: with the heads that its terms need, and an averaged copy when that is its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .taps import LOGITS, Taps
from .term import Term


class Pupil(nn.Module):
    """Training: {"taps": student's signals, "heads": what each head made of them}. Eval: the student's output alone.

    Heads and the averaged copy are part of the state, so a checkpoint of the pupil resumes them; only `student` leaves the run.
    """

    def __init__(self, student: nn.Module, terms: Sequence[Term], taps: Taps, *, average: AveragedModel | None = None) -> None:
        super().__init__()
        self.student = student
        self.heads = nn.ModuleDict({str(i): term.head for i, term in enumerate(terms) if term.head is not None})
        self.average = average
        self.taps = taps
        self._wanted = {str(i): term.student for i, term in enumerate(terms)}

    def train(self, mode: bool = True) -> Pupil:
        """The pupil in that mode; the averaged copy always judges in eval mode."""
        super().train(mode)
        if self.average is not None:
            self.average.train(False)
        return self

    def forward(self, inputs: Tensor) -> Any:
        """See the class. The averaged copy is brought up to date first: it follows the student one step behind."""
        if not self.training:
            return self.student(inputs)
        if self.average is not None:
            with torch.no_grad():
                self.average.update_parameters(self.student)
        with self.taps.recording():
            values = self.taps.take(self.student(inputs))
        heads = {name: head({tap: values[tap] for tap in self._wanted[name]}) for name, head in self.heads.items()}
        return {"taps": values, "heads": heads}


def averaged(student: nn.Module, decay: float) -> AveragedModel:
    """A frozen copy of `student` that follows it as an exponential moving average, buffers included.

    Source: Tarvainen & Valpola, "Mean teachers are better role models" (2017).
    """
    copy = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    copy.requires_grad_(False)
    return copy


def student_taps(terms: Sequence[Term]) -> tuple[str, ...]:
    """Every tap that a term reads, the logits first: the label loss wants them."""
    return tuple(dict.fromkeys([LOGITS, *(tap for term in terms for tap in term.student)]))
