"""CIFAR-10 and CIFAR-100, from the Python pickles, the binary files, or folders of images.

The pickles come from a stranger's server, and ``pickle.load`` runs whatever a file says. torchvision guards that by md5 sums; we read them
with an unpickler that can build numpy arrays and nothing else, so that a repacked or partial copy may be read too.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_classes, from_folders, locate, read_lines
from virb.data.images import ArrayImages, Dataset, Samples
from virb.errors import UserError

_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


@register_dataset("cifar10")
def cifar10(root: Path | None) -> Dataset:
    """50,000 and 10,000 images of 32 x 32. ``data_batch_1`` .. ``5``, ``test_batch``, ``batches.meta``; or the same as ``.bin``; or
    ``{train,test}/<class>/*``."""
    pickles = Layout("pickles", (*_BATCHES, "test_batch"))
    binary = Layout("binary", (*(f"{batch}.bin" for batch in _BATCHES), "test_batch.bin"))
    folder, layout = locate("cifar10", root, (pickles, binary, Layout("folders", ("train", "test"), _has_folders)))
    files = {"train": _BATCHES, "test": ("test_batch",)}
    return _read("cifar10", folder, layout, files, ("labels", 1, 0), ("batches.meta", "label_names", "batches.meta.txt"))


@register_dataset("cifar100")
def cifar100(root: Path | None) -> Dataset:
    """50,000 and 10,000 images of 32 x 32, target ``class`` = the 100 fine labels. ``train``, ``test``, ``meta``; or ``train.bin``,
    ``test.bin``, ``fine_label_names.txt``; or ``{train,test}/<class>/*``."""
    pickles = Layout("pickles", ("train", "test"), lambda folder: (folder / "train").is_file())
    binary = Layout("binary", ("train.bin", "test.bin"))
    folder, layout = locate("cifar100", root, (pickles, binary, Layout("folders", ("train", "test"), _has_folders)))
    files = {"train": ("train",), "test": ("test",)}
    return _read("cifar100", folder, layout, files, ("fine_labels", 2, 1), ("meta", "fine_label_names", "fine_label_names.txt"))


def _has_folders(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _read(
    name: str,
    folder: Path,
    layout: str,
    files: Mapping[str, Sequence[str]],
    label: tuple[str, int, int],
    meta: tuple[str, str, str],
) -> Dataset:
    """``label``: key in the pickles, label bytes of a binary record, which of them. ``meta``: pickle, its key, text file of class names."""
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "test"})
    key, n_label_bytes, label_byte = label
    meta_file, meta_key, meta_text = meta
    classes = _class_names(name, folder / meta_file, meta_key) if layout == "pickles" else tuple(read_lines(name, folder / meta_text))
    lists, samples, labels = {}, {}, {}
    for split, names in files.items():
        if layout == "pickles":
            parts = [_from_pickle(name, folder / file, key) for file in names]
        else:
            parts = [_from_binary(name, folder / f"{file}.bin", n_label_bytes, label_byte) for file in names]
        pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels[split] = np.concatenate([part[1] for part in parts])
        if len(labels[split]) and not 0 <= labels[split].min() <= labels[split].max() < len(classes):
            raise UserError(f"{name}: labels of {split} run to {labels[split].max()}, but {folder} names {len(classes)} classes")
        lists[split] = ArrayImages(split, pixels, [f"{name}/{split}/{i:05d}" for i in range(len(pixels))])
        samples[split] = Samples.one_per_image(lists[split], {"class": labels[split]})
    check_classes(name, classes, labels)
    return Dataset(name, lists, samples, {"class": classes}, layout)


def _from_pickle(name: str, path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    content = load_arrays(name, path)
    if not isinstance(content, dict) or "data" not in content or key not in content:
        raise another_version(name, path, f"a dictionary with data and {key}")
    pixels, labels = content["data"], content[key]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise another_version(name, path, f"data of N x {_PIXELS} bytes")
    if len(pixels) != len(labels):
        raise UserError(f"{name}: {path} has {len(pixels)} images but {len(labels)} labels")
    return pixels, np.asarray(labels, dtype=np.int64)


def _from_binary(name: str, path: Path, n_label_bytes: int, label_byte: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, dtype=np.uint8)
    record = n_label_bytes + _PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise UserError(f"{name}: {path} has {len(raw)} bytes, which is no multiple of {record}; is the download complete?")
    rows = raw.reshape(-1, record)
    return rows[:, n_label_bytes:], rows[:, label_byte].astype(np.int64)


def _class_names(name: str, path: Path, key: str) -> tuple[str, ...]:
    content = load_arrays(name, path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise another_version(name, path, f"a dictionary with {key}")
    return tuple(map(str, content[key]))


def load_arrays(name: str, path: Path) -> Any:
    """A pickle of plain values and numpy arrays. UserError for one that wants anything else: it could run code."""
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{name}: {path} is not there") from None
    except _Forbidden as error:
        raise UserError(f"{name}: {path} is a pickle that calls {error}, which CIFAR's never do; it is not read") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        MemoryError,
        LookupError,
    ) as error:
        raise UserError(f"{name}: {path} is not a CIFAR pickle that can be read ({error}); is the download complete?") from None


class _Forbidden(Exception):
    """What a pickle may not name."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays only. ``_reconstruct`` and ``dtype`` allocate memory and run nothing; ``encode`` is how Python 3 writes bytes in old
    protocols, and is kept to the one codec used for that."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise _Forbidden(f"{module}.{name}")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Numpy's own start of an array; its state follows in the pickle."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("not an array")
    return np.ndarray(shape, np.int8)


def _latin1(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"codec {codec}")
    return codecs.latin_1_encode(text)[0]
