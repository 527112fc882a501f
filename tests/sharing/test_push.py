"""A folder goes to the Hub as one commit, after all that can be checked was: what comes down again, and what is refused.

The Hub is `tests/hub_server.py`, the processes those of `tests/hub_client.py`. Oracle of what came down is the folder.
"""

import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.weight_report import REPORT_FILE, WeightReport, hash_weights
from hf_vlm.sharing.cards.model_card import write_card
from hf_vlm.sharing.push import _files_to_push, _tell_of_base, push
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from tests.hub_client import answers, load, tiny
from tests.hub_server import HubServer, Repository
from tests.test_hub import CLOSED, Client

TOKEN = "hf_" + "Ab1" * 12  # of the form of a real one


def save(kind, folder, seed=0, license="mit"):
    """The folder of a tiny model with its processor, and a card where there is a licence."""
    model, processor = tiny(kind, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if license:
        write_card(folder, license=license)
    return model, processor


def leave_run_files(folder):
    """What a run, and those who looked at it, leave beside its model."""
    for name in ("checkpoint-2", "runs/events", "features/train-0", "records"):
        (folder / name).mkdir(parents=True)
    shutil.copy(folder / "config.json", folder / "checkpoint-2")
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-2")
    torch.save({"state": torch.zeros(3)}, folder / "checkpoint-2" / "optimizer.pt")
    torch.save({"state": torch.zeros(3)}, folder / "optimizer.pt")
    torch.save({"token": TOKEN}, folder / "training_args.bin")
    (folder / "recipe.yaml").write_text(f"training: {{hub_token: {TOKEN}, output_dir: /home/me/run}}\n")
    for name in ("trainer_state.json", "run_environment.json", "records/vqa.json"):
        (folder / name).write_text("{}")
    (folder / "dry_run.png").write_bytes(b"a picture of the data")
    (folder / "runs/events/log").write_bytes(b"log")


# Refused before anything is sent: no Hub is there, nor is one asked for


@pytest.fixture
def tokenizer(tmp_path):
    """A folder of a picture tokenizer, with a card."""
    save("vqvae", tmp_path / "vqvae")
    return tmp_path / "vqvae"


def refused(folder, message, kind=ValueError, name="me/new", **settings):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=message):
        push(folder, name, **settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_no_folder_of_a_model_is_refused(tmp_path, tokenizer):
    refused(tmp_path / "nowhere", "`folder` must be a folder with a model, got .*nowhere", FileNotFoundError)
    refused(
        tmp_path,
        "`folder` must have `config.json` or `adapter_config.json`, got .* without. Name the folder of a model",
    )
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-9").mkdir()
    refused(tmp_path / "run", "Its run has not ended: go on with it, or push .*checkpoint-10 ")
    (tokenizer / "adapter_config.json").write_text("{}")
    refused(tokenizer, "A whole model or an adapter is wanted, got .* with `config.json` and `adapter_config.json`")


@pytest.mark.parametrize("name", ["a/b/c", "me/x y", "../x", "", "-x"])
def test_name_that_the_hub_could_not_have_is_refused(tokenizer, name):
    refused(tokenizer, "`name` must be `user/name`", name=name)


def test_model_without_a_card_or_without_a_licence_is_refused(tokenizer):
    (tokenizer / "README.md").unlink()
    refused(
        tokenizer, r"A card, `README.md`, with a licence is wanted in .*, got none. Write it by `hf-vlm card .*vqvae`"
    )
    (tokenizer / "README.md").write_text("---\nlibrary_name: hf-vlm\n---\nA model.")
    refused(tokenizer, "got one without a licence. Write it by `hf-vlm card")


def test_weights_that_are_not_those_of_the_report_are_refused(tmp_path):
    save("llava", tmp_path / "llava")
    file = tmp_path / "llava" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("projector."))
    save_file({**weights, name: weights[name] + 1e-3}, file, metadata={"format": "pt"})
    refused(
        tmp_path / "llava", "must be those that its `weight_report.json` tells of, got others .* in `projector`. Copy"
    )


def test_folder_that_does_not_load_is_refused(tokenizer):
    weights = load_file(tokenizer / "model.safetensors")
    lacking = dict(list(weights.items())[1:])
    save_file(lacking, tokenizer / "model.safetensors", metadata={"format": "pt"})
    refused(tokenizer, next(iter(weights)))
    (tokenizer / "model.safetensors").write_bytes(b"cut")
    refused(tokenizer, r"must be a whole safetensors file, got 3 bytes")
    (tokenizer / "model.safetensors").unlink()
    torch.save(weights, tokenizer / "pytorch_model.bin")
    refused(
        tokenizer, "`model.safetensors` or `model.safetensors.index.json` wanted in .*, got none", FileNotFoundError
    )


def test_model_of_another_package_is_refused(tokenizer):
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(tokenizer, "`vit` in .* Push it with `hf upload NAME .*vqvae`")


@pytest.mark.parametrize(
    "secret", [TOKEN, "sk-" + "a1B2" * 12, "ghp_" + "a1B2" * 9, "-----BEGIN RSA PRIVATE KEY-----", "my-own-token"]
)
def test_token_in_a_text_is_refused_and_not_repeated(tokenizer, secret):
    card = tokenizer / "README.md"
    card.write_text(card.read_text() + f"\nLoad it with {secret}\n")
    line = card.read_text().count("\n")
    with pytest.raises(ValueError, match=rf"got one in .*README.md, line {line}\. Take it out") as told:
        push(tokenizer, "me/new", token="my-own-token")
    assert secret not in str(told.value)


def test_only_what_belongs_to_the_model_is_taken_of_a_run(tokenizer):
    files = {*_files_to_push(tokenizer, is_adapter=False)}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    leave_run_files(tokenizer)
    (tokenizer / "shown.png").write_bytes(b"a figure")
    (tokenizer / "x.py").write_text("")
    assert {*_files_to_push(tokenizer, is_adapter=False)} == files
    with (tokenizer / "README.md").open("a") as card:
        card.write("![what it sees](shown.png)")
    assert {*_files_to_push(tokenizer, is_adapter=False)} == {*files, "shown.png"}


# Adapters


def save_lora(base_folder, folder, name, seed=2):
    """An adapter of a LLaVA in a folder, its base under a name, with a card."""
    model, processor = load("llava", str(base_folder))
    adapted = add_lora(model, LoraSection(rank=2, alpha=6, dropout=0.0))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.eval()
    save_adapter(adapted, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))
    card = ModelCard.load(folder / "README.md")
    card.data.license = "mit"
    card.save(folder / "README.md")
    return answers("llava", adapted, processor)


def test_adapter_of_other_weights_than_its_base_has_is_refused(tmp_path):
    save("llava", tmp_path / "base")
    save_lora(tmp_path / "base", tmp_path / "adapter", "../base")
    save("llava", tmp_path / "other", seed=7)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "other").rename(tmp_path / "base")
    refused(tmp_path / "adapter", "The adapter .* wants .*base, .* Nothing was pushed")


def test_adapter_with_damaged_weights_is_refused(tmp_path):
    save("llava", tmp_path / "base")
    save_lora(tmp_path / "base", tmp_path / "adapter", "../base")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    refused(tmp_path / "adapter", "must be a whole safetensors file, got 3 bytes")


@pytest.mark.parametrize("base", [str(default_ocr_model()), "../else/where/model_cards/trocr-mini-lines"])
def test_base_that_comes_with_the_package_is_nobodys_worry(tmp_path, caplog, base):
    _tell_of_base(None, tmp_path, base)  # the Hub is not asked
    assert caplog.text == ""


# The Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """Of two users, `me` and `other`."""
    with HubServer() as server:
        for name in ("me", "other"):
            server.add_user(name)
        server.add_user("me", can_write=False)
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(hub, tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def folders(client):
    """`run` of a LLaVA, `vqvae`, `vqvae-2` of other weights, and two adapters of the run's model."""
    place = client.folder
    told = {}
    for name, kind, seed in (("run", "llava", 0), ("vqvae", "vqvae", 0), ("vqvae-2", "vqvae", 5)):
        model, processor = save(kind, place / name, seed)
        told[name] = {"weights": hash_weights(model.state_dict()), "answers": answers(kind, model, processor)}
    leave_run_files(place / "run")
    told["adapter"] = {"answers": save_lora(place / "run", place / "adapter", "me/run")}
    told["adapter-here"] = {"answers": save_lora(place / "run", place / "adapter-here", "../run")}
    return told


def sent(client, folder, name, **settings):
    return ("push_folder", {"folder": str(client.folder / folder), "name": name, **settings})


@pytest.fixture(scope="module")
def pushed(client, hub, folders):
    """What came of pushing them, in one process, one after the other."""
    steps = {
        "run": sent(client, "run", "me/run"),
        "vqvae": sent(client, "vqvae", "vqvae", private=True),
        "next": sent(client, "vqvae-2", "me/vqvae", revision="next", message="Other weights"),
        "adapter": sent(client, "adapter", "me/adapter"),
        "adapter-here": sent(client, "adapter-here", "me/adapter-here"),
    }
    return dict(zip(steps, client(list(steps.values()), "writer", "hf_me"), strict=True))


@pytest.fixture(scope="module")
def pulled(client, pushed):
    """What a new process reads of it, whose cache is empty."""

    def pull(kind, name, label, **where):
        return ("pull", {"kind": kind, "name": name, "file": client.file(label), **where})

    steps = {
        "run": pull("llava", "me/run", "run"),
        "vqvae": pull("vqvae", "me/vqvae", "vqvae", token="hf_me"),
        "next": pull("vqvae", "me/vqvae", "next", token="hf_me", revision="next"),
        "adapter": ("pull_adapter", {"name": "me/adapter", "base": "me/run", "file": client.file("adapter")}),
    }
    return dict(zip(steps, client(list(steps.values()), "reader"), strict=True))


def assert_came(client, folders, pulled, label, of, tolerance=1e-6):
    assert "error" not in pulled[label], pulled[label]
    if "weights" in folders[of]:
        assert pulled[label]["weights"] == folders[of]["weights"]
    came = client.tensors(label)
    assert came.keys() == folders[of]["answers"].keys() and came
    for name, tensor in folders[of]["answers"].items():
        torch.testing.assert_close(came[name], tensor, atol=tolerance, rtol=0, msg=name)


@pytest.mark.slow
def test_model_of_a_run_comes_down_and_nothing_else_of_the_run_went_up(client, hub, folders, pushed, pulled):
    assert_came(client, folders, pulled, "run", "run")
    files = set(hub.repositories["me/run"].at("main").files) - {".gitattributes"}
    assert files == {
        *("config.json", "generation_config.json", "model.safetensors", REPORT_FILE, "README.md"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    told = pushed["run"]
    assert set(told["files"]) == files
    assert told["left_out"] == [
        *(
            "checkpoint-2/",
            "dry_run.png",
            "features/",
            "optimizer.pt",
            "recipe.yaml",
            "records/",
            "run_environment.json",
        ),
        *("runs/", "trainer_state.json", "training_args.bin"),
    ]
    assert told["num_bytes"] == sum((client.folder / "run" / name).stat().st_size for name in files)
    everything = b"".join(blob.content for blob in hub.repositories["me/run"].at("main").files.values())
    assert TOKEN.encode() not in everything and b"/home/me" not in everything


@pytest.mark.slow
def test_push_is_one_commit_that_is_told_with_its_address(client, hub, pushed):
    repository = hub.repositories["me/run"]
    told = pushed["run"]
    head = repository.at("main")
    assert (told["commit"], told["url"]) == (head.sha, f"{hub.url}/me/run")
    assert len(repository.commits) == 2 and head.title == "Upload run"  # the first is the Hub's own
    assert "public" in told["said"] and told["commit"] in told["said"] and "checkpoint-2/" in told["said"]
    assert told["warnings"] == []


@pytest.mark.slow
def test_card_of_the_folder_is_the_repositorys(client, hub, pushed):
    there = hub.repositories["me/run"].at("main").files["README.md"].content
    assert there == (client.folder / "run" / "README.md").read_bytes()
    assert ModelCard(there.decode()).data.license == "mit"


@pytest.mark.slow
def test_report_that_came_down_is_of_the_weights_that_came_down(client, hub, pushed, pulled):
    report = WeightReport.load(client.folder / "run")
    assert [part["sha256"] for part in pulled["run"]["report"]["parts"]] == [part.sha256 for part in report.parts]


@pytest.mark.slow
def test_private_repository_and_branch_are_as_asked_for(client, hub, folders, pushed, pulled):
    repository = hub.repositories["me/vqvae"]
    assert repository.is_private and pushed["vqvae"]["is_private"] and pushed["next"]["is_private"]
    assert_came(client, folders, pulled, "vqvae", "vqvae")
    assert_came(client, folders, pulled, "next", "vqvae-2")
    assert (repository.at("next").title, pushed["next"]["commit"]) == ("Other weights", repository.at("next").sha)
    assert pushed["next"]["url"] == f"{hub.url}/me/vqvae/tree/next"
    assert repository.at("main").sha == pushed["vqvae"]["commit"]


@pytest.mark.slow
def test_adapter_comes_down_on_its_base(client, hub, folders, pushed, pulled):
    assert_came(client, folders, pulled, "adapter", "adapter", tolerance=1e-5)
    assert pulled["adapter"]["warnings"] == [] and pushed["adapter"]["warnings"] == []
    files = set(hub.repositories["me/adapter"].at("main").files) - {".gitattributes"}
    assert files == {
        *(
            "adapter_config.json",
            "adapter_model.safetensors",
            "base_weights.json",
            "generation_config.json",
            "README.md",
        )
    }


@pytest.mark.slow
def test_base_that_others_can_not_load_is_warned_of(client, hub, pushed):
    (told,) = pushed["adapter-here"]["warnings"]
    assert "The adapter's base, ../run, is a folder of this machine: others can't load it. Push the base first" in told
    hub.repositories["me/run"].is_private = True
    try:
        (private,) = client([sent(client, "adapter", "me/adapter")], "writer", "hf_me")
        hub.repositories["me/run"].is_private, hub.repositories["me/run"].is_gated = False, True
        (gated,) = client([sent(client, "adapter", "me/adapter")], "writer", "hf_me")
    finally:
        hub.repositories["me/run"].is_private = hub.repositories["me/run"].is_gated = False
    assert "me/run, is not on the Hub, or private: others can't load it" in private["warnings"][0]
    assert "me/run, is gated: others have to ask for access" in gated["warnings"][0]


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_with_the_fix_and_leaves_it_as_it_was(client, hub, pushed):
    hub.repositories["other/vqvae"] = Repository("other/vqvae", "other")
    given = [
        ("vqvae", "me/run", {"private": True}, "A private repository is wanted, got `me/run`, which is public"),
        ("vqvae", "me/vqvae", {"private": False}, "A public repository is wanted, got `me/vqvae`, which is private"),
        ("adapter", "me/run", {}, "A repository without a whole model is wanted for an adapter, got `me/run`"),
        ("vqvae", "me/adapter", {}, "A repository without an adapter is wanted for a whole model, got `me/adapter`"),
        ("vqvae", "other/vqvae", {}, "got a token that has no right to do that .*Use a name of your own"),
        ("vqvae", "other/new", {}, "rights to create a model under the namespace .*Use a name of your own"),
        ("vqvae", "me/new", {"token": False}, "got no token. To write, log in with `hf auth login`"),
        ("vqvae", "me/new", {"token": "hf_nobody"}, "got a token that the Hub doesn't know"),
        ("vqvae", "me/vqvae", {"token": "hf_me_read"}, "got a token that has no right to do that"),
    ]
    before = {name: dict(repository.branches) for name, repository in hub.repositories.items()}
    steps = [sent(client, folder, name, **settings) for folder, name, settings, _ in given]
    for (_, name, _, message), error in zip(given, client(steps, "refused", "hf_me"), strict=True):
        assert {"ValueError", "OSError"} & set(error.get("kinds", ())), (name, error)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(error["message"])
    assert {name: dict(repository.branches) for name, repository in hub.repositories.items()} == before


@pytest.mark.slow
def test_connection_that_ends_leaves_the_old_revision(client, hub, pushed):
    head = hub.repositories["me/run"].branches["main"]
    shutil.copytree(client.folder / "vqvae-2", client.folder / "vqvae-3", dirs_exist_ok=True)
    hub.cut("commit", 1)
    steps = [sent(client, "vqvae-3", "me/run"), sent(client, "vqvae-3", "me/run")]
    try:
        cut, again = client(steps, "writer", "hf_me")
        assert "no connection to" in cut["message"] and "one commit, done whole or not at all" in cut["message"]
        assert again["commit"] == hub.repositories["me/run"].branches["main"] != head
        assert REPORT_FILE not in hub.repositories["me/run"].at("main").files  # the model there now has none
    finally:
        hub.cut("commit", 0)
        hub.repositories["me/run"].branches["main"] = head


@pytest.mark.slow
def test_missing_network_is_told(client, folders):
    (told,) = client([sent(client, "vqvae", "me/vqvae")], "writer", "hf_me", HF_ENDPOINT=CLOSED)
    assert f"`me/vqvae` wanted on {CLOSED}, got no connection to {CLOSED}" in told["message"]
