"""What a job delivered: files by id, all of them as one archive, and several jobs side by side; and its checkpoints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import FileResponse, Response, StreamingResponse
from sqlalchemy import Row, select

from nlp_distill.recipe_file import flat
from nlp_distill.service.api.jobs import find
from nlp_distill.service.api.models import Artifact, Checkpoint, Compared, CompareRequest, Comparison, Listed
from nlp_distill.service.api.service import ArtifactId, JobId, Reader, Served, Service, row_or_missing
from nlp_distill.service.checkpoints import checkpoints
from nlp_distill.service.store.tables import artifacts
from nlp_distill.web.problems import Problem, problems

router = APIRouter(prefix="/v1", tags=["artifacts"])
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
BLOCK = 1 << 18


def of_job(service: Service, job_id: str) -> list[Row[Any]]:
    """What a job delivered; nothing before it succeeded. Raises `Problem`."""
    with service.database.reading() as connection:
        find(connection, job_id)
        wanted = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.path)
        return list(connection.execute(wanted))


@router.get("/jobs/{job_id}/artifacts", responses=problems(404, 422))
def listed(job_id: JobId, service: Served, _: Reader) -> Listed[Artifact]:
    """The files of a job that succeeded."""
    fields = ("id", "path", "bytes", "sha256", "media_type")
    rows = of_job(service, job_id)
    return Listed(data=[Artifact(**{name: row._mapping[name] for name in fields}) for row in rows])


@router.get("/jobs/{job_id}/checkpoints", responses=problems(404, 422))
def checkpoints_of(job_id: JobId, service: Served, _: Reader) -> Listed[Checkpoint]:
    """Where an attempt would go on from. A training that is done has none left."""
    with service.database.reading() as connection:
        find(connection, job_id)
    return Listed(data=[Checkpoint(**found.__dict__) for found in checkpoints(service.home.run(job_id))])


@router.get(
    "/artifacts/{artifact_id}/content",
    response_class=Response,
    responses={
        200: {"content": BINARY},
        206: {"content": BINARY, "description": "A part."},
        304: {"description": "It is the one you have."},
        **problems(404, 416, 422),
    },
)
def content(
    artifact_id: ArtifactId,
    service: Served,
    _: Reader,
    if_none_match: Annotated[str | None, Header(max_length=400)] = None,
) -> Response:
    """A file; its sha256 is the ETag, `Range` gives a part."""
    with service.database.reading() as connection:
        found = connection.execute(select(artifacts).where(artifacts.c.id == artifact_id)).first()
    row = row_or_missing(found, "artifact")
    headers = {"ETag": f'"{row.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match and f'"{row.sha256}"' in [given.strip() for given in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    file = place_of(service, row)
    # Whatever it says it is, a browser only keeps it.
    return FileResponse(file, media_type=row.media_type, filename=file.name, headers=headers)


def place_of(service: Service, row: Row[Any]) -> Path:
    """The file itself: inside the job's run, no link, as large as it was. Raises `Problem`."""
    run = service.home.run(row.job_id).resolve()
    file: Path = run / row.path
    real = file.resolve()
    if not file.is_file() or real != file or not real.is_relative_to(run) or file.stat().st_size != row.bytes:
        raise Problem(404, "artifact_gone", "The file is not as it was delivered; run the job again.")
    return file


@router.get("/jobs/{job_id}/bundle", response_class=Response, responses={200: {"content": ZIP}, **problems(404, 422)})
def bundle(job_id: JobId, service: Served, _: Reader) -> Response:
    """All files of a job that succeeded, as one archive that is made while it is sent."""
    rows = of_job(service, job_id)
    if not rows:
        raise Problem(404, "nothing_delivered", "The job has delivered nothing (yet).")
    files = [(row.path, place_of(service, row)) for row in rows]
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.zip"'}
    return StreamingResponse(_zipped(files), media_type="application/zip", headers=headers)


class _Sink:
    """What an archive is written to, and taken from piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing to flush."""

    def taken(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces.clear()
        return data


def _zipped(files: list[tuple[str, Path]]) -> Iterator[bytes]:
    sink = _Sink()
    # Weights do not shrink: they are stored as they are.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for name, file in files:
            with archive.open(zipfile.ZipInfo.from_file(file, name), "w") as target, file.open("rb") as source:
                while block := source.read(BLOCK):
                    target.write(block)
                    yield sink.taken()
            yield sink.taken()
    yield sink.taken()


@router.post("/compare", responses=problems(404, 422))
def compare(request: CompareRequest, service: Served, _: Reader) -> Comparison:
    """Variants of several jobs, those marked that no other beats in everything, and how the recipes differ."""
    found: dict[str, tuple[Row[Any], dict[str, Any]]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for job_id in dict.fromkeys(request.jobs):
        with service.database.reading() as connection:
            job = find(connection, job_id)
        recipes[job_id] = dict(flat(job.recipe))
        if results := _results(service, job_id):
            found[job_id] = job, results
    sequence = _sequence([results for _, results in found.values()])
    variants = [variant for job, results in found.values() for variant in _variants(job, results, sequence)]
    names = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    differences = {name: {job: recipe.get(name) for job, recipe in recipes.items()} for name in names}
    return Comparison(
        variants=_marked(variants),
        sequence=sequence,
        differences={n: v for n, v in differences.items() if len({json.dumps(one) for one in v.values()}) > 1},
    )


def _results(service: Service, job_id: str) -> dict[str, Any]:
    delivered = {row.path: row for row in of_job(service, job_id)}
    if "results.json" not in delivered:
        return {}
    return dict(json.loads(place_of(service, delivered["results.json"]).read_text(encoding="utf-8")))


def _sequence(all_results: list[dict[str, Any]]) -> int | None:
    """A length at which all were timed: that of their rows where they share it, else the longest."""
    timed = [
        {way["sequence"] for way in variant["latency_ms"]}
        for results in all_results
        for variant in results["variants"]
        if variant.get("latency_ms")
    ]
    shared = set.intersection(*timed) if timed else set()
    real = {results.get("real_sequence") for results in all_results}
    return next(iter(real & shared)) if len(real) == 1 and real & shared else max(shared, default=None)


def _variants(job: Row[Any], results: dict[str, Any], sequence: int | None) -> list[Compared]:
    found = []
    for variant in results["variants"]:
        ways = [way for way in variant.get("latency_ms") or [] if way["sequence"] == sequence]
        found.append(
            Compared(
                job_id=job.id,
                job_name=job.name,
                variant=variant["name"],
                metric=results["metric"],
                score=(variant.get("score") or {}).get(results["metric"]),
                retained=variant.get("retained"),
                bytes=variant.get("bytes"),
                latency_ms=ways[0]["p50"] if ways else None,
                recommended=variant["name"] == results.get("recommended"),
                pareto=False,
                status=variant.get("status", ""),
            )
        )
    return found


def _marked(variants: list[Compared]) -> list[Compared]:
    """Pareto: no other is as good in all three and better in one."""

    def figures(variant: Compared) -> tuple[float, float, float] | None:
        score, size, latency = variant.score, variant.bytes, variant.latency_ms
        return None if score is None or size is None or latency is None else (-score, size, latency)

    def beaten(mine: tuple[float, float, float]) -> bool:
        others = (other for variant in variants if (other := figures(variant)) is not None)
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)

    return [
        variant.model_copy(update={"pareto": (mine := figures(variant)) is not None and not beaten(mine)})
        for variant in variants
    ]
