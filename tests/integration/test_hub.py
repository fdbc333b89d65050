"""push, pull and predict by id, through the command line, against a loopback Hub."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import ModelCard

import nlp_distill
from nlp_distill.cli import main
from nlp_distill.hub import check_access
from nlp_distill.recipe_file import load_recipe
from nlp_distill.sources import resolve
from nlp_distill.testing.hub import LoopbackHub

TOKEN = "hf_loopback_write"


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_recipe):
    """A tiny run with int8, made once."""
    folder = tmp_path_factory.mktemp("made")
    parts = {"export": [{"format": "onnx", "profile": "fast", "score_drop": 100}]}
    distill = {"epochs": 1, "learning_rate": 1e-3, "losses": [{"kind": "logits"}]}
    recipe = write_recipe(folder, distill=distill, **parts)
    return nlp_distill.run(recipe, out=folder / "run").path


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub() as hub, hub.here(tmp_path / "home"):
        # The library waits between its attempts.
        with mock.patch("huggingface_hub.utils._http.time.sleep"):
            yield hub


@pytest.fixture
def call(capsys):
    """The command line: exit code, standard output, standard error."""

    def call(*arguments, code=0):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stopped.value.code == code, said.err
        assert TOKEN not in said.out + said.err and "Traceback" not in said.err
        return said.out if code == 0 else said.err

    return call


def test_pull_brings_a_folder_that_predicts_alike(made, hub, call, tmp_path):
    call("push", made, "org/small")
    call("pull", "org/small", tmp_path / "pulled")
    assert (tmp_path / "pulled" / "recipe.yaml").is_file() and not (tmp_path / "pulled" / "config.json").is_symlink()
    assert "exists already" in call("pull", "org/small", tmp_path / "pulled", code=2)
    here = call("predict", made, "a good film", "dull")
    assert call("predict", "org/small", "a good film", "dull") == here
    assert call("predict", "org/small@main", "a good film", "dull", "--variant", "student-onnx-int8") == here
    assert "no such model" in call("pull", "org/none", code=2)
    assert "has no variant 'teacher'" in call("predict", "org/small", "a", "--variant", "teacher", code=2)


def test_a_card_that_was_deleted_is_written_anew(made, hub, call, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    card = (run / "model" / "README.md").read_text()
    (run / "model" / "README.md").unlink()
    assert "`nlp-distill report` writes it anew" in call("push", run, "org/small", code=2)
    call("report", run)
    assert (run / "model" / "README.md").read_text() == card
    call("push", run, "org/small")


def test_a_pulled_folder_is_no_run(made, hub, call, tmp_path):
    """It has a recipe, as a run has; its model lies at the top."""
    call("push", made, "org/small")
    call("pull", "org/small", tmp_path / "pulled")
    assert call("predict", tmp_path / "pulled", "a good film") == call("predict", made, "a good film")


def test_a_part_of_a_repository_in_the_cache_is_not_pulled_for_the_whole(made, hub, call, tmp_path):
    call("push", made, "org/small")
    resolve("org/small")
    command = [sys.executable, "-m", "nlp_distill.cli", "pull", "org/small", str(tmp_path / "pulled")]
    environment = hub.environment(tmp_path / "home", offline=True)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "a part of it, without recipe.yaml" in done.stderr, done.stderr
    assert not (tmp_path / "pulled").exists()
    call("pull", "org/small", tmp_path / "pulled")
    assert (tmp_path / "pulled" / "onnx" / "model_quantized.onnx").is_file()


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("Dataset scripts are no longer supported, but found words.py"),
        EmptyDatasetError("The directory doesn't contain any data files"),
        DatasetGenerationError("An error occurred while generating the dataset"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_a_sentence(write_recipe, tmp_path, call, monkeypatch, raised):
    """What datasets raises for a loading script, for no tables, and for tables that do not go together."""
    monkeypatch.setattr("nlp_distill.hub_data.hub_reachable", lambda: True)
    monkeypatch.setattr("nlp_distill.hub_data._vetted_commit", lambda *_: "0" * 40)
    monkeypatch.setattr("datasets.load_dataset_builder", mock.Mock(side_effect=raised))
    recipe = write_recipe(tmp_path, data={"dataset": "org/words"})
    said = call("run", recipe, "--out", tmp_path / "run", code=2)
    assert f"'org/words' was not found: {raised}" in said and "data.files" in said, said


def test_a_recipe_that_publishes(write_recipe, tmp_path, hub, call):
    losses = {"epochs": 1, "losses": [{"kind": "logits"}]}
    recipe = write_recipe(tmp_path, distill=losses, publish={"repository": "org/small", "private": True})
    shown = call("run", recipe, "--out", tmp_path / "run")
    assert "published: " in shown and hub.repositories["models/org/small"].private
    assert len(hub.commits("org/small")) == 2
    seen = len(hub.seen)
    call("run", recipe, "--out", tmp_path / "run")
    assert len(hub.seen) == seen
    record = nlp_distill.RunDir(tmp_path / "run").manifest()["stages"]["publish"]
    assert record["published"]["repository"] == "org/small" and len(record["published"]["commit"]) == 40


def test_what_cannot_be_published_is_refused_before_training(write_recipe, tmp_path, hub, call):
    for place, token, says in (
        ("others/small", None, "the token is of me, org"),
        ("org/small", hub.read_token, "only read"),
    ):
        recipe = write_recipe(tmp_path, publish={"repository": place})
        with hub.here(tmp_path / "home", token=token):
            assert says in call("run", recipe, "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()
    recipe = write_recipe(tmp_path, publish={"repository": "small"})
    assert "publish.repository" in call("run", recipe, code=2)


def test_publishing_is_added_to_a_finished_run_and_asked_for_anew(write_recipe, tmp_path, hub, call):
    losses = {"epochs": 1, "losses": [{"kind": "logits"}]}
    run = tmp_path / "run"
    call("run", write_recipe(tmp_path, distill=losses), "--out", run)
    recipe = write_recipe(tmp_path, distill=losses, publish={"repository": "org/small"})
    with hub.here(tmp_path / "home", token=hub.read_token):
        assert "only read" in call("run", recipe, "--out", run, code=2)
    assert "published: " in call("run", recipe, "--out", run)
    with hub.here(tmp_path / "home", token=hub.read_token):
        assert "only read" in call("run", recipe, "-o", "distill.epochs=2", "--redo", "--out", run, code=2)
    others = write_recipe(tmp_path, distill=losses, publish={"repository": "others/small", "create_pr": True})
    check_access("others/small", create_pr=load_recipe(str(others), []).publish.create_pr)


def test_a_teacher_by_id_gives_its_licence_and_lineage(write_recipe, tmp_path, tiny_teacher, hub, call):
    hub.add("org/teacher", tiny_teacher)
    hub.add("org/teacher", {"README.md": b"---\nlicense: mit\n---\n"})
    teacher = {"model": "org/teacher@main", "finetune": {"epochs": 1, "learning_rate": 1e-3}}
    distill = {"epochs": 1, "losses": [{"kind": "logits"}]}
    recipe = write_recipe(tmp_path, teacher=teacher, distill=distill)
    call("run", recipe, "--out", tmp_path / "run")
    data = ModelCard.load(tmp_path / "run" / "model" / "README.md").data
    assert (data.license, data.base_model, data["base_model_relation"]) == ("mit", "org/teacher", "finetune")
    assert "licence is not known" not in (tmp_path / "run" / "model" / "README.md").read_text()
    call("push", tmp_path / "run", "org/student")
    shown = call("doctor", "--model", "org/student")
    assert "bert" in shown


DATA = """
import sys
from nlp_distill.data import read_splits
from nlp_distill.recipe import Data

splits = read_splits(Data(dataset="org/rows"))
print({name: len(rows) for name, rows in splits.items()}, splits["train"][0])
"""
NO_SOCKET = """
import socket

def refuse(*_):
    raise AssertionError("a socket")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def process(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_offline_with_a_warm_cache_opens_no_socket(made, tmp_path, tiny_data):
    """A dataset and a model, in fresh processes: first from the Hub, then without one."""
    predict = "import json, sys, nlp_distill\nprint(nlp_distill.load_pipeline('org/small')('a good film'))"
    home = tmp_path / "home"
    with LoopbackHub() as hub:
        with hub.here(home):
            nlp_distill.push(made, "org/small")
        hub.add("org/rows", Path(tiny_data), kind="dataset")
        rows = process(DATA, **hub.environment(home))
        assert "'train': 160" in rows and "'validation': 60" in rows
        told = process(predict, **hub.environment(home))
        offline = hub.environment(home, offline=True)
        assert process(NO_SOCKET + DATA, **offline) == rows
        assert process(NO_SOCKET + predict, **offline) == told
