"""``moeprof params``: what a model is and what follows from its shape, without weights."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moeprof.cli.options import print_option
from moeprof.core.errors import InputError
from moeprof.render import TABLE

if TYPE_CHECKING:
    from moeprof.analysis.params import Question
    from moeprof.analysis.report.result import CountedColumn
    from moeprof.core.hardware import Datasheet
    from moeprof.core.known_models import CountedModel

GPUS = ("H100 SXM", "H200 SXM")
MAX_BATCH = 10**6
MAX_CONTEXT = 10**9
Dtype = Literal["bfloat16", "float16", "float32", "fp8", "int8", "int4"]


def params(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Hub id, folder, config.json, params.json, .gguf, layers as YAML, name of --list; several at once.",
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
    format: Annotated[str, print_option("params", "How to print it")] = TABLE,
) -> None:
    """Count a model without its weights: parameters, bytes, FLOPs, devices, dense twins. Several stand side by side.

    A model that transformers has no class for can be described: a YAML file with the key layers and below it
    hidden_size, num_layers, vocab_size, num_heads, head_dim, dense_width; for experts num_experts, top_k, expert_width,
    moe_every; for a window of keys and values window, for latents kv_lora_rank, qk_rope_head_dim, v_head_dim, for
    sparse attention index_topk, index_heads, index_head_dim, for linear attention linear and conv_kernel; where layers
    differ, attention: a list of these keys with layers, how many each. docs/models.md has all
    of them.
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
    from moeprof.analysis.report.result import Counted
    from moeprof.cli.output import print_result

    question = Question(batches=batches, context=context, dtype=dtype, devices=devices)
    columns = tuple(_column(model, question) for model in _counted(models))
    print_result(Counted(columns=columns, question=question), format)


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


def _column(model: CountedModel, question: Question) -> CountedColumn:
    from moeprof.analysis.params import figures, notes_of
    from moeprof.analysis.report.result import CountedColumn

    row = model.system
    return CountedColumn(
        name=model.name,
        status=model.status,
        is_marked=row is not None and row.kind in ("rumour", "scheme"),
        title=model.name if row is None else row.title,
        figures=tuple(figures(model, question)),
        notes=tuple(notes_of(model)),
    )


def _print_list(form: str) -> None:
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result
    from moeprof.core.known_models import systems
    from moeprof.render.params import LEGEND, list_records, shown_records

    rows = systems()
    if form != TABLE:
        print_result(Listing(rows=list_records(rows)), form)
        return
    print_result(Listing(rows=shown_records(rows)), form)
    typer.echo(f"\n{LEGEND}")
