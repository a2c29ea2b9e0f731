"""Oxford-IIIT Pets: where the animal is, by the trimaps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import check_there
from virb.data.datasets.dense import checked_variant
from virb.data.datasets.pets import read_pets
from virb.data.images import Dataset, FileImages, Samples
from virb.data.maps import label_lut, read_labels
from virb.data.sequences import FileSequence
from virb.errors import UserError

_PLACE = "annotations/trimaps"
# The files say 1 pet, 2 background, 3 the border between them. ViRB 2021 resized the values; its positive class was what was no pet then.
_PLAIN = {1: 1, 2: 0, 3: 255}
_VIRB2021 = {1: 0, 2: 1, 3: 2}


@register_dataset("pets-masks")
def pets_masks(root: Path | None, variant: str | None = None) -> Dataset:
    """The images of ``pets``, in either of its layouts, with ``annotations/trimaps/<image>.png``.

    Target ``mask``: 0 background, 1 pet, 255 the border, which is of neither. ``variant="virb2021"``: 0 pet, above 0 everything else (1
    background, 2 border), to be resized with the image before all that is not 0 becomes 1.
    """
    name = "pets-masks"
    historic = checked_variant(name, variant) is not None
    base = read_pets(name, root)
    meaning = _VIRB2021 if historic else _PLAIN
    read = partial(read_labels, lut=label_lut(meaning))
    samples = {}
    for split, images in base.lists.items():
        if not isinstance(images, FileImages):
            raise UserError(f"{name}: {split} is not made of files")
        folder = Path(images.root)
        trimaps = [f"{_PLACE}/{path.rpartition('/')[2].rpartition('.')[0]}.png" for path in images.paths]
        check_there(name, folder, trimaps, f"{split} (a trimap per image)", "trimaps")
        target = FileSequence(folder, trimaps, read, {"trimap": {str(raw): value for raw, value in meaning.items()}})
        samples[split] = Samples.one_per_image(images, {"mask": target})
    classes = ("pet", "background and border") if historic else ("background", "pet")
    return Dataset(name, base.lists, samples, {"mask": classes}, base.note)
