"""The routes of predictions, as one router that an app of ours includes.

Each model has a path of its own, so that the OpenAPI file says exactly what it takes; `/predict` and `/` ask the first.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field, create_model
from starlette.types import Scope

from nlp_distill.serving.bodies import Kind, asked, example_of, kind_of
from nlp_distill.serving.catalog import Served
from nlp_distill.serving.engines import Engine, not_ready
from nlp_distill.serving.metrics import Metrics
from nlp_distill.web.problems import problems

JSON = "application/json"
ENGINE_SECONDS = "x-engine-seconds"
REFUSALS = problems(400, 401, 403, 408, 413, 421, 422, 429, 500, 503)
READING = problems(401, 421)


class ModelLine(BaseModel):
    """One served model."""

    id: str
    task: str
    variant: str
    runtime: str
    ready: bool
    example: Any = Field(description="Inputs to try it with.")


class Compared(BaseModel):
    """One model's answer."""

    model: str
    variant: str
    runtime: str
    milliseconds: float = Field(description="Time inside the engine.")
    outputs: Any = Field(description="What the model's own path answers.")


def prediction_router(models: list[Served], engines: Mapping[str, Engine], metrics: Metrics) -> APIRouter:
    """Everything about predictions. `engines` may fill up after the router is made, when the app starts."""
    router = APIRouter()
    for model in models:
        _add_prediction(router, [f"/models/{model.id}"], model, engines)
    _add_prediction(router, ["/predict", "/"], models[0], engines)
    _add_comparison(router, models, engines)

    @router.get("/models", responses=READING)
    async def list_models() -> list[ModelLine]:
        """The models that are served, the first first."""
        return [
            ModelLine(
                id=model.id,
                task=model.task,
                variant=model.variant,
                runtime=model.runtime,
                ready=is_ready(engines, model),
                example=example_of(model.task, model.folder),
            )
            for model in models
        ]

    _add_health(router, models, engines, metrics)
    return router


def rooms(models: list[Served], engines: Mapping[str, Engine]) -> Callable[[Scope], Engine | None]:
    """The engine that a request asks for: what it has no room for is refused before anything else is done."""
    asked = {"/predict": models[0].id, "/": models[0].id}
    for model in models:
        asked |= {f"/models/{model.id}": model.id, f"/v2/models/{model.id}/infer": model.id}

    def room_of(scope: Scope) -> Engine | None:
        return engines.get(asked.get(scope["path"], "")) if scope["method"] == "POST" else None

    return room_of


def is_ready(engines: Mapping[str, Engine], model: Served) -> bool:
    """Whether a model's engine can answer."""
    return model.id in engines and engines[model.id].ready


def _add_prediction(router: APIRouter, paths: list[str], model: Served, engines: Mapping[str, Engine]) -> None:
    kind = kind_of(model.task)

    async def predict(body: Any) -> Response:
        inputs, parameters, rows = asked(kind, body)
        answer = await engine_of(engines, model.id).ask(inputs, parameters, rows)
        return Response(answer.body, 200, {ENGINE_SECONDS: f"{answer.seconds:.6f}"}, JSON)

    predict.__doc__ = f"What the pipeline of '{model.id}' returns ({model.variant}, {model.task})."
    _typed(predict, kind.body)
    for path in paths:
        name = path.strip("/").replace("/", "_") or "root"
        router.add_api_route(
            path,
            predict,
            methods=["POST"],
            response_model=kind.response,
            responses=REFUSALS,
            operation_id=f"predict_{name}",
            summary="Predict",
        )


def _typed(endpoint: Callable[..., Awaitable[Any]], body: Any) -> None:
    # The type is known when the app is made, not when this file is read.
    endpoint.__annotations__["body"] = body


def engine_of(engines: Mapping[str, Engine], name: str) -> Engine:
    """A model's engine. Raises `Problem` (503) before the app has started it."""
    if name not in engines:
        raise not_ready(name)
    return engines[name]


def _add_comparison(router: APIRouter, models: list[Served], engines: Mapping[str, Engine]) -> None:
    """Models of the first one's task answer the same inputs, one after the other so that none slows another."""
    first = models[0]
    peers = {model.id: model for model in models if model.task == first.task}
    kind: Kind = kind_of(first.task)
    names: Any = Literal[tuple(peers)]
    chosen: Any = (list[names] | None, Field(None, min_length=1, max_length=8, description="Which ones; unset: all."))
    body_model: Any = create_model("CompareBody", __base__=kind.body, models=chosen)

    async def compare(body: Any) -> list[Compared]:
        inputs, parameters, rows = asked(kind, body)
        compared = []
        for name in dict.fromkeys(body.models or peers):
            answer = await engine_of(engines, name).ask(inputs, parameters, rows)
            model = peers[name]
            compared.append(
                Compared(
                    model=name,
                    variant=model.variant,
                    runtime=model.runtime,
                    milliseconds=round(answer.seconds * 1e3, 3),
                    outputs=json.loads(answer.body),
                )
            )
        return compared

    compare.__doc__ = "Answers of several models to the same inputs, teacher beside student, with the time each took."
    _typed(compare, body_model)
    router.add_api_route(
        "/compare",
        compare,
        methods=["POST"],
        response_model=list[Compared],
        responses=REFUSALS,
        operation_id="compare",
        summary="Compare",
    )


def _add_health(router: APIRouter, models: list[Served], engines: Mapping[str, Engine], metrics: Metrics) -> None:
    @router.get("/health/live", responses=problems(421))
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready", responses=problems(421, 503))
    async def ready() -> dict[str, bool]:
        """Whether every engine can answer."""
        for model in models:
            if not is_ready(engines, model):
                raise not_ready(model.id)
        return {"ready": True}

    @router.get("/metrics", responses={**READING, 200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
