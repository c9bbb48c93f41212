"""What terms may ask while they are built, and the teachers they name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ..evaluation import evaluate
from ..sampling import chosen_positions
from .cache import SignalCache, SignalTable, cache_key
from .taps import EMBEDDING, LOGITS, find_classifier, module_at, shape_of
from .teacher import TappedTeacher, Teacher, chance_note, check_classes, find_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ...models.bundle import Bundle
    from ...models.tasks.task import Task
    from ..loop import TrainBatch
    from ..method import Context
    from ..runtime import Runtime
    from .method import DistillConfig
    from .term import Term

log = logging.getLogger("trimtab")
EMA = "ema"


class RunSetup:
    """The run as its terms see it: shapes of signals, the student's modules, and teachers' signals over the training split."""

    def __init__(self, student: nn.Module, task: Task, config: DistillConfig, context: Context, runtime: Runtime) -> None:
        self.student, self.task, self.config, self.context, self.runtime = student, task, config, context, runtime
        self.seed = context.seed
        self.notes: list[str] = []
        self.figures: dict[str, dict[str, float]] = {}
        self.cache = "off"
        self._teachers: dict[str, tuple[Teacher, Bundle]] = {}
        samples = task.samples("train")
        if len(samples) == 0:
            raise UserError(
                f"the training split of {task.data!r} is empty", hint="check the data set's path and how it is split"
            )
        raw = samples.__getitems__([0]).to(runtime.device)
        self._example = runtime.layout(task.inputs(raw))
        self._positions = chosen_positions(len(samples), config.max_train, context.seed)

    # ------------------------------------------------------------ the student

    def classifier_path(self) -> str:
        """The path of the student's last layer."""
        if not self.config.classifier:
            return find_classifier(self.student, self._example, whose="student", key="classifier")
        self.student_module(self.config.classifier)
        return self.config.classifier

    def classifier(self) -> nn.Module:
        """The student's last layer."""
        return self.student_module(self.classifier_path())

    def student_module(self, path: str) -> nn.Module:
        """A module of the student. Raises UserError with a did-you-mean."""
        from ...models.bundle import bare

        return module_at(bare(self.student), path, whose="student")

    def student_map(self, given: str) -> str:
        """The path of the student's last feature map, or `given`. Raises UserError for a module that returns none."""
        from ..feature_map import feature_map

        return feature_map(self.student, self._example, given, key="features")

    def student_shape(self, tap: str) -> tuple[int, ...]:
        """The shape of a student's tap without its batch dimension."""
        classifier = self.classifier_path() if tap == EMBEDDING else ""
        return shape_of(self.student, tap, self._example, whose="student", classifier=classifier)

    # ------------------------------------------------------------ teachers

    def teacher(self, which: str = "") -> tuple[Teacher, Bundle]:
        """A teacher on the run's device, and the Bundle it came from."""
        which = which or self.config.teacher
        if which == EMA:
            raise UserError(
                "the moving average of the student has no signals before training starts",
                hint="name a trained teacher for this term, or take an objective on logits",
            )
        if which not in self._teachers:
            bundle = find_teacher(which, self.context)
            teacher = Teacher(bundle.module(), theirs=bundle.contract, ours=self.task.contract)
            self.runtime.place(teacher)
            self._teachers[which] = teacher, bundle
        return self._teachers[which]

    def teacher_shape(self, tap: str, which: str = "") -> tuple[int, ...]:
        """The shape of a teacher's tap without its batch dimension (the average of the student: the student's)."""
        if (which or self.config.teacher) == EMA:
            return self.student_shape(tap)
        teacher, _ = self.teacher(which)
        self._resolve(teacher, (tap,))
        live = teacher.tapped((tap,))
        try:
            return tuple(live(self._example, self.runtime)[tap].shape[1:])
        finally:
            live.remove()

    def teacher_module(self, path: str, which: str = "") -> nn.Module:
        """A module of a teacher (of the average: the student's, which it is a copy of). Raises UserError with a did-you-mean."""
        from ...models.bundle import bare

        if (which or self.config.teacher) == EMA:
            return self.student_module(path)
        teacher, _ = self.teacher(which)
        return module_at(bare(teacher.network), path, whose="teacher")

    def training_signal(self, tap: str, which: str = "") -> Tensor:
        """A teacher's tap over the training split, clean views, (n, …) float32: row i = positions()[i]. One pass, kept on disk
        and read from there: large signals are mapped into memory, not copied."""
        wanted = (tap, LOGITS) if self.config.cache_teacher and tap != LOGITS else (tap,)
        values = self._tables(wanted, which)[tap].values
        return values if values.dtype == torch.float32 else values.float()

    def positions(self) -> Tensor:
        """The positions in the training split that the run trains on, int64 (n,)."""
        return self._positions

    def training_targets(self) -> Tensor:
        """The targets of positions(), as the task stores them."""
        samples, rows = self.task.samples("train"), self._positions.tolist()
        targets = getattr(samples, "targets", None)
        if targets is not None:
            return torch.as_tensor(targets)[self._positions]
        parts = [samples.__getitems__(rows[i : i + 256]).targets for i in range(0, len(rows), 256)]
        return torch.cat(parts)

    # ------------------------------------------------------------ during the run

    def sources(
        self, terms: Sequence[Term], average: nn.Module | None
    ) -> dict[str, Callable[[TrainBatch], Mapping[str, Tensor]]]:
        """For every teacher that a term needs: (batch) → its signals, from the cache or live."""
        wanted: dict[str, dict[str, None]] = {}
        for term in terms:
            for need in term.teachers:
                live = (need.which or self.config.teacher) == EMA
                if term.same_view and self.config.cache_teacher and self.config.augment and not live:
                    raise UserError(
                        "cache_teacher keeps what the teacher sees in clean views, and a term compares it with augmented targets",
                        hint="set cache_teacher = false, or augment = false",
                    )
                wanted.setdefault(need.which or self.config.teacher, {}).update(dict.fromkeys(need.taps))
        return {which: self._source(which, tuple(taps), average) for which, taps in wanted.items()}

    def _source(
        self, which: str, taps: tuple[str, ...], average: nn.Module | None
    ) -> Callable[[TrainBatch], Mapping[str, Tensor]]:
        if which == EMA:
            if average is None:
                raise RuntimeError("a term follows the average, and there is none")
            classifier = self.classifier_path() if EMBEDDING in taps else ""
            follower = TappedTeacher(average, taps, inner=getattr(average, "module", average), classifier=classifier)
            return lambda batch: follower(batch.inputs, self.runtime)
        teacher, bundle = self.teacher(which)
        if LOGITS in taps:
            self._judge(which, teacher, bundle)
        if self.config.cache_teacher:
            tables = self._tables(taps, which)
            return lambda batch: {tap: table(batch.index) for tap, table in tables.items()}
        self._resolve(teacher, taps)
        live = teacher.tapped(taps)
        return lambda batch: live(batch.inputs, self.runtime)

    def hashes(self) -> dict[str, str]:
        """The teachers' hashes: they decide what the run computes."""
        return {which: bundle.hash for which, (_, bundle) in sorted(self._teachers.items())}

    def _resolve(self, teacher: Teacher, taps: Sequence[str]) -> None:
        """Finds the teacher's classifier when its embedding is wanted."""
        if EMBEDDING in taps and not teacher.classifier:
            teacher.classifier = self.config.teacher_classifier or find_classifier(
                teacher.network, self._example, whose="teacher", key="teacher_classifier"
            )

    def _tables(self, taps: Sequence[str], which: str) -> Mapping[str, SignalTable]:
        teacher, bundle = self.teacher(which)
        self._resolve(teacher, taps)
        key = cache_key(
            bundle.hash,
            self.task,
            self._positions,
            input_map=teacher.input_map,
            dtype=self.config.cache_dtype,
            runtime=self.runtime,
        )
        cache = SignalCache(
            self._folder(),
            key,
            teacher=teacher,
            task=self.task,
            positions=self._positions,
            runtime=self.runtime,
            progress=self.context.progress,
            shared=bool(self.config.cache_folder),
        )
        tables, hit, said = cache.tables(taps)
        self.notes += said
        if self.config.cache_teacher:
            self.cache = "hit" if hit and self.cache != "made" else "made"
        return tables

    def _folder(self) -> Path:
        from pathlib import Path

        folder = self.config.cache_folder
        return Path(folder).expanduser() if folder else self.context.workdir / "teacher"

    def _judge(self, which: str, teacher: Teacher, bundle: Bundle) -> None:
        """Checks that the teacher's output is the task's kind of output, and measures it. A poor one is warned of."""
        if which in self.figures:
            return
        if note := check_classes(bundle.contract, self.task.contract):
            self.notes.append(note)
        shape, expected = self.teacher_shape(LOGITS, which), self.task.contract.outputs[0].shape[1:]
        if shape != tuple(expected):
            classes = len(self.task.contract.classes)
            has = f"{classes} classes" if classes else f"outputs of shape {tuple(expected)}"
            raise UserError(
                f"the teacher's output for one image has shape {(1, *shape)}, the task has {has}",
                hint="a teacher must have been trained on the student's classes; `hints` and `nd` need its features alone",
            )
        limit = self.config.max_eval
        metrics = evaluate(teacher, self.task, "val", runtime=self.runtime, limit=limit)
        self.figures[which] = metrics
        seen = min(limit or len(self.task.samples("val")), len(self.task.samples("val")))
        if warning := chance_note(metrics, self.task, seen):
            log.warning("%s", warning)
            self.notes.append(warning)
