"""The command line: a literal table of commands and the one place where errors become exit codes.

Results go to stdout, talk to stderr. Commands are imported here but heavy libraries are not: no command imports torch
before it runs a model (a test holds it). Nothing is imported before signals are listened to.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from moeprof.core.errors import MissingExtraError, MoeprofError, storage_sentence
from moeprof.core.signals import ENDING, SignalWatch
from moeprof.core.text import Harmless, one_line

if TYPE_CHECKING:
    import typer

# Extra of pyproject.toml -> what is imported from the packages that only it installs.
EXTRAS = {
    "run": (
        "torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "accelerate", "psutil", "pynvml",
    ),
    "serve": ("aiohttp", "multidict", "yarl", "uvloop", "orjson"),
}  # fmt: skip

# Name of the command -> its function, or its group of commands; the first line of its docstring is its help.
COMMANDS = {
    "run": "moeprof.cli.run:run",
    "report": "moeprof.cli.report:report",
    "merge": "moeprof.cli.merge:merge",
    "compare": "moeprof.cli.compare:compare",
    "audit": "moeprof.cli.audit:audit",
    "regress": "moeprof.cli.regress:regress",
    "ladder": "moeprof.cli.ladder:ladder",
    "params": "moeprof.cli.params:params",
    "doctor": "moeprof.cli.doctor:doctor",
    "explain": "moeprof.cli.explain:explain",
    "engine": "moeprof.cli.engine:engine_app",
    "list": "moeprof.cli.list:list_runs",
    "init": "moeprof.cli.init:init",
    "trace": "moeprof.cli.trace:trace_app",
    "baseline": "moeprof.cli.baseline:baseline_app",
}


NO_ARGUMENTS = "NoArgsIsHelpError"  # of a command that is a group; typer keeps its own copy of click to itself


def command_line() -> typer.Typer:
    """All commands as one."""
    import typer

    def show_version(asked: bool) -> None:
        if asked:
            from moeprof.core import VERSION

            typer.echo(f"moeprof {VERSION}")
            raise typer.Exit

    def root(
        version: bool = typer.Option(
            False, "--version", "-V", callback=show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        pass

    app = typer.Typer(
        name="moeprof",
        help="What does sparsity really buy you? Replay traces through MoE and dense models; price a million tokens.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    for name, place in COMMANDS.items():
        module, attribute = place.split(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            for command in found.registered_commands:
                command.short_help = _summary(command.callback)
            app.add_typer(found, name=name, short_help=found.info.help)
        else:
            app.command(name, short_help=_summary(found))(found)
    return app


def _summary(function: Callable[..., object] | None) -> str:
    """The first line of its docstring, whole: a shortened sentence says nothing."""
    return (function.__doc__ or "").strip().split("\n")[0] if function is not None else ""


def _result(arguments: Sequence[str] | None) -> object:
    """Run the command; a library of an extra that is missing becomes the line that installs it, whoever imports it.

    Raises:
        MissingExtraError: this installation cannot run the command.
    """
    try:
        return command_line()(args=None if arguments is None else list(arguments), standalone_mode=False)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = next((name for name, libraries in EXTRAS.items() if library in libraries), None)
        if extra is None:
            raise
        raise MissingExtraError(library, extra) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (see core/errors.py)."""
    with redirect_stdout(Harmless(sys.stdout)), redirect_stderr(Harmless(sys.stderr)):
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        with SignalWatch(patient=False):
            return _exit_code(arguments)
    except KeyboardInterrupt:
        return _stopped()


def _exit_code(arguments: Sequence[str] | None) -> int:
    """What a command line came to; an error is told here, in one line."""
    import typer

    try:
        result = _result(arguments)
        sys.stdout.flush()
    except MoeprofError as error:
        for line in error.lines or (str(error),):
            print(f"moeprof: {one_line(line)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        if type(error).__name__ == NO_ARGUMENTS:
            print(error.format_message())
            return 0
        print(f"moeprof: {one_line(error.format_message())}", file=sys.stderr)
        return error.exit_code
    except typer.Abort:
        return _stopped()
    except BrokenPipeError:
        _drop_stdout()  # the reader went away: that is not an error
        return 0
    except Exception as error:
        if (code := _refused_by_machine(error)) is not None:
            return code
        raise
    if SignalWatch.heard:
        return _stopped()
    return result if isinstance(result, int) else 0


def _refused_by_machine(error: Exception) -> int | None:
    """What becomes of an error that is not ours: stopped in the middle, out of memory or of disk; None: a fault."""
    if SignalWatch.heard:  # it came in the middle of an import, say, and what was left half done failed
        return _stopped()
    sentence = "not enough memory" if isinstance(error, MemoryError) else storage_sentence(error)
    if sentence is None:
        return None
    _drop_stdout()
    print(f"moeprof: {one_line(sentence)}", file=sys.stderr)
    return 1


def _stopped() -> int:
    print("moeprof: stopped", file=sys.stderr)
    return 128 + (SignalWatch.heard or [signal.SIGINT])[0]


def _drop_stdout() -> None:
    """What is still to be written there is not worth a second error when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def entry_point() -> None:
    """The ``moeprof`` console script."""
    code = main()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # all is said: nothing may change the exit code any more
    sys.exit(code)
