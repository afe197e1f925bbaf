"""Settings: presets, files, overrides, and error messages."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sskd_fast.run.command_line import parser, resolve
from sskd_fast.settings import Config, check_settings
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import PRESETS, dump_yaml, load_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def arguments(*words: str) -> argparse.Namespace:
    return parser().parse_args(list(words))


def file(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Presets, files, overrides


def test_presets_load_and_differ() -> None:
    assert {"default", "smoke", "full", "pretrain"} <= set(NAMES)
    configs = {name: load_config([], preset=name) for name in NAMES}
    assert configs["smoke"].stages.distilled_student.steps < configs["default"].stages.distilled_student.steps
    assert configs["default"].stages.distilled_student.steps < configs["full"].stages.distilled_student.steps
    assert configs["pretrain"].teacher_weights == "" and configs["default"].teacher_weights == "embedded"
    for name in set(NAMES) - {"paper", "photos", "fast"}:
        config = configs[name]
        assert config.teacher == configs["default"].teacher and config.student == configs["default"].student
    photos = configs["photos"]
    assert photos.teacher.kind == photos.student.kind == "dense" and photos.views.fit and photos.predict.fit
    paper = configs["paper"]
    assert (paper.teacher.kind, paper.student.layers, paper.num_queries) == ("grounded_sam", 9, 100)
    train = paper.train
    assert (train.lr, train.backbone_lr, train.clip, train.weight_decay) == (5e-5, 0.1, 0.01, 0.1)


def test_a_file_may_stand_on_a_preset(tmp_path: Path) -> None:
    own = file(tmp_path, "preset: paper\ntrain: {lr: 0.5}\n")
    config = load_config([own], ["student.layers=3"])
    assert config.train.lr == 0.5 and config.train.clip == 0.01
    assert config.student.layers == 3 and config.student.width == 256
    with pytest.raises(
        ConfigError, match=r"own\.yaml: preset: found 'huge', expected one of default, fast, full, paper"
    ):
        load_config([file(tmp_path, "preset: huge\n")])


def test_a_preset_may_stand_on_another() -> None:
    """The fast one is the paper's with another student, on whole images in a square."""
    fast, paper = load_config([], preset="fast"), load_config([], preset="paper")
    assert (fast.student.layers, fast.student.width, fast.student.mask_width) == (3, 128, 128)
    assert (fast.views.sides, fast.views.fit, fast.predict.fit) == ((384, 384), True, True)
    papers = {"width": 256, "mask_width": 256, "layers": 9, "heads": 8, "feedforward": 2048}
    assert dataclasses.replace(fast.student, **papers) == paper.student
    for part in ("teacher", "train", "stages", "loss", "contrast", "pseudo_labels", "num_queries"):
        assert getattr(fast, part) == getattr(paper, part)


def test_the_fast_student_goes_with_the_file_of_a_data_set() -> None:
    fast, files = load_config([], preset="fast"), [CONFIGS / "coco_10.yaml", CONFIGS / "fast_student.yaml"]
    config = load_config(files)
    assert (config.student, config.views.sides) == (fast.student, (384, 384)) and config.data.name == "coco_10"


def test_a_preset_and_a_file_with_another_are_not_mixed(tmp_path: Path) -> None:
    own = file(tmp_path, "preset: paper\n")
    message = r"own\.yaml: names the preset 'paper', which would cover --preset fast; leave --preset out"
    with pytest.raises(ConfigError, match=message):
        load_config([own], preset="fast")
    assert load_config([own], preset="paper") == load_config([own]) == load_config([], preset="paper")


def test_unknown_preset_lists_those_there_are() -> None:
    message = r"--preset: found 'huge', expected one of default, fast, full, paper, photos, pretrain, smoke"
    with pytest.raises(ConfigError, match=message):
        load_config([], preset="huge")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.lr=1e-4", ("train", "lr"), 1e-4),
        ("train.lr=1", ("train", "lr"), 1.0),
        ("train.warmup=1e2", ("train", "warmup"), 100),
        ("train.betas=[0.8, 1e-1]", ("train", "betas"), (0.8, 0.1)),
        ("views.rot90=false", ("views", "rot90"), False),
        ("contrast.margin=0.2", ("contrast", "margin"), 0.2),
        ("contrast.margin=null", ("contrast", "margin"), None),
        ("contrast.cues=fused", ("contrast", "cues"), "fused"),
        ("student.channels=[8, 16]", ("student", "channels"), (8, 16)),
        ("seed=7", ("seed",), 7),
        ("loss.masks=points", ("loss", "masks"), "points"),
        ("data.name=2024", ("data", "name"), "2024"),
        ("data.images=/a/set #1: x", ("data", "images"), "/a/set #1: x"),
        ("output=null", ("output",), "null"),
        ("teacher_weights=", ("teacher_weights",), ""),
        ('teacher_weights=""', ("teacher_weights",), ""),
        ("data.labeled=a=b.json", ("data", "labeled"), "a=b.json"),
    ],
)
def test_overrides_set_one_setting_to_a_value_of_its_type(override: str, place: tuple[str, ...], value: Any) -> None:
    found: Any = load_config([], [override])
    base: Any = load_config([])
    for name in place[:-1]:
        found, base = getattr(found, name), getattr(base, name)
    assert getattr(found, place[-1]) == value
    assert type(getattr(found, place[-1])) is type(value)
    assert dataclasses.replace(found, **{place[-1]: getattr(base, place[-1])}) == base


def test_later_files_and_overrides_win_setting_by_setting(tmp_path: Path) -> None:
    first = file(tmp_path, "train: {lr: 1e-3, clip: 0.5}\nseed: 3", "first.yaml")
    second = file(tmp_path, "train: {lr: 2.0e-3}", "second.yaml")
    config = load_config([first, second], ["train.clip=0.25"], preset="smoke")
    assert (config.train.lr, config.train.clip, config.seed) == (2e-3, 0.25, 3)
    assert config.train.evaluations == 1  # of the smoke preset
    assert config.teacher.width == 96  # of the default one below it


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([file(tmp_path, "# nothing\n")]) == load_config([])


@pytest.mark.parametrize("preset", NAMES)
def test_dumped_settings_read_back_identical(preset: str, tmp_path: Path) -> None:
    config = load_config([], ["train.lr=1e-5", "contrast.margin=0.1", "data.name=größe", "student.channels=[4,8,12,16]",
                              "student.blocks=[1,1,1,1]", "output=runs/a b"], preset)  # fmt: skip
    text = dump_yaml(config)
    assert load_config([file(tmp_path, text)]) == config
    assert set(yaml.safe_load(text)) == {f.name for f in dataclasses.fields(Config)}


# Messages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.speed=3", r"train\.speed: no such setting; train has lr, backbone_lr"),
        ("sped=3", r"sped: no such setting; the configuration has seed, device"),
        (
            "stages.refined_student.stpes=3",
            r"stages\.refined_student\.stpes: no such setting; stages\.refined_student has steps",
        ),
        ("train.lr=fast", r"train\.lr: found 'fast', expected float"),
        ("train.warmup=1.5", r"train\.warmup: found 1\.5, expected int"),
        ("train.warmup=true", r"train\.warmup: found True, expected int"),
        ("train.lr=true", r"train\.lr: found True, expected float"),
        ("views.rot90=2", r"views\.rot90: found 2, expected bool"),
        ("contrast.cues=all", r"contrast\.cues: found 'all', expected one of fused, object, mask, class, uniform"),
        ("train.schedule=[1]", r"train\.schedule: found \[1\], expected one of cosine, poly"),
        ("train.betas=0.9", r"train\.betas: found 0\.9, expected a list of 2"),
        ("train.betas=[0.9]", r"train\.betas: found \[0\.9\], expected a list of 2"),
        ("train.betas=[0.9, x]", r"train\.betas: found 'x', expected float"),
        ("student.channels=[8, a]", r"student\.channels: found 'a', expected int"),
        ("train=5", r"train: found 5, expected a section"),
        ("train.lr.x=5", r"train\.lr: found \{'x': 5\}, expected float"),
        ("contrast.margin=wide", r"contrast\.margin: found 'wide', expected float"),
        ("train.lr", r"override 'train\.lr': expected section\.setting=value, such as train\.lr=1e-4"),
        ("train.micro_batch=-1", r"train: micro_batch: expected images, 0 for as many as fit, found -1"),
        ("pseudo_labels.folds=1", r"pseudo_labels: folds: expected at least 2, found 1"),
        ("pseudo_labels.fold_steps=0", r"pseudo_labels: fold_steps: expected a share in \(0, 1\], .* found 0"),
        ("=3", r"override '=3': expected section\.setting=value"),
    ],
)
def test_every_error_names_the_setting_and_what_fits(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([], [override])


def test_a_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError, match=r"--config .*missing\.yaml: cannot be read \(No such file"):
        load_config([missing])
    with pytest.raises(ConfigError, match=r"--config .*: cannot be read \(Is a directory"):
        load_config([tmp_path])
    with pytest.raises(ConfigError, match=r"--config .*own\.yaml: not valid YAML"):
        load_config([file(tmp_path, "train: {lr: 1")])
    with pytest.raises(ConfigError, match=r"--config .*own\.yaml: found list, expected a mapping of settings"):
        load_config([file(tmp_path, "- 1\n- 2")])
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--config .*picture\.yaml: not valid YAML"):
        load_config([picture])


def test_a_wrong_setting_in_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr: found '1e-', expected float"):
        load_config([file(tmp_path, "train: {lr: 1e-}")])
    with pytest.raises(ConfigError, match=r"data\.name: found 3, expected str"):
        load_config([file(tmp_path, "data: {name: 3}")])
    with pytest.raises(ConfigError, match=r"stages: found None, expected a section"):
        load_config([file(tmp_path, "stages:")])


# The command line on top of them


def test_flags_are_settings(tmp_path: Path) -> None:
    words = ["--labeled", "sets/2024/train.json", "--images", "i", "--val", "v.json", "--labeled-fraction", "0.1"]
    words += ["--seed", "4", "--crop", "96", "--output", str(tmp_path / "1"), "train.lr=1e-4"]
    config = resolve(arguments(*words))
    assert (config.data.labeled, config.data.images, config.data.val) == ("sets/2024/train.json", "i", "v.json")
    assert config.data.name == "2024"
    assert (config.data.labeled_fraction, config.seed, config.views.size, config.train.lr) == (0.1, 4, 96, 1e-4)
    check_settings(config)


def test_pretraining_has_its_preset() -> None:
    assert resolve(arguments("--stage", "pretrain")) == load_config([], preset="pretrain")
    assert resolve(arguments("--stage", "pretrain", "--preset", "smoke")) == load_config([], preset="smoke")


def test_resumed_and_later_stages_take_the_settings_of_the_run_folder(tmp_path: Path) -> None:
    kept = load_config([], ["train.lr=3e-5", f"output={tmp_path}"], "smoke")
    file(tmp_path, dump_yaml(kept), "config.yaml")
    out = ["--output", str(tmp_path)]
    assert resolve(arguments("--resume", *out)) == kept
    assert resolve(arguments("--stage", "refine", *out)) == kept
    changed = resolve(arguments("--stage", "refine", *out, "train.clip=2"))
    assert changed == dataclasses.replace(kept, train=dataclasses.replace(kept.train, clip=2.0))
    assert resolve(arguments(*out)) == load_config([], [f"output={tmp_path}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labeled=a.json"], r"--labeled needs --images .* and --val"),
        (
            ["data.labeled=a.json", "data.images=i", "data.val=v.json"],
            r"there are no unlabelled images: .*--unlabeled DIR",
        ),
        (
            [
                "data.labeled=a.json",
                "data.images=i",
                "data.val=v.json",
                "data.unlabeled=u",
                "data.labeled_fraction=0.5",
            ],
            r"--labeled-fraction hides labels",
        ),
        (["data.images=i"], r"--images, --unlabeled and --val go with --labeled"),
        (["predict.fit=true"], r"found predict.fit=true beside views.fit=false; set both to the same"),
        (["views.fit=true"], r"found views.fit=true beside predict.fit=false; set predict.fit=true, or .*data.zoom"),
        (["student.num_queries=30"], r"student.num_queries: found 30, .*set num_queries=30 \(--num-queries\)"),
        (
            ["teacher.kind=dense", "contrast.form=prototypes", "train.lam_pxl=0.1"],
            r"found 'prototypes' with teacher.kind='dense', expected mask_transformer for it; .*train.lam_pxl=0",
        ),
        (
            ["student.kind=dense", "contrast.form=ownership", "train.lam_pxl=0.1"],
            r"found 'ownership' with student.kind='dense', expected mask_transformer or universal for it",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(load_config([], overrides))


def test_settings_that_go_together_pass(tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    for overrides in (
        ["views.fit=true", "predict.fit=true"],
        ["views.fit=true", "data.zoom=1"],
        ["student.kind=dense", "contrast.form=ownership", "train.lam_pxl=0"],
        ["student.kind=dense", "contrast.form=boundary", "contrast.scope=same", "train.lam_pxl=0.1"],
        ["teacher.kind=results", f"teacher.foundation.results={given}", "contrast.form=ownership", "train.lam_pxl=0.1"],
    ):
        check_settings(load_config([], overrides))
    with pytest.raises(ConfigError, match=r'kind="results": name a file of predictions \(foundation.results\)'):
        load_config([], ["teacher.kind=results"])
    with pytest.raises(ConfigError, match=r'warm_start="results": name a file of predictions'):
        load_config([], ["teacher.kind=dense", "teacher.warm_start=results"])


def test_paths_stay_valid_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam").mkdir()
    config = load_config(
        [],
        ["data.labeled=a.json", "data.images=i", "data.val=v.json", "data.unlabeled=u", "teacher_weights=t.safetensors",
         "teacher.warm_start=results", "teacher.foundation.results=[p.json, q.json]", "teacher.foundation.masks=sam",
         "student.backbone_checkpoint=b.pth"],
    ).with_absolute_paths()  # fmt: skip
    assert (config.data.labeled, config.teacher_weights) == (str(tmp_path / "a.json"), str(tmp_path / "t.safetensors"))
    assert config.teacher.foundation.results == (str(tmp_path / "p.json"), str(tmp_path / "q.json"))
    assert config.teacher.foundation.masks == str(tmp_path / "sam")
    assert config.teacher.foundation.sam3 == "facebook/sam3" and config.student_weights == "embedded"
    assert config.student.backbone_checkpoint == str(tmp_path / "b.pth") and config.teacher.backbone_checkpoint == ""
    one = load_config([], ["teacher.kind=results", "teacher.foundation.results=p.json"]).with_absolute_paths()
    assert one.teacher.foundation.results == str(tmp_path / "p.json")
    packaged = load_config([], preset="photos")
    assert packaged.with_absolute_paths() == packaged
    assert config.with_absolute_paths() == config


def test_defaults_pass_the_check() -> None:
    for name in NAMES:
        check_settings(load_config([], preset=name))


def test_a_crop_is_one_number_or_two() -> None:
    assert load_config([], ["views.size=96"]).views.size == 96
    config = load_config([], ["views.size=[64, 96]"])
    assert config.views.size == (64, 96) and "size:\n  - 64\n  - 96" in dump_yaml(config)
    with pytest.raises(ConfigError, match=r"views.size: found '64x96', expected int"):
        load_config([], ["views.size=64x96"])
