"""What is known of the public datasets: where they lie below the data root, official sizes, where they come from, and terms.

Read by messages about absent data, by ``virb data`` and by ``docs/data.md``. Split names are ours: ``test`` is what is reported (ImageNet's
official validation set, say), ``val`` an official validation split beside it.
"""

from __future__ import annotations

from virb.data.datasets.facts_semantic import SEMANTIC
from virb.data.datasets.facts_structural import STRUCTURAL
from virb.data.datasets.sheet import VIRB, Count, Facts

__all__ = ["FACTS", "Count", "Facts"]

_STANFORD = "research and educational use, not commercial"
_IMAGENET = "ImageNet terms: non-commercial research, registration needed"

FACTS: dict[str, Facts] = {
    "imagenet": Facts(
        ("imagenet", "ImageNet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC"),
        {"train": 1_281_167, "test": 50_000},
        1000,
        "155 GB",
        "https://image-net.org/download-images (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar)",
        _IMAGENET,
    ),
    "imagenetv2": Facts(
        ("imagenetv2", "ImageNetV2", "imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
        {"test": 10_000},
        1000,
        "1.3 GB",
        "https://huggingface.co/datasets/vaishaal/ImageNetV2 (imagenetv2-matched-frequency.tar.gz)",
        "MIT for the collection; the photographs are their Flickr owners'",
    ),
    "sun397": Facts(
        ("SUN397", "sun397"),
        {},
        397,
        "38 GB",
        "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz, and Partitions.zip beside it",
        "research use",
        total=108_754,
        by_note={"official partition": {"train": 19_850, "test": 19_850}},
    ),
    "cifar100": Facts(
        ("cifar-100-python", "cifar-100", "cifar-100-binary", "cifar100"),
        {"train": 50_000, "test": 10_000},
        100,
        "0.2 GB",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "no licence stated; cite the technical report",
    ),
    "cifar10": Facts(
        ("cifar-10-batches-py", "cifar-10", "cifar-10-batches-bin", "cifar10"),
        {"train": 50_000, "test": 10_000},
        10,
        "0.2 GB",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "no licence stated; cite the technical report",
    ),
    "caltech101": Facts(
        ("caltech-101", "caltech", "caltech101"),
        {"train": 3_060},
        102,
        "0.14 GB",
        f"https://data.caltech.edu/records/mzrjq-6wc02; ViRB's lists: {VIRB}caltech101_train.json and ..._test.json",
        "CC BY 4.0",
        total=9_144,
    ),
    "eurosat": Facts(
        ("eurosat", "EuroSAT", "EuroSAT_RGB"),
        {},
        10,
        "0.09 GB",
        "https://zenodo.org/records/7711810 (EuroSAT_RGB.zip)",
        "MIT",
        total=27_000,
        by_note={"split: the lists": {"train": 16_200, "val": 5_400, "test": 5_400}},
    ),
    "pets": Facts(
        ("oxford-iiit-pet", "pets"),
        {"train": 3_680, "test": 3_669},
        37,
        "0.8 GB",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz, annotations.tar.gz)",
        "CC BY-SA 4.0",
    ),
    "dtd": Facts(
        ("dtd/dtd", "dtd"),
        {"train": 1_880, "val": 1_880, "test": 1_880},
        47,
        "0.6 GB",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        "research use",
        by_note={"folders": {"train": (1_880, 3_760), "test": 1_880}},
    ),
    "clevr": Facts(
        ("CLEVR", "clevr/CLEVR_v1.0", "CLEVR_v1.0"),
        {"train": 70_000, "test": 15_000},
        None,
        "18 GB",
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        "CC BY 4.0",
    ),
    "thor-num-steps": Facts(
        ("thor_num_steps",), {"train": 60_000}, None, "0.7 GB", f"{VIRB}thor_num_steps.zip", "no licence stated (made with AI2-THOR)"
    ),
    "thor-actions": Facts(
        ("thor_action_prediction", "thor_egomotion"),
        {"train": 60_000},
        5,
        "1.3 GB",
        f"{VIRB}thor_egomotion.zip",
        "no licence stated (made with AI2-THOR)",
    ),
    "nuscenes-actions": Facts(
        ("nuScenes", "nuscenes"),
        {"train": 28_000},
        None,
        "53 GB",
        f"https://www.nuscenes.org/nuscenes (samples and sweeps); ViRB's lists: {VIRB}nuScenes_train.json and nuScenes_test.json",
        "CC BY-NC-SA 4.0, registration needed",
    ),
    "kinetics": Facts(
        ("kinetics400", "kinetics-400", "k400", "kinetics"),
        {"train": 50_000},
        400,
        "about 450 GB as video",
        "https://github.com/cvdfoundation/kinetics-dataset",
        "annotations CC BY 4.0; the videos are their uploaders'",
    ),
    "imagenette": Facts(
        ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette"),
        {"train": 9_469, "test": 3_925},
        10,
        "1.5 GB",
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
        _IMAGENET,
    ),
    "imagenet100": Facts(
        ("imagenet100", "imagenet-100", "ImageNet100", "ImageNet-100"),
        {"train": (130_000, 126_689), "test": 5_000},
        100,
        "17 GB",
        "https://www.kaggle.com/datasets/ambityga/imagenet100 (train.X1 to train.X4, val.X, Labels.json), or a selection from ImageNet",
        _IMAGENET,
    ),
    "food101": Facts(
        ("food-101", "food101"),
        {"train": 75_750, "test": 25_250},
        101,
        "5 GB",
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "research use; the photographs are Foodspotting's",
    ),
    "flowers102": Facts(
        ("flowers-102", "flowers102"),
        {"train": 1_020, "val": 1_020, "test": 6_149},
        102,
        "0.35 GB",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz, imagelabels.mat, setid.mat)",
        "no licence stated; research use",
    ),
    "stanford-cars": Facts(
        ("stanford_cars", "stanford-cars", "StanfordCars"),
        {"train": 8_144, "test": 8_041},
        196,
        "2 GB",
        "https://huggingface.co/datasets/tanganke/stanford_cars has copies; the original site is gone",
        _STANFORD,
    ),
    "fgvc-aircraft": Facts(
        ("fgvc-aircraft-2013b",),
        {"train": 3_334, "val": 3_333, "test": 3_333},
        100,
        "2.6 GB",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        "non-commercial research",
    ),
    "voc2007": Facts(
        ("VOCdevkit/VOC2007", "VOC2007", "voc2007/VOCdevkit/VOC2007", "voc2007"),
        {"train": 2_501, "val": 2_510, "test": 4_952},
        20,
        "0.9 GB",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ (VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar)",
        "Flickr terms of use",
    ),
    "inat2018": Facts(
        ("inat2018", "iNat2018", "inaturalist2018", "inaturalist"),
        {"train": 437_513, "test": 24_426},
        8142,
        "120 GB",
        "https://github.com/visipedia/inat_comp/tree/master/2018 (train_val2018.tar.gz, train2018.json, val2018.json)",
        "non-commercial research and education",
    ),
    "places365": Facts(
        ("places365", "Places365", "places365_standard"),
        {"train": 1_803_460, "test": 36_500},
        365,
        "25 GB at 256 pixels",
        "http://places2.csail.mit.edu/download.html (train_256_places365standard.tar, val_256.tar, filelist_places365-standard.tar)",
        "research and education only",
    ),
    "stl10": Facts(
        ("stl10_binary", "stl10"),
        {"train": 5_000, "test": 8_000},
        10,
        "2.6 GB",
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        _IMAGENET,
    ),
    "pcam": Facts(
        ("pcam", "PCAM", "pcamv1"),
        {"train": 262_144, "val": 32_768, "test": 32_768},
        2,
        "8 GB",
        "https://github.com/basveeling/pcam (unpack the .h5.gz files)",
        "CC0",
    ),
    "country211": Facts(
        ("country211",),
        {"train": 31_650, "val": 10_550, "test": 21_100},
        211,
        "11 GB",
        "https://openaipublic.azureedge.net/clip/data/country211.tgz",
        "photographs under Creative Commons licences (from YFCC100M)",
    ),
    "imagenet-a": Facts(
        ("imagenet-a",), {"test": 7_500}, 200, "0.7 GB", "https://github.com/hendrycks/natural-adv-examples (imagenet-a.tar)", "MIT"
    ),
    "imagenet-r": Facts(
        ("imagenet-r",),
        {"test": 30_000},
        200,
        "2 GB",
        "https://github.com/hendrycks/imagenet-r (imagenet-r.tar)",
        "MIT; art is its makers'",
    ),
    "imagenet-sketch": Facts(
        ("imagenet-sketch", "sketch", "ImageNet-Sketch"),
        {"test": 50_889},
        1000,
        "7 GB",
        "https://github.com/HaohanWang/ImageNet-Sketch",
        "no licence stated",
    ),
    "imagenet-c": Facts(
        ("imagenet-c", "ImageNet-C"),
        {"test": 15 * 5 * 50_000},
        1000,
        "75 GB",
        "https://zenodo.org/records/2235448 (blur.tar, digital.tar, noise.tar, weather.tar; extra.tar has four more corruptions)",
        "CC BY 4.0",
    ),
    "imagenet-real": Facts(
        (),
        {"test": 46_837},
        1000,
        "as imagenet",
        "the validation images of ImageNet; labels come with timm (real.json is used when present)",
        _IMAGENET,
    ),
}

FACTS |= SEMANTIC | STRUCTURAL
