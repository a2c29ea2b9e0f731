"""The experiment lists that ship with ViRB: all entries are valid, and everything that has to be downloaded says from where."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import timm

from virb.config import EncoderConfig, load_experiment_list
from virb.encoders.download import NotDownloaded
from virb.encoders.known import KNOWN
from virb.encoders.load import encoder_names, load_encoder
from virb.tasks.vocabulary import TaskVocabulary

REPO = Path(__file__).parents[1]
FOLDER = REPO / "configs" / "experiment_lists"
LISTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
VIRB_2021 = """
    Supervised Random SWAV_800 MoCov2_800 MoCov1_200 PIRL_800 SimCLR_1000
    MoCov2_200 MoCov2Combination MoCov2Taskonomy MoCov2Kinetics MoCov2Places MoCov2HalfImagenet MoCov2LogImagenet MoCov2UnbalancedImagenet
    MoCov2QuarterImagenet MoCov2HalfImagenet_100 MoCov2UnbalancedImagenet_100 MoCov2_100 MoCov2_50
    SWAV_200 SWAVCombination SWAVTaskonomy SWAVKinetics SWAVPlaces SWAVUnbalancedImagenet SWAVQuarterImagenet SWAVHalfImagenet
    SWAVLogImagenet SWAVHalfImagenet_100 SWAVUnbalancedImagenet_100 SWAV_50 SWAV_100
""".split()


def load(name: str, check_paths: bool = True) -> dict[str, EncoderConfig]:
    found = load_experiment_list(FOLDER / name, TaskVocabulary(encoder_names()), check_paths=check_paths)
    return {encoder.name: encoder for encoder in found.checked()}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has nothing of a clone but the weights that ship with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(REPO / "weights")


def test_which_lists_there_are() -> None:
    expected = ["all", "baselines", "dino", "dora", "quickstart", "swav", "timet", "timm_foundation"]
    assert [name.removesuffix(".yaml") for name in LISTS] == expected


@pytest.mark.parametrize("name", LISTS)
def test_every_entry_has_weights_or_needs_none(name: str) -> None:
    for encoder in load(name).values():  # paths are checked: one that is not there needs an address
        if encoder.timm is not None and encoder.weights == "random":
            assert timm.is_model(encoder.timm), encoder.name
        elif encoder.timm is not None:
            assert encoder.timm in timm.list_models(pretrained=True), encoder.name
        elif encoder.arch is not None:
            assert encoder.weights in ("random", "supervised") or encoder.arch == "pixels"
        elif encoder.weights == "weights/dino_tiny.safetensors":
            assert (REPO / encoder.weights).is_file()  # it ships with ViRB
        elif encoder.weights not in KNOWN:
            assert str(encoder.weights).startswith("pretrained_weights/")
            assert urlsplit(str(encoder.url)).scheme == "https"


def test_weights_trained_with_quickgelu_get_it() -> None:
    models = [encoder.timm for name in LISTS for encoder in load(name).values() if encoder.timm is not None]
    noted = [model for model in models if "quickgelu" in str(timm.get_pretrained_cfg(model).notes).lower()]
    assert noted == ["vit_base_patch16_clip_quickgelu_224.openai"]


@pytest.mark.parametrize("name", [name for name in LISTS if name != "quickstart.yaml"])
def test_every_entry_says_what_it_is(name: str) -> None:
    assert all(encoder.meta.get("method") for encoder in load(name).values())


def test_the_encoders_of_virb_2021() -> None:
    found = load("all.yaml")
    assert list(found) == VIRB_2021
    assert len(found) == 33
    assert (found["Supervised"].arch, found["Supervised"].weights) == ("resnet50", "supervised")
    assert (found["Random"].arch, found["Random"].weights) == ("resnet50", "random")
    files = [encoder.weights for encoder in found.values() if encoder.url]
    assert len(set(files)) == len(files) == 31
    assert all(path == f"pretrained_weights/{name}.pt" for name, path in zip(VIRB_2021[2:], files, strict=True) if "Half" not in name)
    assert found["MoCov2HalfImagenet"].weights == "pretrained_weights/MoCov2HalfImagenet_200.pt"
    assert load("swav.yaml")["SWAV_800"] == found["SWAV_800"]


def test_missing_files_are_reported_with_their_addresses() -> None:
    for name in ("all.yaml", "dino.yaml", "dora.yaml", "timet.yaml"):
        for encoder in load(name).values():
            if encoder.arch is not None:
                continue
            with pytest.raises(NotDownloaded) as missing:
                load_encoder(encoder, name=encoder.name, offline=True)
            assert missing.value.address == (encoder.url or KNOWN[str(encoder.weights)].url)
            assert missing.value.address in str(missing.value)


def test_addresses_of_short_names_stand_in_the_comments() -> None:
    for name in ("dino.yaml", "timet.yaml"):
        text = (FOLDER / name).read_text()
        assert all(f"# {KNOWN[str(e.weights)].url}\n{e.name}:" in text for e in load(name).values() if e.weights in KNOWN)


def test_dino_and_dora() -> None:
    dino = load("dino.yaml")
    assert len([name for name in dino if "xcit" not in name]) == 5
    assert len([name for name in dino if "xcit" in name]) == 4
    assert all(encoder.meta["imagenet_knn"] < encoder.meta["imagenet_linear"] for encoder in dino.values())
    assert len(load("dora.yaml")) == 4
