"""Ask what a job made: its teacher and its student, side by side."""

from __future__ import annotations

import json

from fastapi import APIRouter
from pydantic import ValidationError

from nlp_distill.service.api.jobs import find, wrong_status
from nlp_distill.service.api.models import Listed, Prediction, PredictionRequest
from nlp_distill.service.api.service import JobId, Predictor, Served, Service
from nlp_distill.serving.bodies import asked, kind_of
from nlp_distill.web.problems import Place, Problem, problems

router = APIRouter(prefix="/v1/jobs", tags=["predictions"])


@router.post("/{job_id}/predictions", responses=problems(404, 409, 422, 429))
async def predict(job_id: JobId, request: PredictionRequest, service: Served, _: Predictor) -> Listed[Prediction]:
    """What the teacher and the recommended student answer, one after the other, and how long each took.

    `inputs` are what the task's pipeline takes. The first question starts the models, which takes seconds.
    """
    _check_succeeded(service, job_id)
    async with service.engines.of(job_id) as engines:
        kind = kind_of(engines[-1].served.task)
        try:
            body = kind.body.model_validate(request.model_dump(exclude_unset=True))
        except ValidationError as error:
            places = [Place(pointer="/inputs", message=str(one["msg"])[:200]) for one in error.errors()[:3]]
            raise Problem(422, "inputs_unfit", f"The model cannot take this: {places[0].message}.") from error
        inputs, parameters, rows = asked(kind, body)
        made = []
        for engine in engines:
            answer = await engine.ask(inputs, parameters, rows)
            model = engine.served
            told = Prediction(
                model=model.id,
                variant=model.variant,
                runtime=model.runtime,
                milliseconds=round(answer.seconds * 1e3, 3),
                outputs=json.loads(answer.body),
            )
            made.append(told)
    return Listed(data=made)


def _check_succeeded(service: Service, job_id: str) -> None:
    with service.database.reading() as connection:
        job = find(connection, job_id)
    if job.status != "succeeded":
        raise wrong_status(job.status, "only what succeeded can be asked")
