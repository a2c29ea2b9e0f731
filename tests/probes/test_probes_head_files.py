"""Head files of ViRB and of DINO, against features and logits that DINO's own code made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from virb.errors import UserError
from virb.probes.head_files import Layout, file_hash, layout_of, read_head
from virb.probes.heads import IMAGES, HeadShape, apply_head, init_head

GOLDEN = Path(__file__).parents[1] / "golden" / "dino_linear_features.npz"
REQUESTS = {"n4": "cls[-4:].flatten", "n1": "embedding", "n1_avgpool": "cls[-1]+tokens[-1].mean"}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_released_classifier_gives_its_own_logits_on_our_features(tmp_path: Path, case: str) -> None:
    golden = np.load(GOLDEN)
    weight, bias = (torch.from_numpy(golden[f"{case}.sd.linear.{part}"]) for part in ("weight", "bias"))
    path = tmp_path / "linear.pth"
    torch.save({"epoch": 100, "state_dict": {"module.linear.weight": weight, "module.linear.bias": bias}, "best_acc": 1.0}, path)
    features = torch.from_numpy(golden[f"{case}.features"])
    if case == "n1_avgpool":  # theirs are interleaved, ours one after the other
        features = torch.cat([features[:, 0::2], features[:, 1::2]], 1)
    logits = apply_head(read_head(path, REQUESTS[case]), features)
    np.testing.assert_allclose(logits.numpy(), golden[f"{case}.logits"], atol=5e-5)


@pytest.mark.parametrize("prefix", ["", "linear.", "module.linear.", "fc."])
def test_names_of_others_are_known(tmp_path: Path, prefix: str) -> None:
    head = init_head(HeadShape(4, 3), 0)
    torch.save({f"{prefix}weight": head["head.weight"], f"{prefix}bias": head["head.bias"]}, tmp_path / "h.pt")
    read = read_head(tmp_path / "h.pt", "embedding")
    assert all(torch.equal(read[name], head[name]) for name in head)


TWO = "cls[-1]+tokens[-1].mean"


@pytest.mark.parametrize(
    ("prefix", "asked", "interleaved"),
    [
        ("module.linear.", None, True),  # DINO's
        ("", None, False),  # iBOT's and others' are as ours; nothing in the file says so
        ("linear.", None, False),
        ("fc.", None, False),
        ("", "interleaved", True),
        ("module.linear.", "concatenated", False),
    ],
)
def test_only_dinos_names_mean_interleaved(tmp_path: Path, prefix: str, asked: Layout | None, interleaved: bool) -> None:
    head = init_head(HeadShape(8, 3), 0)
    weight = head["head.weight"]
    path = tmp_path / "h.pt"
    torch.save({"state_dict": {f"{prefix}weight": weight, f"{prefix}bias": head["head.bias"]}}, path)
    assert layout_of(path, TWO, asked) == ("interleaved" if interleaved else "concatenated")
    expected = torch.stack([weight[:, i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], 1) if interleaved else weight
    assert torch.equal(read_head(path, TWO, asked)["head.weight"], expected)
    assert torch.equal(read_head(path, "embedding")["head.weight"], weight)
    assert layout_of(path, "embedding") is None


def test_a_layout_of_what_has_one_order_is_refused(tmp_path: Path) -> None:
    head = init_head(HeadShape(8, 3), 0)
    torch.save(head, tmp_path / "model_head.pt")
    torch.save({"weight": head["head.weight"], "bias": head["head.bias"]}, tmp_path / "h.pt")
    for path, request in ((tmp_path / "model_head.pt", TWO), (tmp_path / "h.pt", "embedding")):
        with pytest.raises(UserError, match="head_layout: interleaved is for heads of others"):
            layout_of(path, request, "interleaved")


def test_our_own_files_come_back(tmp_path: Path) -> None:
    head = {**init_head(HeadShape(8, 3, 5, images=2, pool="attention"), 0), IMAGES: torch.tensor(2)}
    torch.save(head, tmp_path / "model_head.pt")
    read = read_head(tmp_path / "model_head.pt", "embedding")
    assert read.keys() == head.keys()
    assert all(torch.equal(read[name], head[name]) for name in head)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of tensors", "is not a file of tensors"),
        ({"a": torch.zeros(2)}, "not a head: expected head.weight and head.bias"),
        ([1, 2], "not a head"),
        ({"weight": torch.zeros(3), "bias": torch.zeros(3)}, "not a head"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "h.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_head(path, "embedding")
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (lambda: read_head(tmp_path / "h.pt", "embedding"), lambda: file_hash(tmp_path / "h.pt")):
        with pytest.raises(UserError, match="No such file"):
            read()
