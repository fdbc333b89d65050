"""Data and recipes made to do harm: no URL is asked, no file elsewhere is read, and bombs end in one sentence."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_distill import data
from nlp_distill.data import read_splits, read_table
from nlp_distill.errors import DataError, DataUnsafe, RecipeError, UserError
from nlp_distill.hub_data import check_builder, check_card
from nlp_distill.recipe import Data
from nlp_distill.recipe_file import MAX_BYTES, load_recipe, parse_recipe
from nlp_distill.sources import resolve

SCHEMES = (
    "http",
    "https",
    "ftp",
    "file",
    "s3",
    "gs",
    "az",
    "hf",
    "ssh",
    "smb",
    "webhdfs",
    "data",
    "zip",
    "tar",
    "gopher",
)
TRICKS = [
    *(f"{scheme}://evil.example/train.csv" for scheme in SCHEMES),
    *(f"{scheme}:///etc/passwd" for scheme in SCHEMES),
    *("zip://train.csv::https://evil.example/x.zip", "simplecache::https://evil.example/x.csv", "filecache::s3://b/x"),
    *("//evil.example/share/train.csv", "\\\\evil.example\\share", "HTTPS://EVIL.EXAMPLE/x", "http:evil.example/x"),
    *("https:/evil.example/x", "org/name/../../x", "org/../x", "user:secret@evil.example/x", "org/name?x=1", "a/b/c/d"),
    *("csv", "json", "parquet", "pandas", "text", "org/name#x", "org%2fname", "org/name\n", "org/name\0", "$(id)/x"),
]


@pytest.mark.parametrize("field", ["dataset", "files"])
@pytest.mark.parametrize("name", TRICKS)
def test_urls_and_chained_filesystems_are_no_data(trapped, monkeypatch, tmp_path, name, field):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with trapped(tmp_path) as caught, pytest.raises(DataError):
        read_splits(Data(**{field: name}))
    assert caught == []


@pytest.mark.parametrize("name", [name for name in TRICKS if name.count("/") != 0])
def test_urls_are_no_models(trapped, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with trapped(tmp_path) as caught, pytest.raises(UserError):
        resolve(name)
    assert caught == []


AWAY = ["https://evil.example/x.csv", "/etc/passwd", "../../x.csv", "zip://x.csv::data.zip", "~/x.csv", "C:\\x.csv"]


@pytest.mark.parametrize("place", AWAY)
@pytest.mark.parametrize("form", ["{0!r}", "[{0!r}]", "{{train: {0!r}}}", "[{{split: train, path: {0!r}}}]"])
def test_a_card_cannot_name_files_outside_its_repository(tmp_path, place, form):
    card = tmp_path / "README.md"
    card.write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {form.format(place)}\n---\n# Data\n")
    with pytest.raises(DataUnsafe, match="outside the repository"):
        check_card("org/name", card)
    (tmp_path / ".huggingface.yaml").write_text(f"configs: [{{data_dir: {place!r}}}]\n")
    with pytest.raises(DataUnsafe, match="outside the repository"):
        check_card("org/name", tmp_path / ".huggingface.yaml")


def test_an_honest_card(tmp_path):
    card = tmp_path / "README.md"
    for text in (
        "# Data, see https://example.org\n",
        "---\nsource: https://example.org\nconfigs:\n- data_files:\n  - {split: train, path: a/train-*}\n---\n",
    ):
        card.write_text(text)
        check_card("org/name", card)


@pytest.mark.parametrize(
    "text", ["configs: !!python/object/apply:os.system ['id']", "configs: " + "[" * 5000, "[1]", "\0"]
)
def test_a_card_of_nonsense(tmp_path, text):
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(DataUnsafe, match="cannot be read"):
        check_card("org/name", tmp_path / "README.md")


def builder(kind, *files):
    """A builder as `datasets` makes it, of given files."""
    made = type("Builder", (), {"__module__": f"datasets.packaged_modules.{kind}.{kind}"})()
    made.config = type("Config", (), {"data_files": {"train": list(files)}})
    return made


def test_only_tables_of_the_repository_are_built():
    own = "hf://datasets/org/name@main/"
    check_builder("x", "org/name", builder("parquet", own + "data/train-0.parquet"))
    check_builder("x", "org/name", builder("json", own + "train.jsonl"))
    for wrong in (
        *(
            builder(kind, own + "train.csv")
            for kind in ("pandas", "webdataset", "text", "arrow", "imagefolder", "evil")
        ),
        *(builder("csv", own + name) for name in ("train.pkl", "train.csv.gz", "x.zip", "../x.csv", "https://e/x.csv")),
        builder("csv", "https://evil.example/train.csv"),
        builder("csv", "/etc/train.csv"),
        builder("csv", "hf://datasets/org/other@main/train.csv"),
        builder("csv", "zip://train.csv::" + own + "train.csv"),
    ):
        with pytest.raises(DataUnsafe):
            check_builder("x", "org/name", wrong)


def test_the_packaged_builders_are_recognised(tmp_path):
    """The real ones, through the real loader."""
    from datasets import load_dataset_builder

    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(DataUnsafe, match="text"):
        check_builder("x", "org/name", load_dataset_builder("text", data_files=str(tmp_path / "train.txt")))
    (tmp_path / "train.csv").write_text("a\n1\n")
    with pytest.raises(DataUnsafe, match="no table of the repository"):
        check_builder("x", "org/name", load_dataset_builder("csv", data_files=str(tmp_path / "train.csv")))


def test_a_small_file_of_a_large_table(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_TABLE", 10 << 20)
    pq.write_table(pa.table({"text": pa.array(["x" * 1000] * 100_000)}), tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataUnsafe, match="a table of more than"):
        read_table(tmp_path / "train.parquet")


def test_parquet_reads_as_it_was_written(tmp_path):
    rows = {"text": [f"row {i}" for i in range(25_000)], "label": [i % 2 for i in range(25_000)]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet", row_group_size=7_000)
    assert read_table(tmp_path / "train.parquet").to_dict() == rows


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet"])
def test_a_text_without_end(tmp_path, name):
    long, file = "x" * (data.MAX_CELL + 1), tmp_path / name
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"text": [long]}), file)
    else:
        file.write_text(f"text\n{long}\n" if file.suffix == ".csv" else json.dumps({"text": long}) + "\n")
    with pytest.raises(DataUnsafe, match="column 'text' has a text of 1,000,001 bytes"):
        read_table(file)


def test_a_file_without_end(tmp_path):
    with (tmp_path / "train.csv").open("wb") as file:
        file.truncate(data.MAX_FILE + 1)
    with pytest.raises(DataUnsafe, match="more than 4 GiB"):
        read_table(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
        ("train.json", "[" * 100_000 + "]" * 100_000),
        ("train.jsonl", '{"text": ' + "9" * 10_000 + "}\n"),
        ("train.jsonl", '{"text": 99999999999999999999999}\n'),
        ("train.parquet", "PAR1" + "x" * 100 + "PAR1"),
        ("train.pkl", "x"),
        ("train.csv.gz", "x"),
        ("train.zip", "PK"),
    ],
)
def test_tables_of_nonsense(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError):
        read_table(tmp_path / name)


def test_numbers_too_long_for_a_column_stay_readable(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "9" * 30 + ",1\n")
    assert len(read_table(tmp_path / "train.csv")) == 1


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "task: !!python/object/apply:os.system ['touch ran']",
        "task: !!python/name:os.system",
        "task: " + "[" * 50_000,
        "task: " + "{a: " * 30 + "1" + "}" * 30,
        "x" * (MAX_BYTES + 1),
        "- 1",
    ],
)
def test_recipes_made_to_do_harm(tmp_path, monkeypatch, trapped, text):
    monkeypatch.chdir(tmp_path)
    with trapped(tmp_path) as caught, pytest.raises(RecipeError):
        parse_recipe(text.encode(), "recipe")
    assert caught == [] and os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", ["[" * 50_000, "{a: " * 30 + "1" + "}" * 30, "!!python/name:os.system", "&a [*a]"])
def test_overrides_made_to_do_harm(value):
    with pytest.raises(RecipeError):
        parse_recipe(b"task: classification", "recipe", [f"distill.epochs={value}"])


def test_a_recipe_without_end(tmp_path):
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(str(tmp_path / "recipe.yaml"))
