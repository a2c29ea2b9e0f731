"""KITTI 2015: optical flow between two frames from a driving car. The 200 official training pairs are split; the others have no answers."""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, check_there, locate
from virb.data.datasets.dense import checked_variant, files_by_stem, matched
from virb.data.decode import read_target
from virb.data.images import Dataset, FileImages, Samples
from virb.data.maps import read_kitti_flow
from virb.data.sequences import FileSequence
from virb.errors import UserError

_NAME = "kitti-flow"
_SHARE = 0.9  # of the pairs, to train
_LUMA = np.array([299, 587, 114], dtype=np.float32)  # thousandths, ITU-R 601: Pillow's grey


@register_dataset(_NAME)
def kitti_flow(root: Path | None, variant: str | None = None) -> Dataset:
    """Flow between the two rows of a sample, ``training/image_2/<id>_10.png`` and ``<id>_11.png``. The split is ViRB's, and nobody else's:
    sorted by name, the first 90 % are ``train``, the last 10 % ``test``.

    Target ``flow``, float32 (3, H, W), of ``flow_occ/<id>_10.png`` (16 bit): u to the right, v down, in pixels; 1 where the point is in
    both frames, by ``flow_noc``, 0 where it leaves the image; NaN where nothing was measured. ``variant="virb2021"``: (1, H, W), the
    luminance in [0, 1] of the coloured picture ``viz_flow_occ/<id>_10.png``, 0 where nothing was measured.
    """
    historic = checked_variant(_NAME, variant) is not None
    where = "viz_flow_occ" if historic else "flow_occ"
    layout = Layout("scene flow 2015", ("training/image_2", f"training/{where}", *(() if historic else ("training/flow_noc",))))
    folder, _ = locate(_NAME, root, (layout,))
    base = folder / "training"
    frames = files_by_stem(base, "image_2", "_10", (".png",))
    _, flows = matched(_NAME, frames, files_by_stem(base, where, "_10", (".png",)), f"{base / 'image_2'} and {base / where}", "flow map")
    ids = sorted(frames)
    check_there(_NAME, base, [f"image_2/{key}_11.png" for key in ids], str(base / where))
    if not historic:
        check_there(_NAME, base, [f"flow_noc/{key}_10.png" for key in ids], str(base / where), "flow maps")
    cut = int(_SHARE * len(ids))
    if cut == 0:
        raise UserError(f"{_NAME}: {base} has one pair of frames; a split needs two")
    lists, samples = {}, {}
    for split, part in (("train", slice(cut)), ("test", slice(cut, None))):
        lists[split] = FileImages(split, base, [f"image_2/{key}_{frame}.png" for key in ids[part] for frame in (10, 11)])
        rows = np.arange(len(lists[split])).reshape(-1, 2)
        target = FileSequence(base, flows[part], read_luminance if historic else read_flow, _record(base, ids[part], historic))
        samples[split] = Samples.from_rows(ids[part], split, rows, {"flow": target})
    return Dataset(_NAME, lists, samples, note="the first 90 % by name to train, as in ViRB 2021")


def _record(base: Path, ids: list[str], historic: bool) -> dict[str, str]:
    """What decides the targets besides the files that are named: those that say what is visible."""
    if historic:
        return {"unit": "luminance"}
    return {"unit": "px", "visible": FileSequence(base, [f"flow_noc/{key}_10.png" for key in ids], str).identity()}


def read_flow(path: str) -> np.ndarray:
    """float32 (3, H, W) of a file of ``flow_occ``, with what is visible from ``flow_noc`` beside it."""
    place = PurePath(path)
    return read_kitti_flow(path, str(place.parent.with_name("flow_noc") / place.name))


def read_luminance(path: str) -> np.ndarray:
    """float32 (1, H, W): the grey of a coloured picture, as Pillow makes it in mode F, / 255."""
    return (np.asarray(read_target(path), dtype=np.float32) @ _LUMA / np.float32(1000) / np.float32(255))[None]
