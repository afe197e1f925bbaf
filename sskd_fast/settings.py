"""The settings of a run, composed of its consumers' dataclasses; yaml_settings.py reads them from files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sskd_fast.data.derived import Derived, derive
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.layouts import misfit
from sskd_fast.data.views import ViewsConfig
from sskd_fast.losses.contrast_settings import FORM_KINDS, ContrastConfig
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models.checkpoint import Origins
from sskd_fast.models.inference import PredictConfig
from sskd_fast.models.settings import ModelConfig
from sskd_fast.pseudo_labels.settings import PseudoLabelConfig
from sskd_fast.train.online_labels import OnlineConfig
from sskd_fast.train.schedule import StageConfig, TrainConfig
from sskd_fast.typed_settings import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Sources of images and labels; without `root` and `labeled`, the embedded data set is generated.

    format: one of data.layouts.FORMATS.  root: folder of a whole data set ("coco", "cityscapes" and "ade20k" as
    unpacked, "yolo" with its data.yaml).  Or labeled, val: label files or folders of them ("coco", "labelme", "cvat",
    "label_studio"), and images, val_images: the folders of their images; val_images defaults to images.
    unlabeled: a folder of plain images.  labeled_fraction: share of the training set that keeps its labels.
    group_key: an image field whose groups stay together in every split.  stratify_key: one whose values are all
    represented.  balance_key: one whose values are sampled evenly in training.  zoom: scale factor applied to images
    first, 0 = from the instances' sizes.  stretch: percentile stretch of each image (microscopy).  workers: processes
    that prepare batches, 0 for none.  cache_mb: memory per process for decoded images, and as much again for masks.
    max_pixels: limit on the size of an image, 0 = 268 million.  confine: reject file names in labels that point outside
    the image folder.  decoded: folder that caches decoded images, three bytes per pixel, for all processes and later
    runs; "" for none.
    """

    name: str = "embedded"
    format: str = "coco"
    root: str = ""
    labeled: str = ""
    images: str = ""
    unlabeled: str = ""
    val: str = ""
    val_images: str = ""
    labeled_fraction: float = 1.0
    group_key: str = ""
    stratify_key: str = ""
    balance_key: str = ""
    zoom: float = 0.0
    stretch: bool = False
    workers: int = 0
    cache_mb: int = 1024
    max_pixels: int = 0
    confine: bool = False
    decoded: str = ""
    embedded_labeled: int = 60
    embedded_unlabeled: int = 1500
    embedded_val: int = 300
    embedded_source: int = 12000
    embedded_source_val: int = 300

    def with_absolute_paths(self) -> DataConfig:
        """A copy with absolute paths, valid from any working directory."""
        names = ("root", "labeled", "images", "unlabeled", "val", "val_images", "decoded")
        given: dict[str, Any] = {name: str(Path(value).resolve()) for name in names if (value := getattr(self, name))}
        return replace(self, **given)

    @property
    def own(self) -> bool:
        """True if the data are the user's, not the embedded data set."""
        return bool(self.labeled or self.root)


@dataclass(frozen=True)
class StagesConfig:
    """Training budgets by stage. The matched student gets those of the distilled and the refined student together."""

    pretrained_teacher: StageConfig = field(default_factory=StageConfig)
    pretrained_student: StageConfig = field(default_factory=StageConfig)
    fitted_teacher: StageConfig = field(default_factory=StageConfig)
    supervised_teacher: StageConfig = field(default_factory=StageConfig)
    adapted_teacher: StageConfig = field(default_factory=StageConfig)
    distilled_student: StageConfig = field(default_factory=StageConfig)
    refined_student: StageConfig = field(default_factory=StageConfig)
    supervised_student: StageConfig = field(default_factory=StageConfig)


@dataclass(frozen=True)
class BaselineConfig:
    """Augmentation of the supervised student, and the search for its augmentation and number of steps.

    strength: strength of its augmentation relative to `views` (see ViewsConfig.at_strength).  folds: 0 trains it at
    this strength for the steps of `stages.supervised_student`.  At least 2 cross-validates each of `steps` with each of
    `strengths` on the labelled images in this many folds.  The best is then trained on all of them.
    """

    strength: float = 1.0
    folds: int = 0
    steps: tuple[int, ...] = (150, 300, 600, 1000)
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds: expected 0 for no search, or at least 2, found {self.folds}")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps: expected at least one number of steps, each above 0, found {list(self.steps)}")
        strengths = (*self.strengths, self.strength)
        if not self.strengths or min(strengths) < 0:
            raise ValueError(f"strength, strengths: expected factors from 0 up, found {list(strengths)}")


@dataclass(frozen=True)
class Config:
    """Settings of a whole run.  output: "" = `runs/<data.name>`.  device: "auto", "cpu" or "cuda".

    teacher_weights, student_weights: safetensors files to start from, "embedded" for the shipped ones, "" for none.
    origins: licence and source of teacher, backbone and data, stored in each checkpoint.
    """

    seed: int = 0
    device: str = "auto"
    output: str = ""
    teacher_weights: str = "embedded"
    student_weights: str = "embedded"
    num_queries: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    teacher: ModelConfig = field(default_factory=ModelConfig)
    student: ModelConfig = field(default_factory=ModelConfig)
    loss: SetLossConfig = field(default_factory=SetLossConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    origins: Origins = field(default_factory=Origins)

    def with_absolute_paths(self) -> Config:
        """A copy in which the paths of data, weights and models are absolute, valid from any working directory."""
        weights: dict[str, Any] = {
            name: str(Path(value).resolve())
            for name in ("teacher_weights", "student_weights")
            if (value := getattr(self, name)) not in ("", "embedded")
        }
        teacher, student = self.teacher.with_absolute_paths(), self.student.with_absolute_paths()
        return replace(self, data=self.data.with_absolute_paths(), teacher=teacher, student=student, **weights)


def derived_settings(
    config: Config, labeled: LabeledImages, val: LabeledImages | None, zoom: float | None = None
) -> Derived:
    """Zoom, views and limits of a run: as set, or else derived from the images; see `derive`.

    zoom: replaces `data.zoom`.
    """
    return derive(
        labeled, val, config.views, zoom=config.data.zoom if zoom is None else zoom, queries=config.num_queries,
        detections=config.predict.max_detections, labels=config.pseudo_labels.labels_limit,
    )  # fmt: skip


def check_settings(config: Config) -> None:
    """Checks rules that span several settings.  Raises ConfigError with the settings, the value and the cure."""
    _check_data(config.data)
    _check_views(config.views)
    _check_scale(config)
    _check_models(config)
    if config.train.pxl_gradient_share and "float16" in (config.teacher.precision, config.student.precision):
        raise ConfigError(
            "train.pxl_gradient_share: gradients are measured without the scale that float16 needs; use bfloat16"
        )
    if config.pseudo_labels.shard and find_spec("pyarrow") is None:
        raise ConfigError(
            f"pseudo_labels.shard={config.pseudo_labels.shard}: shards are Parquet files, and pyarrow, which writes "
            "them, is missing: pip install 'sskd_fast[scale]', or set it to 0"
        )
    if config.pseudo_labels.teacher == "none" and config.online.start == 1:
        raise ConfigError(
            "pseudo_labels.teacher='none': nothing labels the unlabelled images; name a stage, or let the student's "
            "moving average label them after a share of the stage, such as online.start=0.3"
        )


def _check_data(data: DataConfig) -> None:
    if data.root and (data.labeled or data.images or data.val):
        raise ConfigError("--root holds the whole data set: leave out --labeled, --images and --val, or --root")
    if problem := misfit(data.format, bool(data.root), bool(data.labeled)):
        raise ConfigError(problem)
    if data.labeled and not (data.images and data.val):
        raise ConfigError(
            "--labeled needs --images (their folder) and --val (labels of the same format that results are reported on)"
        )
    if not 0 < data.labeled_fraction <= 1:
        raise ConfigError(
            f"--labeled-fraction (data.labeled_fraction): found {data.labeled_fraction:g}, expected a share of the "
            "labelled images: more than 0 and at most 1, say 0.1"
        )
    if data.own and not data.unlabeled and data.labeled_fraction == 1:
        raise ConfigError(
            "there are no unlabelled images: give a folder of them (--unlabeled DIR), "
            "or hide labels (--labeled-fraction 0.1)"
        )
    if data.unlabeled and data.labeled_fraction != 1:
        raise ConfigError(
            "--labeled-fraction hides labels to make unlabelled images; with --unlabeled DIR there are some already"
        )
    if not data.own and (data.images or data.unlabeled or data.val):
        raise ConfigError("--images, --unlabeled and --val go with --labeled, the labels of --images")
    if not data.own and data.labeled_fraction != 1:
        raise ConfigError(
            "--labeled-fraction (data.labeled_fraction) goes with --labeled or --root, which are not given; "
            "the embedded data set has data.embedded_labeled images with labels"
        )
    if data.max_pixels < 0:
        raise ConfigError(
            f"data.max_pixels: found {data.max_pixels}, expected a number of pixels, or 0 for the default"
        )
    if data.zoom < 0:
        raise ConfigError(f"data.zoom: found {data.zoom}, expected a factor above 0, or 0 to take it from the data")


def _check_scale(config: Config) -> None:
    """Raises ConfigError if prediction sees objects at another scale than training."""
    fit = "views.fit scales whole images into the crop for training, predict.fit into the tile for prediction"
    if config.predict.fit and not config.views.fit:
        raise ConfigError(f"{fit}: found predict.fit=true beside views.fit=false; set both to the same")
    if config.views.fit and not config.predict.fit and not config.data.zoom:
        raise ConfigError(
            f"{fit}: found views.fit=true beside predict.fit=false; set predict.fit=true, or to predict in tiles, set "
            "data.zoom to the scale of images there (1 = as they are)"
        )


def _check_models(config: Config) -> None:
    """Raises ConfigError for settings of models that a run does not follow, or that fit no such model."""
    for name in ("teacher", "student"):
        model: ModelConfig = getattr(config, name)
        if model.num_queries != ModelConfig.num_queries:
            raise ConfigError(
                f"{name}.num_queries: found {model.num_queries}, but teacher and student have the same number of "
                f"queries: set num_queries={model.num_queries} (--num-queries)"
            )
        form, kinds = config.contrast.form, FORM_KINDS.get(config.contrast.form)
        if config.train.lam_pxl > 0 and kinds is not None and model.trainable and model.kind not in kinds:
            raise ConfigError(
                f"contrast.form: found {form!r} with {name}.kind={model.kind!r}, expected {' or '.join(kinds)} for it; "
                "choose another form, or train.lam_pxl=0 for no contrastive loss"
            )


def _check_views(views: ViewsConfig) -> None:
    if any(side % 32 for side in views.sides):
        raise ConfigError(
            f"--crop (views.size): found {views.size}, expected multiples of 32, or 0 to take it from the data"
        )
    if views.rot90 and len(set(views.sides)) > 1:
        raise ConfigError(f"views.rot90: quarter turns need square crops, found {views.size}; set it to false")
