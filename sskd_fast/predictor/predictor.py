"""A trained model with the settings that inference needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sskd_fast.data.pixels import array_pixels, image_pixels, read_pixels
from sskd_fast.data.source import image_tensor
from sskd_fast.exported import Exported
from sskd_fast.files import write_json
from sskd_fast.models.augmented import IDENTITY, Augmentation, predict_views
from sskd_fast.models.checkpoint import Description, load_checkpoint, save_checkpoint
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.results import to_results
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.predictor.card import card_text, is_own_card
from sskd_fast.predictor.prediction import Prediction
from sskd_fast.source_prediction import groups

ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor
WEIGHTS = "model.safetensors"


class ModelError(ValueError):
    """Raised for a place without a model, for an unavailable device, or for what a model cannot do."""


class Predictor(
    ModelHubMixin, library_name="sskd_fast", pipeline_tag="image-segmentation", tags=["instance-segmentation"]
):
    """Predicts instances with the settings of the run that trained the model.

    model: the network.  description: metadata of its checkpoint, including the inference settings.  views: predictions
    are averaged over these views of an image (see `with_views`).
    `save_pretrained`, `from_pretrained` and `push_to_hub` come from huggingface_hub.
    """

    def __init__(self, model: Segmenter, description: Description, views: tuple[Augmentation, ...] = IDENTITY) -> None:
        self.model, self.description = model.eval().to(memory_format=torch.channels_last), description
        self.views = views

    def __repr__(self) -> str:
        stage = self.description.facts.get("stage", "model")
        return f"Predictor({stage}, {self.model.parameter_count()} parameters, classes: {', '.join(self.class_names)})"

    @classmethod
    def read(cls, checkpoint: Path) -> Predictor:
        """The predictor of a checkpoint file.  Raises CheckpointError."""
        return cls(*load_checkpoint(checkpoint))

    @property
    def inference(self) -> InferenceConfig:
        """Tile, overlap, zoom, score floor, NMS, detection limit and batch."""
        return self.description.inference

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names by class index."""
        return self.description.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category ids by class index."""
        return self.description.category_ids

    def to(self, device: torch.device | str) -> Predictor:
        """Moves the model; returns the predictor."""
        self.model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def with_inference(self, **changes: Any) -> Predictor:
        """A predictor with the same model and other inference settings, such as `batch=8`.

        Raises ValueError for a setting out of range.
        """
        inference = dataclasses.replace(self.inference, **changes)
        return Predictor(self.model, dataclasses.replace(self.description, inference=inference), self.views)

    def with_views(self) -> Predictor:
        """A predictor that averages over flipped, turned and zoomed views of every image (test-time augmentation).

        The views are those in which the teacher of the model's run labels.  Six views take six times longer; the
        run's report shows what they gain.  Raises ModelError if they are unknown, or the image alone, or if an
        exported file takes images of one size and the views are zoomed.
        """
        if not self.description.views:
            raise ModelError(
                f"the model was saved by sskd_fast {self.description.version} without its run's views; "
                "`python -m sskd_fast.run --stage evaluate --output FOLDER` adds them to the run's checkpoints; then "
                "export or save the model again"
            )
        if self.description.views == IDENTITY:
            raise ModelError("the teacher of the model's run labels from one view: there is nothing to average over")
        zoomed = any(view.zoom != 1 for view in self.description.views)
        if zoomed and isinstance(self.model, Exported) and self.model.description.size:
            raise ModelError("an exported file of one size takes no zoomed views: give the model that it was made from")
        return Predictor(self.model, self.description, self.description.views)

    @overload
    def predict(self, images: ImageLike, score: float = 0.0) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], score: float = 0.0) -> list[Prediction]: ...

    def predict(self, images: ImageLike | Sequence[ImageLike], score: float = 0.0) -> Prediction | list[Prediction]:
        """Predicts the instances of one image, or of each image in a sequence.

        images: paths, PIL images, or arrays (H, W) or (H, W, 3) in RGB of any integer dtype or floats in [0, 1].
        Uint8 tensors (3, H, W) are taken too.  score: drop instances with a lower score.  Raises DataError for an
        unreadable file, and ValueError for an array of another shape or a score outside [0, 1].
        """
        if not 0 <= score <= 1:
            raise ValueError(f"score={score}: expected a score from 0 to 1")
        if isinstance(images, (str, Path, Image.Image, np.ndarray, Tensor)):
            return next(self.stream([images], score))
        return list(self.stream(images, score))

    def stream(self, images: Iterable[ImageLike], score: float = 0.0) -> Iterator[Prediction]:
        """Yields predictions one by one and reads images as needed; arguments and errors are those of `predict`."""
        read = ((image, self.read_image(image)) for image in images)
        for group in groups(read, lambda pair: pair[1][0].numel()):
            for (image, _), found in zip(group, self.find([tensor for _, tensor in group]), strict=True):
                name = str(image) if isinstance(image, (str, Path)) else ""
                yield dataclasses.replace(found.above(score), file_name=name)

    def find(self, images: Sequence[Tensor]) -> list[Prediction]:
        """The instances of images from `read_image`. Their tiles share batches; all images stay in memory."""
        d = self.description
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        predictions = []
        for size, found in zip(sizes, predict_views(self.model, images, d.inference, self.views), strict=True):
            results = to_results(found, 0, size, d.category_ids, d.inference.zoom_of(size))
            predictions.append(Prediction.of_results(results, size, d.class_names, d.category_ids))
        return predictions

    def read_image(self, image: ImageLike) -> Tensor:
        """Reads an image as in the model's training, with the same stretch: (3, H, W) uint8."""
        if isinstance(image, (str, Path)):
            return image_tensor(read_pixels(Path(image), stretch=self.description.stretch))
        if isinstance(image, Image.Image):
            return image_tensor(image_pixels(image, stretch=self.description.stretch))
        array = image.cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.dim() == 3 else image
        return image_tensor(array_pixels(np.asarray(array), stretch=self.description.stretch))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card with verdict, data, licences and use."""
        return ModelCard(card_text(self.description, **kwargs))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes model.safetensors, config.json and the model card README.md to a folder.

        A card that somebody wrote or edited is kept.  options: those of huggingface_hub's mixin.
        """
        card = Path(save_directory) / "README.md"
        if is_own_card(card):
            card.unlink()
        return super().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the files of `save_pretrained` to a hub repository, with its name in the card's example."""
        options["model_card_kwargs"] = {"name": repo_id} | (options.get("model_card_kwargs") or {})
        return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(save_directory / WEIGHTS, self.model, self.description)
        write_json(save_directory / "config.json", {"sskd_fast": dataclasses.asdict(self.description)})

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Predictor:
        if Path(model_id).is_dir():
            return cls.read(Path(model_id) / WEIGHTS)
        path = hf_hub_download(
            model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token,
        )  # fmt: skip
        return cls.read(Path(path))
