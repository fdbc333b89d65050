"""What the torture of the service works on: tiny trainings, straight into a store."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select

from nlp_distill.recipe_file import parse_recipe
from nlp_distill.service.home import Home
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import Policy, Queue
from nlp_distill.service.store.tables import jobs
from nlp_distill.testing import save_tiny, write_rows


def queue_of(home: Home) -> Queue:
    """A queue that never gives a job up: here it is killed far more often than machines fail."""
    return Queue(Database(home.make().database).migrate(), Policy(most_failures=1_000_000))


def weights(run: Path) -> dict[str, str]:
    """sha256 of what a run's trainings made."""
    files = sorted([*run.glob("model/*.safetensors"), *run.glob("teacher/*.safetensors")])
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def training(folder: Path) -> dict[str, Any]:
    """A resolved recipe that trains for some seconds and checkpoints at every step."""
    save_tiny(folder / "teacher", auto_class="AutoModel", hidden_dropout_prob=0.1)
    write_rows(folder / "data")
    settings = {"learning_rate": 1e-3, "batch_size": 8, "checkpoint_minutes": 0}
    recipe = {
        "task": "classification",
        "data": {"dataset": str(folder / "data")},
        "teacher": {"model": str(folder / "teacher"), "finetune": {"epochs": 2, **settings}},
        "student": {"layers": 2},
        "distill": {"epochs": 2, **settings, "losses": [{"kind": "logits"}, {"kind": "labels"}, {"kind": "hidden"}]},
        "precision": "fp32",
        "export": [],
    }
    return parse_recipe(yaml.safe_dump(recipe).encode(), "torture").resolved()


def submit_trainings(queue: Queue, recipe: dict[str, Any], count: int) -> list[str]:
    """Straight into the store: recipes of clients name no folders."""
    given = {"name": "", "tags": [], "priority": 0, "recipe": recipe, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        return [queue.submit(connection, **given) for _ in range(count)]


def wait_for(queue: Queue, names: list[str]) -> None:
    """Until jobs are over."""
    while True:
        with queue.database.reading() as connection:
            found = connection.execute(select(jobs.c.status, jobs.c.detail).where(jobs.c.id.in_(names))).all()
        assert not [row for row in found if row.status == "failed"], found
        if all(row.status == "succeeded" for row in found):
            return
        time.sleep(0.2)
