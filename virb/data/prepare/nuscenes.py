"""nuScenes: ViRB 2021's two lists, and of the archives only the images that they name; or ``samples`` and ``sweeps`` unpacked already."""

from __future__ import annotations

import re

from virb.data.datasets.common import another_version, read_json
from virb.data.prepare.extract import Rename
from virb.data.prepare.recipes import Found, Part, add, named

_NAME = "nuscenes-actions"
_IMAGE = re.compile(r"(?:.+/)?((?:samples|sweeps)/.+)")


def listed_images(found: Found) -> Rename:
    """The images that the lists name, to where they are named."""
    wanted: set[str] = set()
    for part in ("train-list", "test-list"):
        path = found[part][0]
        content = read_json(_NAME, path)
        try:
            wanted.update(item[key].lstrip("./") for item in content for key in ("img_a", "img_b"))
        except (KeyError, TypeError, AttributeError):
            raise another_version(_NAME, path, "a list of img_a, img_b and label (it comes with ViRB 2021, not with nuScenes)") from None

    def rename(path: str) -> str | None:
        match = _IMAGE.fullmatch(path)
        return match[1] if match and match[1] in wanted else None

    return rename


_LISTS = tuple(Part(f"{split}-list", (f"nuScenes_{split}.json",), named(f"nuScenes_{split}.json")) for split in ("train", "test"))

add(
    _NAME,
    "nuScenes",
    *_LISTS,
    Part("images", ("v1.0-*.tgz", "v1.0-*.tar", "v1.0-*.tar.gz"), rename_with=listed_images, several=True),
    note="of the archives, the images that the lists name",
)
add(
    _NAME,
    "nuScenes",
    *_LISTS,
    Part("samples", (), folders=("samples",), link="samples"),
    Part("sweeps", (), folders=("sweeps",), link="sweeps", needed=False),
    title="folders samples and sweeps",
)
