"""The settings of a run: dataclasses, one a concern; config.py fills them from YAML files and overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models.segmenter import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """Where images and labels come from; without `root` and `labeled`, the embedded data set is drawn.

    format: one of data.layouts.FORMATS.  root: the folder that holds a whole data set ("coco", "cityscapes" and
    "ade20k" as they unpack, "yolo" with its data.yaml); or labeled, val: label files or folders of them ("coco",
    "labelme", "cvat", "label_studio"); images, val_images: the folders of their images (val_images defaults to
    images).  unlabeled: a folder of plain images.  labeled_fraction: hide the labels of all but this share of the
    training set.  group_key: an image field whose groups stay together in every split; stratify_key: one whose values
    are all represented; balance_key: one whose values are drawn evenly in training.  holdout_fraction: share of the
    labelled images kept out of all training, for thresholds and for the AP shown while training.  zoom: factor of the
    images before anything else, 0 = from the instances' sizes. stretch: percentile stretch of every image
    (microscopy).  workers: processes that prepare batches, 0 for none.  cache_mb: memory of each process for decoded
    images, and as much for masks. decoded: a folder that keeps decoded images, three bytes a pixel, for all processes
    and later runs; "" for none.
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
    holdout_fraction: float = 0.3
    zoom: float = 0.0
    stretch: bool = False
    workers: int = 0
    cache_mb: int = 1024
    decoded: str = ""
    embedded_labeled: int = 60
    embedded_unlabeled: int = 1500
    embedded_val: int = 300
    embedded_source: int = 12000
    embedded_source_val: int = 300

    @property
    def own(self) -> bool:
        """Whether the data are the user's, not the embedded ones."""
        return bool(self.labeled or self.root)


@dataclass(frozen=True)
class ViewsConfig:
    """The two views of an image.  size: height and width of the crop, or one number for both; 0 =
    from the data (64 to 128 pixels).  For the rest see data.views.Views."""

    size: int | tuple[int, int] = 0
    scale: tuple[float, float] = (0.8, 1.25)
    fit: bool = False
    hflip: bool = True
    vflip: bool = True
    rot90: bool = True
    weak_color: float = 0.2
    strong_color: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.5
    noise: float = 0.0
    min_pixels: int = 12


@dataclass(frozen=True)
class ContrastConfig:
    """The contrastive loss.  max_anchors: anchors an image, 0 = every pixel."""

    num_negatives: int = 64
    temperature: tuple[float, float] = (0.3, 0.07)
    cues: Literal["fused", "object", "mask", "class", "uniform"] = "object"
    scope: Literal["all", "other", "same"] = "all"
    form: Literal["sampled", "expected"] = "sampled"
    margin: float | None = None
    hard_share: float = 0.0
    max_anchors: int = 24
    objectness: bool = False
    memory_bank: int = 0
    backend: str = "auto"


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Which predictions become labels.

    views: over how many of the flips and turns that training draws the teacher's predictions are averaged (8 at most; 1
    = the image as it is); they take turns at the `zooms`.  target_precision: what the per-class thresholds reach on the
    held-out labelled images.  unsure_precision: predictions between the threshold of this precision and the first one
    are neither object nor background in training (0 = none).  truth: train on the hidden true labels of the unlabelled
    images instead (they exist where `data.labeled_fraction` or the embedded data set hides them): no result, but the
    upper bound of what labels, however good, can give with the other settings.
    """

    views: int = 4
    zooms: tuple[float, ...] = (1.0, 1.25)
    target_precision: float = 0.7
    unsure_precision: float = 0.4
    iou: float = 0.5
    nms_iou: float = 0.6
    minimum_matches: int = 10
    max_per_image: int = 300
    weigh_by_score: bool = True
    truth: bool = False


@dataclass(frozen=True)
class PredictConfig:
    """Inference by tiles (models.inference) and the detection limit of the evaluation.

    tile: height and width of what the network sees at once, 0 = the training crop.  max_detections: the best-scored
    detections of an image that are kept, and that AP counts for each class.
    """

    tile: tuple[int, int] = (0, 0)
    overlap: int = 32
    score_floor: float = 0.02
    nms_iou: float = 0.6
    max_detections: int = 100
    batch: int = 32


@dataclass(frozen=True)
class TrainConfig:
    """What all stages share.  lr: of AdamW, multiplied by the stage's `lr_factor`; backbone_lr: factor of the
    backbone's lr.

    semi_fade: share of a stage, at its end, over which lam_semi falls to 0.  semi_masks: weight of the pseudo-labels'
    masks beside their classes.  schedule: "cosine" or "poly" (power 0.9) after `warmup` steps.  max_steps: cut every
    stage (0 = no).  evaluations: how often a stage measures AP on held-out images while it trains.  threads: 0 = all
    cores.
    """

    lr: float = 4e-3
    backbone_lr: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    warmup: int = 40
    schedule: Literal["cosine", "poly"] = "cosine"
    ema: float = 0.99
    lam_semi: float = 1.0
    semi_fade: float = 0.0
    semi_masks: float = 1.0
    lam_pxl: float = 0.1
    max_steps: int = 0
    log_every: int = 10
    save_every: int = 200
    evaluations: int = 3
    threads: int = 0


@dataclass(frozen=True)
class StageConfig:
    """The budget of one stage: steps, images a step of each kind, factors of `train.lr` and `train.lam_semi`."""

    steps: int = 100
    labeled_batch: int = 8
    unlabeled_batch: int = 0
    lr_factor: float = 1.0
    semi_factor: float = 1.0


@dataclass(frozen=True)
class StagesConfig:
    """Budgets by stage; the supervised student has that of the distilled and the refined student together."""

    pretrained_teacher: StageConfig = field(default_factory=StageConfig)
    pretrained_student: StageConfig = field(default_factory=StageConfig)
    supervised_teacher: StageConfig = field(default_factory=StageConfig)
    adapted_teacher: StageConfig = field(default_factory=StageConfig)
    distilled_student: StageConfig = field(default_factory=StageConfig)
    refined_student: StageConfig = field(default_factory=StageConfig)


@dataclass(frozen=True)
class Config:
    """A whole run.  output: "" = runs/<data.name>.  device: "auto", "cpu", "cuda".

    teacher_weights, student_weights: safetensors files to start from, "embedded" for the shipped ones, "" for none.
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
