"""What the script refuses; `tests/models/dvae/test_dalle_parity.py` has what it converts."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.models.dvae.released_dalle import Conv2d, conversion, module_of, random_tensors, save, write_release


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def is_zip(request) -> bool:
    return request.param


@pytest.fixture
def release(tmp_path) -> tuple[Path, Path]:
    return write_release(tmp_path, *random_tensors())


class Poison:
    """Creates the file `trace` when it is unpickled, by the way of the name given."""

    def __init__(self, name: str, trace: Path) -> None:
        self.name, self.trace = name, str(trace)

    def __reduce__(self) -> tuple:
        return {
            "posix.system": (os.system, (f"touch {self.trace}",)),
            "builtins.eval": (eval, (f"open({self.trace!r}, 'w').close()",)),
            "shutil.copyfile": (shutil.copyfile, (__file__, self.trace)),
        }[self.name]


POISONS = ["posix.system", "builtins.eval", "shutil.copyfile"]


def refused_name(script_error: pytest.ExceptionInfo) -> str:
    assert "Nothing was executed" in str(script_error.value)
    return str(script_error.value).split("asks for `")[1].split("`")[0]


def check_refused(encoder: Path, decoder: Path, name: str, trace: Path) -> None:
    out = encoder.parent / "out"
    with pytest.raises(ValueError, match="alone, got a pickle") as error:
        conversion().convert(encoder, decoder, out)
    assert str(error.value).startswith(f"`{encoder}` must hold")
    assert refused_name(error).replace("__builtin__", "builtins") == name
    assert not trace.exists() and not out.exists()


@pytest.mark.parametrize("name", POISONS)
def test_bare_pickle_that_calls_a_function_is_refused(release, tmp_path, name):
    trace = tmp_path / "trace"
    poison = pickle.dumps(Poison(name, trace))
    pickle.loads(poison)
    assert trace.exists()  # it is poisonous
    trace.unlink()
    release[0].write_bytes(poison)
    check_refused(*release, name, trace)


@pytest.mark.parametrize("name", POISONS)
def test_function_hidden_in_a_module_is_refused(release, tmp_path, is_zip, name):
    encoder = module_of(random_tensors()[0], "encoder")
    encoder.blocks.group_2.block_1.res_path.note = Poison(name, tmp_path / "trace")
    save(encoder, release[0], is_zip)
    check_refused(*release, name, tmp_path / "trace")


def test_function_behind_the_name_of_a_known_class_is_refused(release, tmp_path, monkeypatch, is_zip):
    encoder = module_of(random_tensors()[0], "encoder")
    monkeypatch.setattr(Conv2d, "__reduce__", Poison("builtins.eval", tmp_path / "trace").__reduce__)
    save(encoder, release[0], is_zip)
    check_refused(*release, "builtins.eval", tmp_path / "trace")


@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dall_e.encoder", "os.system"),  # known modules, names that lead out of them
        ("dall_e.encoder", "Encoder.__init__.__globals__"),
        ("torch.nn.modules.linear", "torch.hub.load"),
        ("torch._utils", "_import_dotted_name"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),  # a pickle within
        ("torch.jit", "FloatStorage"),
        ("pathlib", "Path.touch"),
        ("copyreg", "_reconstructor"),
        ("functools", "partial"),
    ],
)
def test_name_that_is_not_in_the_table_is_refused(release, tmp_path, opcode, module, name):
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    opcodes = {
        "GLOBAL": f"c{module}\n{name}\n".encode(),
        "STACK_GLOBAL": b"\x80\x04" + text(module) + text(name) + b"\x93",
        "INST": f"(i{module}\n{name}\n".encode(),
    }
    with zipfile.ZipFile(release[0], "w") as archive:
        archive.writestr("archive/data.pkl", opcodes[opcode] + b".")
    check_refused(*release, f"{module}.{name}", tmp_path / "trace")


@pytest.mark.parametrize("place", ["format's version", "system", "list of storages"])
def test_function_in_the_pickles_around_a_legacy_module_is_refused(release, tmp_path, place):
    magic, poison = (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(Poison("builtins.eval", tmp_path / "trace"), 2),
    )
    system = pickle.dumps({"little_endian": True}, 2)
    pieces = {
        "format's version": magic + poison,
        "system": magic + pickle.dumps(1001, 2) + poison,
        "list of storages": magic + pickle.dumps(1001, 2) + system + pickle.dumps(None, 2) + poison,
    }
    release[0].write_bytes(pieces[place])
    check_refused(*release, "builtins.eval", tmp_path / "trace")


def test_poisoned_decoder_is_refused_before_anything_is_written(release, tmp_path):
    release[1].write_bytes(pickle.dumps(Poison("posix.system", tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"decoder\.pkl.*`posix\.system`"):
        conversion().convert(*release, tmp_path / "out")
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


def test_tensor_that_reaches_beyond_its_storage_is_refused(release, tmp_path):
    reaching = torch.randn(8)
    encoder = module_of(random_tensors()[0], "encoder")
    encoder.blocks.input.b.data = reaching
    save(encoder, release[0])
    with zipfile.ZipFile(release[0]) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    stored = next(name for name, numbers in content.items() if numbers == reaching.numpy().tobytes())
    key = stored.rsplit("/", 1)[1].encode()
    # After the storage's name: where it lies, how many numbers, then the tensor's offset, which becomes 100.
    pickled = content["encoder/data.pkl"]
    after = pickled.index(b"QK\x00", pickled.index(b"X" + len(key).to_bytes(4, "little") + key))
    content["encoder/data.pkl"] = pickled[: after + 2] + bytes([100]) + pickled[after + 3 :]
    with zipfile.ZipFile(release[0], "w") as archive:
        for name, numbers in content.items():
            archive.writestr(name, numbers)
    with pytest.raises(ValueError, match="out of bounds for storage"):
        conversion().convert(*release, tmp_path / "out")


def _png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(64)


def _zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no pickle")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", _png(), pickle.dumps({"a": 1}), _zip_of_text()],
    ids=lambda content: repr(content[:6]),
)
def test_file_that_is_none_of_torch_saves_is_refused(release, tmp_path, content):
    release[0].write_bytes(content)
    with pytest.raises(ValueError, match=r"encoder\.pkl` must be a file of torch\.save's .* Download it again"):
        conversion().convert(*release, tmp_path / "out")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_cut_file_is_refused(tmp_path, is_zip, share):
    encoder, decoder = write_release(tmp_path, *random_tensors(), is_zip)
    content = encoder.read_bytes()
    encoder.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"encoder\.pkl.* Download it again"):
        conversion().convert(encoder, decoder, tmp_path / "out")


def test_swapped_files_are_told(release, tmp_path):
    with pytest.raises(
        ValueError, match=r"encoder\.Encoder`, got `dall_e\.decoder\.Decoder`\. Name the encoder's file first"
    ):
        conversion().convert(*reversed(release), tmp_path / "out")


def test_file_of_tensors_without_a_module_is_refused(release, tmp_path, is_zip):
    save({name: tensor.clone() for name, tensor in random_tensors()[0].items()}, release[0], is_zip)
    with pytest.raises(ValueError, match=r"must hold a `dall_e\.encoder\.Encoder`, got `dict`"):
        conversion().convert(*release, tmp_path / "out")


def test_missing_file_is_named_with_where_to_get_it(release, tmp_path):
    release[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=r"decoder\.pkl`, got no such file\. Download it from https://cdn\.openai\.com"
    ):
        conversion().convert(*release, tmp_path / "out")


def test_folder_that_holds_files_is_left_alone(release, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="A new or empty folder is wanted"):
        conversion().convert(*release, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_command_writes_the_folder_and_tells_faults_without_a_traceback(release, tmp_path, capsys):
    arguments = [str(path) for path in (*release, tmp_path / "out")]
    assert conversion().main(arguments) == 0
    assert "32 words" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    with pytest.raises(SystemExit, match="A new or empty folder is wanted"):
        conversion().main(arguments)
