"""EuroSAT, RGB: the folder in the zip was ``2750`` at first, later ``EuroSAT_RGB``."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, rules

add(
    "eurosat",
    "eurosat",
    Part("images", ("EuroSAT_RGB.zip", "EuroSAT.zip"), rules((r"(?:.+/)?([A-Za-z]+/[A-Za-z]+_\d+\.jpg)", r"2750/\1"))),
    *(
        Part(f"list-{split}", (f"eurosat-{split}.txt",), rules((r"(.+)", rf"eurosat-{split}.txt")), needed=False)
        for split in ("train", "val", "test")
    ),
    note="80 % of each class to train by the fixed rule, or the lists eurosat-{train,val,test}.txt",
)
