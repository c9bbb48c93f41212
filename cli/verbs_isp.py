"""`trimtab isp develop`: RAW files to pictures, by a network, by an artifact in its own runtime, or by the fixed rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force

isp = typer.Typer(help="RAW pictures and the networks that develop them.", no_args_is_help=True, rich_markup_mode=None)


@isp.command("develop")
def isp_develop(
    photos: Annotated[
        list[Path], typer.Argument(help="RAW files (DNG, ARW, NEF, CR2, …), or Bayer pictures as PNG, TIFF, NPY.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .png, .jpg or .tif; a folder for several files.")],
    model: Annotated[Path | None, typer.Option("--model", help="A Bundle's folder, or an artifact's.")] = None,
    classical: Annotated[
        bool, typer.Option("--classical", help="The fixed rendering, nothing learned, instead of --model.")
    ] = False,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="Colours of the top left 2×2 cell: RGGB, GRBG, GBRG, BGGR.")
    ] = None,
    black: Annotated[
        str | None, typer.Option("--black", help="Black level in counts, or four of them by site: 62,60,58,61.")
    ] = None,
    white: Annotated[float | None, typer.Option("--white", help="White level in counts: 1023 for 10 bits.")] = None,
    tile: Annotated[int, typer.Option("--tile", min=16, help="Side of what the network sees at once, in mosaic pixels.")] = 512,
    whole: Annotated[bool, typer.Option("--whole", help="The picture at once, whatever memory that takes.")] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Beside each picture NAME-strip.png: the fixed rendering and the network's.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option("--against", help="With --strip: a second network, the strip's third picture.")
    ] = None,
    rotate: Annotated[int, typer.Option("--rotate", help="Turn the picture clockwise by 90, 180 or 270.")] = 0,
    gains: Annotated[
        str | None,
        typer.Option(
            "--gains", help="White balance of the fixed rendering: red,green,blue. Default: the file's, else 1.6,1.2,1.4."
        ),
    ] = None,
    demosaic: Annotated[str, typer.Option("--demosaic", help="Of the fixed rendering: menon, malvar, bilinear.")] = "menon",
    deep: Annotated[bool, typer.Option("--16bit", help="16 bits a channel (PNG).")] = False,
    force: Force = False,
) -> None:
    """Develop RAW files at full resolution: in tiles that overlap by what the network sees, so that no seam shows."""
    from .develop_files import check_turn
    from .develop_job import Wishes, develop_all, numbers, targets
    from .develop_network import open_isp
    from .models.errors import UserError

    if classical == (model is not None):
        raise UserError("say who develops: --model or --classical", hint="--model BUNDLE_OR_ARTIFACT, or --classical alone")
    if strip and classical:
        raise UserError("--strip shows a network beside the fixed rendering", hint="--strip --model BUNDLE_OR_ARTIFACT")
    if gains and not (classical or strip):
        raise UserError(
            f"--gains {gains} belong to the fixed rendering, and none is asked for", hint="add --strip or --classical"
        )
    if against and not strip:
        raise UserError(f"--against {against} is for the strip", hint="add --strip")
    check_turn(rotate)
    wishes = Wishes(
        pattern=pattern,
        black=numbers(black, "--black", (1, 4)),
        white=white,
        tile=tile,
        whole=whole,
        gains=numbers(gains, "--gains", (3,)),
        demosaic=demosaic,
        rotate=rotate,
        bits=16 if deep else 8,
        strip=strip,
    )
    pairs = targets(photos, out, wishes, force=force)
    networks = [open_isp(path) for path in (model, against) if path is not None]
    develop_all(pairs, networks, wishes)
