"""Tiny models and data for every tier; nothing in the tests reaches the network."""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from pathlib import Path

import pytest
import yaml

from nlp_distill.testing import save_tiny, write_rows


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory):
    """What runs share goes into a folder of the tests' own, also for the processes that they start."""
    os.environ["NLP_DISTILL_CACHE"] = str(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A BERT of 4 layers, width 32, without a head."""
    return save_tiny(tmp_path_factory.mktemp("teacher"), auto_class="AutoModel")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny_recipe(tmp_path, write_recipe):
    """Writes a recipe of the tiny world into the test's folder; keyword arguments replace its parts."""
    return lambda name="tiny", **parts: write_recipe(tmp_path, name, **parts)


@pytest.fixture(scope="session")
def write_recipe(tiny_teacher, tiny_data):
    """Writes a recipe of the tiny world into a folder."""

    def write(folder, name="tiny", **parts):
        recipe = {
            "task": "classification",
            "data": {"dataset": str(tiny_data)},
            "teacher": {"model": str(tiny_teacher), "finetune": {"epochs": 2, "learning_rate": 1e-3}},
            "student": {"layers": 2},
            "distill": {
                "epochs": 2,
                "learning_rate": 1e-3,
                "batch_size": 16,
                "losses": [
                    {"kind": "logits"},
                    {"kind": "labels"},
                    {"kind": "hidden"},
                    {"kind": "attention"},
                    {"kind": "relation", "heads": 4},
                ],
            },
            "precision": "fp32",
            "export": [],
            **parts,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def browser():
    """A real Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "install Chromium (`apt-get install chromium`)"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
