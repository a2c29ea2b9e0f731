"""Caltech-101: a zip with a tar in it since 2022, the tar alone before; ViRB 2021's JSON lists beside it."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, named, rules

_LISTS = tuple(
    Part(f"list-{split}", (f"caltech101_{split}.json",), named(f"caltech101_{split}.json"), needed=False) for split in ("train", "test")
)
_NOTE = "without ViRB's two lists, 30 images per class by the fixed rule"

add(
    "caltech101",
    "caltech-101",
    Part(
        "images",
        ("caltech-101.zip",),
        rules((r"(?:.+/)?101_ObjectCategories\.tar\.gz/101_ObjectCategories/(.+\.jpg)", r"101_ObjectCategories/\1")),
        nested=r"(?:.+/)?101_ObjectCategories\.tar\.gz",
    ),
    *_LISTS,
    note=_NOTE,
)
add(
    "caltech101",
    "caltech-101",
    Part(
        "images",
        ("101_ObjectCategories.tar.gz", "101_ObjectCategories.tar"),
        rules((r"101_ObjectCategories/(.+\.jpg)", r"101_ObjectCategories/\1")),
    ),
    *_LISTS,
    title="101_ObjectCategories.tar.gz",
    note=_NOTE,
)
