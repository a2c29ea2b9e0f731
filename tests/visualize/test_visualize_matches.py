"""The picture of matched patches, and ``virb visualize match``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virb.cli import main
from virb.errors import UserError
from virb.visualize.matches import box_overlap, draw_matches, matched_views, pair_colours


@pytest.fixture
def image(tmp_path: Path) -> Path:
    x, y = np.meshgrid(np.arange(200), np.arange(150))
    path = tmp_path / "image.png"
    Image.fromarray(np.stack([x, y, x // 2 + y // 3], axis=-1).astype(np.uint8)).save(path)
    return path


def test_matched_patches_show_the_same_place(image: Path) -> None:
    for seed in range(6):
        found = matched_views(image, patch_size=16, sizes=(64, 64), scales=((0.4, 1.0),) * 2, seed=seed, colours=False)
        for (a, b), share in zip(found.pairs, found.overlap, strict=True):
            patches = [view[(t - 1) // 4 * 16 :][:16, (t - 1) % 4 * 16 :][:, :16] for view, t in zip(found.views, (a, b), strict=True)]
            one, two = (patch[..., :2].mean((0, 1)) for patch in patches)  # the image's colours are its coordinates
            side = max(crop.width for crop in found.crops) / 4, max(crop.height for crop in found.crops) / 4
            assert (abs(one - two) <= np.array(side) / 2 + 1.5).all()
            assert 0 < share <= 1


def test_colours_and_numbers_of_pairs(image: Path) -> None:
    found = matched_views(image, patch_size=32, seed=3)
    assert len(found.pairs) > 3
    assert len(np.unique(pair_colours(9), axis=0)) == 9
    picture = np.array(draw_matches(found))
    zoom = 2  # patches of 32 are drawn with 64 pixels, so that numbers can be read
    assert picture.shape == (224 * zoom, 224 * zoom + 24 + 96 * zoom, 3)
    for (a, b), colour in zip(found.pairs, pair_colours(len(found.pairs)), strict=True):
        row, column = divmod(int(a) - 1, 7)
        assert (picture[row * 64 + 1, column * 64 + 32] == colour).all()  # the frame
        row, column = divmod(int(b) - 1, 3)
        assert (picture[row * 64 + 1, 224 * zoom + 24 + column * 64 + 32] == colour).all()
        centre = picture[row * 64 + 16 : row * 64 + 48, 224 * zoom + 24 + column * 64 + 16 :][:, :32]
        assert (centre == 255).all(-1).any()  # a white number
    framed = {int(a) for a in found.pairs[:, 0]}
    other = next(t for t in range(1, 50) if t not in framed)
    row, column = divmod(other - 1, 7)
    patch = picture[row * 64 + 2 : row * 64 + 62, column * 64 + 2 : column * 64 + 62]
    assert (
        patch == np.kron(found.views[0], np.ones((2, 2, 1), np.uint8))[row * 64 + 2 : row * 64 + 62, column * 64 + 2 : column * 64 + 62]
    ).all()


def test_overlap_of_boxes() -> None:
    a = np.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    b = np.array([[1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]])
    assert box_overlap(a, b).tolist() == [1 / 7, 0.0]


def test_command_draws_and_prints_pairs(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "picture.png"
    assert main(["visualize", "match", str(image), "--out", str(out), "--seed", "3", "--patch_size", "32"]) == 0
    assert Image.open(out).size == (448 + 24 + 192, 448)
    printed = capsys.readouterr().out
    expected = matched_views(image, patch_size=32, seed=3)
    lines = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0].isdigit() and "patches" not in line]
    assert [(int(a), int(b)) for _, a, b, _ in lines] == [tuple(pair) for pair in expected.pairs.tolist()]
    assert f"{len(expected.pairs)} pairs" in printed


def test_command_with_the_originals_rule(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--matching",
        "linspace",
        "--squash",
        "256",
        "--views",
        "global",
        "global",
        "--sizes",
        "64",
        "32",
        "--patch_size",
        "16",
        "--plain",
    ]
    assert main(["visualize", "match", str(image), "--out", str(tmp_path / "a.png"), *words]) == 0
    assert "pairs of patches" in capsys.readouterr().out


def test_views_that_do_not_meet_are_told(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(200):
        if not len(matched_views(image, patch_size=32, sizes=(96, 96), scales=((0.05, 0.4),) * 2, seed=seed).pairs):
            break
    words = ["--views", "local", "local", "--seed", str(seed), "--out", str(tmp_path / "a.png")]
    assert main(["visualize", "match", str(image), *words]) == 0
    captured = capsys.readouterr()
    assert "[CLS] alone" in captured.err
    assert captured.out.splitlines()[-1].startswith("0 pairs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patch_size", "15"], "do not divide views of 224"),
        (["--squash", "0"], "0 x 0 pixels"),
        (["--out", "picture.txt"], "PNG"),
        (["--matching", "best"], "best"),
        (["--min_overlap", "2"], "is 2; expected a share from 0 to 1"),
    ],
)
def test_mistakes(
    image: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["visualize", "match", str(image), *words]) == 2
    assert message in capsys.readouterr().err


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not an image"):
        matched_views(tmp_path / "a.png")
    assert main(["visualize", "match", str(tmp_path / "b.png")]) == 2
