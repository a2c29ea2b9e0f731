"""Eval-only tasks: heads of another task are scored, in one command and in two, on all of its classes and on some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e_support import PIXELS, Bench, save_images, stable

from virb.data.datasets.imagenet import CORRUPTIONS, wnids
from virb.results.samples import read_samples

GLOB = "other: {task: folder, data: {root: ROOT}, task_head_weights_path: 'out/%s/col*/model_head.pt'}\n"
LABEL = "other: {task: folder, data: {root: ROOT}, heads_from: colours}\n"


def eval_only(bench: Bench, text: str, classes: tuple[str, ...] = ("red", "green", "blue"), more: str = "") -> str:
    """An eval-only task on new images, that has a train folder of one image per class which nothing may read."""
    root = save_images(bench.folder / "other", {"train": 1, "test": 8}, classes, seed=5)
    return text.replace("ROOT", str(root)).replace("}\n", f"{more}}}\n")


@pytest.mark.parametrize("text", [GLOB, LABEL], ids=["glob", "label"])
@pytest.mark.parametrize("out", ["out", "elsewhere"])
def test_one_command_and_two_give_the_same(bench: Bench, text: str, out: str) -> None:
    both, trained = eval_only(bench, text) + bench.task(), bench.task()
    one, two = bench.folder / out, bench.folder / "two" / out
    bench.write(tasks=both)
    answer = bench.run_well(out=one)
    assert "2 jobs" in answer.text
    bench.write(tasks=trained)
    bench.run_well(out=two)
    bench.write(tasks=eval_only(bench, text))
    answer = bench.run_well(out=two)
    assert "1 job" in answer.text
    jobs = [bench.job("pixels", "other", out=folder) for folder in (one, two)]
    for job in jobs:
        for head in job["protocol"]["values"]["heads"]["value"]:
            assert Path(head.pop("file")).name == "model_head.pt"
        for value in job["protocol"]["values"].values():
            value.pop("origin")
    assert stable(jobs[0]) == stable(jobs[1])
    assert jobs[0]["chosen"] == bench.job("pixels", "colours", out=one)["chosen"]
    assert read_samples(one / "pixels/other/samples.npz").prediction is not None
    # Done is done, in one command too, and whoever trains again scores again.
    assert "the job is done" in bench.run_well(out=two).text
    bench.write(tasks=both)
    assert "all 2 jobs are done" in bench.run_well(out=one).text
    bench.write(tasks=both.replace("num_epochs: 5", "num_epochs: 2"))
    assert "2 jobs" in bench.run_well(out=one).text
    assert bench.job("pixels", "other", out=one)["key"] != jobs[0]["key"]


def test_the_number_is_that_of_the_head_on_these_images(bench: Bench) -> None:
    """On the training task's own test images, a score is its own number; the card says whose head it was."""
    same = f"same: {{task: folder, data: {{root: '{bench.images}'}}, heads_from: colours}}\n"
    bench.write(tasks=same + bench.task())
    bench.run_well()
    trained, scored = bench.job("pixels", "colours"), bench.job("pixels", "same")
    assert scored["metrics"] == trained["metrics"]
    chosen = trained["chosen"]
    (head,) = scored["protocol"]["values"]["heads"]["value"]
    assert (head["config"], head["label"], head["task"], head["job"]) == (chosen, "colours", "folder", trained["key"])
    assert head["file"].endswith(f"out/pixels/colours-{chosen}/model_head.pt")
    assert scored["protocol"]["values"]["logits"]["value"] == "all 3 classes of the heads, matched by name"
    assert scored["protocol"]["values"]["geometry"]["value"] == trained["protocol"]["values"]["geometry"]["value"]
    record = json.loads((bench.out / "pixels" / f"same-{chosen}" / "results.json").read_text())
    assert record["settings"] == json.loads((bench.out / "pixels" / f"colours-{chosen}" / "results.json").read_text())["settings"]
    assert record["test_loss"] == pytest.approx(trained["runs"][0]["loss"])
    assert not list((bench.out / "pixels").glob("same-*/model_head.pt"))


def test_a_head_that_was_trained_on_standardised_features_takes_them_as_they_are(bench: Bench) -> None:
    same = f"same: {{task: folder, data: {{root: '{bench.images}'}}, heads_from: colours}}\n"
    bench.write(tasks=bench.task().replace("lr: 0.1}", "lr: 0.1, standardise: true}").replace("lr: 0.001}", "lr: 1e-9}") + same)
    bench.run_well()
    trained, scored = bench.job("pixels", "colours"), bench.job("pixels", "same")
    assert trained["chosen"] == scored["chosen"] == "fast"
    assert {row["config"]: row["settings"].get("standardise") for row in trained["surface"]} == {"slow": None, "fast": True}
    assert scored["metrics"] == trained["metrics"]
    assert json.loads((bench.out / "pixels/same-fast/results.json").read_text())["test_loss"] == pytest.approx(trained["runs"][0]["loss"])


def test_logits_are_restricted_to_the_classes_that_the_task_has(bench: Bench) -> None:
    """Two of three classes, named otherwise: the third may not be the answer, and no index shifts."""
    text = eval_only(bench, LABEL, ("red", "blue")).replace("}}", "}").replace("heads_from", "class_map: {azure: blue}, heads_from")
    (bench.folder / "other/test/blue").rename(bench.folder / "other/test/azure")
    (bench.folder / "other/train/blue").rename(bench.folder / "other/train/azure")
    bench.write(tasks=text + bench.task())
    bench.run_well()
    job = bench.job("pixels", "other")
    limited = "restricted to the 2 classes of this task among the 3 of the heads, matched by name"
    assert (job["task"]["n_classes"], job["protocol"]["values"]["logits"]["value"]) == (2, limited)
    assert job["task"]["classes"] == ["azure", "red"]
    head = torch.load(next(bench.out.glob("pixels/colours-*/model_head.pt")), weights_only=True)
    samples = read_samples(bench.out / "pixels/other/samples.npz")
    assert set(np.unique(samples.prediction)) <= {0, 1}
    assert head["head.weight"].shape[0] == 3
    assert job["metrics"][0]["value"] > 0.6  # by chance 0.5, were classes mixed up less


def test_all_heads_that_a_glob_finds_are_scored_and_the_chosen_one_is_named(bench: Bench) -> None:
    bench.write(tasks=eval_only(bench, GLOB) + bench.task())
    bench.run_well("--keep_heads", "all")
    job, trained = bench.job("pixels", "other"), bench.job("pixels", "colours")
    assert sorted(row["config"] for row in job["surface"]) == ["fast", "slow"]
    assert all(row["report_metrics"]["top1"] is not None for row in job["surface"])
    assert (job["chosen"], job["selection"]) == (trained["chosen"], "val")


def test_heads_without_records_as_virb_2021_left_them(bench: Bench) -> None:
    """Their configs are named by their folders; which is best is decided on test, and the result says so."""
    for seed, name in enumerate(("Colours-adam-0.1", "Colours-sgd")):
        folder = bench.out / "pixels" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        head = {"head.weight": torch.randn(3, 48, generator=generator), "head.bias": torch.zeros(3)}
        torch.save(head, folder / "model_head.pt")
        (folder / "results.json").write_text('{"test_accuracy": 0.5}')
    bench.write(tasks=eval_only(bench, GLOB.replace("col*", "Col*")))
    bench.run_well()
    job = bench.job("pixels", "other")
    assert sorted(row["config"] for row in job["surface"]) == ["adam-0.1", "sgd"]
    assert job["selection"] == "test-last"
    assert "the best on the reported samples is named" in job["notes"][0]
    best = max(job["surface"], key=lambda row: (row["report_metrics"]["top1"], -row["report_loss"]))
    assert job["chosen"] == best["config"]


def test_a_head_of_other_width_or_classes_fails_with_its_reason(bench: Bench) -> None:
    (bench.folder / "heads").mkdir()
    torch.save({"head.weight": torch.zeros(3, 7), "head.bias": torch.zeros(3)}, bench.folder / "heads/narrow.pt")
    torch.save({"head.weight": torch.zeros(9, 48), "head.bias": torch.zeros(9)}, bench.folder / "heads/many.pt")
    task = "NAME: {task: folder, data: {root: ROOT}, task_head_weights_path: heads/NAME.pt}\n"
    text = "".join(eval_only(bench, task.replace("NAME", name)) for name in ("narrow", "many"))
    bench.write(tasks=text)
    answer = bench.run()
    assert answer.code == 1
    assert "the head narrow takes 7 numbers per sample, but the features have 48" in answer.text
    assert "many.pt has 9 outputs, but many has 3 classes" in answer.text


def test_a_task_that_failed_takes_those_that_need_its_head_with_it(bench: Bench) -> None:
    next((bench.images / "train/red").iterdir()).write_bytes(b"no image")
    bench.write(tasks=eval_only(bench, LABEL) + bench.task())
    answer = bench.run()
    assert answer.code == 1
    assert "2 of 2 jobs failed" in answer.text
    reasons = [json.loads((bench.out / "pixels" / label / "failed.json").read_text())["error"]["message"] for label in ("other", "colours")]
    assert reasons[0] == reasons[1]


def test_in_worker_processes_a_score_waits_for_its_head(bench: Bench) -> None:
    two = PIXELS + "finer: {arch: pixels, args: {side: 8}, input: {size: 16}}\n"
    bench.write(encoders=two, tasks=eval_only(bench, LABEL) + bench.task())
    bench.run_well(devices="cpu:2")
    for encoder in ("pixels", "finer"):
        (head,) = bench.job(encoder, "other")["protocol"]["values"]["heads"]["value"]
        assert f"/{encoder}/" in head["file"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("heads_from: colours", "heads_from: colors"), "there is no head of colors for the encoder pixels in"),
        (("heads_from: colours", "task_head_weights_path: 'out/%s/x*/model_head.pt'"), "run the task that trains them first, or put it"),
        (("heads_from: colours", "heads_from: colours, class_map: {red: rouge}"), "'rouge' is a class neither of folder nor of the heads"),
        (("heads_from: colours", "heads_from: colours, class_map: {rouge: red}"), "'rouge' is a class neither of folder nor of the heads"),
    ],
)
def test_mistakes_are_located_before_anything_runs(bench: Bench, change: tuple[str, str], expected: str) -> None:
    bench.write(tasks=eval_only(bench, LABEL).replace(*change) + bench.task())
    answer = bench.run()
    assert answer.code == 2
    assert expected in answer.errors
    assert "tasks.yaml:1  other." in answer.errors


def test_classes_that_the_heads_do_not_know(bench: Bench) -> None:
    root = save_images(bench.folder / "other", {"train": 1, "test": 2})
    for split in ("train", "test"):
        (root / split / "red").rename(root / split / "mauve")
    bench.write(tasks=LABEL.replace("ROOT", str(root)) + bench.task())
    answer = bench.run()
    assert answer.code == 2
    assert "the heads of colours know 3 classes, but not 'mauve' of folder; class_map says which is which" in answer.errors


def test_no_heads_are_kept(bench: Bench) -> None:
    bench.write(tasks=eval_only(bench, LABEL) + bench.task())
    assert "--keep_heads none leaves no head to score" in bench.run("--keep_heads", "none").errors
    bench.write(tasks=bench.task())
    bench.run_well("--keep_heads", "none")
    bench.write(tasks=eval_only(bench, LABEL))
    assert "it ran with --keep_heads none" in bench.run().errors


def test_heads_of_other_weights_are_not_this_encoders(bench: Bench) -> None:
    bench.write(tasks=bench.task())
    bench.run_well()
    bench.write(encoders="pixels: {arch: pixels, args: {side: 8}, input: {size: 16}}\n", tasks=eval_only(bench, LABEL))
    answer = bench.run()
    assert "were trained on other weights than this encoder has; run colours again" in answer.errors


def test_without_its_trainer_the_trainer_runs_first_and_is_found_again_by_its_task(imagenets: Bench) -> None:
    """One file with Imagenetv2 alone; then two commands in which the trainer has a label of its own."""
    alone = "v2: {task: Imagenetv2, task_head_weights_path: 'out/%s/Imagenet*/model_head.pt'}\n"
    imagenets.write(tasks=alone)
    answer = imagenets.run_well()
    assert "Imagenet is trained first, with its defaults: v2 scores its heads" in answer.text
    first = imagenets.job("pixels", "v2")
    (head,) = first["protocol"]["values"]["heads"]["value"]
    assert (head["label"], head["task"]) == ("Imagenet", "Imagenet")
    imagenets.write(tasks="v2: {task: Imagenetv2}\n")
    answer = imagenets.run_well()  # now it is there
    assert "trained first" not in answer.text
    two = imagenets.folder / "two"
    imagenets.write(tasks="in1k: {task: Imagenet}\nin1k_knn: {task: Imagenet, probe: knn}\n")
    imagenets.run_well(out=two)
    imagenets.write(tasks="v2: {task: Imagenetv2}\n")
    answer = imagenets.run_well(out=two)
    assert "1 job" in answer.text
    job = imagenets.job("pixels", "v2", out=two)
    assert job["metrics"] == first["metrics"]
    assert job["protocol"]["values"]["heads"]["value"][0]["label"] == "in1k"
    imagenets.write(tasks="other: {task: Imagenet, probe: ncm}\n")
    imagenets.run_well(out=two)
    imagenets.write(tasks="v2_again: {task: Imagenetv2}\n")
    answer = imagenets.run(out=two)
    assert (answer.code, "heads of Imagenet (in1k, other); say whose are scored: heads_from: in1k" in answer.errors) == (2, True)


@pytest.mark.parametrize("file", ["dino_imagenet", "dora_imagenet"])
def test_shipped_files_with_k_nn_beside_linear_have_heads_to_score(imagenets: Bench, file: str) -> None:
    text = (Path(__file__).parents[2] / f"configs/task_configs/{file}.yaml").read_text()
    imagenets.write(tasks=text + "Imagenetv2: {task: Imagenetv2}\nImagenetA: {task: ImagenetA}\n")
    answer = imagenets.run(command="check")
    assert answer.code == 0, answer.errors
    assert "Imagenetv2, heads of Imagenet_linear" in answer.text
    assert "ImagenetA, heads of Imagenet_linear" in answer.text


WNIDS = ("n01498041", "n01531178", "n02007558")  # in ImageNet, -A and -R (stingray, goldfinch, flamingo)


@pytest.fixture
def imagenets(bench: Bench) -> Bench:
    """Three classes of ImageNet and of the sets around it, as they lie on disk, told apart by colour; one image of ReaL's is a red one that
    ImageNet calls green."""
    data = bench.folder
    for place, count in {"imagenet/train": 8, "imagenet/val": 4, "imagenet-a": 3, "imagenet-r": 3, "sketch": 2}.items():
        split = save_images(data / "drawn" / place, {"x": count}, noise=5.0, seed=len(place)) / "x"
        for number, (colour, wnid) in enumerate(zip(("red", "green", "blue"), WNIDS, strict=True)):
            (data / place).mkdir(parents=True, exist_ok=True)
            (split / colour).rename(data / place / wnid)
            if place == "imagenet/val":
                for i, path in enumerate(sorted((data / place / wnid).iterdir())):
                    path.rename(path.with_name(f"ILSVRC2012_val_{number * 4 + i + 1:08d}.png"))
    (data / "sketch").rename(data / "imagenet-sketch")
    columns = [wnids().index(wnid) for wnid in WNIDS]
    split = save_images(data / "drawn/v2", {"x": 2}, noise=5.0) / "x"
    (data / "imagenetv2").mkdir()
    for colour, column in zip(("red", "green", "blue"), columns, strict=True):
        (split / colour).rename(data / "imagenetv2" / str(column))
    real = [[columns[i // 4]] for i in range(12)] + [[] for _ in range(50_000 - 12)]
    real[0], real[1] = [], [columns[1], columns[0]]
    (data / "imagenet" / "real.json").write_text(json.dumps(real))
    return bench


def test_the_sets_around_imagenet(imagenets: Bench) -> None:
    """With ViRB 2021's own text for V2, in a store of any name; 200 of 1,000 logits for -A and -R."""
    text = "Imagenet: {task: Imagenet, num_epochs: 30, training_configs: {adam-0.01: {optimizer: adam, lr: 0.01}}}\n"
    text += "Imagenetv2:\n  task: Imagenetv2\n  task_head_weights_path: 'out/%s/Imagenet*/model_head.pt'\nbatch_size: 32\n"
    text += "".join(f"{name}: {{task: {name}}}\n" for name in ("ImagenetA", "ImagenetR", "ImagenetSketch", "ImagenetReaL"))
    imagenets.write(tasks=text)
    out = imagenets.folder / "store"
    imagenets.run_well(out=out)
    jobs = {
        name: imagenets.job("pixels", name, out=out) for name in ("Imagenetv2", "ImagenetA", "ImagenetR", "ImagenetSketch", "ImagenetReaL")
    }
    logits = {name: job["protocol"]["values"]["logits"]["value"].split(",")[0] for name, job in jobs.items()}
    assert logits["Imagenetv2"] == logits["ImagenetSketch"] == logits["ImagenetReaL"] == "all 1"
    assert logits["ImagenetA"] == logits["ImagenetR"] == "restricted to the 200 classes of this task among the 1"
    assert {name: (job["metrics"][0]["name"], job["metrics"][0]["value"]) for name, job in jobs.items()} == {
        "Imagenetv2": ("top1", 1.0),
        "ImagenetA": ("top1", 1.0),
        "ImagenetR": ("top1", 1.0),
        "ImagenetSketch": ("top1", 1.0),
        "ImagenetReaL": ("real_accuracy", 1.0),
    }
    assert jobs["ImagenetReaL"]["metrics"][0]["n_samples"] == 11  # one image has no label
    assert (out / "pixels/Imagenetv2-adam-0.01/results.json").exists()


def test_corrupted_images_are_not_cropped_again(imagenets: Bench) -> None:
    """They were published cut to 224 pixels: heads that know a shorter side of 256 and its centre see them whole. A few corruptions have a
    mean error and no mCE."""
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            place = imagenets.folder / "imagenet-c" / corruption / str(severity)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(imagenets.folder / "imagenet-a", place)
    head = "training_configs: {adam-0.01: {optimizer: adam, lr: 0.01}}"
    text = f"Imagenet: {{task: Imagenet, num_epochs: 30, {head}}}\nImagenetC: {{task: ImagenetC}}\n"
    text += "some: {task: ImagenetC, data: {corruptions: [fog, jpeg_compression]}}\n"
    imagenets.write(encoders="pixels: {arch: pixels, args: {side: 4}}\n", tasks=text)
    imagenets.run_well("--input_size", "224")
    geometries = [imagenets.job("pixels", label)["protocol"]["values"]["geometry"] for label in ("Imagenet", "ImagenetC")]
    assert geometries[0]["origin"] == "--input_size"
    assert (geometries[1]["origin"], geometries[1]["value"]["resize"], geometries[1]["value"]["crop"]) == (
        "task ImagenetC",
        "none",
        "center",
    )
    whole, some = ({m["name"]: m["value"] for m in imagenets.job("pixels", label)["metrics"]} for label in ("ImagenetC", "some"))
    assert whole["mCE"] is not None
    assert some["mCE"] is None
    assert some["mean_corruption_error"] is not None


def test_the_layout_of_anothers_head_is_said_and_decides(bench: Bench) -> None:
    """[CLS] and mean patch token one after the other in a file with DINO's names, as iBOT leaves it: told so, it is read so."""
    generator = torch.Generator().manual_seed(0)
    state = {"module.linear.weight": torch.randn(3, 384, generator=generator), "module.linear.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, bench.folder / "linear.pth")
    keys = "task: folder, data: {root: ROOT}, features: 'cls[-1]+tokens[-1].mean', task_head_weights_path: linear.pth"
    text = eval_only(bench, f"dinos: {{{keys}}}\n") + eval_only(bench, f"others: {{{keys}, head_layout: concatenated}}\n")
    bench.write(encoders="vit: {arch: vit_tiny, weights: random, args: {patch_size: 8, img_size: 16}}\n", tasks=text)
    bench.run_well()
    heads = {label: bench.job("vit", label)["protocol"]["values"]["heads"]["value"][0] for label in ("dinos", "others")}
    assert {label: head["layout"] for label, head in heads.items()} == {"dinos": "interleaved", "others": "concatenated"}
    assert heads["dinos"]["sha256"] == heads["others"]["sha256"]
    losses = [bench.job("vit", label)["runs"][0]["loss"] for label in ("dinos", "others")]
    assert losses[0] != losses[1]
    assert bench.job("vit", "dinos")["key"] != bench.job("vit", "others")["key"]
