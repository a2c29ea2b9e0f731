"""Values as colours: pure arrays in and out, with void and what is not finite in grey."""

from __future__ import annotations

import colorsys

import numpy as np

from virb.functional.colours import VOID, class_colours, paint_flow, paint_labels, paint_values


def test_classes_have_colours_of_their_own() -> None:
    for count in (2, 6, 21, 40, 150, 255):
        colours = class_colours(count)
        assert colours.dtype == np.uint8
        assert colours.shape == (count, 3)
        assert len({tuple(colour) for colour in colours.tolist()} | {VOID}) == count + 1  # none is void's either
        assert colours[0].tolist() == [0, 0, 0]
        np.testing.assert_array_equal(colours[:2], class_colours(255)[:2])  # they stay what they are when there are more
    near = np.abs(class_colours(21)[:, None].astype(int) - class_colours(21)[None].astype(int)).sum(2)[~np.eye(21, dtype=bool)]
    assert near.min() > 30


def test_labels() -> None:
    labels = np.array([[0, 1, 2], [255, 3, 200]])
    painted = paint_labels(labels, 3)
    colours = class_colours(3)
    assert painted.dtype == np.uint8
    assert painted.shape == (2, 3, 3)
    np.testing.assert_array_equal(painted[0], colours)
    assert painted[1].tolist() == [list(VOID)] * 3  # ignored, and beyond the classes
    np.testing.assert_array_equal(paint_labels(labels.astype(np.uint8), 3), painted)
    np.testing.assert_array_equal(paint_labels(np.array([[254, 255]]), 255)[0], [class_colours(255)[254], VOID])


def test_values_go_from_dark_to_light() -> None:
    values = np.array([[1.0, 1.5, 2.0, 3.0], [np.nan, np.inf, -5.0, 99.0]], dtype=np.float32)
    painted = paint_values(values, 1.0, 3.0)
    assert painted.dtype == np.uint8
    lightness = painted[0].astype(int) @ [299, 587, 114]
    assert (np.diff(lightness) > 0).all()
    assert painted[1].tolist() == [list(VOID), list(VOID), painted[0, 0].tolist(), painted[0, 3].tolist()]  # what is beyond is cut
    assert painted[0, 0].tolist() == [68, 1, 84]
    assert painted[0, 3].tolist() == [253, 231, 37]
    assert (paint_values(np.zeros((2, 2)), 0.0, 0.0) == painted[0, 0]).all()  # a flat picture
    middle = paint_values(np.array([[0.1]]), 0.0, 1.0)[0, 0]
    np.testing.assert_array_equal(middle, np.round([66.5, 34.5, 109.5]).astype(np.uint8))


def test_flow_has_hues_of_its_directions_as_colorsys_has_them() -> None:
    flow = np.array([[[2.0, 0.0, -2.0, 0.0, 1.0, np.nan, 5.0]], [[0.0, 2.0, 0.0, -2.0, 1.0, 0.0, np.nan]]])
    painted = paint_flow(flow, 2.0)
    assert painted.shape == (1, 7, 3)
    assert painted[0, 0].tolist() == [255, 0, 0]  # to the right
    assert painted[0, 2].tolist() == [0, 255, 255]  # to the left
    assert painted[0, 5].tolist() == painted[0, 6].tolist() == list(VOID)
    for place in (1, 3, 4):
        u, v = flow[:, 0, place]
        expected = colorsys.hsv_to_rgb(np.arctan2(v, u) / (2 * np.pi) % 1, min(np.hypot(u, v) / 2, 1), 1)
        np.testing.assert_allclose(painted[0, place], np.array(expected) * 255, atol=1)
    assert (paint_flow(np.zeros((2, 3, 3)), 1.0) == 255).all()  # white where nothing moves
    assert (paint_flow(np.zeros((2, 3, 3)), 0.0) == 255).all()
    assert paint_flow(np.full((2, 1, 1), 100.0), 1.0).tolist() == paint_flow(np.full((2, 1, 1), 1.0), 1.0).tolist()


def test_inputs_are_left_as_they_are() -> None:
    labels, values, flow = np.array([[0, 255]]), np.array([[0.0, np.nan]]), np.array([[[1.0, np.nan]], [[0.0, 1.0]]])
    copies = labels.copy(), values.copy(), flow.copy()
    paint_labels(labels, 2)
    paint_values(values, 0, 1)
    paint_flow(flow, 1)
    for now, before in zip((labels, values, flow), copies, strict=True):
        np.testing.assert_array_equal(now, before)
