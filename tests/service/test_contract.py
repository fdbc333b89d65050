"""The API is what its committed description says: compared, and tried with whatever schemathesis thinks of."""

import json

import pytest
import schemathesis
from conftest import RECIPE
from hypothesis import HealthCheck, given, settings
from sqlalchemy import insert

from nlp_distill.service.api.app import service_app
from nlp_distill.service.api.description import FILE, description
from nlp_distill.service.home import Home
from nlp_distill.service.reasons import Ending
from nlp_distill.service.store.queue import Queue
from nlp_distill.service.store.tables import workers

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
PATHS = json.loads(FILE.read_text(encoding="utf-8"))["paths"]
OPERATIONS = [(path, method) for path, methods in PATHS.items() for method in methods]


def test_the_committed_description_is_the_apis():
    committed = json.loads(FILE.read_text(encoding="utf-8"))
    assert committed == description(), "run `make docs`"
    assert committed["openapi"].startswith("3.1")


SAID = ["2xx", 304, 403, 404, 409, 412, 415, 416, 422, 429]
NO = [400, 401, 403, 404, 405, 409, 412, 413, 415, 416, 422, 429]
CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {"negative_data_rejection": {"expected-statuses": NO}},
        "operations": [
            # What a recipe may say, and which names an upload may have, is more than a schema can: refused in words.
            {
                "include-path-regex": "^/v1/(jobs|files|recipes:.*)$",
                "checks": {"positive_data_acceptance": {"expected-statuses": SAID}},
            },
            # Whoever was faster changed the version that `If-Match` names.
            {
                "include-path": "/v1/jobs/{job_id}",
                "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 404, 409, 412]}},
            },
        ],
    }
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An API with one job of each kind of end."""
    home = Home(tmp_path_factory.mktemp("contract")).make()
    app = service_app(home)
    queue = Queue(app.state.service.database)
    given = {"name": "", "tags": [], "priority": 0, "recipe": RECIPE, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        queue.submit(connection, **given)
    queue.finish(queue.claim("w"), Ending("ok"))
    with queue.database.writing() as connection:
        seen = {"host": "here", "process": "1:1:x", "started_at": 0, "seen_at": 2**53, "slots": 1}
        connection.execute(insert(workers).values(id="worker", **seen))
    yield home, app
    app.state.service.database.close()


@pytest.fixture(scope="module")
def schema(served):
    _, app = served
    schema = schemathesis.openapi.from_dict(app.openapi(), config=CONFIG)
    schema.app = app
    return schema


def headers(home):
    return {"Authorization": f"Bearer {home.admin_token()}", "Host": "127.0.0.1"}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_operation_is_as_described(schema, served, path, method):
    home, _ = served

    @FEW
    @given(case=schema[path][method].as_strategy())
    def tried(case):
        case.call_and_validate(headers=headers(home))

    tried()


@pytest.mark.slow
def test_operations_after_each_other(schema, served):
    home, _ = served

    class Clients(schema.as_state_machine()):
        def get_call_kwargs(self, case):
            return {"headers": headers(home)}

    Clients.run(settings=settings(FEW, max_examples=15, stateful_step_count=8))
