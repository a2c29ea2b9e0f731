"""Breeds, textures, flowers, dishes, cars and aircraft: an archive of images, and lists."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, below, named, rules

_ANNOS = "cars_test_annos_withlabels.mat"

add(
    "pets",
    "oxford-iiit-pet",
    Part("images", ("images.tar.gz", "images.tar"), below("images", "images")),
    Part("annotations", ("annotations.tar.gz", "annotations.tar"), below("annotations", "annotations")),
)
add(
    "dtd",
    "dtd/dtd",
    Part("all", ("dtd-r1*.tar.gz", "dtd-r1*.tar"), rules((r"dtd/((?:images|labels)/.+)", r"\1"))),
)
add(
    "flowers102",
    "flowers-102",
    Part("images", ("102flowers.tgz", "102flowers.tar"), below("jpg", "jpg")),
    Part("labels", ("imagelabels.mat",), named("imagelabels.mat")),
    Part("split", ("setid.mat",), named("setid.mat")),
)
add("food101", "food-101", Part("all", ("food-101.tar.gz", "food-101.tar"), below("food-101")))
add(
    "stanford-cars",
    "stanford_cars",
    Part("train", ("cars_train.tgz", "cars_train.tar"), below("cars_train", "cars_train")),
    Part("test", ("cars_test.tgz", "cars_test.tar"), below("cars_test", "cars_test")),
    Part("devkit", ("car_devkit.tgz", "car_devkit.tar"), below("devkit", "devkit")),
    Part("test-labels", (_ANNOS,), named(_ANNOS)),
)
add("fgvc-aircraft", "fgvc-aircraft-2013b", Part("all", ("fgvc-aircraft-2013b.tar.gz",), rules((r"fgvc-aircraft-2013b/(data/.+)", r"\1"))))
