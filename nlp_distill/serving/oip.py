"""The Open Inference Protocol, version 2, which KServe's and Triton's clients speak: texts in, columns out.

Inputs are BYTES tensors of one dimension: `text` (and `text_pair`), or `question` and `context`. What the data say
counts, whatever `shape` says.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, create_model

from nlp_distill import __version__
from nlp_distill.serving.api import REFUSALS, engine_of, is_ready
from nlp_distill.serving.bodies import MOST_INPUTS, Given, Kind, NoParameters, Words, kind_of
from nlp_distill.serving.catalog import Served
from nlp_distill.serving.engines import Engine, not_ready
from nlp_distill.web.problems import Problem, problems
from nlp_distill.web.text import Text

COLUMNS: dict[str, tuple[dict[str, bool], dict[str, str]]] = {
    "classification": ({"text": True, "text_pair": False}, {"label": "BYTES", "score": "FP64"}),
    "question_answering": (
        {"question": True, "context": True},
        {"answer": "BYTES", "score": "FP64", "start": "INT64", "end": "INT64"},
    ),
    "seq2seq": ({"text": True}, {"generated_text": "BYTES"}),
}
"""Of each task: names of inputs, and whether they must be there; names and datatypes of outputs."""


class Tensor(BaseModel):
    """A column of the answer."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class Inferred(BaseModel):
    """The answer."""

    model_name: str
    id: str | None = None
    outputs: list[Tensor]


def inference_router(models: list[Served], engines: Mapping[str, Engine]) -> APIRouter:
    """The protocol's routes for the models whose task has columns."""
    router = APIRouter(prefix="/v2")
    reading = problems(401, 421)

    @router.get("", responses=reading)
    async def server() -> ServerMetadata:
        """Who answers."""
        return ServerMetadata(name="nlp-distill", version=__version__, extensions=[])

    @router.get("/health/live", responses=reading)
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready", responses={**reading, **problems(503)})
    async def ready() -> dict[str, bool]:
        """Whether every engine can answer."""
        for model in models:
            _require(model, engines)
        return {"ready": True}

    for model in models:
        if model.task in COLUMNS:
            _add_model(router, model, engines)
    return router


def _require(model: Served, engines: Mapping[str, Engine]) -> None:
    if not is_ready(engines, model):
        raise not_ready(model.id)


def _add_model(router: APIRouter, model: Served, engines: Mapping[str, Engine]) -> None:
    taken, given = COLUMNS[model.task]
    path = f"/models/{model.id}"

    async def metadata() -> ModelMetadata:
        return ModelMetadata(
            name=model.id,
            platform=f"nlp_distill_{model.runtime.lower().replace(' ', '_')}",
            inputs=[{"name": name, "datatype": "BYTES", "shape": [-1]} for name in taken],
            outputs=[{"name": name, "datatype": kind, "shape": [-1]} for name, kind in given.items()],
        )

    async def ready() -> dict[str, bool]:
        _require(model, engines)
        return {"ready": True}

    async def infer(body: Any) -> Inferred:
        rows = _rows(body, taken)
        # Of one row pipelines answer in another shape than of several.
        inputs = rows if len(rows) > 1 else rows[0]
        answer = await engine_of(engines, model.id).ask(inputs, {}, len(rows))
        return Inferred(model_name=model.id, id=body.id, outputs=_columns(json.loads(answer.body), given))

    infer.__annotations__["body"] = _body(kind_of(model.task), taken)
    reading = problems(401, 421, 503)
    for name, endpoint, method, where, summary, responses in (
        ("metadata", metadata, "GET", path, "What the model takes and gives", reading),
        ("ready", ready, "GET", f"{path}/ready", "Whether its engine can answer", reading),
        ("infer", infer, "POST", f"{path}/infer", "Infer", REFUSALS),
    ):
        _add(router, where, endpoint, method, f"v2_{name}_{model.id}", summary, responses)


def _add(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Awaitable[Any]],
    method: str,
    operation: str,
    summary: str,
    responses: dict[int | str, dict[str, Any]],
) -> None:
    router.add_api_route(path, endpoint, methods=[method], operation_id=operation, summary=summary, responses=responses)


def _body(kind: Kind, taken: dict[str, bool]) -> type[BaseModel]:
    """A body with tensors of these names."""
    words: Any = Given if len(taken) > 1 and all(taken.values()) else Words
    names: Any = Literal[tuple(taken)]
    strict = ConfigDict(extra="forbid", strict=True)
    column: dict[str, Any] = {
        "name": (names, Field(description="Which column it is.")),
        "datatype": (Literal["BYTES"], Field(description="Texts.")),
        "shape": (list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2, description="As the data.")),
        "data": (list[words], Field(min_length=1, max_length=MOST_INPUTS, description="A text a row.")),
        "parameters": (NoParameters | None, None),
    }
    tensor: Any = create_model(f"{kind.body.__name__}Tensor", __config__=strict, **column)
    whole: dict[str, Any] = {
        "id": (Annotated[Text, Field(max_length=200)] | None, None),
        "inputs": (list[tensor], Field(min_length=1, max_length=len(taken))),
        "outputs": (list[dict[str, Any]] | None, Field(None, max_length=16, description="All are given anyway.")),
        "parameters": (NoParameters | None, None),
    }
    made: type[BaseModel] = create_model(f"{kind.body.__name__}Infer", __config__=strict, **whole)
    return made


def _rows(body: Any, taken: dict[str, bool]) -> list[Any]:
    """Columns → rows. Raises `Problem` where one is missing, twice there, or of another length."""
    columns = {tensor.name: tensor.data for tensor in body.inputs}
    missing = [name for name, needed in taken.items() if needed and name not in columns]
    lengths = {len(data) for data in columns.values()}
    if missing or len(columns) < len(body.inputs) or len(lengths) > 1:
        reason = f"'{missing[0]}' is missing" if missing else "its tensors are not one of each name, of one length"
        raise Problem(422, "inputs_unfit", f"The inputs do not go together: {reason}.")
    if list(columns) == ["text"]:
        return list(columns["text"])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(answer: Any, given: dict[str, str]) -> list[Tensor]:
    """Rows → columns. A question without any answer has an empty one."""
    rows = answer if isinstance(answer, list) else [answer]
    flat = [row[0] if isinstance(row, list) and row else row for row in rows]
    empty = {"BYTES": "", "FP64": 0.0, "INT64": 0}
    return [
        Tensor(
            name=name,
            datatype=kind,
            shape=[len(flat)],
            data=[row[name] if row else empty[kind] for row in flat],
        )
        for name, kind in given.items()
    ]
