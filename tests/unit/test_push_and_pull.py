"""push and pull through the command line, against a loopback Hub."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import yaml
from huggingface_hub import ModelCard

import nlp_distill
from nlp_distill.cli import main
from nlp_distill.errors import CardUntrue, PublishRefused
from nlp_distill.hub import check_card
from nlp_distill.loading import load_tokenizer
from nlp_distill.reports.card import write_card
from nlp_distill.rundir import RunDir, sha256_file, write_json, write_text
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny
from nlp_distill.testing.hub import LoopbackHub

GOLDEN = Path(__file__).parents[1] / "golden"
TOKEN = "hf_loopback_write"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run, as far as publishing looks at it."""
    rundir = RunDir(tmp_path_factory.mktemp("made") / "run")
    save_tiny(rundir.model, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    write_json(rundir.model / "student.json", {"task": {"name": "classification", "options": {}}})
    for name in ("model.onnx", "model_quantized.onnx"):
        write_text(rundir.model / "onnx" / name, f"a graph, {name}")
    results = json.loads((GOLDEN / "results.json").read_text(encoding="utf-8"))
    write_json(rundir.results, results)
    write_text(rundir.recipe, "version: 1\n")
    task = load_task("classification")
    task.label_names = ["bad", "good"]
    pictures = write_card(rundir, results, task, load_tokenizer(rundir.model))
    inside = [p.relative_to(rundir.path).as_posix() for p in rundir.model.rglob("*") if p.is_file()]
    stages = {"distill": [p for p in inside if "onnx" not in p and p not in ("model/README.md", *pictures)]}
    stages |= {"export": [p for p in inside if "onnx" in p], "results": ["results.json", *pictures]}
    record = {
        stage: {"key": stage, "settings": {}, "outputs": {path: sha256_file(rundir.path / path) for path in paths}}
        for stage, paths in stages.items()
    }
    rundir.update_manifest(stages=record)
    return rundir.path


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made, tmp_path / "run")


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


def test_a_dry_run_asks_nobody(made, hub, call):
    shown = call("push", made, "org/small", "--dry-run")
    assert "model.safetensors" in shown and "onnx/model_quantized.onnx" in shown and "nothing was sent" in shown
    listed = json.loads(call("push", made, "org/small", "--dry-run", "--json"))["files"]
    assert listed["model.safetensors"] == (made / "model" / "model.safetensors").stat().st_size
    assert hub.seen == []


def test_one_commit_with_everything(made, hub, call):
    assert "published: " in call("push", made, "org/small")
    files = hub.files("org/small")
    inside = {p.relative_to(made / "model").as_posix(): p for p in (made / "model").rglob("*") if p.is_file()}
    assert set(files) == {*inside, "recipe.yaml", "results.json", ".gitattributes"}
    for path, file in inside.items():
        assert path == "README.md" or files[path] == file.read_bytes(), path
    assert hub.commits("org/small")[1:] == ["nlp_distill: classification student of " + _teacher(made)]
    assert b"org/small" in files["README.md"] and b"path/to/model" not in files["README.md"]
    assert json.loads(files["results.json"]) == json.loads((made / "results.json").read_text())


def _teacher(run):
    return json.loads((run / "results.json").read_text())["teacher"]["name"]


def test_the_metadata_carries_the_numbers_of_the_results(made, hub, call):
    call("push", made, "org/small")
    card = ModelCard(hub.files("org/small")["README.md"].decode())
    results = json.loads((made / "results.json").read_text())
    scores = {
        f"{name} ({variant['name']})": value
        for variant in results["variants"]
        if variant["name"].startswith("student")
        for name, value in variant["score"].items()
    }
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == scores
    assert card.data.pipeline_tag == "text-classification" and card.data.model_name == "org/small"
    assert {"onnx", "knowledge-distillation", "transformers.js"} <= set(card.data.tags)


def test_again_commits_nothing_and_sends_nothing(made, hub, call):
    call("push", made, "org/small")
    commits, sent = hub.commits("org/small"), hub.received()
    assert "nothing was committed" in call("push", made, "org/small")
    assert hub.commits("org/small") == commits and hub.received() == sent
    assert json.loads(call("push", made, "org/small", "--json"))["changed"] is False


def test_an_interrupted_push_goes_on(made, hub, call):
    """The weights break off in the middle, as often as the library tries; what has arrived is not sent again."""
    weights = made / "model" / "model.safetensors"
    hub.fail(f"/upload/{sha256_file(weights)}", None, "PUT", times=6)
    message = call("push", made, "org/small", code=3)
    assert "Nothing was published to 'org/small' yet" in message and "same command" in message
    assert hub.commits("org/small") == ["initial commit"]
    # The two graphs are sent beside the weights; the library may give one up when these fail.
    arrived = {len(content) for content in hub.large.values()}
    assert arrived and arrived <= {19, 29}
    before = hub.received()
    call("push", made, "org/small")
    assert hub.received() - before == weights.stat().st_size + sum({19, 29} - arrived)
    assert hub.files("org/small")["model.safetensors"] == weights.read_bytes()


@pytest.mark.parametrize(
    ("path", "status", "says", "code"),
    [
        ("/api/repos/create", 401, "does not know the token", 2),
        ("/api/repos/create", 403, "may not write there", 2),
        ("/preupload/", 404, "no such repository", 2),
        ("/commit/", 409, "changed at the same time", 2),
        ("/commit/", 412, "changed at the same time", 2),
        ("/commit/", 413, "nothing that large", 2),
        ("/commit/", 429, "too many requests (429); it asks to wait 9 s", 3),
        ("/commit/", 503, "in trouble (503)", 3),
        ("/objects/batch", 500, "in trouble (500)", 3),
        ("/upload/", 500, "in trouble (500)", 3),
        ("/commit/", None, "connection failed, or broke off", 3),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(made, hub, call, path, status, says, code):
    hub.fail(path, status, times=99, headers={"Retry-After": "9"})
    message = call("push", made, "org/small", code=code)
    assert says in message and "org/small" in message and message.count("Error: ") == 1
    assert message.count("\n") <= 2
    assert [commits for name in hub.repositories if len(commits := hub.commits(name.split("s/", 1)[1])) > 1] == []


def test_names_that_are_none(made, hub, call):
    for name in ("small", "org/small/one", "org/..", "https://huggingface.co/org/small", "org/a b", "org/x.git"):
        assert "not the name of a repository" in call("push", made, name, code=2)
    assert "not a revision" in call("push", made, "org/small", "--revision", "../x", code=2)
    assert "against main" in call("push", made, "org/small", "--revision", "v2", "--create-pr", code=2)
    assert "rights to create" in call("push", made, "others/small", code=2)
    assert hub.repositories == {}


def test_without_a_token_and_offline(made, hub, call, tmp_path):
    with hub.here(tmp_path / "none", token=""):
        assert "there is no token" in call("push", made, "org/small", code=2)
    with hub.here(tmp_path / "none", offline=True):
        assert "offline mode is on" in call("push", made, "org/small", code=2)
        assert "nothing was sent" in call("push", made, "org/small", "--dry-run")
    with hub.here(tmp_path / "none", token=hub.read_token):
        assert "use a write token" in call("push", made, "org/small", code=2)
    assert [seen for seen in hub.seen if seen.status < 300] == []


def test_what_is_no_finished_run(run, hub, call, tmp_path):
    assert "not the folder of a run" in call("push", tmp_path, "org/small", code=2)
    (run / "results.json").rename(run / "kept.json")
    assert "has no results yet" in call("push", run, "org/small", code=2)
    (run / "kept.json").rename(run / "results.json")
    with (run / "model" / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    assert "not the file that was measured" in call("push", run, "org/small", code=2)
    assert hub.seen == []


def test_a_card_may_be_edited_but_not_its_numbers(run, hub, call):
    card = run / "model" / "README.md"
    text = card.read_text()
    card.write_text(text.replace("## What it is for", "## What we use it for"))
    call("push", run, "org/small")
    assert b"What we use it for" in hub.files("org/small")["README.md"]
    value = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["metrics"][0]["value"]
    card.write_text(text.replace(f"value: {value}", "value: 99.9", 1))
    assert "99.9 there" in call("push", run, "org/small", code=2)
    card.write_text("---\n[\n---\n")
    with pytest.raises(CardUntrue, match="cannot be read"):
        check_card(RunDir(run))
    card.unlink()
    assert "`nlp-distill report` writes it anew" in call("push", run, "org/small", code=2)


def test_no_secret_leaves(run, hub, call):
    (run / "model" / "notes.md").write_text(f"my token is {TOKEN}")
    assert "notes.md holds a token" in call("push", run, "org/small", code=2)
    (run / "model" / "notes.md").write_text("hf_" + "aB3" * 12)
    assert "notes.md holds a token" in call("push", run, "org/small", code=2)
    assert hub.seen == []


def test_no_code_and_no_pickle_leaves(run, hub, call):
    (run / "model" / "training_args.bin").write_bytes(b"pickle")
    assert "may be a pickle" in call("push", run, "org/small", code=2)
    (run / "model" / "training_args.bin").unlink()
    (run / "model" / "modeling.py").write_text("pass")
    assert "holds code" in call("push", run, "org/small", code=2)


def test_the_token_is_nowhere(made, hub, call, tmp_path):
    call("push", made, "org/small", "--private")
    call("pull", "org/small", tmp_path / "pulled")
    assert hub.repositories["models/org/small"].private
    found = [
        p for folder in (made, tmp_path) for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()
    ]
    assert found == []


def test_private_is_kept(made, hub, call):
    call("push", made, "org/small")
    assert "it is public, and --private was asked for" in call("push", made, "org/small", "--private", code=2)


def test_what_an_earlier_push_left_goes_and_the_rest_stays(run, hub, call):
    call("push", run, "org/small")
    mine = {"LICENSE": b"mine", "adapters/lora.safetensors": b"mine"}
    hub.add("org/small", {**mine, "onnx/model_q4.onnx": b"old"})
    assert "removed: onnx/model_q4.onnx" in call("push", run, "org/small")
    assert {name: hub.files("org/small").get(name) for name in mine} == mine
    hub.add("org/other", {"config.json": b"{}", "model.safetensors": b"theirs"})
    assert "made elsewhere" in call("push", run, "org/other", code=2)
    assert hub.files("org/other")["model.safetensors"] == b"theirs"


def test_branches_pull_requests_and_collections(made, hub, call):
    call("push", made, "org/small", "--revision", "next/one")
    assert "model.safetensors" in hub.files("org/small", "next/one")
    assert "model.safetensors" not in hub.files("org/small")
    shown = call("push", made, "org/small", "--create-pr", "--collection", "Small ones")
    assert "/discussions/1" in shown and "model.safetensors" not in hub.files("org/small")
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == ["org/small"]
    call("push", made, "org/small", "--collection", collection["slug"])
    assert "no such repository" in call("push", made, "org/small", "--collection", "org/no-such", code=2)
    hub.fail("/items", 403, "POST")
    message = call("push", made, "org/small", "--collection", collection["slug"], code=2)
    assert "is published, but is not in the collection" in message


@pytest.mark.parametrize(("status", "says"), [(401, "refuses your token"), (503, "in trouble (503)"), (429, "(429)")])
def test_a_hub_that_does_not_give(made, hub, call, status, says, tmp_path):
    call("push", made, "org/small")
    hub.fail("/api/models/org/small", status, "GET", times=99)
    assert says in call("pull", "org/small", tmp_path / "x", code=2)
    hub.faults.clear()
    hub.fail("/large/", None, "GET", times=99)
    assert "connection failed, or broke off" in call("pull", "org/small", tmp_path / "x", code=2)
    assert not (tmp_path / "x").exists()


def test_python_says_the_same(made, hub):
    assert nlp_distill.push(made, "org/small").changed
    with pytest.raises(PublishRefused):
        nlp_distill.push(made, "small")
