"""What is known of the datasets with a depth, an edge, a colour, a flow or a thing at every pixel."""

from __future__ import annotations

from virb.data.datasets.sheet import VIRB, Facts

STRUCTURAL: dict[str, Facts] = {
    "thor-depth": Facts(
        ("thor_depth_prediction", "thor_depth"),
        {"train": 60_000},
        None,
        "0.25 GB",
        f"{VIRB}thor_depth.zip",
        "no licence stated (made with AI2-THOR)",
    ),
    "taskonomy": Facts(
        ("taskonomy", "Taskonomy", "taskonomy_dataset"),
        {"train": 39_995},
        None,
        "48 GB for ViRB's scenes",
        "https://github.com/StanfordVL/taskonomy/tree/master/data (rgb, depth_zbuffer and edge_texture of the buildings, and "
        f"splits_taskonomy.zip); ViRB's scenes: {VIRB}taskonomy_scenes.txt",
        "non-commercial research, terms to be agreed to",
    ),
    "kitti-flow": Facts(
        ("KITTI", "kitti", "KittiFlow", "kitti_2015", "data_scene_flow"),
        {"train": 180, "test": 20},
        None,
        "1.7 GB",
        "https://www.cvlibs.net/datasets/kitti/eval_scene_flow.php?benchmark=flow (data_scene_flow.zip)",
        "CC BY-NC-SA 3.0",
    ),
    "coco-panoptic": Facts(
        ("coco", "COCO", "coco2017"),
        {"train": 118_287, "test": 5_000},
        133,
        "20 GB",
        "https://cocodataset.org/#download (train2017.zip, val2017.zip, panoptic_annotations_trainval2017.zip)",
        "annotations CC BY 4.0; the photographs under Flickr's terms",
    ),
}
