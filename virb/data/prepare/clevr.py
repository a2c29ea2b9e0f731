"""CLEVR: one zip, of which the images and scenes of train and val are unpacked."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, rules

add(
    "clevr",
    "CLEVR",
    Part(
        "all",
        ("CLEVR_v1.0.zip",),
        rules(
            (r"CLEVR_v1\.0/images/((?:train|val)/[^/]+\.png)", r"images/\1"),
            (r"CLEVR_v1\.0/scenes/(CLEVR_(?:train|val)_scenes\.json)", r"scenes/\1"),
        ),
    ),
    note="test images (they have no scenes) and questions are left out",
)
