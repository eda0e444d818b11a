"""``moeprof params``: what a model is and what follows from its shape, without weights.

The table of ``moeprof params`` on a terminal: models as columns, as many side by side as the width allows.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.core.errors import InputError
from moeprof.core.text import printable

if TYPE_CHECKING:
    from moeprof.analysis.params import Question
    from moeprof.core.hardware import Datasheet
    from moeprof.core.known_models import CountedModel
    from moeprof.render.params import Column

LABEL_WIDTH, CELL_WIDTH, GAP = 29, 14, 2


def print_params(columns: Sequence[Column], question: Question, console: Console) -> None:
    """Print models side by side, in several tables where one is too wide, then the notes.

    Args:
        columns: one per model.
        question: what was asked, for the rules below.
        console: where to.
    """
    from moeprof.render.params import footnotes

    shown = [column for column in columns if column.has_figures]
    width = max(CELL_WIDTH, min(24, max(len(column.head) for column in columns)))
    fit = max(1, (console.width - LABEL_WIDTH) // (width + GAP))
    if fit < len(shown):
        width, fit = CELL_WIDTH, max(1, (console.width - LABEL_WIDTH) // (CELL_WIDTH + GAP))
    for start in range(0, len(shown), fit):
        if start:
            console.print()
        console.print(_table(shown[start : start + fit], width))
    for heading, notes in footnotes(columns, question):
        console.print()
        console.print(Text(heading, style="bold"))
        for note in notes:
            console.print(Padding(Text(printable(note), style="dim"), (0, 0, 0, 2)))


def _table(columns: Sequence[Column], width: int) -> Table:
    from moeprof.render.params import cell

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=True)
    table.add_column("", overflow="fold", max_width=LABEL_WIDTH, no_wrap=False)
    for column in columns:
        style = "bold yellow" if column.is_marked else "bold"
        table.add_column(Text(column.head, style=style), justify="right", overflow="fold", max_width=width)
    table.add_row(Text("figures are", style="dim"), *(Text(c.status, style="dim") for c in columns))
    section = ""
    for row in zip(*(column.figures for column in columns), strict=True):
        if row[0].section != section:
            section = row[0].section
            table.add_row(Text(section, style="bold"))
        table.add_row(Text(f"  {row[0].label}"), *(Text(cell(figure)) for figure in row))
    return table


GPUS = ("H100 SXM", "H200 SXM")
MAX_BATCH = 10**6
MAX_CONTEXT = 10**9
Dtype = Literal["bfloat16", "float16", "float32", "fp8", "int8", "int4"]


def params(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Hub id, folder, config.json, a YAML description of layers, or a name of --list; several are allowed.",
            show_default=False,
        ),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the built-in models with published figures.")] = False,
    batch: Annotated[
        list[str] | None,
        typer.Option(help="Sequences decoding together; repeat it or give 1,8,64.", show_default="1,8,64"),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of context per sequence.")] = 1024,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights, for bytes read and devices needed.")] = "bfloat16",
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="Device to fill; repeat it for several.", show_default=", ".join(GPUS)),
    ] = None,
    format: Annotated[Literal["table", "json", "csv", "md"], typer.Option(help="How to print it.")] = "table",
) -> None:
    """Count a model without its weights: parameters, bytes, FLOPs, devices, dense twins. Several stand side by side.

    A model that transformers has no class for can be described: a YAML file with the key layers and below it
    hidden_size, num_layers, vocab_size, num_heads, head_dim, dense_width; for experts num_experts, top_k, expert_width,
    moe_every.
    """
    if list_all:
        if models:
            raise InputError("--list stands alone; leave out the models, or leave out --list")
        _print_list(format)
        return
    if not models:
        raise InputError("no model given; `moeprof params --list` names the built-in ones")
    batches = _batches(batch or ["1,8,64"])
    if not 0 <= context <= MAX_CONTEXT:
        raise InputError(f"--context: found {context}; 0 to {MAX_CONTEXT} is allowed")
    devices = tuple(dict.fromkeys(_device(name) for name in (gpu or GPUS)))
    from moeprof.analysis.params import Question

    question = Question(batches=batches, context=context, dtype=dtype, devices=devices)
    _print_models(_counted(models), question, format)


def _counted(texts: list[str]) -> list[CountedModel]:
    from moeprof.capture.models.count import count_model

    asked = list(dict.fromkeys(texts))
    found = [count_model(text) for text in asked]
    names = [model.name for model in found]
    # Two folders of one name are told apart by what was typed.
    return [replace(m, name=t) if names.count(m.name) > 1 else m for m, t in zip(found, asked, strict=True)]


def _batches(texts: list[str]) -> tuple[int, ...]:
    found = []
    for text in ",".join(texts).split(","):
        if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_BATCH:
            raise InputError(f"--batch: found {text!r}; whole numbers from 1 to {MAX_BATCH} are allowed, as in 1,8,64")
        found.append(int(text))
    return tuple(dict.fromkeys(found))


def _device(text: str) -> Datasheet:
    """The device of this name, or of all these words; where several fit, one will do if they hold equally much."""
    from moeprof.core.hardware import datasheets, find_datasheet

    rows = datasheets()
    exact = next((row for row in rows if row.name.casefold() == text.casefold()), None) or find_datasheet(text)
    if exact is not None:
        return exact
    words = re.sub(r"(\d)\s*gb\b", r"\1gb", text.casefold()).split()
    fitting = [row for row in rows if words and set(words) <= _words(row)]
    if len({row.memory_bytes for row in fitting}) == 1:
        return max(fitting, key=lambda row: "SXM" in row.name)
    names = [row.name for row in rows]
    close = [row.name for row in fitting] or difflib.get_close_matches(text, names, n=1)
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    raise InputError(f"--gpu: no device is called {text!r}{hint} allowed: {', '.join(names)}")


def _words(row: Datasheet) -> set[str]:
    return {*row.name.casefold().split(), f"{row.memory_bytes / 1e9:.0f}gb"}


def _column(model: CountedModel, question: Question) -> Column:
    from moeprof.analysis.params import figures, notes_of
    from moeprof.render.params import Column

    row = model.system
    return Column(
        name=model.name,
        status=model.status,
        is_marked=row is not None and row.kind in ("rumour", "scheme"),
        title=model.name if row is None else row.title,
        figures=tuple(figures(model, question)),
        notes=tuple(notes_of(model)),
    )


def _print_models(models: list[CountedModel], question: Question, form: str) -> None:
    from moeprof.render.params import params_csv, params_json, params_markdown

    columns = [_column(model, question) for model in models]
    if form == "json":
        sys.stdout.write(params_json(columns, question))
    elif form == "csv":
        sys.stdout.write(params_csv(columns))
    elif form == "md":
        sys.stdout.write(params_markdown(columns, question))
    else:
        from rich.console import Console

        print_params(columns, question, Console(highlight=False))


def _print_list(form: str) -> None:
    from moeprof.cli.output import print_records
    from moeprof.core.known_models import systems
    from moeprof.render.params import LEGEND, list_records, shown_records

    rows = systems()
    if form != "table":
        print_records(list_records(rows), form)
        return
    print_records(shown_records(rows), form)
    typer.echo(f"\n{LEGEND}")
