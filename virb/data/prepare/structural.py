"""THOR depth (one zip), KITTI's scene flow (one zip, of which the left images and the flow are unpacked), and Taskonomy (a tar per building
and kind, without the building's name inside)."""

from __future__ import annotations

import re
from pathlib import Path

from virb.data.prepare.extract import Rename
from virb.data.prepare.recipes import Part, add, rules
from virb.errors import UserError

_VIEW = r"(?:.+/)?(point_\d+_view_\d+_domain_\w+\.png)"

add(
    "thor-depth",
    "thor_depth_prediction",
    Part(
        "all", ("thor_depth.zip", "thor_depth_prediction.zip"), rules((r"(?:(?!(?:train|test)/)[^/]+/)*?((?:train|test)/.+\.jpg)", r"\1"))
    ),
)
add(
    "kitti-flow",
    "KITTI",
    Part(
        "all",
        ("data_scene_flow.zip",),
        rules((r"(?:[^/]+/)?(training/(?:image_2|flow_occ|flow_noc|viz_flow_occ)/\d+_1[01]\.png)", r"\1")),
    ),
    note="right images, disparities and the test pairs, which have no answers, are left out",
)


def _of_building(domain: str) -> Part:
    """The tars of a kind: ``<domain>__taskonomy__<building>.tar`` (Omnidata's), or ``<building>_<domain>.tar``."""
    name = re.compile(rf"{domain}__taskonomy__(.+)\.tar|(.+)_{domain}\.tar")

    def rename_for(path: Path) -> Rename:
        match = name.fullmatch(path.name)
        if match is None:
            raise UserError(f"taskonomy: {path} has no building in its name; expected {domain}__taskonomy__<building>.tar")
        return rules((_VIEW, rf"{domain}/{match[1] or match[2]}/\1"))

    patterns = (f"{domain}__taskonomy__*.tar", f"*_{domain}.tar")
    return Part(domain, patterns, rename_for=rename_for, needed=domain == "rgb", several=True)


add(
    "taskonomy",
    "taskonomy",
    *(_of_building(domain) for domain in ("rgb", "depth_zbuffer", "edge_texture")),
    Part("splits", ("splits_taskonomy.zip",), rules((r"(?:.+/)?(train_val_test_\w+\.csv)", r"splits_taskonomy/\1")), needed=False),
    note="TaskonomyDepth needs depth_zbuffer, TaskonomyEdges edge_texture; without splits_taskonomy.zip the buildings are split by a rule",
)
