"""`trimtab aspects images` and `trimtab aspects pack`: the two ends of asking a language model about the training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleProgress, output
from .options import DataArgs, Force, Out, Seed, Selection, Size, SkipBad, TaskName

if TYPE_CHECKING:
    import numpy as np

    from .models.tasks.task import Task

aspects = typer.Typer(
    help="Answers to yes/no questions about the training images, for the objective 'aspects'.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
INDEX = "aspects.json"
FORMAT = 1
PROMPT = "{question} Answer with Yes or No."
STEADY = 0.01
"""A question whose P(yes) varies less than this over all images says nothing about any of them."""


@aspects.command("images")
def aspects_images(
    data: Annotated[str, typer.Option("--data", help="fashion-mnist, digits, folder:PATH, npz:PATH, …")],
    out: Out,
    task_name: TaskName = None,
    data_args: DataArgs = [],
    size: Size = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Write every training image as a PNG named by its position, and aspects.json to fill the questions in."""
    from .loading import open_task, task_options
    from .loading import task_name as name_of
    from .models import files

    files.refuse_overwrite(out, force=force)
    chosen = Selection(task=task_name, data=data, data_args=data_args, size=size, seed=seed, skip_bad=skip_bad)
    task = open_task(name_of(chosen), task_options(chosen, size))
    index = index_of(task)
    with files.new_folder(out, force=force) as folder:
        write_images(task, folder, digits=len(str(max(index["images"] - 1, 99999))))
        files.write_json(folder / INDEX, index)
    output.say(f"{index['images']} images: {out}")
    output.say(
        f"next: write your questions into {out / INDEX}, ask them of every image, then `trimtab aspects pack ANSWERS.csv`"
    )
    output.result(index)


def index_of(task: Task) -> dict[str, Any]:
    """`aspects.json`: what the images belong to, and the questions, still to be written."""
    return {
        "format": FORMAT,
        "data_id": task.data_id,
        "task": {"name": task.name, "options": task.options},
        "images": len(task.samples("train")),
        "classes": list(task.contract.classes),
        "prompt": PROMPT,
        "questions": [],
    }


def write_images(task: Task, folder: Path, *, digits: int) -> None:
    """None; the training split's images lie in `folder` as 00000.png, 00001.png … in the split's order."""
    from PIL import Image

    from .models.errors import UserError

    samples = task.samples("train")
    with ConsoleProgress().meter("images", len(samples), "images") as meter:
        for start in range(0, len(samples), 256):
            raw = samples.__getitems__(range(start, min(start + 256, len(samples))))
            pixels = raw.pixels.permute(0, 2, 3, 1).numpy()
            if pixels.shape[3] > 4:
                raise UserError(
                    f"images with {pixels.shape[3]} channels can't be written as PNG",
                    hint="1 to 4 channels can: choose other data",
                )
            for position, image in enumerate(pixels, start):
                flat = image[:, :, 0] if image.shape[2] == 1 else image
                Image.fromarray(flat).save(folder / f"{position:0{digits}d}.png")
            meter.advance(len(pixels))


@aspects.command("pack")
def aspects_pack(
    answers: Annotated[
        Path,
        typer.Argument(
            help="A .csv: position, then for question 1, 2 … the logits yes_1, no_1, yes_2, no_2 …, or the probabilities p_1, p_2 …"
        ),
    ],
    images: Annotated[Path, typer.Option("--images", help="The folder of `trimtab aspects images`, its questions filled in.")],
    out: Out,
    force: Force = False,
) -> None:
    """Make the answers' .npz of a table with one line per image: what `source` of the objective 'aspects' names."""
    import io

    import numpy as np

    from .compress.distill.aspect_source import check_answers
    from .compress.distill.aspect_table import read_table
    from .models import files
    from .models.errors import UserError

    if out.suffix != ".npz":
        raise UserError(f"-o {out} is not an .npz", hint=f"-o {out.with_suffix('.npz')}")
    files.refuse_overwrite(out, force=force)
    index = read_index(images)
    arrays = read_table(answers, questions=len(index["questions"]), count=index["images"])
    arrays |= {"questions": np.array(index["questions"]), "data_id": np.array(index["data_id"])}
    questions, values = check_answers(arrays, count=index["images"], where=str(answers))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays' names for its own option
    files.write_bytes(out, buffer.getvalue())
    say_answers(questions, values)
    output.say(f"{len(values)} images × {len(questions)} questions: {out}")
    output.result({"images": len(values), "questions": list(questions), "mean": values.mean(0).tolist(), "file": str(out)})


def read_index(folder: Path) -> dict[str, Any]:
    """`aspects.json`, checked. Raises UserError when it is not there, malformed, or has no questions yet."""
    from .models import files
    from .models.errors import UserError

    path = folder / INDEX
    index = files.read_json(path)
    kinds = {"data_id": str, "images": int, "questions": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(index, dict) or not isinstance(index.get(key), kind)]
    if wrong:
        raise UserError(
            f"{path} has no {wrong[0]!r} of the right kind", hint="write the images again: `trimtab aspects images`"
        )
    if index.get("format") != FORMAT:
        raise UserError(f"{path}: format is {index.get('format')!r}, {FORMAT} is read here", hint="write the images again")
    questions = index["questions"]
    if not questions or not all(isinstance(text, str) and text.strip() for text in questions):
        raise UserError(
            f'{path} names no questions ("questions": {questions!r})'[:300],
            hint='write the texts that were asked into it, in the table\'s order: "questions": ["Does it have wings?", …]',
        )
    return index


def say_answers(questions: tuple[str, ...], values: np.ndarray) -> None:
    """How often each question was answered with yes, and which ones tell nothing."""
    mean, spread = values.mean(0, dtype=float), values.std(0, dtype=float)
    rows = [(text, f"{m:.3f}", f"{s:.3f}") for text, m, s in zip(questions, mean, spread, strict=True)]
    output.table("", ("question", ">mean P(yes)", ">deviation"), rows)
    for text, s in zip(questions, spread, strict=True):
        if s < STEADY:
            output.say(f"warning: the answer to {text!r} is the same for all images; it can't help")
