"""Model folders made to do harm: nothing of them runs, no socket opens, and honest folders still load."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from nlp_distill.errors import UserError
from nlp_distill.loading import load_config, load_generation, load_model, load_tokenizer
from nlp_distill.prediction import load_pipeline
from nlp_distill.sources import resolve
from nlp_distill.testing import save_tiny, write_rows

CLASSIFIER, SEQ2SEQ = "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EVIL = "import pathlib; pathlib.Path({canary!r}).write_text('ran')\n"


class Evil:
    """A pickle that touches the canary when it is opened."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


class Attack:
    """What an attack writes into a folder, in words that fit on one line."""

    def __init__(self, folder, canary):
        self.folder, self.canary = folder, canary

    def pickle(self, name, keep=False):
        if not keep:
            (self.folder / WEIGHTS).unlink(missing_ok=True)
        (self.folder / name).write_bytes(pickle.dumps(Evil(str(self.canary))))

    def torch(self, name):
        torch.save({"weight": Evil(str(self.canary))}, self.folder / name)

    def zip(self, name):
        with zipfile.ZipFile(self.folder / name, "w") as file:
            file.writestr("data.pkl", pickle.dumps(Evil(str(self.canary))))

    def code(self, name):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(EVIL.format(canary=str(self.canary)) + "def generate(*a, **k): ...\n")

    def edit(self, name, **values):
        file = self.folder / name
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**before, **values}))

    def text(self, name, text):
        (self.folder / name).write_text(text)

    def index(self, target):
        (self.folder / WEIGHTS).rename(self.folder / "a.safetensors")
        self.text(INDEX, json.dumps({"metadata": {}, "weight_map": {"bert.a": "a.safetensors", "bert.b": target}}))

    def huge(self, name):
        with (self.folder / name).open("r+b") as file:
            file.truncate(1 << 33)

    def outside(self, name):
        """The file lies elsewhere and is linked to."""
        elsewhere = self.folder.parent / f"elsewhere-{name}"
        (self.folder / name).rename(elsewhere)
        (self.folder / name).symlink_to(elsewhere)

    def header(self, entries, data=b"\0" * 16, length=None):
        raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        body = struct.pack("<Q", len(raw) if length is None else length) + raw + data
        (self.folder / WEIGHTS).write_bytes(body)


def tensor(begin=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DEEP = "[" * 200_000 + "]" * 200_000
AUTO = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", CLASSIFIER, SEQ2SEQ)}
AWAY = {name: "evil/repo--evil.Evil" for name in AUTO}
REFUSED = {
    # Pickles
    "pytorch_model.bin": lambda a: a.pickle("pytorch_model.bin"),
    "a .pt": lambda a: a.pickle("model.pt"),
    "a .ckpt": lambda a: a.pickle("model.ckpt"),
    "a .pkl": lambda a: a.pickle("model.pkl"),
    "a .joblib": lambda a: a.pickle("model.joblib"),
    "flax": lambda a: a.pickle("flax_model.msgpack"),
    "tensorflow": lambda a: a.pickle("tf_model.h5"),
    "sharded pickles": lambda a: (
        a.pickle("pytorch_model-00001-of-00001.bin"),
        a.text("pytorch_model.bin.index.json", '{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'),
    ),
    "a pickle named safetensors": lambda a: a.pickle(WEIGHTS),
    "torch.save named safetensors": lambda a: a.torch(WEIGHTS),
    "a zip named safetensors": lambda a: a.zip(WEIGHTS),
    "a zip alone": lambda a: ((a.folder / WEIGHTS).unlink(), a.zip("model.zip")),
    "an index that names a .bin": lambda a: (a.index("evil.bin"), a.pickle("evil.bin", keep=True)),
    "an index that names a pickle": lambda a: (a.index("b.safetensors"), a.pickle("b.safetensors", keep=True)),
    "a vocabulary as a pickle": lambda a: (
        a.pickle("vocab.pkl", keep=True),
        a.edit("tokenizer_config.json", tokenizer_class="TransfoXLTokenizer"),
    ),
    # Paths
    "../ in an index": lambda a: a.index("../elsewhere/model.safetensors"),
    "an absolute path in an index": lambda a: a.index("/etc/model.safetensors"),
    "a folder in an index": lambda a: a.index("sub/model.safetensors"),
    "a backslash in an index": lambda a: a.index("..\\model.safetensors"),
    "a URL in an index": lambda a: a.index("https://evil.example/model.safetensors"),
    "a number in an index": lambda a: a.index(7),
    "a missing shard": lambda a: a.index("absent.safetensors"),
    **{
        f"{name} is a link": lambda a, name=name: a.outside(name) for name in ("config.json", "tokenizer.json", WEIGHTS)
    },
    # Code
    "code beside the weights": lambda a: (a.code("evil.py"), a.edit("config.json", auto_map=AUTO)),
    "code named by the tokenizer": lambda a: (
        a.code("evil.py"),
        a.edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ),
    "a package": lambda a: a.code("evil/__init__.py"),
    "a library": lambda a: a.code("evil.so"),
    "custom_generate": lambda a: a.code("custom_generate/generate.py"),
    "an adapter": lambda a: a.edit("adapter_config.json", base_model_name_or_path="evil/repo"),
    **{
        f"tokenizer_class {name!r}": lambda a, name=name: a.edit("tokenizer_config.json", tokenizer_class=name)
        for name in ("EvilTokenizer", "evil.Evil", "BloomTokenizerFast", "os.system", 7, ["BertTokenizer"])
    },
    "tokenizer_class in the config": lambda a: (
        (a.folder / "tokenizer_config.json").unlink(),
        a.edit("config.json", tokenizer_class="EvilTokenizer"),
    ),
    "quantized weights": lambda a: a.edit("config.json", quantization_config={"quant_method": "torchao"}),
    "an unknown architecture": lambda a: a.edit("config.json", model_type="rag"),
    # Sizes
    **{
        f"{key} {value}": lambda a, key=key, value=value: a.edit("config.json", **{key: value})
        for key, value in (
            ("num_hidden_layers", 10**9),
            ("num_hidden_layers", 1e9),
            ("num_hidden_layers", float("inf")),
            ("vocab_size", 10**12),
            ("vocab_size", 3_900_000),
            ("hidden_size", 10**8),
            ("hidden_size", 10**6),
            ("intermediate_size", 10**9),
            ("max_position_embeddings", 10**9),
            ("type_vocab_size", 10**7),
            ("num_labels", 10**9),
            ("num_attention_heads", 0),
            ("num_attention_heads", "many"),
            ("hidden_size", -1),
            ("hidden_size", None),
            ("id2label", {str(i): "x" for i in range(200_000)}),
            ("id2label", [1]),
        )
    },
    "a number of 10,000 digits": lambda a: a.text("config.json", '{"model_type": "bert", "x": ' + "9" * 10_000 + "}"),
    **{
        f"{name} is deep": lambda a, name=name: a.text(name, DEEP)
        for name in ("config.json", "tokenizer.json", INDEX)
        if name != INDEX
    },
    "a deep config": lambda a: a.text("config.json", '{"model_type": "bert", "a": ' + DEEP + "}"),
    "a deep tokenizer": lambda a: a.text("tokenizer.json", '{"model": ' + DEEP + "}"),
    "deep tokenizer settings": lambda a: a.text("tokenizer_config.json", '{"a": ' + DEEP + "}"),
    "a rather deep config": lambda a: a.edit("config.json", a=json.loads("[" * 50 + "]" * 50)),
    **{f"{name} is huge": lambda a, name=name: a.huge(name) for name in ("config.json", "tokenizer.json", WEIGHTS)},
    "a tokenizer of nonsense": lambda a: a.edit("tokenizer.json", model={"type": "Evil"}),
    "a tokenizer that is none": lambda a: a.text("tokenizer.json", "[]"),
    "special tokens of nonsense": lambda a: a.edit("tokenizer_config.json", added_tokens_decoder={"0": 7}),
    # Headers
    "an empty file": lambda a: (a.folder / WEIGHTS).write_bytes(b""),
    "a header beyond the file": lambda a: a.header({}, length=1 << 40),
    "a header of 2^64 bytes": lambda a: a.header({}, length=(1 << 64) - 1),
    "a header that is no JSON": lambda a: a.header(b"\xff" * 64),
    "a header that is a list": lambda a: a.header([1]),
    "a deep header": lambda a: a.header(DEEP.encode()),
    "overlapping tensors": lambda a: a.header({"a": tensor(), "b": tensor()}),
    "partly overlapping tensors": lambda a: a.header({"a": tensor(), "b": tensor(8, 24)}, b"\0" * 24),
    "a gap": lambda a: a.header({"a": tensor(), "b": tensor(20, 36)}, b"\0" * 36),
    "offsets beyond the file": lambda a: a.header({"a": tensor(0, 1 << 40, (1 << 38,))}),
    "data after the tensors": lambda a: a.header({"a": tensor()}, b"\0" * 32),
    "backward offsets": lambda a: a.header({"a": tensor(16, 0)}),
    "NaN sizes": lambda a: a.header({"a": tensor(shape=(float("nan"),))}),
    "NaN offsets": lambda a: a.header({"a": tensor(end=float("nan"))}),
    "negative sizes": lambda a: a.header({"a": tensor(shape=(-2, -2))}),
    "sizes that overflow": lambda a: a.header({"a": tensor(shape=(1 << 62, 1 << 62))}),
    "true as a size": lambda a: a.header({"a": tensor(0, 4, shape=(True,))}, b"\0" * 4),
    "an unknown type": lambda a: a.header({"a": tensor(dtype="EVIL")}),
    "a type that cannot be a key": lambda a: a.header({"a": tensor(dtype=["F32"])}),
    "no offsets": lambda a: a.header({"a": {"dtype": "F32"}}),
    "a tensor that is a text": lambda a: a.header({"a": "evil"}),
    "saved for flax": lambda a: a.header({"__metadata__": {"format": "flax"}, "a": tensor()}),
}
KERNELS = ("evil/kernel", "evil/kernel:run", "flash_attention_2", {"": "evil/kernel"})
FILES = {key: "/etc/passwd" for key in ("vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file")}
LOADS = {
    "pickles beside good weights": lambda a: [
        a.pickle(name, keep=True)
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")
    ],
    "auto_map of another repository": lambda a: a.edit("config.json", auto_map=AWAY),
    "auto_map of absent files": lambda a: a.edit("config.json", auto_map=AUTO, trust_remote_code=True),
    "auto_map of the tokenizer": lambda a: a.edit(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/repo--e.E"] * 2}, trust_remote_code=True
    ),
    "auto_map of the tokenizer, the old way": lambda a: a.edit("tokenizer_config.json", auto_map=["evil.E", None]),
    "auto_map of processors": lambda a: [
        a.edit(name, auto_map={"AutoProcessor": "evil/repo--e.E", "AutoImageProcessor": "evil/repo--e.E"})
        for name in ("processor_config.json", "preprocessor_config.json", "feature_extractor_config.json")
    ],
    "custom_pipelines": lambda a: a.edit(
        "config.json", custom_pipelines={"text-classification": {"impl": "evil.Evil", "pt": ["evil.Evil"]}}
    ),
    **{
        f"{key} {value!r}": lambda a, key=key, value=value: a.edit("config.json", **{key: value})
        for key in ("_attn_implementation", "_attn_implementation_internal", "attn_implementation")
        for value in KERNELS
    },
    "kernels": lambda a: a.edit("config.json", use_kernels=True, kernel_config={"MLP": "evil/kernel:MLP"}),
    "experts": lambda a: a.edit("config.json", _experts_implementation="evil/kernel", experts_implementation="evil/k"),
    "a chat template": lambda a: a.edit(
        "tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"
    ),
    "chat templates as files": lambda a: (
        a.text("chat_template.jinja", "{{ cycler.__init__.__globals__.os.system('id') }}"),
        (a.folder / "additional_chat_templates").mkdir(),
        a.text("additional_chat_templates/evil.jinja", "{{ 1 }}"),
    ),
    "files elsewhere as settings": lambda a: a.edit(
        "tokenizer_config.json", **FILES, fast_tokenizer_files=["../x.json"]
    ),
    "files elsewhere as special tokens": lambda a: (
        a.edit("special_tokens_map.json", **FILES, from_slow=True),
        a.edit("tokenizer_config.json", added_tokens_decoder={}),
    ),
    "arguments of the tokenizer's class": lambda a: a.edit(
        "tokenizer_config.json", init_inputs=["/etc/passwd"], gguf_file="evil.gguf", from_slow=True, sp_model_kwargs={}
    ),
    "weights elsewhere": lambda a: a.edit("config.json", transformers_weights="../elsewhere/model.safetensors"),
    "methods": lambda a: a.edit(
        "config.json", to_dict="evil", attribute_map={"a": "b"}, sub_configs={}, get_text_config=1
    ),
    "an odd dtype": lambda a: a.edit("config.json", torch_dtype="load", dtype="hub.load"),
    "generation from another repository": lambda a: a.edit(
        "generation_config.json", custom_generate="evil/repo", trust_remote_code=True, auto_map=AWAY
    ),
    "files beside": lambda a: [
        (a.text("README.md", "# x"), (a.folder / sub).mkdir(), a.text(f"{sub}/config.json", "{"))
        for sub in ("onnx", "1_Pooling")
    ][:1],
}


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """A classifier; and a model that generates, made of two encoders."""
    root = tmp_path_factory.mktemp("honest")
    parts = {"bert": save_tiny(root / "bert", num_hidden_layers=1)}
    parts["bart"] = save_tiny(root / "bart", "bart", SEQ2SEQ, encoder_layers=1, decoder_layers=1)
    parts["encoder-decoder"] = save_tiny(root / "composed", "encoder-decoder", SEQ2SEQ)
    for name, folder in parts.items():
        # What is imported on first use is imported now, so that traps see attacks only.
        assert opened(folder, CLASSIFIER if name == "bert" else SEQ2SEQ) == []
    return parts


def opened(folder, auto_class):
    """Every door, one after the other; the refusals."""
    doors = (
        lambda: resolve(str(folder)),
        lambda: load_config(folder),
        lambda: load_tokenizer(folder)("good film"),
        lambda: load_model(folder, auto_class),
        lambda: load_generation(folder),
        lambda: load_pipeline(folder, "student"),
    )
    refusals = []
    for door in doors:
        try:
            door()
        except UserError as error:
            refusals.append(str(error))
    return refusals


@pytest.fixture
def attack(honest, tmp_path, trapped):
    def run(kind, change):
        folder, canary = tmp_path / "model", tmp_path / "canary"
        shutil.copytree(honest[kind], folder)
        change(Attack(folder, canary))
        start = time.perf_counter()
        with trapped(folder) as caught:
            refusals = opened(folder, CLASSIFIER if kind == "bert" else SEQ2SEQ)
        assert caught == []
        assert not canary.exists()
        assert time.perf_counter() - start < 20
        return refusals

    return run


@pytest.mark.parametrize("name", REFUSED)
def test_refused(attack, name):
    refusals = attack("bert", REFUSED[name])
    assert refusals
    assert all(len(text.split("\n")) == 1 for text in refusals)


@pytest.mark.parametrize("name", LOADS)
def test_loads_without_it(attack, name):
    assert attack("bert", LOADS[name]) == []


@pytest.mark.parametrize("kind", ["bart", "encoder-decoder"])
def test_a_generate_function_in_the_folder_never_runs(attack, kind):
    refusals = attack(kind, lambda a: a.code("custom_generate/generate.py"))
    assert refusals and "holds code (custom_generate/generate.py)" in refusals[0]


@pytest.mark.parametrize(
    "change",
    [
        {"num_beams": 10**9},
        {"max_length": 10**12},
        {"num_return_sequences": 10**9},
    ],
)
def test_absurd_generation_is_refused(attack, change):
    assert attack("bart", lambda a: a.edit("generation_config.json", **change))


def test_nested_configs_lose_what_could_name_code(attack, honest):
    config = json.loads((honest["encoder-decoder"] / "config.json").read_text())
    nasty = {
        "auto_map": AWAY,
        "_attn_implementation_internal": "evil/kernel",
        "custom_pipelines": {"x": {"impl": "e.E"}},
    }
    parts = {part: {**config[part], **nasty} for part in ("encoder", "decoder")}
    assert attack("encoder-decoder", lambda a: a.edit("config.json", **parts, **nasty)) == []


def test_nested_configs_of_unknown_types_are_refused(attack, honest):
    config = json.loads((honest["encoder-decoder"] / "config.json").read_text())
    assert attack(
        "encoder-decoder", lambda a: a.edit("config.json", encoder={**config["encoder"], "model_type": "rag"})
    )


def test_the_traps_spring(honest, tmp_path, trapped):
    """Each would be caught, so that nothing caught means that nothing happened; and the attacks are real."""
    from transformers import AutoModelForSeq2SeqLM

    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(honest["bart"], folder)
    made = Attack(folder, canary)
    made.pickle("evil.bin", keep=True)
    with trapped(folder) as caught:
        pickle.loads((folder / "evil.bin").read_bytes())
    assert canary.exists() and {event for event, _ in caught} >= {"pickle.find_class", "os.system"}
    canary.unlink()
    made.code("custom_generate/generate.py")
    with trapped(folder) as caught:
        AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # transformers alone runs it, asked not to trust the folder's code.
    assert canary.exists() and caught


OFFLINE = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "::1", "localhost", None) and not str(host).startswith("/"):
            with open({report!r}, "a") as file:
                file.write(event + " " + str(address) + "\\n")
            raise RuntimeError("a socket beyond loopback: " + str(address))
sys.addaudithook(hook)
with open({report!r}, "a") as file:
    file.write("watching\\n")
"""


def cached(home: Path, name: str, folder: Path) -> None:
    """A model as the Hub's cache holds it: a snapshot of links into blobs."""
    kept, commit = home / "hub" / f"models--{name.replace('/', '--')}", "c" * 40
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    (kept / "blobs").mkdir()
    (kept / "snapshots" / commit).mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, kept / "blobs" / f"{number}")
        (kept / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / f"{number}")


@pytest.mark.parametrize("verb", ["evaluate", pytest.param("run", marks=pytest.mark.slow)])
def test_an_offline_run_with_a_warm_cache_opens_no_socket(write_recipe, tiny_teacher, tmp_path, verb):
    """From a model of the Hub's cache to scores; slowly also exports, measuring and the processes that do it."""
    cached(tmp_path / "home", "org/tiny", tiny_teacher)
    report, site = tmp_path / "report", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(OFFLINE.format(report=str(report)))
    paths = os.pathsep.join(filter(None, [str(site), *sys.path]))
    given = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    recipe = write_recipe(
        tmp_path,
        data={"dataset": str(write_rows(tmp_path / "data", 32, 8))},
        teacher={"model": "org/tiny", "finetune": {"epochs": 1, "learning_rate": 1e-3}},
        export=[{"format": "onnx", "score_drop": 100}] if verb == "run" else [],
    )
    command = [sys.executable, "-m", "nlp_distill.cli", verb, str(recipe), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "-o", "distill.epochs=1"], env={**os.environ, **given}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    watched = report.read_text().splitlines()
    assert {*watched} == {"watching"} and (verb == "evaluate" or len(watched) > 1)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["teachers"][0]["model"] == "org/tiny"
