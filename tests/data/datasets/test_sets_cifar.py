"""CIFAR pickles and binaries, and that a pickle can run nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sets_support import Palette, check_planted, shown, shown_by, write

from virb.data.datasets import load_dataset
from virb.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat")
palette = Palette(NAMES)


def rows(labels):
    """N x 3072, planes of red, green and blue."""
    return np.stack([palette.pixels(NAMES[label], 32).transpose(2, 0, 1).reshape(-1) for label in labels])


def put_pickle(path, content, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


TRAIN, TEST = [3, 0, 2, 1], [2, 0]  # labels of every training batch; class 3 and 1 are not in test


def cifar10_pickles(root):
    folder = root / "cifar-10-batches-py"
    for i in range(1, 6):
        content = {"batch_label": f"training batch {i} of 5", "labels": TRAIN, "data": rows(TRAIN), "filenames": ["a.png"] * 4}
        put_pickle(folder / f"data_batch_{i}", content)
    put_pickle(folder / "test_batch", {"batch_label": "testing batch 1 of 1", "labels": TEST, "data": rows(TEST)})
    put_pickle(folder / "batches.meta", {"num_cases_per_batch": 10000, "label_names": list(NAMES), "num_vis": 3072})
    return folder


def cifar100_pickles(root, place):
    for name, labels in (("train", TRAIN), ("test", TEST)):
        content = {"filenames": ["a"], "batch_label": "1", "fine_labels": labels, "coarse_labels": [0] * len(labels), "data": rows(labels)}
        put_pickle(root / place / name, content)
    put_pickle(root / place / "meta", {"fine_label_names": list(NAMES), "coarse_label_names": ["x"]})
    return root / place


def no_checksums(monkeypatch):
    """torchvision's own reader then takes a miniature; it is one that this test wrote."""
    import torchvision.datasets.cifar as module

    monkeypatch.setattr(module, "check_integrity", lambda *args, **kwargs: True)


def test_cifar10_pickles_as_torchvision_reads_them(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    cifar10_pickles(tmp_path)
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.samples["train"].targets["class"].tolist() == TRAIN * 5
    assert dataset.samples["test"].targets["class"].tolist() == TEST
    assert dataset.classes["class"] == NAMES
    check_planted(dataset, palette)
    no_checksums(monkeypatch)
    for split in ("train", "test"):
        theirs = CIFAR10(tmp_path, train=split == "train")
        assert shown(dataset, split, palette) == shown_by(theirs, palette)
        assert (dataset.lists[split].array == theirs.data).all()


@pytest.mark.parametrize("place", ["cifar-100-python", "cifar-100"])
def test_cifar100_pickles_in_both_folders(tmp_path, monkeypatch, place):
    from torchvision.datasets import CIFAR100

    cifar100_pickles(tmp_path, place)
    dataset = load_dataset("cifar100", tmp_path)
    check_planted(dataset, palette)
    assert load_dataset("cifar100", tmp_path / place).lists["test"].identity() == dataset.lists["test"].identity()
    if place == "cifar-100-python":
        no_checksums(monkeypatch)
        assert shown(dataset, "test", palette) == shown_by(CIFAR100(tmp_path, train=False), palette)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_binary_version_gives_the_same_pixels_and_labels(tmp_path, name):
    if name == "cifar10":
        cifar10_pickles(tmp_path / "p")
        folder, head = tmp_path / "b/cifar-10-batches-bin", 1
        files = {**{f"data_batch_{i}.bin": TRAIN for i in range(1, 6)}, "test_batch.bin": TEST}
        write(folder / "batches.meta.txt", "\n".join(NAMES) + "\n\n")
    else:
        cifar100_pickles(tmp_path / "p", "cifar-100-python")
        folder, head = tmp_path / "b/cifar-100-binary", 2
        files = {"train.bin": TRAIN, "test.bin": TEST}
        write(folder / "fine_label_names.txt", "\n".join(NAMES) + "\n")
    for file, labels in files.items():
        fine = np.array(labels, dtype=np.uint8)[:, None]
        front = np.concatenate([np.full_like(fine, 9), fine], axis=1)[:, 2 - head :]  # coarse before fine
        np.concatenate([front, rows(labels)], axis=1).tofile(folder / file)
    pickled, binary = load_dataset(name, tmp_path / "p"), load_dataset(name, tmp_path / "b")
    for split in ("train", "test"):
        assert binary.lists[split].identity() == pickled.lists[split].identity()
        assert (binary.samples[split].targets["class"] == pickled.samples[split].targets["class"]).all()
    with (folder / next(iter(files))).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"no multiple of 307[34]; is the download complete"):
        load_dataset(name, tmp_path / "b")


def test_cifar10_in_folders(tmp_path):
    for split in ("train", "test"):
        for name in NAMES:
            palette.put(tmp_path / "cifar-10" / split / name / "0001.png", name, (32, 32))
    check_planted(load_dataset("cifar10", tmp_path), palette)


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_runs_nothing(tmp_path, protocol):
    import os

    folder = cifar100_pickles(tmp_path, "cifar-100-python")
    witness = tmp_path / "ran"
    put_pickle(folder / "train", {"data": rows(TRAIN), "fine_labels": Evil(os.mkdir, str(witness))}, protocol)
    with pytest.raises(UserError, match=r"is a pickle that calls (posix|nt)\.mkdir, which CIFAR's never do; it is not read"):
        load_dataset("cifar100", tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("callable_", [eval, np.load, np.fromfile, np.memmap])
def test_not_even_numpys_own_functions(tmp_path, callable_):
    folder = cifar100_pickles(tmp_path, "cifar-100-python")
    put_pickle(folder / "meta", {"fine_label_names": Evil(callable_, "x")})
    with pytest.raises(UserError, match="is a pickle that calls"):
        load_dataset("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": rows(TRAIN), "fine_labels": TRAIN[:-1]}, "has 4 images but 3 labels"),
        ({"data": rows(TRAIN), "labels": TRAIN}, "another version .* expected a dictionary with data and fine_labels"),
        ({"data": rows(TRAIN)[:, :-1], "fine_labels": TRAIN}, "expected data of N x 3072 bytes"),
        ({"data": rows(TRAIN), "fine_labels": [0, 1, 2, 7]}, "labels of train run to 7, but .* names 4 classes"),
        ({"data": rows([0, 1, 1]), "fine_labels": [0, 1, 1]}, "test has samples of 'bird', but train has none"),
        (b"", "not a CIFAR pickle that can be read"),
        (b"\x80\x02}q\x00(X\x04\x00\x00", "not a CIFAR pickle that can be read .* is the download complete"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    folder = cifar100_pickles(tmp_path, "cifar-100-python")
    if isinstance(content, bytes):
        (folder / "train").write_bytes(content)
    else:
        put_pickle(folder / "train", content)
    with pytest.raises(UserError, match=message):
        load_dataset("cifar100", tmp_path)
