from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from virb.data import scenes
from virb.data.scenes import KINDS, draw_kinds, draw_scene

SCENES = range(40)


def rendered(number):
    return scenes.render_image(draw_scene(0, "p", number, 3), 64, 1)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_every_object_is_visible_in_every_frame_and_boxes_are_tight(size):
    for number in SCENES:
        scene = draw_scene(1, "visible", number, 5)
        for frame in range(5):
            owners, boxes = scenes.render_owners(scene, size, frame), scenes.visible_boxes(scene, size, frame)
            assert set(np.unique(owners)) - {-1} == set(range(len(scene)))
            for k, (x0, y0, x1, y1, kind, number_) in enumerate(boxes):
                rows, columns = np.nonzero(owners == k)
                assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert kind == scene.kinds[k]
                assert number_ == k


def test_the_nearest_object_is_the_largest_and_nothing_hides_it():
    for number in SCENES:
        scene = draw_scene(2, "near", number, 4)
        assert (np.diff(scene.depths) > 0).all()
        assert (np.diff(scene.radii) < 0).all()
        alone = replace(scene, kinds=scene.kinds[:1])
        for frame in range(4):
            np.testing.assert_array_equal(scenes.render_owners(scene, 64, frame) == 0, scenes.render_owners(alone, 64, frame) == 0)


def test_nearer_objects_occlude_farther_ones_somewhere():
    hidden = 0
    for number in SCENES:
        scene = draw_scene(3, "occlusion", number)
        covered = np.zeros((64, 64), dtype=int)
        for layer in scenes._layers(scene, 64, 0):
            covered[layer.window] += layer.distance < 0
        owners, depth = scenes.render_owners(scene, 64), scenes.render_depth(scene, 64)
        hidden += int((covered > 1).any())
        for k, z in enumerate(scene.depths):
            assert (depth[owners == k] == np.float32(z)).all()
        assert depth[owners < 0].min() > scene.depths.max()
    assert hidden > len(SCENES) / 4


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_shapes_lie_between_their_core_and_their_radius(kind):
    u, v = np.meshgrid(np.linspace(-1.2, 1.2, 401), np.linspace(-1.2, 1.2, 401))
    inside, radius = scenes._distance(KINDS[kind], u, v) < 0, np.hypot(u, v)
    assert inside[radius < scenes.CORE - 0.005].all()
    assert not inside[radius > 1.005].any()
    assert radius[inside].max() > 0.97


def test_distances_are_distances():
    """Inside a thin band the value equals the Euclidean distance to the edge (corners apart), measured on a fine grid."""
    step = 0.005
    axis = np.arange(-1.2, 1.2, step)
    u, v = np.meshgrid(axis, axis)
    for kind in KINDS:
        value = scenes._distance(kind, u, v)
        measured = distance_transform_edt(value < 0) * step
        band = (value < -0.02) & (value > -0.08)
        assert np.median(np.abs(measured[band] + value[band])) < 2 * step


@pytest.mark.parametrize("frame", [0, 2])
def test_flow_carries_the_owners_of_a_frame_to_the_next(frame):
    size, compared, wall_moved = 64, 0, 0
    y, x = np.mgrid[:size, :size]
    for number in SCENES:
        scene = draw_scene(4, "flow", number, 4)
        now, then = scenes.render_owners(scene, size, frame), scenes.render_owners(scene, size, frame + 1)
        flow = scenes.render_flow(scene, size, frame)
        assert flow.dtype == np.float32
        assert flow.shape == (2, size, size)
        to_x, to_y = np.rint(x + flow[0]).astype(int), np.rint(y + flow[1]).astype(int)
        for k in range(len(scene)):
            assert len(np.unique(flow[:, now == k], axis=1).T) == 1  # rigid
            # Pixels deep inside an object arrive on it, unless something nearer has come in the way.
            deep = binary_erosion(now == k, iterations=2) & (to_x >= 0) & (to_x < size) & (to_y >= 0) & (to_y < size)
            arrived = then[to_y[deep], to_x[deep]]
            assert ((arrived == k) | ((arrived >= 0) & (arrived < k))).all()
            compared += int((arrived == k).sum())
        wall_moved += int(np.abs(flow[:, now < 0]).max() > 0.05)
        centre_shift = [b.mean() for b in np.nonzero(then == 0)][::-1] - np.array([b.mean() for b in np.nonzero(now == 0)][::-1])
        whole = scenes.visible_boxes(scene, size, frame)[0]
        if whole[:2].min() > 4 and whole[2:4].max() < size - 4:  # not cut by the border: its centre of mass moves as the flow says
            np.testing.assert_allclose(centre_shift, flow[:, now == 0][:, 0], atol=0.25)
    assert compared > 5000
    assert wall_moved > len(SCENES) / 2


def test_flow_carries_the_pixels_too():
    """With motions of whole pixels and no noise, the second frame read at the flow's ends is the first, objects and wall alike."""
    size, compared = 128, 0
    y, x = np.mgrid[:size, :size]
    for number in range(15):
        drawn = draw_scene(5, "warp", number, 2)
        wall = replace(drawn.wall, motion=np.array([2.0, -1.0]) / size)
        scene = replace(drawn, noise=0.0, motions=np.rint(drawn.motions * size) / size, wall=wall)
        first, second = (scenes.render_image(scene, size, frame).astype(int) for frame in (0, 1))
        now, then = scenes.render_owners(scene, size, 0), scenes.render_owners(scene, size, 1)
        flow = np.rint(scenes.render_flow(scene, size)).astype(int)
        for k in range(-1, len(scene)):
            deep, deep_then = binary_erosion(now == k, iterations=2), binary_erosion(then == k, iterations=2)
            from_y, from_x = y[deep], x[deep]
            to_y, to_x = from_y + flow[1][deep], from_x + flow[0][deep]
            kept = (to_y >= 0) & (to_y < size) & (to_x >= 0) & (to_x < size)
            kept[kept] &= deep_then[to_y[kept], to_x[kept]]
            change = second[to_y[kept], to_x[kept]] - first[from_y[kept], from_x[kept]]
            # a wave's sign may flip where it is zero: checks and stripes have an edge there
            assert (np.abs(change) <= 1).all(axis=-1).mean() > 0.98
            compared += int(kept.sum())
    assert compared > 100_000


def test_a_scene_looks_the_same_at_every_size():
    for number in range(10):
        scene = draw_scene(6, "size", number)
        small, large = scenes.render_mask(scene, 48), scenes.render_mask(scene, 144)
        assert (large[1::3, 1::3] == small).mean() > 0.97
    np.testing.assert_allclose(scenes.render_flow(scene, 144).max(), 3 * scenes.render_flow(scene, 48).max(), rtol=1e-5)


def test_kinds_and_counts_are_known_without_the_scene_and_balanced():
    assert all((draw_kinds(7, "k", i) == draw_scene(7, "k", i).kinds).all() for i in range(20))
    kinds = [draw_kinds(7, "k", i) for i in range(3000)]
    np.testing.assert_allclose(np.bincount([len(k) for k in kinds])[1:] / 3000, 1 / 6, atol=0.03)
    np.testing.assert_allclose(np.bincount([k[0] for k in kinds]) / 3000, 1 / len(KINDS), atol=0.03)


def test_seeds_purposes_and_frames_differ():
    images = [
        rendered(0),
        scenes.render_image(draw_scene(0, "p", 0, 3), 64, 2),
        scenes.render_image(draw_scene(1, "p", 0, 3), 64, 1),
        scenes.render_image(draw_scene(0, "q", 0, 3), 64, 1),
        rendered(1),
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_same_seed_gives_the_same_world_as_ever():
    """When this fails because the renderer draws something else, raise ``scenes.VERSION``, or caches will be wrong."""
    scene = draw_scene(0, "shapes/train", 0)
    assert scenes.VERSION == 1
    assert scene.kinds.tolist() == [2, 4, 2, 1, 0]
    areas = np.bincount(scenes.render_mask(scene, 64).ravel(), minlength=6)
    np.testing.assert_allclose(areas, [2920, 150, 169, 452, 0, 405], atol=2)  # a pixel on an edge may differ between machines
    np.testing.assert_allclose(scenes.render_image(scene, 64).mean(axis=(0, 1)), [104.817, 108.768, 138.737], atol=0.02)
    assert abs(scenes.render_depth(scene, 64).mean() - 8.207) < 0.01


def test_another_process_renders_the_same():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(rendered, range(6))
    for number in reversed(range(6)):
        np.testing.assert_array_equal(there[number], rendered(number))


def test_long_scenes_keep_their_objects_in_the_picture():
    scene = draw_scene(0, "long", 3, 60)
    for frame in (0, 30, 59):
        assert len(np.unique(scenes.render_owners(scene, 64, frame))) == len(scene) + 1


def test_drawing_is_fast():
    """Ten thousand images of 64 px a minute is 6 ms each; measured about 0.7 ms. Processor time, so that a busy machine does not matter."""
    start = time.process_time()
    for number in range(200):
        scenes.render_image(draw_scene(8, "speed", number), 64)
    assert (time.process_time() - start) / 200 < 0.006
