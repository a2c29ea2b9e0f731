from __future__ import annotations

import builtins
import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from virb.data import video
from virb.data.images import FrameImages
from virb.errors import BadImage, UnreadImage

N_FRAMES = 40


def write_video(path, codec, options=None, n_frames=N_FRAMES, gop=12, b_frames=2):
    """Frames that differ from each other everywhere, so that a wrong frame cannot pass."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        random = np.random.default_rng(0)
        for number in range(n_frames):
            pixels = np.full((48, 64, 3), 6 * number, dtype=np.uint8)
            pixels[8:24, (number % 10) * 5 : (number % 10) * 5 + 16] = random.integers(0, 256, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def decoded_in_order(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


CASES = {
    "h264.mp4": ("libx264", {}),
    "open_gop.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4.mp4": ("mpeg4", {}),
    "stream.ts": ("libx264", {}),
    "without_times.h264": ("libx264", {}),
    "vp9.webm": ("libvpx-vp9", {}),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def any_video(request, tmp_path_factory):
    codec, options = CASES[request.param]
    return write_video(tmp_path_factory.mktemp("video") / request.param, codec, options)


@pytest.fixture
def h264(tmp_path):
    return write_video(tmp_path / "v.mp4", "libx264")


def test_frames_in_any_order_are_those_of_decoding_from_the_start(any_video):
    expected = decoded_in_order(any_video)
    assert len(expected) == N_FRAMES == video.frame_count(any_video)
    order = np.random.default_rng(1).permutation(N_FRAMES)
    for number in [0, N_FRAMES - 1, *order, *range(N_FRAMES)]:
        np.testing.assert_array_equal(np.asarray(video.read_frame(any_video, int(number))), expected[number])


def test_reading_in_order_decodes_every_frame_once(h264, monkeypatch):
    reader = video.VideoReader(h264)
    starts = []
    monkeypatch.setattr(reader, "_start", lambda frames, start=reader._start: (starts.append(1), start(frames)))
    for number in range(N_FRAMES):
        reader.read(number)
    assert len(starts) == 1


def test_threads_share_a_video(h264):
    expected = decoded_in_order(h264)
    numbers = list(range(N_FRAMES)) * 2
    with ThreadPoolExecutor(4) as pool:
        for number, image in zip(numbers, pool.map(lambda n: video.read_frame(h264, n), numbers), strict=True):
            np.testing.assert_array_equal(np.asarray(image), expected[number])


def test_few_videos_stay_open(tmp_path):
    for number in range(7):
        video.read_frame(write_video(tmp_path / f"{number}.mp4", "mpeg4", n_frames=3), 2)
    assert len(video._readers) <= video._OPEN_VIDEOS


def test_problems_name_the_file(tmp_path, h264):
    with pytest.raises(BadImage, match=r"v\.mp4: has no frame 40, it has 40"):
        video.read_frame(h264, 40)
    with pytest.raises(BadImage, match=r"gone\.mp4: does not exist"):
        video.read_frame(str(tmp_path / "gone.mp4"), 0)
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(BadImage, match=r"junk\.mp4: cannot be read as a video"):
        video.frame_count(str(tmp_path / "junk.mp4"))


def test_what_cannot_be_read_is_not_what_cannot_be_decoded(tmp_path, h264, monkeypatch):
    images = FrameImages("x", tmp_path, [("v.mp4", 3), ("none.mp4", 0)])
    images.identity()
    with pytest.raises(BadImage, match=r"none\.mp4: does not exist") as caught:
        images.read(1)  # its identity says so, too
    assert not isinstance(caught.value, UnreadImage)
    Path(h264).rename(tmp_path / "away.mp4")
    with pytest.raises(UnreadImage, match=r"v\.mp4: does not exist"):
        images.read(0)
    (tmp_path / "v.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(BadImage) as caught:
        images.read(0)
    assert not isinstance(caught.value, UnreadImage)

    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(builtins, "open", refuse)  # what FFmpeg says of a bad disk is what it says of bad content
    with pytest.raises(UnreadImage, match=r"v\.mp4: cannot be read \(Input/output error\)"):
        images.read(0)


def test_frame_images(tmp_path, h264):
    images = FrameImages("x", tmp_path, [("v.mp4", 3), ("v.mp4", 0), ("v.mp4", 21)])
    assert list(images.ids) == ["v.mp4#000003", "v.mp4#000000", "v.mp4#000021"]
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(images)).read(2)), decoded_in_order(h264)[21])
    other = FrameImages("x", tmp_path, [("v.mp4", 3), ("v.mp4", 1), ("v.mp4", 21)])
    assert images.identity() != other.identity()
    assert images.identity() == FrameImages("y", tmp_path / ".", [("v.mp4", 3), ("v.mp4", 0), ("v.mp4", 21)]).identity()
    with pytest.raises(ValueError, match="twice"):
        FrameImages("x", tmp_path, [("v.mp4", 3), ("v.mp4", 3)])
