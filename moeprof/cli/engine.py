"""``moeprof engine``: environments of engines that pin their own libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

engine_app = typer.Typer(help="Make the environments of engines that pin their own libraries.", no_args_is_help=True)


@engine_app.command()
def install(
    engine: Annotated[Literal["vllm"], typer.Argument(help="Which engine.", show_default=False)],
    build: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Built for what; auto: CUDA where there is an NVIDIA GPU.")
    ] = "auto",
    folder: Annotated[
        Path | None, typer.Option(help="Where to; by default the user's cache folder.", show_default=False)
    ] = None,
) -> None:
    """Make an environment with vLLM (several GB, minutes); workloads then say `engine: {kind: vllm}`."""
    from moeprof.capture.devices.choose import choose_device
    from moeprof.capture.engines.vllm.environment import install as install_vllm
    from moeprof.capture.engines.vllm.environment import own_folder, python_in

    if build == "auto":
        build = "cpu" if choose_device("auto", has_cuda_build=True).gpu is None else "cuda"
    where = own_folder() if folder is None else folder.expanduser().absolute()
    print(f"installing vLLM for {build} into {where}", file=sys.stderr)
    found = install_vllm(where, build)
    print(f"vLLM {found.vllm} ({found.build}), torch {found.torch}, transformers {found.transformers}")
    if where != own_folder():
        print(f"in workloads: engine: {{kind: vllm, python: {python_in(where)}}}")
