"""Sets whose archives need no more than unpacking: VOC 2007, iNaturalist 2018, STL-10, PatchCamelyon, Country211."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, below, rules

add(
    "voc2007",
    "VOCdevkit/VOC2007",
    Part("trainval", ("VOCtrainval_06-Nov-2007.tar",), below("VOCdevkit/VOC2007")),
    Part("test", ("VOCtest_06-Nov-2007.tar",), below("VOCdevkit/VOC2007")),
)
add(
    "inat2018",
    "inat2018",
    Part("images", ("train_val2018.tar.gz", "train_val2018.tar"), below("train_val2018", "train_val2018")),
    *(
        Part(
            f"{split}-list",
            (f"{split}2018.json.tar.gz", f"{split}2018.json.zip", f"{split}2018.json"),
            rules((rf"(?:.+/)?{split}2018\.json", rf"{split}2018.json")),
        )
        for split in ("train", "val")
    ),
)
add(
    "stl10",
    "stl10_binary",
    Part("all", ("stl10_binary.tar.gz",), rules((r"stl10_binary/((?:train|test)_[Xy]\.bin|class_names\.txt)", r"\1"))),
)
_PCAM = "camelyonpatch_level_2_split_{}_{}.h5"
add(
    "pcam",
    "pcam",
    *(
        Part(f"{split}-{kind}", (f"{_PCAM.format(split, kind)}.gz", _PCAM.format(split, kind)), rules((r".+", _PCAM.format(split, kind))))
        for split in ("train", "valid", "test")
        for kind in "xy"
    ),
)
add("country211", "country211", Part("all", ("country211.tgz",), below("country211")))
