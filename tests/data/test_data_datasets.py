from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from virb.data.datasets import dataset_names, find_dataset, load_dataset, register_dataset
from virb.errors import UserError


def mine(root, *, colour="red"):
    return ("mine", root, colour)


def test_registry():
    assert {"digits", "folder", "shapes", "shapes-pairs", "shapes-retrieval", "shapes-video", "imagenet"} <= set(dataset_names())
    assert dataset_names() == sorted(dataset_names())
    assert find_dataset("digits").__name__ == "digits"
    with pytest.raises(KeyError):
        find_dataset("digitz")
    with pytest.raises(UserError, match="two datasets are named digits"):
        register_dataset("digits")(mine)


def test_unknown_names_and_options_have_suggestions():
    with pytest.raises(UserError, match="did you mean digits"):
        load_dataset("digitz")
    with pytest.raises(UserError, match="no option 'sise'; did you mean size"):
        load_dataset("shapes", sise=3)


def test_a_users_own_dataset(tmp_path, monkeypatch):
    (tmp_path / "mylab_data.py").write_text("def birds(root, **options):\n    return root, options\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_dataset("mylab_data:birds", "/x", seed=1)[1] == {"seed": 1}
    with pytest.raises(UserError, match="did you mean birds"):
        find_dataset("mylab_data:bird")
    with pytest.raises(UserError, match="nowhere_at_all:birds cannot be imported"):
        find_dataset("nowhere_at_all:birds")


def test_digits_are_scikit_learns_scans():
    dataset, source = load_dataset("digits"), load_digits()
    seen = []
    for split in ("train", "test"):
        samples, images = dataset.samples[split], dataset.lists[split]
        for i in range(0, len(samples), 50):
            number = int(samples.ids[i].removeprefix("digits/"))
            scan = np.asarray(images.read(int(samples.rows(i)[0])))
            np.testing.assert_array_equal(scan[..., 0], np.floor(source.images[number] * 255 / 16 + 0.5))
            assert samples.targets["class"][i] == source.target[number]
        seen += [int(name[-4:]) for name in samples.ids]
    assert sorted(seen) == list(range(1797))
    assert dataset.classes["class"] == tuple("0123456789")


def test_the_split_of_digits_is_fixed_and_stratified():
    dataset = load_dataset("digits")
    train, test = (dataset.samples[split].targets["class"] for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    np.testing.assert_allclose(np.bincount(test) / np.bincount(np.concatenate([train, test])), 0.2, atol=0.005)
    # A changed split would make old results incomparable.
    assert list(dataset.samples["test"].ids[:4]) == ["digits/0003", "digits/0004", "digits/0007", "digits/0023"]
