"""Models go up to a Hub and come down in another process: names, revisions, caches, adapters, and what is told where it fails.

The Hub is `tests/hub_server.py`; the processes are of `tests/hub_client.py`, few and with many steps each, as every one of
them imports torch anew. Oracle of a model that came down is the one that went up: its weights by their hash, and what it says.
"""

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from hf_vlm.parts.weight_report import REPORT_FILE
from tests.hub_server import Blob, HubServer, Repository
from tests.tiny_lines import write_lines

ROOT = Path(__file__).parents[1]
KINDS = ("cnn_lstm", "vae", "vqvae", "dvae", "vit", "swin", "trocr", "llava")
CLOSED = "http://127.0.0.1:9"  # the port of `discard`, where nothing answers

Steps = list[tuple[str, Any]]


class Client:
    """Runs steps in a new process.

    Attributes:
        folder: holds a cache for each `home`, and the files that steps write.
    """

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub = hub
        self.folder = folder

    def file(self, name: str) -> str:
        return str(self.folder / f"{name}.safetensors")

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.file(name))

    def __call__(self, steps: Steps, home: str, token: str | None = None, **variables: str) -> list[Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"} | variables
        environment = kept | self.hub.environment(token, str(self.folder / home)) | variables
        command = [sys.executable, "-m", "tests.hub_client", json.dumps(steps)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        print(done.stderr)  # shown where a test fails
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """Of two users, `me` and `other`."""
    with HubServer() as server:
        for name in ("me", "other"):
            server.add_user(name)
            server.add_user(name, can_write=False)
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(hub, tmp_path_factory.mktemp("clients"))


def by_kind(results: list[Any]) -> dict[str, Any]:
    return dict(zip(KINDS, results, strict=True))


@pytest.fixture(scope="module")
def pushed(client: Client) -> dict[str, Any]:
    """Every architecture as `me/KIND`."""
    steps: Steps = [("push", {"kind": kind, "name": f"me/{kind}", "file": client.file(kind)}) for kind in KINDS]
    return by_kind(client(steps, "writer", "hf_me"))


@pytest.fixture(scope="module")
def pulled(client: Client, pushed: dict[str, Any]) -> dict[str, Any]:
    """The same in a new process that has seen none of them, and has no token."""
    steps: Steps = [
        ("pull", {"kind": kind, "name": f"me/{kind}", "file": client.file(f"{kind}-pulled")}) for kind in KINDS
    ]
    return by_kind(client(steps, "reader"))


def assert_same(client: Client, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Two models, each as (its outputs' file, what was told of it), are one."""
    for _, result in (one, other):
        assert "error" not in result, result
    for key in ("model", "processor", "weights", "report"):
        assert one[1][key] == other[1][key], key
    assert_says_the_same(client, one[0], other[0])


def assert_says_the_same(client: Client, one: str, other: str, tolerance: float = 1e-6) -> None:
    expected, got = client.tensors(one), client.tensors(other)
    assert expected.keys() == got.keys() and expected
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=tolerance, rtol=0, msg=name)


# The round trip


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_processor_come_down_in_another_process_as_they_went_up(client, pushed, pulled, kind):
    assert_same(client, (kind, pushed[kind]), (f"{kind}-pulled", pulled[kind]))


def test_report_and_card_of_an_assembled_model_lie_beside_it(hub, pushed):
    files = hub.repositories["me/llava"].at("main").files
    report = json.loads(files[REPORT_FILE].content)
    assert report == pushed["llava"]["report"]
    assert [part["name"] for part in report["parts"]] == ["vision", "projector", "language"]
    assert ModelCard(files["README.md"].content.decode()).data.library_name == "transformers"
    assert all(pushed[kind]["report"] is None for kind in KINDS if kind != "llava")


# The server: what clients go by


def ask(
    hub: HubServer, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
) -> http.client.HTTPResponse:
    """One request; its content is read."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    lines = body if isinstance(body, list) else [body] if body is not None else []
    connection.request(method, path, "\n".join(map(json.dumps, lines)), headers)
    answer = connection.getresponse()
    answer.content = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


@pytest.fixture
def shelf(hub: HubServer) -> Iterator[Repository]:
    """A repository of one small and one large file."""
    repository = Repository("me/shelf", "me")
    hub.storage[Blob(b"weights!" * 4, True).sha256] = b"weights!" * 4
    repository.commit("main", {"config.json": Blob(b"{}", False), "a.bin": Blob(b"weights!" * 4, True)}, "first")
    hub.repositories["me/shelf"] = repository
    yield repository
    del hub.repositories["me/shelf"]


@pytest.mark.parametrize(
    ("is_private", "is_gated", "token", "status", "code"),
    [
        (True, False, None, 401, "RepoNotFound"),
        (True, False, "hf_other", 404, "RepoNotFound"),
        (True, False, "hf_me_read", 200, None),
        (False, True, None, 401, "GatedRepo"),
        (False, True, "hf_other", 403, "GatedRepo"),
        (False, False, None, 200, None),
        (False, False, "hf_nobody", 401, None),
    ],
)
def test_server_opens_repositories_to_whom_they_are_open(hub, shelf, is_private, is_gated, token, status, code):
    shelf.is_private, shelf.is_gated = is_private, is_gated
    answer = ask(hub, "GET", "/me/shelf/resolve/main/config.json", token=token)
    assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)
    listed = ask(hub, "GET", "/api/models/me/shelf", token=token)
    assert listed.status == (200 if is_gated else status)


def test_server_sends_large_files_from_elsewhere_in_the_ranges_asked_for(hub, shelf):
    answer = ask(hub, "HEAD", "/me/shelf/resolve/main/a.bin")
    assert answer.status == 302 and answer.headers["X-Repo-Commit"] == shelf.branches["main"]
    assert answer.headers["X-Linked-Size"] == "32"
    assert answer.headers["X-Linked-ETag"].strip('"') == shelf.at("main").files["a.bin"].sha256
    host, _, path = answer.headers["Location"].removeprefix("http://").partition("/")
    assert host == f"localhost:{hub.port}"  # where a client leaves its token behind
    for asked, status, content in [
        ("bytes=8-", 206, b"weights!" * 3),
        ("bytes=1-3", 206, b"eig"),
        ("bytes=-2", 206, b"s!"),
        ("bytes=32-", 416, b""),
        ("", 200, b"weights!" * 4),
    ]:
        part = ask(hub, "GET", f"/{path}", **({"Range": asked} if asked else {}))
        assert (part.status, part.content) == (status, content), asked
        assert int(part.headers["Content-Length"]) == len(content)
    assert ask(hub, "GET", f"/{path}", token="hf_me").status == 400
    assert ask(hub, "GET", f"/{path.partition('?')[0]}").status == 403


def test_server_keeps_every_revision(hub, shelf):
    first = shelf.branches["main"]

    def commit(*operations: dict[str, Any], **header: str) -> http.client.HTTPResponse:
        lines = [{"key": "header", "value": {"summary": "next", **header}}, *operations]
        return ask(hub, "POST", "/api/models/me/shelf/commit/main", lines, "hf_me")

    def read(revision: str) -> tuple[int, bytes]:
        answer = ask(hub, "GET", f"/me/shelf/resolve/{revision}/config.json")
        return answer.status, answer.content

    assert ask(hub, "POST", "/api/models/me/shelf/tag/main", {"tag": "v1"}, "hf_me").status == 200
    assert ask(hub, "POST", "/api/models/me/shelf/tag/main", {"tag": "v1"}, "hf_me").status == 409
    assert ask(hub, "POST", "/api/models/me/shelf/branch/old", {}, "hf_me").status == 200
    other = {"path": "config.json", "content": base64.b64encode(b'{"a": 1}').decode(), "encoding": "base64"}
    second = json.loads(commit({"key": "file", "value": other}, parentCommit=first).content)["commitOid"]
    assert second != first
    assert commit({"key": "deletedFile", "value": {"path": "config.json"}}, parentCommit=first).status == 412
    unknown = {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}
    half = commit({"key": "deletedFile", "value": {"path": "config.json"}}, {"key": "lfsFile", "value": unknown})
    assert half.status == 400 and shelf.branches["main"] == second  # all is done, or nothing
    assert commit({"key": "deletedFile", "value": {"path": "config.json"}}).status == 200
    assert read("main") == (404, b'{"error": "Entry not found"}') and read(second) == (200, b'{"a": 1}')
    assert read(first) == read("v1") == read("old") == (200, b"{}")
    assert ask(hub, "GET", "/me/shelf/resolve/none/config.json").headers["X-Error-Code"] == "RevisionNotFound"
    refs = json.loads(ask(hub, "GET", "/api/models/me/shelf/refs").content)
    assert {ref["name"]: ref["targetCommit"] for ref in refs["tags"]} == {"v1": first}
    for token, status in ((None, 401), ("hf_me_read", 403), ("hf_other", 403)):
        assert ask(hub, "POST", "/api/models/me/shelf/branch/new", {}, token).status == status


def test_server_makes_repositories_once_and_in_ones_own_name(hub, shelf):
    def create(token: str | None, **given: Any) -> int:
        return ask(hub, "POST", "/api/repos/create", {"name": "shelf", **given}, token).status

    assert create("hf_me") == create("hf_me", organization="me") == 409
    assert create("hf_other", organization="me") == create("hf_me_read", name="new") == 403
    assert create(None) == create("hf_nobody") == 401
    assert "me/new" not in hub.repositories


# In several processes, with many steps each


@pytest.fixture(scope="module")
def written(client: Client, hub: HubServer, pushed: dict[str, Any]) -> dict[str, Any]:
    """Revisions, shards, an adapter, a card, models of other classes: what `me` pushes in one process."""

    def push(label: str, kind: str, name: str, **settings: Any) -> tuple[str, Any]:
        return ("push", {"kind": kind, "name": name, "file": client.file(label), **settings})

    def push_adapter(label: str, base: str) -> tuple[str, Any]:
        where = {"folder": str(client.folder / label), "file": client.file(label)}
        return ("push_adapter", {"base": base, "name": f"me/{label}", **where})

    steps = {
        "main-1": push("main-1", "vit", "me/revisions"),
        "tag": ("tag", {"name": "me/revisions", "tag": "v1"}),
        "next": push("next", "vit", "me/revisions", seed=1, revision="next"),
        "main-2": push("main-2", "vit", "me/revisions", seed=2),
        "one-file": push("one-file", "trocr", "me/shards", with_processor=False),
        "shards": push("shards", "trocr", "me/shards", seed=1, max_shard_size="20KB"),
        "shards-vit": push("shards-vit", "vit", "me/shards-vit", max_shard_size="5KB"),
        "one-file-vit": push("one-file-vit", "vit", "me/shards-vit", seed=1),
        "cut": push("cut", "vit", "me/cut"),
        "private": push("private", "vit", "me/private", private=True),
        "adapter": push_adapter("adapter", "me/llava"),
        "base": push("base", "llava", "me/base", seed=0),
        "adapter-of-old": push_adapter("adapter-of-old", "me/base"),
        "base-2": push("base-2", "llava", "me/base", seed=1),
        "card": ("push_card", {"name": "me/llava", "text": "\nWhat it was made for.\n"}),
        "again": (
            "push_again",
            {"name": "me/llava", "to": "me/llava-again", "folder": str(client.folder / "llava-again")},
        ),
        "card-again": push("card-again", "llava", "me/llava"),
        "foreign": (
            "push_foreign",
            {"vit": "me/foreign-vit", "trocr": "me/foreign-trocr", "file": client.file("theirs")},
        ),
    }
    results = dict(zip(steps, client(list(steps.values()), "writer", "hf_me"), strict=True))
    assert not {label: result for label, result in results.items() if result and "error" in result}
    gated = Repository("me/gated", "me", is_gated=True)
    gated.commit("main", dict(hub.repositories["me/vit"].at("main").files), "as me/vit")
    hub.repositories["me/gated"] = gated
    return results


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "private without a token": (
        {"name": "me/private", "token": False},
        r"no folder of that name and no such repository of the Hub, or a private one and no token\. .*`hf auth login` or "
        r"pass `token=`",
    ),
    "private of another": (
        {"name": "me/private", "token": "hf_other"},
        "no folder of that name.*, or a private one that this token may not read",
    ),
    "gated": (
        {"name": "me/gated", "token": "hf_other"},
        r"a gated repository that this token may not read\. Ask for access on its page, http://127.0.0.1:\d+/me/gated,",
    ),
    "unknown token": ({"name": "me/vit", "token": "hf_nobody"}, "a token that the Hub doesn't know.*`hf auth login`"),
    "unknown name": (
        {"name": "me/nowhere"},
        "no folder of that name and no such repository of the Hub.*Check the spelling",
    ),
    "unknown revision": ({"name": "me/vit", "revision": "v9"}, r"no such branch, tag or commit.*Correct `revision`"),
    "not in the cache": (
        {"name": "me/swin", "local_files_only": True},
        "none in the cache of the Hub, and the order to stay offline.*leave out `local_files_only`",
    ),
    "no folder": (
        {"name": "./no/such/folder"},
        "no such folder, nor a name that the Hub could have. Check the spelling",
    ),
}
WAYS = ("class", "config", "weights")


@pytest.fixture(scope="module")
def read(client: Client, hub: HubServer, written: dict[str, Any]) -> dict[str, Any]:
    """What another process gets of all that, errors included."""

    def pull(label: str, kind: str, name: str, **where: Any) -> tuple[str, Any]:
        return ("pull", {"kind": kind, "name": name, "file": client.file(f"{label}-pulled"), **where})

    def pull_adapter(label: str, base: str) -> tuple[str, Any]:
        return ("pull_adapter", {"name": f"me/{label}", "base": base, "file": client.file(f"{label}-pulled")})

    steps: dict[Any, tuple[str, Any]] = {}
    for label, (arguments, _) in REFUSED.items():  # first: nothing of it is in the cache
        steps |= {(label, way): ("refused", {"by": way, **arguments}) for way in WAYS}
    steps |= {
        "main": pull("main", "vit", "me/revisions"),
        "v1": pull("v1", "vit", "me/revisions", revision="v1"),
        "sha": pull("sha", "vit", "me/revisions", revision=written["main-1"]["commit"]),
        "next": pull("next", "vit", "me/revisions", revision="next"),
        "shards": pull("shards", "trocr", "me/shards"),
        "one-file-vit": pull("one-file-vit", "vit", "me/shards-vit"),
        "private": pull("private", "vit", "me/private", token="hf_me"),
        "adapter": pull_adapter("adapter", "me/llava"),
        "adapter-of-old": pull_adapter("adapter-of-old", "me/base"),
        "card": ("card", {"name": "me/llava"}),
        "llava-again": pull("llava-again", "llava", "me/llava-again"),
        "foreign": (
            "pull_foreign",
            {"vit": "me/foreign-vit", "trocr": "me/foreign-trocr", "file": client.file("ours")},
        ),
        "image-classification": ("pipe", {"task": "image-classification", "name": "me/vit"}),
        "text-recognition": ("pipe", {"task": "text-recognition", "name": "me/trocr"}),
        "image-captioning": ("pipe", {"task": "image-captioning", "name": "me/cnn_lstm"}),
        "image-tokenization": ("pipe", {"task": "image-tokenization", "name": "me/vqvae"}),
        "image-text-to-text": ("pipe", {"task": "image-text-to-text", "name": "me/llava"}),
        "expired": ("refused", {"by": "class", "name": "me/vit", "token": "hf_nobody"}),  # in the cache by now
    }
    results = dict(zip(steps, client(list(steps.values()), "reader-of-more"), strict=True))
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "expected"), [("main", "main-2"), ("v1", "main-1"), ("sha", "main-1"), ("next", "next")]
)
def test_every_revision_has_its_own_weights(client, written, read, label, expected):
    assert_same(client, (expected, written[expected]), (f"{label}-pulled", read[label]))
    assert len({written[name]["weights"] for name in ("main-1", "next", "main-2")}) == 3


@pytest.mark.slow
def test_shards_take_the_place_of_one_file_and_one_file_that_of_shards(client, hub, written, read):
    # An old `model.safetensors` beside shards would be the one that loads.
    assert_same(client, ("shards", written["shards"]), ("shards-pulled", read["shards"]))
    assert_same(client, ("one-file-vit", written["one-file-vit"]), ("one-file-vit-pulled", read["one-file-vit"]))
    in_shards = hub.repositories["me/shards"].at("main").files
    assert "model.safetensors" not in in_shards and "model.safetensors.index.json" in in_shards
    assert len([name for name in in_shards if name.endswith(".safetensors")]) > 2
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md", ".gitattributes"} <= set(in_shards)
    in_one = hub.repositories["me/shards-vit"].at("main").files
    assert [name for name in in_one if "safetensors" in name] == ["model.safetensors"]
    before = hub.repositories["me/shards-vit"].at(written["shards-vit"]["commit"]).files
    assert len([name for name in before if name.endswith(".safetensors")]) > 2


@pytest.mark.slow
def test_push_leaves_no_report_and_no_generation_config_of_another_model(client, hub):
    def push(kind: str) -> tuple[str, Any]:
        return ("push", {"kind": kind, "name": "me/changed", "file": client.file("changed")})

    client([push("llava")], "changer", "hf_me")
    others = {REPORT_FILE, "generation_config.json"}
    assert others <= set(hub.repositories["me/changed"].at("main").files)
    client([push("vit")], "changer", "hf_me")
    files = set(hub.repositories["me/changed"].at("main").files)
    assert not others & files and {"config.json", "tokenizer.json", "model.safetensors"} <= files


@pytest.mark.slow
def test_saving_pushes_what_it_wrote_and_what_is_old_goes_there_too(client, hub, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")

    def save(kind: str, label: str, **settings: Any) -> tuple[str, Any]:
        where = {"name": "me/saved", "folder": str(tmp_path), "file": client.file(label)}
        return ("save_and_push", {"kind": kind, **where, **settings})

    steps = [save("llava", "saved-llava", commit_message="First"), save("vit", "saved-vit", max_shard_size="5KB")]
    first, second = client([steps[0]], "saver", "hf_me") + client([steps[1]], "saver", "hf_me")
    repository = hub.repositories["me/saved"]
    head = repository.at(second["commit"])
    assert repository.at(first["commit"]).title == "First"
    before = repository.at(first["commit"]).files
    assert json.loads(before[REPORT_FILE].content) == first["report"]
    assert set(second["files"]) - {"notes.txt", "generation_config.json"} <= set(head.files)
    assert "notes.txt" not in head.files
    assert not {REPORT_FILE, "model.safetensors", "generation_config.json"} & set(head.files)
    assert (tmp_path / "README.md").read_text() == "mine" != head.files["README.md"].content.decode()
    (read,) = client([("pull", {"kind": "vit", "name": "me/saved", "file": client.file("saved-read")})], "saved-reader")
    assert read["weights"] == second["weights"]


@pytest.mark.slow
def test_whole_model_is_not_pushed_beside_an_adapter(client, hub, written):
    head = hub.repositories["me/adapter"].branches["main"]
    (refused,) = client(
        [("push", {"kind": "vit", "name": "me/adapter", "file": client.file("beside")})], "beside", "hf_me"
    )
    assert refused["error"] == "ValueError"
    assert_told(refused, "got `me/adapter` with `adapter_config.json`.*Nothing was pushed")
    assert hub.repositories["me/adapter"].branches["main"] == head


@pytest.mark.slow
def test_private_model_opens_to_its_owner(client, written, read):
    assert_same(client, ("private", written["private"]), ("private-pulled", read["private"]))


@pytest.mark.slow
def test_adapter_comes_down_with_its_base_and_the_hashes_of_it(client, hub, written, read):
    assert written["adapter"]["base"] == "me/llava"
    assert "error" not in read["adapter"], read["adapter"]
    assert read["adapter"]["warnings"] == []
    assert sorted(read["adapter"]["hashes"]) == ["language", "vision"]
    assert_says_the_same(client, "adapter", "adapter-pulled", tolerance=1e-5)
    plain = client.tensors("llava")
    assert (client.tensors("adapter")["logits"] - plain["logits"]).abs().max() > 0.01
    card = ModelCard(hub.repositories["me/adapter"].at("main").files["README.md"].content.decode())
    assert card.data.base_model == "me/llava"


@pytest.mark.slow
def test_adapter_says_so_where_its_base_has_other_weights_by_now(written, read):
    (told,) = read["adapter-of-old"]["warnings"]
    assert "The adapter me/adapter-of-old wants me/base" in told and "Load the base that it names" in told


@pytest.mark.slow
def test_card_and_report_outlive_the_next_push(hub, pushed, written, read):
    assert "What it was made for." in read["card"]["text"] and read["card"]["license"] == "apache-2.0"
    expected = pushed["llava"]["report"]
    assert written["again"]["report"] == expected and read["llava-again"]["report"] == expected
    files = hub.repositories["me/llava-again"].at("main").files
    assert json.loads(files[REPORT_FILE].content) == expected


@pytest.mark.slow
def test_repositories_of_transformers_classes_are_read(client, hub, written, read):
    assert read["foreign"] == {
        "models": ["VisionTransformerForImageClassification", "TrOCREncoderDecoderForConditionalGeneration"]
    }
    assert_says_the_same(client, "theirs", "ours", tolerance=1e-4)
    repository = hub.repositories["me/foreign-trocr"]
    shards = [name for name in repository.at("main").files if name.endswith(".safetensors")]
    assert len(shards) > 2
    # All of one commit, whatever is pushed meanwhile.
    for name in (*shards, "config.json", "model.safetensors.index.json"):
        asked = [request for request in hub.requests if request.endswith(f"{name}") and "me/foreign-trocr" in request]
        assert asked and all(f"/resolve/{repository.branches['main']}/" in request for request in asked)


@pytest.mark.slow
def test_pipelines_are_made_by_name(client, read):
    assert not [read[task] for task in ("image-classification", "text-recognition") if "error" in read[task]]
    probabilities = client.tensors("vit")["logits"].softmax(-1)[0]
    best = read["image-classification"][0]
    assert best["label"] == f"LABEL_{int(probabilities.argmax())}"
    assert best["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert read["image-tokenization"] == client.tensors("vqvae")["codes"][0].tolist()
    for task in ("text-recognition", "image-captioning", "image-text-to-text"):
        (said,) = read[task]
        assert isinstance(said["generated_text"], str)


@pytest.mark.slow
def test_token_that_is_no_longer_valid_does_not_hide_what_the_cache_has(read):
    assert read["expired"] is None


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", REFUSED)
def test_what_can_not_be_loaded_is_told_with_the_reason_and_the_fix(read, label, way):
    arguments, message = REFUSED[label]
    error = read[label, way]
    assert "FileNotFoundError" in error["kinds"]
    what = {"class": "`config.json`", "config": "`config.json`", "weights": "(Weights|`model.safetensors`)"}[way]
    where = f"`{arguments['name']}`" + (f" at revision `{arguments['revision']}`" if "revision" in arguments else "")
    assert_told(error, rf"^{what} wanted in {where}.*, got {message}")


def assert_told(error: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error["message"])


@pytest.mark.slow
def test_commands_take_names_of_the_hub(client, written, tmp_path):
    write_lines(tmp_path / "lines", ["a cat", "no"])
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    results = client(
        [
            ("command", ["read", str(tmp_path / "lines" / "line_0.png"), "--model", "me/trocr"]),
            ("command", ["evaluate", "me/trocr", str(tmp_path / "lines")]),
            ("command", ["chat", "me/llava", "--image", str(picture), "--question", "ab?"]),
            ("command", ["chat", "me/adapter", "--image", str(picture), "--question", "ab?"]),
            ("command", ["evaluate", "me/private", str(tmp_path / "lines")]),
        ],
        "commands",
    )
    by_read, by_evaluate, by_chat, by_adapter, by_private = results
    assert by_read["status"] == 0 and "line_0.png" in by_read["out"]
    assert by_evaluate["status"] == 0 and "on 2 lines" in by_evaluate["out"], by_evaluate
    assert by_chat["status"] == by_adapter["status"] == 0, (by_chat, by_adapter)
    assert by_chat["out"].strip() and by_adapter["out"] not in ("", by_chat["out"])
    assert by_private["status"] == 1
    assert "`me/private`" in by_private["err"] and "hf auth login" in by_private["err"]


@pytest.mark.slow
def test_cache_serves_where_the_hub_is_gone(client, hub, pushed, pulled):
    asked = len(hub.requests)
    steps: Steps = [
        ("pull", {"kind": kind, "name": f"me/{kind}", "file": client.file(f"{kind}-offline")}) for kind in KINDS
    ]
    offline = by_kind(client(steps, "reader", HF_ENDPOINT=CLOSED, HF_HUB_OFFLINE="1"))
    for kind in KINDS:
        assert_same(client, (kind, pushed[kind]), (f"{kind}-offline", offline[kind]))
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_missing_network_is_told(client):
    steps: Steps = [("refused", {"name": "me/vit", "by": way}) for way in (*WAYS, "auto class")]
    steps.append(("push", {"kind": "vit", "name": "me/vit", "file": client.file("unsent")}))
    *loading, pushing = client(steps, "empty", HF_ENDPOINT=CLOSED)
    for error in loading[:-1]:
        assert_told(error, rf"got none in the cache of the Hub, and no connection to {CLOSED} \(.*Check the network")
    assert_told(loading[-1], "couldn't connect to")  # transformers' own words
    assert_told(pushing, rf"^`me/vit` wanted on {CLOSED}, got no connection to {CLOSED} .*done whole or not at all")


@pytest.mark.slow
def test_refused_push_is_told_with_the_fix(client, hub, written):
    hub.repositories["other/vit"] = Repository("other/vit", "other")
    given = [
        ("me/new", "hf_nobody", "got a token that the Hub doesn't know.*`hf auth login`.*`HF_TOKEN`"),
        ("me/new", False, r"got no token\. To write, log in with `hf auth login` or pass `token=`"),
        ("me/vit", "hf_me_read", "got a token that has no right to do that.*may write: log in"),
        ("other/vit", "hf_me", "got a token that has no right to do that .*Use a name of your own"),
        ("other/new", "hf_me", "rights to create a model under the namespace .*Use a name of your own"),
    ]
    before = {name: repository.branches["main"] for name, repository in hub.repositories.items()}
    steps: Steps = [
        ("push", {"kind": "vit", "name": name, "file": client.file("refused"), "seed": 7, "token": token})
        for name, token, _ in given
    ]
    for (name, _, message), error in zip(given, client(steps, "refused"), strict=True):
        assert "OSError" in error["kinds"]
        assert_told(error, f"^`{name}` wanted on {hub.url}, .*{message}")
    assert {name: repository.branches["main"] for name, repository in hub.repositories.items()} == before


@pytest.mark.slow
def test_push_that_is_cut_off_leaves_the_old_revision_whole(client, hub, written):
    def push(label: str, seed: int) -> tuple[str, Any]:
        return ("push", {"kind": "vit", "name": "me/cut", "file": client.file(label), "seed": seed})

    def pull(label: str) -> tuple[str, Any]:
        where = {"name": "me/cut", "cache_dir": str(client.folder / label)}
        return ("pull", {"kind": "vit", "file": client.file(label), **where})

    head = hub.repositories["me/cut"].branches["main"]
    hub.cut("commit", 1)
    hub.cut("upload", 1000)  # as often as the client tries again
    try:
        # The weights of the first are known to the server from another repository: they are not uploaded, and the commit comes.
        steps = [push("cut-1", 2), pull("after-1"), push("cut-2", 3), pull("after-2")]
        cut_at_commit, after_commit, cut_at_upload, after_upload = client(steps, "cutter", "hf_me")
    finally:
        hub.cut("commit", 0)
        hub.cut("upload", 0)
    assert hub.repositories["me/cut"].branches["main"] == head
    for error in (cut_at_commit, cut_at_upload):
        assert "OSError" in error["kinds"]
        assert_told(error, f"^`me/cut` wanted on {hub.url}, got no connection to .*Check the network and try again")
    assert_same(client, ("cut", written["cut"]), ("after-1", after_commit))
    assert_same(client, ("cut", written["cut"]), ("after-2", after_upload))

    hub.cut("download", 1)  # the client goes on where it stopped
    asked = len(hub.requests)
    sent, came = client([push("whole", 3), pull("after-3")], "cutter", "hf_me")
    assert_same(client, ("whole", sent), ("after-3", came))
    assert sent["weights"] != written["cut"]["weights"]
    assert len([request for request in hub.requests[asked:] if request.startswith("GET /storage/")]) == 2
