"""Pictures of what a network does to test samples, for the tasks whose answers are pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.bundle import Bundle
    from .models.tasks.task import Task

DRAWN = ("isp", "anomaly")
"""Tasks whose answers are pictures."""
COUNT = 6


def has_pictures(task: Task) -> bool:
    """Whether a report shows pictures of this task."""
    return task.name in DRAWN


def pictures_of(bundle: Bundle, task: Task, count: int = COUNT) -> list[dict[str, Any]]:
    """Up to `count` PictureRecords as data: developed mosaics beside the fixed rendering, or images with their anomaly maps."""
    from . import report_pictures

    draw = report_pictures.isp_pictures if task.name == "isp" else report_pictures.anomaly_pictures
    return [picture.model_dump(mode="json") for picture in draw(bundle, task, count)]
