"""`nlp-distill serve`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nlp_distill.verbs.common import say
from nlp_distill.verbs.jobs import HomeOption, OnlineOption, RayOption, SlotsOption, serve_jobs


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Runs, model folders or Hub ids; the first answers /predict. NAME=MODEL names one."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", help="Serve this variant, for example teacher; repeatable (default: recommended)."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback a token is needed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token (default: NLP_DISTILL_TOKEN).")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Name that clients may call this server by; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Cores of an engine (default: all).")] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Inputs that may wait for an engine.")] = 128,
    jobs: Annotated[bool, typer.Option("--jobs", help="Take jobs instead: API and worker in one.")] = False,
    home: HomeOption = None,
    online: OnlineOption = False,
    slots: SlotsOption = 1,
    ray: RayOption = None,
) -> None:
    """Answer predictions over HTTP, as the pipelines do, with a page to try them; with --jobs, take jobs."""
    if jobs:
        serve_jobs(home, host, port, token_file, tuple(allow_host or ()), online, slots, ray)
        return
    if not models:
        raise typer.BadParameter("give a model, or --jobs", param_hint="MODELS")
    from nlp_distill.errors import MissingExtra
    from nlp_distill.web.listening import check_listening, read_token

    token = read_token(token_file)
    check_listening(host, token)
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise MissingExtra(what=f"serve ({', '.join(missing)})", extra="serve")
    from nlp_distill.serving.app import Server, Settings
    from nlp_distill.serving.catalog import catalog

    served = catalog(models, variant or ())
    cores = threads or os.cpu_count() or 1
    for model in served:
        without = ", without torch" if model.light else ""
        say(f"{model.id}: {model.variant} ({model.runtime}{without}), {model.task.replace('_', ' ')}")
    settings = Settings(host, port, token, tuple(allow_host or ()), cores, queue)
    Server(served, settings, lambda url: say(f"Listening on {url}" + (", with a token" if token else ""))).run()
