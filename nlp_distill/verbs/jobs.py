"""`nlp-distill submit`, `jobs …`, `worker`, and `serve --jobs`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nlp_distill.verbs.common import JsonOption, OverrideOption, RecipeArgument, out_console, say

if TYPE_CHECKING:
    from nlp_distill.service.client import Client, Job

app = typer.Typer(help="Jobs of a service: list, watch, stop, fetch.", no_args_is_help=True, rich_markup_mode=None)

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of the service (NLP_DISTILL_SERVICE).")]
OnlineOption = Annotated[bool, typer.Option("--online", help="Jobs may fetch models and data from the Hub.")]
SlotsOption = Annotated[int, typer.Option("--slots", min=1, max=64, help="Jobs at once.")]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", envvar="NLP_DISTILL_RAY", help="Run jobs on the Ray cluster with this dashboard, http://HEAD:8265."
    ),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The service (default: NLP_DISTILL_URL, else http://127.0.0.1:8000).")
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, or the end of one.")]


def _check_installed() -> None:
    from nlp_distill.errors import MissingExtra

    if missing := [
        name for name in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "httpx") if find_spec(name) is None
    ]:
        raise MissingExtra(what=f"The job service ({', '.join(missing)})", extra="service")


def serve_jobs(
    home: Path | None,
    host: str,
    port: int,
    token_file: Path | None,
    hosts: tuple[str, ...],
    online: bool,
    slots: int,
    ray: str | None,
) -> None:
    """`serve --jobs`: the API and a worker, in one command."""
    _check_installed()
    from nlp_distill.service.executors.ray import RayExecutor
    from nlp_distill.service.home import Home
    from nlp_distill.service.server import listening_line, run_server
    from nlp_distill.web.listening import read_token

    place = Home(home).make()
    if ray is not None:
        RayExecutor(ray, place.ray).check()
    # Where one runs already, its token stays.
    place.hold()
    if (token := read_token(token_file)) is not None:
        place.use_token(token)
    place.admin_token()
    say(*listening_line(place, host, port))
    worker = ["--slots", str(slots), *(["--online"] if online else []), *(["--ray", ray] if ray else [])]
    run_server(place, host, port, hosts, worker, lambda link: say(f"Page:  {link}", "       (signs in once)"))


def worker(
    home: HomeOption = None,
    slots: SlotsOption = 1,
    online: OnlineOption = False,
    retention_days: Annotated[
        float, typer.Option("--retention-days", min=0, help="Remove jobs that ended so long ago; 0 keeps them.")
    ] = 0,
    nice: Annotated[int, typer.Option("--nice", min=0, max=19, help="How far runs step back for others.")] = 5,
    ray: RayOption = None,
) -> None:
    """Work on a service's jobs; it may be stopped or killed at any time, and another goes on."""
    _check_installed()
    from nlp_distill.service.home import Home
    from nlp_distill.service.server import run_worker
    from nlp_distill.service.worker import WorkerSettings

    settings = WorkerSettings(slots=slots, online=online, retention_days=retention_days, niceness=nice)
    run_worker(Home(home), settings, ray)


def submit(
    recipe: RecipeArgument,
    override: OverrideOption = None,
    name: Annotated[str, typer.Option("--name", help="A name for people.")] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by; repeatable.")] = None,
    priority: Annotated[int, typer.Option("--priority", min=-100, max=100, help="Higher ones are done first.")] = 0,
    deadline: Annotated[int | None, typer.Option("--deadline", min=1, help="Seconds until it must be done.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, max=64, help="Processes of the training.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=64, help="GPUs; 0 trains on the CPU.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Show what happens until it is over.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is over.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    home: HomeOption = None,
) -> None:
    """Submit a recipe to a service; files that it names as data are uploaded. Prints the job's id."""
    resources: dict[str, Any] = {"processes": processes, "gpus": gpus}
    job = _client(url, home).jobs.create(
        recipe,
        *(override or []),
        name=name,
        tags=tag or [],
        priority=priority,
        deadline_s=deadline,
        resources=resources,
    )
    if not as_json:
        say(job.id)
    if watch and not as_json:
        _show_events(job.events())
    if watch or wait:
        job.wait()
    if as_json:
        _print(job.data)


@app.command("list")
def jobs_list(
    status: Annotated[list[str] | None, typer.Option("--status", help="Only of this status; repeatable.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    home: HomeOption = None,
) -> None:
    """List jobs, newest first."""
    from rich.markup import escape
    from rich.table import Table

    found = _client(url, home).jobs.list(status or [], tag, limit)
    if as_json:
        _print([job.data for job in found])
        return
    table = Table("id", "status", "progress", "name", "task", box=None)
    for job in found:
        name, task = escape(job.data["name"]), job.data["recipe"]["tasks"][0]
        table.add_row(job.id, job.status, _progress(job), name, task)
    out_console.width = max(out_console.width, 100)
    out_console.print(table)


def _progress(job: Job) -> str:
    where = job.data["progress"]
    if not where or job.status not in ("running", "pausing", "paused", "cancelling"):
        return ""
    return f"{where['stage']} {where['step']}/{where['steps']}" if where.get("steps") else str(where["stage"])


@app.command("show")
def jobs_show(job: JobArgument, as_json: JsonOption = False, url: UrlOption = None, home: HomeOption = None) -> None:
    """Show a job."""
    found = _find(job, url, home)
    if as_json:
        _print(found.data)
        return
    data = found.data
    say(f"{found.id}  {found.status}  {data['name']}".rstrip())
    if where := _progress(found):
        say(f"  {where}")
    say(f"  attempts: {data['attempt']}, ran {data['run_s']:.0f} s, events: {data['last_event']}")
    if data["error"]:
        say(f"  {data['error']['code']}: {data['error']['message']}", f"  {data['error']['fix']}".rstrip())


@app.command("watch")
def jobs_watch(
    job: JobArgument,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events behind this number.")] = 0,
    as_json: JsonOption = False,
    url: UrlOption = None,
    home: HomeOption = None,
) -> None:
    """Show what happens to a job until it is over; exit code 3 where it fails."""
    found = _find(job, url, home)
    if as_json:
        for event in found.events(after):
            _print(event)
    else:
        _show_events(found.events(after))
    found.wait()


@app.command("logs")
def jobs_logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the attempt is over.")] = False,
    url: UrlOption = None,
    home: HomeOption = None,
) -> None:
    """Print what the last attempt wrote."""
    for text in _find(job, url, home).logs(follow):
        # A log may hold anything; a terminal gets lines only.
        sys.stdout.write("".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text))
        sys.stdout.flush()


@app.command("checkpoints")
def jobs_checkpoints(
    job: JobArgument, as_json: JsonOption = False, url: UrlOption = None, home: HomeOption = None
) -> None:
    """List the checkpoints that a job would go on from."""
    found = _find(job, url, home).checkpoints()
    if as_json:
        _print(found)
        return
    for checkpoint in found:
        size = checkpoint["bytes"] / 1e6
        say(f"{checkpoint['stage']}  step {checkpoint['step']}  {size:.1f} MB  {checkpoint['state']}")
    if not found:
        say("It has none: no training has begun, or all are done.")


@app.command("download")
def jobs_download(
    job: JobArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder (default: runs/JOB).")] = None,
    url: UrlOption = None,
    home: HomeOption = None,
) -> None:
    """Fetch what a job delivered; sums are checked."""
    found = _find(job, url, home)
    if found.status != "succeeded":
        say(f"{found.id} is {found.status}: it has delivered nothing (yet).")
        raise typer.Exit(2)
    folder = found.download(out or Path("runs") / found.id)
    say(f"{folder}", f"Next: nlp-distill predict {folder} 'A text of yours.'")


def _add(verb: str, summary: str) -> None:
    @app.command(verb, help=summary)
    def act(job: JobArgument, as_json: JsonOption = False, url: UrlOption = None, home: HomeOption = None) -> None:
        found: Job = getattr(_find(job, url, home), verb)()
        if as_json:
            _print(found.data)
        else:
            say(f"{found.id}  {found.status}")


for _verb, _summary in {
    "cancel": "End a job for good.",
    "pause": "Stop a job with a checkpoint.",
    "resume": "Let a paused job go on.",
    "retry": "Let a failed or cancelled job go on from its last checkpoint.",
    "clone": "Submit the same recipe again.",
}.items():
    _add(_verb, _summary)


@app.command("remove")
def jobs_remove(job: JobArgument, url: UrlOption = None, home: HomeOption = None) -> None:
    """Forget a job that is over, with everything that it made."""
    found = _find(job, url, home)
    found.remove()
    say(f"{found.id}  removed")


def _client(url: str | None, home: Path | None) -> Client:
    _check_installed()
    from nlp_distill.service.client import Client

    return Client(url, home=home)


def _find(job: str, url: str | None, home: Path | None) -> Job:
    """By its id, or by the end of it where that is clear."""
    from nlp_distill.errors import ServiceRefused

    client = _client(url, home)
    if job.startswith("job_") and len(job) == 36:
        return client.jobs.get(job)
    near = [found for found in client.jobs.list(limit=1000) if len(job) >= 4 and found.id.endswith(job)]
    if len(near) != 1:
        raise ServiceRefused(
            detail=f"'{job}' is {'no' if not near else 'more than one'} job; see `nlp-distill jobs list`."
        )
    return near[0]


def _show_events(events: Iterator[dict[str, Any]]) -> None:
    for event in events:
        if event["type"] == "progress" and not out_console.is_terminal:
            continue
        end = "\r" if event["type"] == "progress" else "\n"
        text = "".join(letter if letter.isprintable() else " " for letter in event["message"])
        out_console.print(
            f"{text:<78}" if end == "\r" else text, end=end, highlight=False, markup=False, soft_wrap=True
        )


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + os.linesep)
