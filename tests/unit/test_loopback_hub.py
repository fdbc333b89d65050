"""The loopback Hub speaks the Hub's protocol as `huggingface_hub` speaks it."""

import os
from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from nlp_distill.testing.hub import LoopbackHub

CARD = b"---\nlicense: mit\n---\n# A card\n"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub() as hub, hub.here(tmp_path / "home"):
        yield hub


def commit(**files):
    operations = [CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()]
    return HfApi().create_commit("org/one", operations, commit_message="sent")


@pytest.fixture
def filled(hub):
    HfApi().create_repo("org/one")
    commit(README__md=CARD, model__safetensors=WEIGHTS)
    return hub


def test_what_was_sent_comes_back(filled):
    folder = Path(snapshot_download("org/one"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS and (folder / "README.md").read_bytes() == CARD
    assert folder.name == HfApi().model_info("org/one").sha
    entries = {entry.path: entry for entry in HfApi().list_repo_tree("org/one")}
    assert entries["model.safetensors"].lfs.size == len(WEIGHTS) and entries["README.md"].lfs is None


def test_nothing_new_is_no_commit(filled):
    before = filled.commits("org/one")
    sent = filled.received()
    commit(README__md=CARD, model__safetensors=WEIGHTS)
    assert filled.commits("org/one") == before and filled.received() == sent


def test_parts_of_a_large_file(tmp_path):
    with LoopbackHub(part_size=1000) as hub, hub.here(tmp_path):
        HfApi().create_repo("org/one")
        commit(model__safetensors=WEIGHTS)
        assert hub.files("org/one")["model.safetensors"] == WEIGHTS
        assert sum(seen.method == "PUT" for seen in hub.seen) == 6


def test_branches_and_pull_requests(filled):
    HfApi().create_branch("org/one", branch="v/2", exist_ok=True)
    HfApi().create_branch("org/one", branch="v/2", exist_ok=True)
    operations = [CommitOperationDelete("README.md")]
    done = HfApi().create_commit("org/one", operations, commit_message="less", create_pr=True)
    assert done.pr_url.endswith("/org/one/discussions/1")
    assert "README.md" in filled.files("org/one") and "README.md" not in filled.files("org/one", "refs/pr/1")
    assert hf_hub_download("org/one", "README.md", revision="v/2")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("org/one", revision="v3")


def test_two_writers(filled):
    head = HfApi().model_info("org/one").sha
    commit(README__md=CARD + b"more")
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().create_commit("org/one", [CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=head)


def test_private_repositories_are_not_there_for_strangers(filled, tmp_path):
    HfApi().create_repo("org/secret", private=True)
    assert HfApi().model_info("org/secret").private
    with filled.here(tmp_path / "stranger", token=""):
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("org/secret")
        assert HfApi().model_info("org/one").sha
    with filled.here(tmp_path / "reader", token=filled.read_token):
        assert HfApi().model_info("org/secret").private
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi().create_repo("org/another")
    with filled.here(tmp_path / "nobody", token="hf_wrong"), pytest.raises(HfHubHTTPError, match="401"):
        HfApi().model_info("org/one")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("others/one")


def test_a_download_that_breaks_off_goes_on_where_it_was(filled, tmp_path):
    filled.fail("/large/", method="GET")
    with pytest.raises(requests.RequestException):
        hf_hub_download("org/one", "model.safetensors")
    assert Path(hf_hub_download("org/one", "model.safetensors")).read_bytes() == WEIGHTS


def test_ranges(filled):
    url = f"{filled.url}/org/one/resolve/main/model.safetensors"
    answer = requests.get(url, headers={"Range": "bytes=10-19"}, timeout=10)
    assert answer.status_code == 206 and answer.content == WEIGHTS[10:20]
    assert requests.get(url, headers={"Range": "bytes=99999-"}, timeout=10).status_code == 416
    head = requests.head(url, timeout=10, allow_redirects=False)
    assert head.status_code == 302 and head.headers["X-Linked-Size"] == str(len(WEIGHTS))


def test_refusals_on_request(filled):
    filled.fail("/api/models/org/one", 429, headers={"Retry-After": "7"}, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="429"):
            HfApi().model_info("org/one")
    assert HfApi().model_info("org/one").sha


def test_cards_are_validated(filled):
    with pytest.raises(ValueError, match="metadata"):
        commit(README__md=b"---\nlicense: [mit]\n---\n")
    with pytest.raises(ValueError, match="metadata"):
        commit(README__md=b"---\nmodel-index: [{name: a, results: [{metrics: [{type: b}]}]}]\n---\n")


def test_collections(filled):
    for _ in range(2):
        made = HfApi().create_collection("Small ones", namespace="org", exists_ok=True)
        HfApi().add_collection_item(made.slug, "org/one", "model", exists_ok=True)
    assert [item.item_id for item in HfApi().get_collection(made.slug).items] == ["org/one"]


def test_offline_asks_nobody(filled, tmp_path):
    folder = snapshot_download("org/one")
    asked = len(filled.seen)
    with filled.here(tmp_path / "home", offline=True):
        assert snapshot_download("org/one") == folder
    assert len(filled.seen) == asked
    assert os.environ["HF_HUB_OFFLINE"] == "0"
