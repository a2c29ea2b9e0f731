"""ImageNet-A, -R, -Sketch and -C, which score what was trained on ImageNet."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, rules

for _letter in "ar":
    _name = f"imagenet-{_letter}"
    add(_name, _name, Part("all", (f"{_name}.tar",), rules((rf"{_name}/(n\d{{8}}/.+)", r"\1"))))

add(
    "imagenet-sketch",
    "imagenet-sketch",
    Part("all", ("ImageNet-Sketch.zip", "imagenet-sketch.zip"), rules((r"(?:.+/)?(n\d{8}/.+)", r"\1"))),
)
add(
    "imagenet-c",
    "imagenet-c",
    *(
        Part(group, (f"{group}.tar",), rules((r"(?:.+/)?([a-z_]+/[1-5]/n\d{8}/.+)", r"\1")), needed=group != "extra")
        for group in ("noise", "blur", "weather", "digital", "extra")
    ),
)
