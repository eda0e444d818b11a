"""The command line: a literal table of commands and the one place where errors become exit codes.

Results go to stdout, talk to stderr. Commands are imported here but heavy libraries are not: no command imports torch
before it runs a model (a test holds it).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from moeprof.cli.baseline import baseline_app
from moeprof.cli.compare import compare
from moeprof.cli.doctor import doctor
from moeprof.cli.explain import explain
from moeprof.cli.init import init
from moeprof.cli.ladder import ladder
from moeprof.cli.params import params
from moeprof.cli.regress import regress
from moeprof.cli.report import report
from moeprof.cli.run import run
from moeprof.cli.trace import trace_app
from moeprof.core.errors import MissingExtraError, MoeprofError
from moeprof.core.text import one_line

# Extra of pyproject.toml -> what is imported from the packages that only it installs.
EXTRAS = {
    "run": (
        "torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "accelerate", "psutil", "pynvml",
    ),
}  # fmt: skip

app = typer.Typer(
    name="moeprof",
    help="What does sparsity really buy you? Replay traces through MoE and dense models; price a million tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, report, compare, regress, ladder, params, doctor, explain, init):
    app.command()(command)
app.add_typer(trace_app, name="trace")
app.add_typer(baseline_app, name="baseline")


def _version(asked: bool) -> None:
    if asked:
        from moeprof import __version__

        typer.echo(f"moeprof {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def _result(arguments: Sequence[str] | None) -> object:
    """Run the command; a library of an extra that is missing becomes the line that installs it, whoever imports it.

    Raises:
        MissingExtraError: this installation cannot run the command.
    """
    try:
        return app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = next((name for name, libraries in EXTRAS.items() if library in libraries), None)
        if extra is None:
            raise
        raise MissingExtraError(library, extra) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (see core/errors.py)."""
    try:
        result = _result(arguments)
    except MoeprofError as error:
        for line in error.lines or (str(error),):
            print(f"moeprof: {one_line(line)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        print(f"moeprof: {one_line(error.format_message())}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("moeprof: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: that is not an error
        return 0
    return result if isinstance(result, int) else 0


def entry_point() -> None:
    """The ``moeprof`` console script."""
    sys.exit(main())
