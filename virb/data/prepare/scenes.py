"""SUN397 and Places365."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, below, rules

add(
    "sun397",
    "SUN397",
    Part("images", ("SUN397.tar.gz", "SUN397.tar"), below("SUN397")),
    Part("partitions", ("Partitions.zip",), rules((r"(?:.+/)?((?:Training|Testing)_\d\d\.txt)", r"Partitions/\1")), needed=False),
    note="without Partitions.zip, 80 % of each class to train by the fixed rule",
)

_LISTS = Part("lists", ("filelist_places365-standard.tar",), rules((r"(?:.+/)?([^/]+\.txt)", r"\1")))
for _size, _train, _val in (
    ("", ("train_256_places365standard.tar", "data_256"), ("val_256.tar", "val_256")),
    ("train_large_places365standard.tar", ("train_large_places365standard.tar", "data_large"), ("val_large.tar", "val_large")),
):
    add(
        "places365",
        "places365",
        _LISTS,
        Part("train", (_train[0],), below(_train[1], f"{_train[1]}_standard")),
        Part("val", (_val[0],), below(_val[1], _val[1])),
        title=_size,
    )
