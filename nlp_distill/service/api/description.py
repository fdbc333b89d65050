"""The description of the API, committed beside this file: `python -m nlp_distill.service.api.description`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from nlp_distill.rundir import write_text
from nlp_distill.service.api.app import service_app
from nlp_distill.service.home import Home

FILE = Path(__file__).with_name("openapi.json")


def description() -> dict[str, Any]:
    """OpenAPI 3.1."""
    with tempfile.TemporaryDirectory() as folder:
        app = service_app(Home(folder))
        try:
            found: dict[str, Any] = json.loads(json.dumps(app.openapi()))
        finally:
            app.state.service.database.close()
    # It is the API's shape that counts.
    found["info"]["version"] = "1"
    return found


if __name__ == "__main__":
    write_text(FILE, json.dumps(description(), indent=1, sort_keys=True) + "\n")
