"""Files of torch.save without torch: what torch wrote comes back, what could run code or read memory is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import torch_file
from moesim.torch_file import TorchFileError


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    """Write a zip like torch's around the pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def tensor(offset: int, size: tuple, stride: tuple, count: int = 4, kind: str = "ctorch\nLongStorage\n") -> bytes:
    """Write the pickle of one tensor opcode by opcode, as torch does it."""
    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    pid = b"(X\x07\x00\x00\x00storage" + kind.encode() + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuI%d\ntQ" % count
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    tail = b"I00\nccollections\nOrderedDict\n)RtR."
    return head + pid + b"I%d\n" % offset + numbers(size) + numbers(stride) + tail


STORED = {"0": np.arange(4, dtype="<i8").tobytes()}


def test_what_torch_saves_comes_back_as_numpy(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    saved = {"whole": base, "view": base[1, :, ::2], "turned": base.transpose(0, 2), "one": torch.tensor(7),
             "none": torch.zeros(0, 3), "wide": torch.ones(2, 1).expand(2, 3), "flags": torch.tensor([True, False]),
             "half": torch.tensor([0.5], dtype=torch.float16), "double": torch.tensor([0.1], dtype=torch.float64),
             "plain": [1, "text", None, 2.5, (True, 10**20)], "ordered": OrderedDict(a=torch.tensor([1]))}
    torch.save(saved, tmp_path / "x.pt")
    found = torch_file.load(tmp_path / "x.pt")
    assert found.keys() == saved.keys() and found["plain"] == saved["plain"] and found["ordered"]["a"].tolist() == [1]
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert np.array_equal(found[name], value.numpy()) and found[name].dtype == value.numpy().dtype, name


def test_the_pickle_written_by_hand_is_torchs(tmp_path: Path) -> None:
    assert torch_file.load(archive(tmp_path / "x.pt", tensor(0, (2, 2), (2, 1)), STORED)).tolist() == [[0, 1], [2, 3]]
    assert torch_file.load(archive(tmp_path / "x.pt", tensor(1, (3,), (1,)), STORED)).tolist() == [1, 2, 3]


class Evil:
    """Calls a function when unpickled by anyone who lets it."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [(eval, "open('hacked', 'w')"), (exec, "open('hacked', 'w')"), (open, "hacked", "w"),
                                  (Path.touch, Path("hacked")), (getattr, "", "join")])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "x.pt", pickle.dumps({"records": [Evil(*call)]}, protocol))
    with pytest.raises(TorchFileError, match=r"x.pt: asks for .*, which is refused: only tensors"):
        torch_file.load(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["os\nsystem", "torch\nload", "torch\nBFloat16Storage", "builtins\ngetattr",
                                  "numpy\nload", "torch._utils\n_rebuild_parameter", "collections\nCounter"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TorchFileError, match="asks for .* refused"):
        torch_file.load(archive(tmp_path / "x.pt", b"\x80\x02c" + name.encode() + b"\n."))


@pytest.mark.parametrize(("pickled", "message"), [
    (tensor(0, (5,), (1,)), r"size \[5\] and stride \[1\] does not fit its storage of 4 elements"),
    (tensor(2, (2, 2), (2, 1)), "does not fit its storage"),
    (tensor(-1, (2,), (1,)), "is no tensor"),
    (tensor(0, (2,), (-1,)), "is no tensor"),
    (tensor(0, (2, 2), (1,)), "damaged"),
    (tensor(0, (1 << 40, 1 << 40), (0, 0)), "does not fit"),
    (tensor(0, (2,), (1,), count=9), "damaged"),
    (tensor(0, (2,), (1,), kind="ccollections\nOrderedDict\n"), "names a storage in a way that torch does not"),
    (b"\x80\x02K\x01", "damaged"),
    (b"", "damaged"),
])
def test_no_tensor_reaches_beyond_its_storage(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(TorchFileError, match=message):
        torch_file.load(archive(tmp_path / "x.pt", pickled, STORED))


def test_archives_that_are_not_torchs(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(TorchFileError, match="x.pt: no such file"):
        torch_file.load(path)
    path.write_bytes(pickle.dumps({"records": []}))
    with pytest.raises(TorchFileError, match="x.pt: not a zip archive of torch.save"):
        torch_file.load(path)
    archive(path, tensor(0, (2,), (1,)), STORED, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match=r"archive/data.pkl is compressed, which torch.save never does"):
        torch_file.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(TorchFileError, match=r"holds no data.pkl but readme.txt"):
        torch_file.load(path)


def test_a_small_file_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    # LONG_BINPUT files the top of the stack under a number; pickle in C makes a table of that length
    path = archive(tmp_path / "x.pt", b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    assert torch_file.load(path) == 1


def test_a_file_cannot_spoil_what_later_files_are_read_with(tmp_path: Path) -> None:
    # BUILD sets attributes of whatever is on the stack, also of a function that find_class gave
    spoil = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}(X\x0c\x00\x00\x00__defaults__(K\x01tutb."
    torch_file.load(archive(tmp_path / "x.pt", spoil))
    with pytest.raises(TorchFileError, match="damaged"):  # what BUILD would do to a dtype, for all arrays there are
        torch_file.load(archive(tmp_path / "x.pt", b"\x80\x02ctorch\nLongStorage\n(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff"
                                                   b"\xff\xffJ\xff\xff\xff\xffK\x00tb."))
    assert np.dtype(np.int64).byteorder == "="
    assert torch_file.load(archive(tmp_path / "x.pt", tensor(0, (2,), (1,)), STORED)).tolist() == [0, 1]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_damage_is_an_error_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    content = bytearray(archive(path, tensor(0, (2, 2), (2, 1)), STORED).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)):]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        torch_file.load(path)
    except TorchFileError as error:
        assert str(error).startswith(str(path))


def test_pickles_with_garbage_never_escape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = tensor(0, (2, 2), (2, 1))
    for _ in range(2000):
        bad = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 4)):
            bad[place] = rng.integers(256)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", bytes(bad))
            file.writestr("archive/data/0", STORED["0"])
        (tmp_path / "x.pt").write_bytes(buffer.getvalue())
        try:
            torch_file.load(tmp_path / "x.pt")
        except TorchFileError:
            pass
