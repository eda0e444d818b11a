"""``moeprof trace``: look at a trace, translate it, make one, record one."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeprof.cli.options import ListFormat
from moeprof.core import units
from moeprof.core.errors import WorkloadError
from moeprof.core.text import one_line
from moeprof.render import TABLE

if TYPE_CHECKING:
    from moeprof.core.trace import Trace
    from moeprof.core.workload.traffic import Lengths, RequestClass, TraceSource
    from moeprof.sources.describe import LengthStats, TraceStats
    from moeprof.sources.proxy.record import Recorded

trace_app = typer.Typer(
    help="Look at recorded traces, translate them, make synthetic ones, record traffic.", no_args_is_help=True
)

SourceArgument = Annotated[
    Path, typer.Argument(help="Trace file: CSV, JSON or parquet, packed or not.", show_default=False)
]
InputFormat = Annotated[
    str | None, typer.Option("--from", help="Format of the trace; by default its content tells.", show_default=False)
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="ROLE=NAME of a column or key (a.b.c goes into nested ones), for files of no known format; repeat it. "
        "Roles: arrival, input, output, session, text, class, blocks.",
        show_default=False,
    ),
]
TimestampUnit = Annotated[
    Literal["s", "ms", "us", "ns", "iso"] | None,
    typer.Option(help="Unit of the file's times; by default its format and content tell.", show_default=False),
]
BlockTokens = Annotated[
    int | None,
    typer.Option(help="Prompt tokens of one prefix id; by default format and lengths tell.", show_default=False),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Count rows that do not fit, leave them out.")]
NEEDS_PROMPT = "needs the text's tokenizer"
PLOT_WIDTH = 60


@trace_app.command()
def inspect(
    path: SourceArgument,
    input_format: InputFormat = None,
    column: Columns = None,
    timestamp_unit: TimestampUnit = None,
    block_tokens: BlockTokens = None,
    skip_bad_rows: SkipBadRows = False,
    exact: Annotated[bool, typer.Option("--exact", help="Count the tokens of all texts, not of 500 rows.")] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Model folder whose tokenizer counts texts; by default moeprof's own.", show_default=False),
    ] = None,
    format: ListFormat = TABLE,
) -> None:
    """Show a trace's rate, bursts, lengths, classes, sessions, prefix reuse, what is not used, and its workload lines.

    Lengths of text are estimated from the tokens of 500 rows and the bytes of all.
    """
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result
    from moeprof.core.workload.traffic import TraceSource
    from moeprof.sources.describe import describe, flat_values
    from moeprof.sources.formats import read_told

    source = TraceSource(
        path=str(path),
        format=input_format,
        columns=columns_of(column),
        timestamp_unit=timestamp_unit,
        block_tokens=block_tokens,
        skip_bad_rows=skip_bad_rows,
    )
    trace, told = read_told(source)
    trace = _counted(trace, tokenizer, exact=exact)
    stats = describe(trace)
    if format == TABLE:
        _print_table(path, trace, stats)
        _print_workload(told)
    elif format == "md":
        typer.echo(_markdown(path, _shown(stats), stats))
    else:
        rows = [{"name": name, "value": value} for name, value in flat_values(stats)]
        print_result(Listing(rows=rows, whole=asdict(stats)), format)


@trace_app.command()
def convert(
    path: SourceArgument,
    output: Annotated[Path | None, typer.Argument(help="JSONL file to write.", show_default=False)] = None,
    to: Annotated[
        Literal["moeprof", "mooncake", "aiperf", "evalscope"], typer.Option(help="Form to write.")
    ] = "moeprof",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, as the argument.", show_default=False)
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write what the form holds, and say what it does not.")
    ] = False,
    input_format: InputFormat = None,
    column: Columns = None,
    timestamp_unit: TimestampUnit = None,
    block_tokens: BlockTokens = None,
    skip_bad_rows: SkipBadRows = False,
    start_s: Annotated[float, typer.Option(help="Start of the time window, seconds.")] = 0.0,
    duration_s: Annotated[float | None, typer.Option(help="Length of the time window, seconds.")] = None,
    time_scale: Annotated[float, typer.Option(help="Multiply times: 0.5 is twice as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Multiply prompt and output lengths.")] = 1.0,
    max_input_tokens: Annotated[int | None, typer.Option(help="Longest prompt.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Longest output.")] = None,
    max_total_tokens: Annotated[int | None, typer.Option(help="Longest prompt plus output.")] = None,
    too_long: Annotated[Literal["drop", "truncate", "scale"], typer.Option(help="What longer ones become.")] = "drop",
    jitter: Annotated[bool, typer.Option("--jitter", help="Spread times that stand on a coarse grid.")] = False,
    request_rate: Annotated[float | None, typer.Option(help="Scale times to so many requests per second.")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Keep the first so many requests.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of --jitter.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Translate a trace into moeprof's JSON lines or another tool's, cut and scaled as asked; every change is counted.

    What is written is read again and compared: what a form does not hold is refused by name, unless --allow-loss.
    """
    from moeprof.core.workload.traffic import TraceSource
    from moeprof.sources.formats.forms import write_form

    target = _target(output, out)
    source = TraceSource(
        path=str(path),
        format=input_format,
        columns=columns_of(column),
        timestamp_unit=timestamp_unit,
        block_tokens=block_tokens,
        skip_bad_rows=skip_bad_rows,
        start_s=start_s,
        duration_s=duration_s,
        time_scale=time_scale,
        length_scale=length_scale,
        jitter=jitter,
        max_input_tokens=max_input_tokens,
        max_output_tokens=max_output_tokens,
        max_total_tokens=max_total_tokens,
        too_long=too_long,
    )
    trace = _transformed(source, num_prompts=num_prompts, request_rate=request_rate, seed=seed)
    lost = write_form(trace, target, to, force=force, allow_loss=allow_loss)
    _say_notes(trace)
    _say_written(target, len(trace), lost, to)


@trace_app.command()
def synth(
    output: Annotated[
        Path | None, typer.Argument(help="JSONL file to write; without it the rows go to stdout.", show_default=False)
    ] = None,
    pattern: Annotated[
        Literal["poisson", "gamma", "constant", "burst", "concurrency", "offline"] | None,
        typer.Option(help="Default: gamma with --burstiness, concurrency with --max-concurrency, else poisson."),
    ] = None,
    request_rate: Annotated[float | None, typer.Option(help="Requests per second (open loop).")] = None,
    burstiness: Annotated[float, typer.Option(help="Shape of gamma gaps: below 1 is burstier than Poisson.")] = 1.0,
    burst_size: Annotated[int, typer.Option(help="Requests that arrive together (burst).")] = 8,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests in flight (closed loop).")] = None,
    num_prompts: Annotated[int, typer.Option(help="Number of requests.")] = 64,
    input_len: Annotated[
        str, typer.Option(help="256, 16-512 (uniform), lognormal:256:2048 (median:p99) or empirical:TRACE.")
    ] = "256",
    output_len: Annotated[str, typer.Option(help="As --input-len.")] = "64",
    num_prefixes: Annotated[int, typer.Option(help="Different shared prefixes.")] = 1,
    prefix_len: Annotated[int | None, typer.Option(help="Prompt tokens that are a shared prefix.")] = None,
    prefix_ratio: Annotated[float | None, typer.Option(help="Share of each prompt that is a shared prefix.")] = None,
    request_class: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT; repeat it for each class.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Make a synthetic trace: arrivals, lengths, shared prefixes and classes, each from its own seeded stream."""
    from moeprof.core.workload import traffic
    from moeprof.sources.formats import jsonl, write_trace
    from moeprof.sources.synthetic import synthesise

    arrivals = traffic.Arrivals(
        pattern=pattern or _pattern(burstiness, max_concurrency, request_rate),
        rate=request_rate,
        burstiness=burstiness,
        burst_size=burst_size,
        concurrency=max_concurrency,
    )
    lengths = traffic.LengthPair(input=_lengths("--input-len", input_len), output=_lengths("--output-len", output_len))
    classes = tuple(_request_class(text) for text in request_class or ())
    prefix = None
    if prefix_len is not None or prefix_ratio is not None:
        prefix = traffic.Prefix(count=num_prefixes, tokens=prefix_len, ratio=prefix_ratio)
    wanted = traffic.Traffic(
        arrivals=arrivals, lengths=lengths, prefix=prefix, classes=classes, num_requests=num_prompts
    )
    made = synthesise(wanted, seed=seed)
    if output is None:
        sys.stdout.writelines(line + "\n" for line in jsonl.lines(made))
        return
    write_trace(made, output, force=force)
    typer.echo(f"Wrote {output} ({len(made)} requests)", err=True)


@trace_app.command()
def record(
    upstream: Annotated[
        str | None, typer.Option(help="URL of the server, as http://127.0.0.1:8000.", show_default=False)
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for the clients; port 0: any free one.")] = "127.0.0.1:8080",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for parts, or one file NAME.jsonl; by default recordings/TIME.",
            show_default=False,
        ),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Write prompts and outputs too.")] = False,
    session_header: Annotated[
        str, typer.Option(help="Header that tells the session; without it the body's `user` does.")
    ] = "X-Session-Id",
    part_mib: Annotated[int, typer.Option(help="Size of a part in MiB, then the next begins.", min=1)] = 256,
    null_test: Annotated[
        bool, typer.Option("--null-test", help="Only measure what the proxy adds, on this machine, and end.")
    ] = False,
) -> int:
    """Record the traffic of an OpenAI-compatible server: a proxy that forwards at once and writes a trace.

    Lengths, times, and salted hashes of sessions and prompts are written, no text, and never a header. Ctrl-C ends it.
    """
    import asyncio

    from moeprof.sources.proxy import null_test as against_nothing
    from moeprof.sources.proxy.record import Stop
    from moeprof.sources.proxy.record import record as record_until
    from moeprof.sources.proxy.server import ProxySettings, is_loopback, parse_listen, parse_upstream
    from moeprof.sources.proxy.writer import default_output

    if null_test:
        typer.echo(asyncio.run(against_nothing.null_test()).line())
        return 0
    if upstream is None:
        raise WorkloadError("--upstream: is missing; http://127.0.0.1:8000 is one")
    settings = ProxySettings(upstream=parse_upstream(upstream), keep_text=keep_text, session_header=session_header)
    address = parse_listen(listen)

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if not is_loopback(address[0]):
        say(f"note: whoever reaches {address[0]} can use the server through this proxy")

    async def until_stopped() -> Recorded:
        place = output or default_output()
        return await record_until(settings, place, listen=address, part_bytes=part_mib * 2**20, say=say, stop=Stop())

    recorded = asyncio.run(until_stopped())
    for line in recorded.lines:
        say(line)
    if recorded.signal_number == signal.SIGINT:  # who sent another signal may not wait
        say(asyncio.run(against_nothing.null_test()).line())
    return 1 if recorded.lost else 0


def _counted(trace: Trace, tokenizer: Path | None, *, exact: bool) -> Trace:
    """The trace with lengths of its texts, where there is something that can count them."""
    from moeprof.sources.text_lengths import needs_counting, own_tokenizer, with_text_lengths
    from moeprof.sources.tokenizer import load_tokenizer

    if not needs_counting(trace):
        return trace
    try:
        found = own_tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    except ModuleNotFoundError as error:  # only the extra that runs models has tokenizers
        if error.name != "tokenizers" or exact or tokenizer is not None:
            raise
        return trace
    return with_text_lengths(trace, found, exact=exact)


def _print_workload(told: TraceSource) -> None:
    """The lines that a workload needs for this file, as they can be pasted."""
    from moeprof.sources.starter import trace_lines

    typer.echo("\nin a workload (init --from: a whole one)")
    for line in trace_lines(told, told.path):
        typer.echo(line)


def _pattern(burstiness: float, max_concurrency: int | None, request_rate: float | None) -> Any:
    if max_concurrency is not None and request_rate is None:
        return "concurrency"
    return "poisson" if burstiness == 1 else "gamma"


def _lengths(option: str, text: str) -> Lengths:
    from moeprof.core.workload.traffic import Lengths

    kind, _, rest = text.partition(":")
    try:
        if kind == "empirical" and rest:
            return Lengths(distribution="empirical", path=rest)
        if kind == "lognormal":
            median, p99 = rest.split(":")
            return Lengths(distribution="lognormal", median=float(median), p99=float(p99))
        low, dash, high = text.partition("-")
        if dash and low:
            return Lengths(distribution="uniform", low=int(low), high=int(high))
        return Lengths(distribution="fixed", value=int(text))
    except ValueError as error:
        allowed = "256, 16-512, lognormal:256:2048 or empirical:TRACE"
        raise WorkloadError(f"{option}: found {text!r}; allowed: {allowed}") from error
    except WorkloadError as error:
        raise WorkloadError(f"{option}: {error}") from error


def _request_class(text: str) -> RequestClass:
    from moeprof.core.workload.traffic import RequestClass

    name, _, weight = text.partition("=")
    try:
        return RequestClass(name=name, weight=float(weight or 1))
    except ValueError as error:
        raise WorkloadError(f"--request-class: found {text!r}; NAME=WEIGHT is allowed, as in code=0.5") from error


def _transformed(source: TraceSource, *, num_prompts: int | None, request_rate: float | None, seed: int) -> Trace:
    from moeprof.sources.formats import read_source
    from moeprof.sources.synthetic import streams
    from moeprof.sources.transforms import first_requests, rescale_rate, transform

    _above_zero("--request-rate", request_rate)
    _above_zero("--num-prompts", num_prompts)
    trace = first_requests(transform(read_source(source), source, rng=streams(seed).arrivals), num_prompts)
    return trace if request_rate is None else rescale_rate(trace, request_rate)


def columns_of(given: list[str] | None) -> dict[str, str]:
    """The columns that ``--column`` named, by role.

    Raises:
        WorkloadError: one is not ROLE=NAME, or stands there twice.
    """
    columns: dict[str, str] = {}
    for text in given or ():
        role, equals, name = text.partition("=")
        if not equals or not name or role in columns:
            raise WorkloadError(
                f"--column: found {text!r}; ROLE=NAME is allowed, once for each role, as in arrival=started"
            )
        columns[role] = name
    return columns


def _above_zero(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise WorkloadError(f"{option}: found {value:g}; more than 0 is allowed")


def _target(output: Path | None, out: Path | None) -> Path:
    if output is not None and out is None:
        return output
    if out is not None and output is None:
        return out
    raise WorkloadError("the file to write: give it as the second argument or with -o, one of them")


def _say_written(target: Path, number: int, lost: dict[str, int], form: str) -> None:
    from moeprof.sources.formats.forms import FIELDS

    for name, count in lost.items():
        typer.echo(f"note: the {form} form does not hold {FIELDS.get(name, name)} ({count:,})", err=True)
    typer.echo(f"Wrote {target} ({number} requests)", err=True)


def _say_notes(trace: Trace) -> None:
    for note in trace.notes:
        typer.echo(f"note: {note.text} ({note.count:,})", err=True)


def _shown(stats: TraceStats) -> list[tuple[str, str]]:
    """Label and text of what people want to know."""
    na = units.NOT_AVAILABLE
    rate, peak, cv = stats.request_rate_per_s, stats.peak_rate_per_s, stats.gap_cv
    rows = [
        ("requests", f"{stats.num_requests:,}"),
        ("span", units.seconds(stats.span_s) if stats.span_s else f"{na} (all arrive at once)"),
        ("request rate", na if rate is None else f"{units.significant(rate)} per second"),
        ("peak rate", na if peak is None else f"{units.significant(peak)} per second (1/{PLOT_WIDTH} of the span)"),
        ("peak minute", _peak_minute_text(stats)),
        ("gap CV", na if cv is None else f"{units.significant(cv, 4)} (Poisson: 1)"),
        ("burstiness", na if stats.burstiness is None else f"{units.significant(stats.burstiness)} (gamma shape)"),
        ("input tokens", _length_text(stats.input)),
        ("output tokens", _length_text(stats.output)),
    ]
    if stats.num_characters is not None:
        rows.append(("prompt text", f"{units.count(stats.num_characters)} characters"))
    if stats.classes:
        rows.append(("classes", ", ".join(f"{_plain(name)} {count:,}" for name, count in stats.classes.items())))
    if stats.num_sessions:
        turns = f"; of several turns p50 {stats.turns.p50:,.0f}, most {stats.turns.max:,}" if stats.turns else ""
        rows.append(("sessions", f"{stats.num_sessions:,} with {stats.num_session_requests:,} requests{turns}"))
    if stats.reused_prefix_ratio is not None:
        reused = units.percent(stats.reused_prefix_ratio)
        rows.append(("prefix reuse", f"{reused} of prompt tokens ({stats.num_prefix_blocks:,} distinct blocks)"))
    if stats.unused:
        rows.append(("not used", _plain(stats.unused)))
    if stats.num_left_out:
        rows.append(("left out", f"{stats.num_left_out:,} rows"))
    return rows


def _peak_minute_text(stats: TraceStats) -> str:
    if stats.peak_minute_requests is None or stats.peak_minute_ratio is None:
        return f"{units.NOT_AVAILABLE} (less than two minutes)"
    return f"{stats.peak_minute_requests:,} requests ({units.significant(stats.peak_minute_ratio)} times the mean)"


def _length_text(stats: LengthStats | None) -> str:
    if stats is None:
        return f"{units.NOT_AVAILABLE} ({NEEDS_PROMPT})"
    return (
        f"p50 {stats.p50:,.0f}  p90 {stats.p90:,.0f}  p99 {stats.p99:,.0f}  max {stats.max:,}  mean {stats.mean:,.1f}"
    )


def _plain(text: str) -> str:
    """Names from a file, without control characters."""
    return one_line(text)


def _markdown(path: Path, rows: list[tuple[str, str]], stats: TraceStats) -> str:
    cells = [(name, text.replace("|", "\\|")) for name, text in rows]
    lines = [f"**{path.name}** ({stats.source})", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in cells]
    return "\n".join(lines + [""] * bool(stats.notes) + [f"- {note.text} ({note.count:,})" for note in stats.notes])


def _print_table(path: Path, trace: Trace, stats: TraceStats) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from moeprof.sources.describe import bars, length_histogram

    console = Console(highlight=False)
    ascii_only = not console.is_terminal or "utf" not in console.encoding.lower()
    width = max(10, min(PLOT_WIDTH, console.width - 2))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _shown(stats):
        table.add_row(name, Text(text))
    console.print(Text(f"{_plain(path.name)} ({stats.source})"), soft_wrap=True)
    console.print(table)
    console.print(Text(f"\nrequests over {units.seconds(stats.span_s)}"))
    console.print(Text(bars(stats.arrivals, width=width, ascii_only=ascii_only)), soft_wrap=True)
    for name, tokens in (("input", trace.input_tokens), ("output", trace.output_tokens)):
        if (tokens >= 0).all():
            counts, low, high = length_histogram(tokens)
            console.print(Text(f"{name} tokens, {low:,} to {high:,} (logarithmic)"))
            console.print(Text(bars(counts, width=width, ascii_only=ascii_only)), soft_wrap=True)
    for note in stats.notes:
        console.print(Text(f"note: {_plain(note.text)} ({note.count:,})"))
