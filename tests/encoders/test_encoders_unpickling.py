"""Files that try to run code do not; files with harmless settings of other programs are read."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from virb.encoders import torchfiles, unpickling
from virb.encoders.checkpoints import read
from virb.encoders.inert import Damaged, Global, Items, Record, Refused
from virb.errors import UserError

MARK = "touched"
TOUCH = f"open({MARK!r}, 'w').close()"


class Call:
    """Pickles as a call of ``what(*arguments)``."""

    def __init__(self, what: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (what, arguments) if state is None else (what, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def text_global(module: str, name: str, arguments: bytes) -> bytes:
    """A protocol 0 program by hand: push a global, call it."""
    return f"c{module}\n{name}\n".encode() + arguments + b"R."


def stack_global(module: str, name: str, argument: str) -> bytes:
    """Protocol 4, whose names may be dotted paths that Python's own unpickler walks."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


COMMAND = f"S'touch {MARK}'\n".encode()
PROGRAMS: dict[str, tuple[Any, str]] = {
    "os.system": (Call(os.system, f"touch {MARK}"), f"{os.name}.system"),
    "eval": (Call(eval, TOUCH), "builtins.eval"),
    "exec": (Call(exec, TOUCH), "builtins.exec"),
    "open": (Call(open, MARK, "w"), ".open"),
    "getattr": (Call(getattr, Call(__import__, "os"), "system"), "builtins.getattr"),
    "import": (Call(__import__, "antigravity_of_virb"), "builtins.__import__"),
    "subprocess": (Call(__import__("subprocess").Popen, ("touch", MARK)), ".Popen"),
    "torch.load": (Call(torch.load, MARK), "torch.serialization.load"),
    "torch.hub": (Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
    "partial": (Call(functools.partial(eval), TOUCH), "functools.partial"),
    "map": (Call(map, eval, [TOUCH]), "map"),
    "setstate": (Call(argparse.Namespace, state={"a": Call(os.system, f"touch {MARK}")}), "system"),
    "in a dict": ({"state_dict": {"x": Call(os.system, f"touch {MARK}")}}, "system"),
    "as a key": ({Call(eval, f"(1, {TOUCH})"): 1}, "builtins.eval"),
    "_load_from_bytes": (Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {MARK}"))), "system"),
    "code": (Call(exec, Call(compile, TOUCH, "x", "exec")), "builtins.exec"),
}
BYTES = {
    "posix, text": (text_global("posix", "system", b"(" + COMMAND + b"t"), "posix.system"),
    "os, python 2": (text_global("__builtin__", "eval", b"(S'" + TOUCH.replace("'", '"').encode() + b"'\nt"), "builtins.eval"),
    "inst": (b"(" + COMMAND + b"iposix\nsystem\n.", "posix.system"),
    "obj": (b"(cposix\nsystem\n" + COMMAND + b"o.", "posix.system"),
    "newobj": (b"\x80\x02cposix\nsystem\n" + COMMAND + b"\x85\x81.", "posix.system"),
    "dotted": (stack_global("argparse", "_os.system", f"touch {MARK}"), "argparse._os.system"),
    "dotted, in a package": (stack_global("torch.optim", "os.system", f"touch {MARK}"), "torch.optim.os.system"),
    "dunder": (stack_global("collections", "_sys.modules", f"touch {MARK}"), "collections._sys.modules"),
    "nested getattr": (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(" + COMMAND + b"tR.",
        "builtins.getattr",
    ),
    "a function": (text_global("types", "FunctionType", b"(t"), "types.FunctionType"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "reconstructor": (text_global("copy_reg", "_reconstructor", b"(cposix\nsystem\nc__builtin__\nobject\nNt"), "posix.system"),
    "object array": (text_global("numpy", "dtype", b"(S'O8'\nI00\nI01\nt"), "dtype"),
    "call of a record": (b"cargparse\nNamespace\n(tR" + b"(tR.", "a call of a argparse.Namespace"),
    "change of a class": (b"ccollections\nOrderedDict\n(S'x'\nI1\ndb.", "a change of collections.OrderedDict"),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARK).exists()


def torch_zip(program: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")


def torch_legacy(program: bytes, path: Path) -> None:
    header = [pickle.dumps(value, 2) for value in (torchfiles._MAGIC, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*header, program, pickle.dumps([], 2)]))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_files_cannot_run_code(form: str, protocol: int, tmp_path: Path) -> None:
    programs = {name: (pickle.dumps(what, protocol), wants) for name, (what, wants) in PROGRAMS.items()}
    for name, (program, wants) in {**programs, **BYTES}.items():
        path = tmp_path / "bad.pth"
        {"zip": torch_zip, "legacy": torch_legacy, "pickle": lambda data, to: to.write_bytes(data)}[form](program, path)
        with pytest.raises(UserError) as caught:
            read(path)
        assert wants in str(caught.value), (name, str(caught.value))
        assert "bad.pth asks for" in str(caught.value), (name, str(caught.value))
        assert len(str(caught.value).splitlines()) <= 2
        assert not (tmp_path / MARK).exists(), name


def test_the_programs_are_real(tmp_path: Path) -> None:
    """Python's own unpickler runs them: the test above would see it."""
    pickle.loads(pickle.dumps(PROGRAMS["os.system"][0]))
    assert (tmp_path / MARK).exists()
    (tmp_path / MARK).unlink()
    pickle.loads(BYTES["dotted"][0])
    assert (tmp_path / MARK).exists()
    (tmp_path / MARK).unlink()


def test_modules_that_a_file_names_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vissl.py").write_text(f"{TOUCH}\nclass AttrDict(dict): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch_zip(b"\x80\x02cvissl\nAttrDict\n)\x81.", tmp_path / "net.pth")
    assert read(tmp_path / "net.pth").content == Record("vissl.AttrDict") or isinstance(read(tmp_path / "net.pth").content, Record)
    assert "vissl" not in sys.modules


def test_reading_changes_nothing_of_the_process() -> None:
    """BUILD on what a global gives would write into classes, were they real ones."""
    before = dict(vars(collections.OrderedDict)), dict(vars(argparse.Namespace))
    program = b"cargparse\nNamespace\n(tR(S'__class__'\nS'x'\nS'__reduce__'\nI1\ndb."
    record = unpickling.load(io.BytesIO(program))
    assert record.fields == {"__class__": "x", "__reduce__": 1}
    assert (dict(vars(collections.OrderedDict)), dict(vars(argparse.Namespace))) == before


# Harmless data


def roundtrip(what: Any, protocol: int) -> Any:
    return unpickling.load(io.BytesIO(pickle.dumps(what, protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back(protocol: int) -> None:
    plain = {
        "a": [1, -2, 3.5, None, True, "é", b"\x00\xff", (1, 2, 3, 4), ()],
        5: {"x": 10**30},
        "s": ["r"] * 3,
        (1, "k"): bytearray(b"ab"),
    }
    assert roundtrip(plain, protocol) == plain
    assert sorted(roundtrip({3, 1}, protocol)) == [1, 3]
    assert sorted(roundtrip(frozenset((3, 1)), protocol)) == [1, 3]
    itself: list[Any] = [1]
    itself.append(itself)
    back = roundtrip(itself, protocol)
    assert back[1] is back


@pytest.mark.parametrize("protocol", range(6))
def test_settings_and_numbers_of_numpy_are_inert(protocol: int) -> None:
    namespace = roundtrip(argparse.Namespace(lr=0.1, out=Path("runs")), protocol)
    assert (namespace.kind, namespace.fields["lr"]) == ("argparse.Namespace", 0.1)
    assert namespace.fields["out"].kind.startswith("pathlib.")
    assert roundtrip(np.float64(2.5), protocol) == 2.5
    assert roundtrip(np.int32(-7), protocol) == -7
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.eye(3)), np.arange(3, dtype=">i4"), np.zeros((0, 2))):
        back = roundtrip(array, protocol)
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
    ordered = roundtrip(collections.OrderedDict(b=1, a=2), protocol)
    assert isinstance(ordered, Items)
    assert list(ordered.items()) == [("b", 1), ("a", 2)]
    assert roundtrip(collections.defaultdict(list, {"x": [1]}), protocol) == {"x": [1]}
    assert isinstance(roundtrip(datetime.date(2021, 8, 18), protocol), Record)
    assert roundtrip(torch.float16, protocol) == Global("torch", "float16") if protocol != 0 else True


def test_numpy_before_2_and_python_2() -> None:
    array = pickle.dumps(np.arange(4.0), 2).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(unpickling.load(io.BytesIO(array)), np.arange(4.0))
    program = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntRU\x08\x00\x00\x00\x00\x00\x00\xf8\x3ftR."
    assert unpickling.load(io.BytesIO(program)) == 1.5


def test_whatever_is_no_pickle_is_damaged() -> None:
    whole = pickle.dumps({"a": [1, 2, 3], "b": "text" * 50}, 2)
    for cut in range(len(whole)):
        with pytest.raises(Damaged):
            unpickling.load(io.BytesIO(whole[:cut]))
    generator = np.random.default_rng(0)
    for _ in range(500):
        noise = bytearray(whole)
        noise[generator.integers(len(noise))] = generator.integers(256)
        with contextlib.suppress(Damaged, Refused):
            unpickling.load(io.BytesIO(bytes(noise)))
    for program in (b".", b"R.", b"0.", b"(.t.", b"}(s.", b"]K\x01s.", b"K\x01e.", b"h\x05.", b"\x80\x02Q.", b"(" * 50 + b"."):
        with pytest.raises(Damaged):
            unpickling.load(io.BytesIO(program))


# Tensors


class Odd:
    """A class that torch's own reader of plain weights refuses, and whose name is that of harmless settings."""


Odd.__module__, Odd.__qualname__ = "omegaconf.dictconfig", "DictConfig"


def with_settings(tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = Odd  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    odd = Odd()
    odd.content = {"lr": 0.1}  # type: ignore[attr-defined]
    return {"state_dict": tensors, "config": odd, "scalar": np.float32(3)}


@pytest.mark.parametrize("new", [True, False])
def test_tensors_beside_settings_of_other_programs(new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "a.float": base,
        "a.view": base[1:3, ::2],
        "a.transposed": base.t(),
        "a.parameter": torch.nn.Parameter(base[0]),
        "a.half": base.half(),
        "a.bfloat": base.bfloat16(),
        "a.double": base.double(),
        "a.long": torch.arange(5),
        "a.bool": base > 0,
        "a.byte": torch.arange(7, dtype=torch.uint8),
        "a.number": torch.tensor(3.0),
        "a.empty": torch.zeros(0, 3),
        "a.complex": torch.randn(2, dtype=torch.complex64),
    }
    path = tmp_path / "net.pth"
    torch.save(with_settings(tensors, monkeypatch), path, _use_new_zipfile_serialization=new)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    content = torchfiles.read_path(path)
    for key, tensor in tensors.items():
        assert content["state_dict"][key].dtype == tensor.dtype
        assert torch.equal(content["state_dict"][key], tensor), key
    assert content["config"].kind == "omegaconf.dictconfig.DictConfig"
    assert content["scalar"] == 3
    assert read(path).branches["state_dict"].keys() == tensors.keys()


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    class Wrong:
        def __init__(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
            self.arguments = (torch.zeros(8).untyped_storage(), offset, size, stride)

    def program(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 8) -> bytes:
        def numbers(values: tuple[int, ...]) -> bytes:
            return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"

        storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n" + f"I{count}\n".encode() + b"tQ"
        return (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + f"I{offset}\n".encode()
            + numbers(size)
            + numbers(stride)
            + b"I00\n}tR."
        )

    def file(content: bytes) -> io.BytesIO:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("x/data.pkl", content)
            archive.writestr("x/data/0", struct.pack("<8f", *range(8)))
        stream.seek(0)
        return stream

    good = torchfiles.read(file(program(2, (2, 2), (2, 1))), 1000)
    assert good.tolist() == [[2, 3], [4, 5]]
    for arguments in ((0, (9,), (1,)), (6, (2, 2), (2, 1)), (0, (2,), (8,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (1 << 40,), (0,))):
        with pytest.raises(Damaged):
            torchfiles.read(file(program(*arguments)), 1000)
    with pytest.raises(Damaged, match="has 32 bytes of storage 0, which has 4,000"):
        torchfiles.read(file(program(0, (2,), (1,), count=1000)), 1000)


def test_a_whole_pickled_model_gives_its_tensors(tmp_path: Path) -> None:
    network = torch.nn.Sequential(collections.OrderedDict(conv1=torch.nn.Conv2d(3, 4, 3), bn1=torch.nn.BatchNorm2d(4)))
    for new in (True, False):
        torch.save({"model": network, "epoch": 1}, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
        state = read(tmp_path / "model.pth").branches["model"]
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    torch.save({"model": Call(print, "x"), "epoch": 1}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"builtins\.print"):
        read(tmp_path / "model.pth")


def test_plain_pickles_of_tensors_and_arrays(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 2), "a.bias": np.arange(3.0)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": state}))
    found = read(tmp_path / "net.pkl").branches["model"]
    assert torch.equal(found["a.weight"], state["a.weight"])
    assert found["a.bias"].tolist() == [0, 1, 2]


def rewritten(path: Path, change: dict[str, bytes]) -> None:
    """The zip archive with other records; every checksum fits."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change.get(name.partition("/")[2], data))


def test_a_torch_file_that_is_not_whole_is_never_read_as_whatever_memory_holds(tmp_path: Path) -> None:
    path, state = tmp_path / "net.pth", {"a.weight": torch.arange(64.0), "a.bias": torch.ones(3)}
    for change, says in (
        ({"data/0": b"\0" * 40}, "has 40 bytes of storage 0, which has 256"),
        ({"data/0": b"\0" * 400}, "has 400 bytes of storage 0, which has 256"),
        ({"byteorder": b"big"}, "big-endian"),
    ):
        torch.save(state, path)
        rewritten(path, change)
        with pytest.raises(UserError, match=says):
            read(path)
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["a.weight"].numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data/0 \(its CRC-32"):
        read(path)


def test_an_old_torch_file_has_every_storage_and_nothing_after(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"a.weight": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="goes on after its last storage"):
        read(path)
    with open(path, "rb") as file:
        for _ in range(4):
            at = [0 for _ in unpickling.pickletools.genops(file)] and file.tell()
    path.write_bytes(whole[:at] + pickle.dumps([], 2))
    with pytest.raises(UserError, match="lists other storages"):
        read(path)
    path.write_bytes(b"\x80\x02(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI9\ntQ.")
    with pytest.raises(UserError, match="a storage outside a torch file"):
        read(path)


def test_text_helpers_take_text_alone() -> None:
    """Lists of the same list, forty deep, are as text longer than any memory."""
    nested = b"(lp0\n" + b"".join(f"(g{at}\ng{at}\nlp{at + 1}\n".encode() for at in range(40))
    with pytest.raises(Damaged, match="no text"):
        unpickling.load(io.BytesIO(nested + b"0c_codecs\nencode\n(g40\nS'latin1'\ntR."))
