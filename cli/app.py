"""The front door: errors in words, exit codes, and the verbs."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from . import __version__
from .console import output

INTERRUPTED = 130

app = typer.Typer(
    name="trimtab",
    help="Makes a trained vision checkpoint small and fast on a real device: compresses, exports, proves and measures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"trimtab {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output, words on standard error.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the verb."""
    output.debug = output.debug or debug
    output.json_only = output.json_only or json


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 for our failures and failed verdicts, 2 for mistakes in what was asked, 130 after Ctrl-C."""
    from . import verbs

    verbs.register(app)
    args = sys.argv[1:] if argv is None else argv
    output.debug, output.json_only = "--debug" in args, "--json" in args
    args = [a for a in args if a not in ("--debug", "--json")]  # accepted before and after the verb
    try:
        code = app(args, standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if output.debug:
            raise
        return _explain(error)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code without a word
        return _fail("interrupted; finished stages are kept, and the same command goes on from here", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(text: str, code: int) -> int:
    output.error(text)
    return code


def _explain(error: Exception) -> int:
    """An exception in words, and its exit code."""
    from .models.errors import UserError

    if isinstance(error, UserError):
        return _fail(str(error), error.exit_code)
    if type(error).__name__ == "Abort":
        return _fail("interrupted", 130)
    if show := getattr(error, "format_message", None):  # click's own usage errors
        return _fail(f"{show()}\n  → `trimtab --help`, or `trimtab VERB --help`", 2)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(
            f"the disk is full ({error.filename or 'while writing'})\n  → free some space; finished stages are kept", 2
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return _fail(f"no permission for {error.filename}\n  → choose a folder you may write to, with -o", 2)
    return _fail(f"internal: {type(error).__name__}: {error}\n  → run again with --debug for the traceback, and report it", 1)


def entry() -> None:
    """The console script."""
    sys.exit(main())
