"""Image-level tasks on public datasets: the 14 of ViRB 2021, and those this field expects beside them.

``test`` is what is reported. The choice of training configs and epochs is made on the official ``val`` where there is one beside it, else
on a hold-out of ``train`` (10 %, at most 50 per class); ``about`` says which. ``ID@virb2021`` is ViRB's definition where it differs.
"""

from __future__ import annotations

from dataclasses import replace

from virb.data.transforms import Geometry
from virb.tasks.base import Kind, Task, register_task

_TOP = ("top1", "top5")
_MEAN = ("mean_class_accuracy", "top1")  # where classes are uneven, and the literature reports the mean over classes
_MCE = ("mCE", "mean_corruption_error")  # relative to AlexNet's errors, as published, and as it is
_CUT = Geometry(
    size=(224, 224), resize="none", crop="center", crop_pct=1.0
)  # as ImageNet-C's images were published: nothing is left to cut
_HELD_OUT = "chosen on a hold-out of train"
_OFFICIAL = "chosen on the official val"


def _task(
    task_id: str, dataset: str, about: str, metrics: tuple[str, ...] = ("top1",), kind: Kind = "semantic", choice: str = _HELD_OUT
) -> Task:
    return Task(id=task_id, level="image-level", kind=kind, dataset=dataset, metrics=metrics, about=f"{about}; {choice}")


_CLEVR = _task("CLEVRNumObjects", "clevr", "how many objects a rendered scene shows, 3 to 10; test = official val", kind="structural")
_DTD = _task("dtd", "dtd", "47 textures; official partition 1", choice=_OFFICIAL)
_PETS = _task("Pets", "pets", "37 breeds of cats and dogs; official trainval and test", _MEAN)
_CALTECH = _task("CalTech-101", "caltech101", "102 classes of objects; ViRB's lists, else 30 per class by a fixed rule", _MEAN)

_VIRB = (
    _task("Imagenet", "imagenet", "1000 classes of ILSVRC-2012; test = official val", _TOP),
    _task("SUN397", "sun397", "397 scenes; ViRB's folders, official partition 1, or 80 % by a fixed rule", _TOP),
    _task("CIFAR-100", "cifar100", "100 classes at 32 x 32; official split", _TOP),
    _CALTECH,
    _task("Eurosat", "eurosat", "10 kinds of land use from above; ViRB's folders, or 80 % by a fixed rule"),
    _PETS,
    _DTD,
    _CLEVR,
    replace(
        _CLEVR,
        id="CLEVRDist",
        target="distance",
        about=f"how far the nearest object is from the middle of the scene, in bins of half a unit; test = official val; {_HELD_OUT}",
    ),
    _task("THORNumSteps", "thor-num-steps", "how many steps away an object is; test = ViRB's val", kind="structural"),
    replace(
        _task(
            "THORActionPrediction",
            "thor-actions",
            "which of 5 moves leads from one image to the next; test = ViRB's val",
            kind="structural",
        ),
        probe="mlp",
    ),
    replace(
        _task("nuScenesActionPrediction", "nuscenes-actions", "what the car does between two images; ViRB's lists", kind="structural"),
        probe="mlp",
    ),
    replace(
        _task("KineticsActionPrediction", "kinetics", "400 actions, from six frames of a clip; test = official val", _TOP), probe="mlp"
    ),
)

_VARIANTS = (
    replace(_PETS, id="Pets@virb2021", metrics=("top1",)),
    replace(_CALTECH, id="CalTech-101@virb2021", metrics=("top1",)),
    replace(_DTD, id="dtd@virb2021", options={"merge_val": True}, about=f"47 textures; train and val of partition 1 to train; {_HELD_OUT}"),
    replace(
        _CLEVR,
        id="CLEVRDist@vtab",
        target="camera_distance",
        about=f"how far the nearest object is from the camera, in VTAB's 6 bins; test = official val; {_HELD_OUT}",
    ),
)

_OTHERS = (
    _task("CIFAR-10", "cifar10", "10 classes at 32 x 32; official split"),
    _task("Imagenette", "imagenette", "10 easy classes of ImageNet (DoRA's small set); test = official val"),
    _task("Imagenet100", "imagenet100", "100 classes of ImageNet; test = their validation images", _TOP),
    _task("Food101", "food101", "101 dishes; official split", _TOP),
    _task("Flowers102", "flowers102", "102 flowers, 10 images of each to train; official split", _MEAN, choice=_OFFICIAL),
    _task("StanfordCars", "stanford-cars", "196 models of cars; official split", _TOP),
    _task("FGVCAircraft", "fgvc-aircraft", "100 variants of aircraft; official split", _MEAN, choice=_OFFICIAL),
    _task("iNat2018", "inat2018", "8,142 species, long-tailed; test = official val", _TOP),
    _task("Places365", "places365", "365 scenes; test = official val", _TOP),
    _task("STL10", "stl10", "10 classes at 96 x 96, 500 of each to train; official split"),
    _task("PCAM", "pcam", "tumour tissue or not; official split", choice=_OFFICIAL),
    _task("Country211", "country211", "in which country a photograph was taken; official split", _TOP, choice=_OFFICIAL),
    replace(
        _task(
            "VOC2007",
            "voc2007",
            "which of 20 classes are in a photograph; official split; VOC 2007's own mAP of eleven points",
            ("mAP11", "mAP"),
            choice=_OFFICIAL,
        ),
        target="labels",
        loss="bce",
    ),
)


def _score(task_id: str, dataset: str, about: str, metrics: tuple[str, ...] = _TOP, target: str = "class") -> Task:
    """Has no training samples: it scores heads that were trained on another task, by the names of the classes."""
    return Task(
        id=task_id,
        level="image-level",
        kind="semantic",
        dataset=dataset,
        target=target,
        metrics=metrics,
        roles={"report": "test"},
        heads_from="Imagenet",
        head_classes="virb.data.datasets.imagenet:wnids",
        about=f"{about}; scores heads trained on Imagenet",
    )


_SCORES = (
    _score("Imagenetv2", "imagenetv2", "10,000 new images of ImageNet's classes"),
    _score("ImagenetA", "imagenet-a", "7,500 natural photographs that fool a ResNet-50, 200 classes"),
    _score("ImagenetR", "imagenet-r", "30,000 renditions, 200 classes"),
    _score("ImagenetSketch", "imagenet-sketch", "50,889 sketches"),
    _score("ImagenetReaL", "imagenet-real", "ImageNet's validation images with reassessed labels", ("real_accuracy",), "labels"),
    replace(
        _score("ImagenetC", "imagenet-c", "ImageNet's validation images under 15 corruptions of 5 severities", _MCE, "corrupted"),
        geometry=_CUT,
    ),
)

for _entry in (*_VIRB, *_VARIANTS, *_OTHERS, *_SCORES):
    register_task(_entry)
