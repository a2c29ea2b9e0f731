"""Options from files and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from virb.errors import ConfigError, UserError
from virb.pretraining.catalogue import MethodKeys, option_sources
from virb.pretraining.options import EngineOptions, changes, describe_keys, from_flags, make_options, options_of, plain, read_config
from virb.pretraining.unused import RULES, unused

DINO, PATCHWISE = option_sources("dino"), option_sources("patchwise")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_defaults_are_the_original_ones() -> None:
    """Table of the original's arguments."""
    options = make_options(DINO)
    expected = dict(
        arch="vit_small", patch_size=16, out_dim=65536, norm_last_layer=True, momentum_teacher=0.996, use_bn_in_head=False,
        warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=0, use_fp16=True, weight_decay=0.04, weight_decay_end=0.4,
        clip_grad=3.0, batch_size_per_gpu=64, epochs=100, freeze_last_layer=1, lr=0.0005, warmup_epochs=10, min_lr=1e-6, optimizer="adamw",
        drop_path_rate=0.1, global_crops_scale=(0.4, 1.0), local_crops_number=8, local_crops_scale=(0.05, 0.4),
        saveckp_freq=20, seed=0, num_workers=10, dist_url="env://", local_rank=0, ngpus=8, nodes=2, timeout=2800, use_volta32=False,
        comment="",
    )  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.output_dir == "runs/%r"  # the original's is the folder that it is started in
    patchwise = make_options(PATCHWISE)
    changed = dict(arch="vit_base", patch_size=8, out_dim=10000, batch_size_per_gpu=6, num_workers=8, global_crops_number=2, lr=0.0005)
    assert {name: getattr(patchwise, name) for name in changed} == changed


def test_flags_win_over_the_file_over_defaults(tmp_path: Path) -> None:
    given, facts = read_config(write(tmp_path, "a.yaml", "lr: 1e-3\nepochs: 7\nglobal_crops_scale: [0.3, 0.9]\ncomment: 5 nodes\n"))
    assert not facts
    record = options_of(DINO)
    texts = {"epochs": ["8"], "local_crops_scale": ["0.1", "0.2"], "use_fp16": ["false"], "comment": ["true"], "partition": ["null"]}
    options = make_options(DINO, given, from_flags(record, texts, {}))
    assert (options.lr, options.epochs, options.use_fp16) == (1e-3, 8, False)
    assert options.comment == "true"
    assert options.partition is None
    both = plain(options)
    assert (both["global_crops_scale"], both["local_crops_scale"]) == ([0.3, 0.9], [0.1, 0.2])


def test_aliases_and_tuples_in_one_text() -> None:
    record = options_of(PATCHWISE)
    found = from_flags(record, {"global_scale": ["192"], "global_crops_scale": ["0.4, 1"]}, PATCHWISE.aliases)
    options = make_options(PATCHWISE, found)
    assert plain(options)["global_crops_size"] == 192
    assert plain(options)["global_crops_scale"] == [0.4, 1.0]
    twice = from_flags(record, {"global_scale": ["192"], "global_crops_size": ["224"]}, PATCHWISE.aliases)
    with pytest.raises(ConfigError, match="given twice"):
        make_options(PATCHWISE, twice)


@pytest.mark.parametrize(
    "text",
    [
        "arch: vit_base\nglobal_crops_scale: (0.25, 1.0)\nworld_size: 16\ngpu: 0\nuse_fp16: True\npartition: None\n",
        "Namespace(arch='vit_base', global_crops_scale=(0.25, 1.0), world_size=16, gpu=0, use_fp16=True, partition=None)\n",
        '{"arch": "vit_base", "global_crops_scale": [0.25, 1.0], "world_size": 16, "gpu": 0, "use_fp16": true, "partition": null}',
    ],
)
def test_what_the_originals_write(tmp_path: Path, text: str) -> None:
    given, facts = read_config(write(tmp_path, "args.txt", text))
    assert facts == {"world_size": 16, "gpu": 0}
    options = plain(make_options(DINO, given))
    assert (options["arch"], options["global_crops_scale"], options["use_fp16"], options["partition"]) == (
        "vit_base",
        [0.25, 1.0],
        True,
        None,
    )


def test_an_empty_text_of_the_original(tmp_path: Path) -> None:
    """What its submitit launcher writes where no comment was given."""
    given, _ = read_config(write(tmp_path, "args.txt", "arch: vit_base\ncomment: \npartition: learnfair\nlr: 1e-05\nseed: 3\n"))
    options = make_options(DINO, given)
    assert (options.comment, options.partition, options.lr, options.seed) == ("", "learnfair", 1e-5, 3)
    with pytest.raises(ConfigError, match="comment  expected text, got nothing"):  # in a file of ours it is a mistake
        make_options(DINO, read_config(write(tmp_path, "a.yaml", "comment:\n"))[0])


def test_arguments_json_with_all_values_as_texts(tmp_path: Path) -> None:
    text = """{"arch": "deit_small", "norm_last_layer": "True", "use_fp16": "False", "lr": "0.0005", "min_lr": "1e-06", "seed": "0",
        "global_crops_scale": "[0.4, 1.0]", "local_crops_scale": "(0.05, 0.4)", "global_crops_number": "2", "global_scale": "192",
        "comment": "1", "partition": "None", "optimizer": "adamw", "data_path": "/data/7", "world_size": "4"}"""
    given, facts = read_config(write(tmp_path, "arguments.json", text))
    assert facts == {"world_size": 4}
    found = plain(make_options(PATCHWISE, given))
    expected = dict(
        arch="deit_small", norm_last_layer=True, use_fp16=False, lr=0.0005, min_lr=1e-6, seed=0, global_crops_scale=[0.4, 1.0],
        local_crops_scale=[0.05, 0.4], global_crops_number=2, global_crops_size=192, comment="1", partition=None, optimizer="adamw",
        data_path="/data/7",
    )  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_a_namespace_is_read_without_running_it(tmp_path: Path) -> None:
    text = f"""Namespace(arch='vit_small', output_dir=PosixPath('/runs/1'), job_dir=pathlib.PosixPath('/x'), device=device(type='cuda'),
        hook=open({str(tmp_path / "made")!r}, 'w'), lr=1e-05, clip_grad=-1 + 2, local_rank=0, **more)"""
    given, facts = read_config(write(tmp_path, "args.txt", text))
    assert not (tmp_path / "made").exists()
    assert facts == {"job_dir": "/x", "local_rank": 0}
    assert given["output_dir"].value == "/runs/1"
    assert given["lr"].value == 1e-5
    assert given["device"].value == "device(type='cuda')"
    del given["hook"], given["device"]
    with pytest.raises(ConfigError, match=r'clip_grad  expected a number, got "-1 \+ 2"'):
        make_options(DINO, given)


def test_a_flag_whose_choices_are_numbers() -> None:
    found = from_flags(options_of(PATCHWISE), {"global_crops_number": ["2"]}, {})
    assert plain(make_options(PATCHWISE, found))["global_crops_number"] == 2


def told(text: str, tmp_path: Path, method: MethodKeys = DINO, **texts: str) -> list[str]:
    given, _ = read_config(write(tmp_path, "a.yaml", text))
    line = from_flags(options_of(method), {name: [value] for name, value in texts.items()}, method.aliases)
    return unused(make_options(method, given, line), given, line, aliases=method.aliases)


def test_options_that_do_nothing_are_told_with_their_places(tmp_path: Path) -> None:
    found = told("arch: resnet50\npatch_size: 8\nevery: 3\ncomment: hello\n", tmp_path, position_mode="dino", knn_k="5", init_head="new")
    path = tmp_path / "a.yaml"
    assert found == [
        f"{path}:2   patch_size: not used, for the network has its own",
        f"{path}:3   every: not used, for there is no probe",
        f"{path}:4   comment: not used, for launcher is not slurm",
        "--position_mode: not used, for it is for ViRB's own ViTs",
        "--knn_k: not used, for knn_every is 0",
        "--init_head: not used, for there is no init_from",
    ]
    assert told("matching: linspace\nmin_overlap: 0.5\nlocal_crops_number: 0\nlocal_scale: 64\n", tmp_path, PATCHWISE) == [
        f"{path}:2   min_overlap: not used, for it is for matching: nearest",
        f"{path}:4   local_scale: not used, for local_crops_number is 0",
    ]
    assert told("arch: timm:vit_tiny_patch16_224\npatch_size: 8\n", tmp_path, PATCHWISE) == []  # it has to be that of the network
    assert len(told("arch: timm:resnet10t\npatch_size: 8\n", tmp_path)) == 1


def test_options_that_do_something_are_not_told(tmp_path: Path) -> None:
    assert told("probe: x\nevery: 3\ninit_from: y\ninit_head: new\nlauncher: slurm\nnodes: 1\n", tmp_path, position_mode="dino") == []
    assert told("arch: resnet50\npatch_size: 16\nnodes: 2\n", tmp_path) == []  # the defaults
    given, _ = read_config(write(tmp_path, "args.txt", "arch: resnet50\npatch_size: 8\nnodes: 4\n"))  # which always names all
    assert unused(make_options(DINO, given), given, aliases={}) == []


def test_every_rule_names_keys_that_exist() -> None:
    for rule in RULES:
        assert set(rule.keys) <= set(rule.of.model_fields)


def test_recipes_have_no_key_that_does_nothing() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs" / "pretraining").glob("*.yaml")):
        method = option_sources(path.stem.split("_")[0])
        given, _ = read_config(path)
        assert unused(make_options(method, given), given, aliases=method.aliases) == []


def test_mistakes_have_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "lr: 0.1\nepoch: 3\nlocal_crops_number: -1\noptimizer: adam\nglobal_crops_scale: 0.3\nuse_fp16: 1\n")
    with pytest.raises(ConfigError) as caught:
        make_options(DINO, read_config(path)[0])
    assert "a.yaml:5  global_crops_scale  expected 2 values, got 0.3" in str(caught.value)
    path = write(tmp_path, "a.yaml", "lr: 0.1\nepoch: 3\nlocal_crops_number: -1\noptimizer: adam\nuse_fp16: 1\n")
    with pytest.raises(ConfigError) as caught:
        make_options(DINO, read_config(path)[0])
    told = str(caught.value)
    for line, words in (
        (2, "did you mean epochs?"),
        (3, "at least 0, got -1"),
        (4, "none of adamw, sgd, lars"),
        (5, "expected true or false"),
    ):
        assert any(f"a.yaml:{line} " in text and words in text for text in told.splitlines()), told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "expected keys and values"),
        ("", "is empty"),
        ("a: [\n", "not valid YAML"),
        ("Namespace(a=b", "args.txt"),
        ("Namespace(a)[0]", "args.txt"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_config(write(tmp_path, "a.txt", text))


def test_every_key_is_described() -> None:
    for method in (DINO, PATCHWISE):
        keys = describe_keys(options_of(method), "method")
        assert [item.name for item in keys if not item.text] == []
        assert {item.name for item in keys} == set(options_of(method).model_fields)
    kinds = {item.name: item.kind for item in keys}
    names = ("squash", "cls_weight", "resume", "blur_p", "partition", "optimizer")
    assert [kinds[name] for name in names] == [int, float, bool, float, str, str]


def test_changes_leave_out_what_does_not_matter() -> None:
    before = plain(make_options(DINO))
    now = {**before, "lr": 0.001, "num_workers": 3, "output_dir": "x", "global_crops_scale": (0.4, 1.0)}
    assert changes(before, now) == ["lr: 0.0005 -> 0.001"]
    del before["lr"]
    assert changes(before, now) == []


def test_silent_keys_exist() -> None:
    from virb.pretraining.options import _SILENT

    assert EngineOptions.model_fields.keys() >= _SILENT
