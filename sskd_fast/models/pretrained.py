"""Models of transformers by hub name or folder, with weights or as architecture only; adapters and checkpointing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sskd_fast.models.licences import licence_of
from sskd_fast.models.settings import FoundationConfig, ModelConfig

INSTALL = "pip install 'sskd_fast[models]'"


class FoundationError(ValueError):
    """Raised if a foundation model cannot be loaded: the package, the weights or a part of them are missing."""


def transformers() -> Any:
    """The transformers package. Raises FoundationError, with the cure, if it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        raise FoundationError(
            f"models of kind grounded_sam, sam3 and universal need transformers: {INSTALL}"
        ) from error
    return package


def load(kind: str, name: str, setting: str, *, weights: bool, architectures: Mapping[str, Any] | None = None) -> Any:
    """A model of transformers: `name` is a hub name or a folder that `save_pretrained` wrote.

    kind: the class, or Auto class, that builds it.  weights: False for the architecture with random weights; the
    method's large models are then known by name and need neither network nor files.  setting: names it in messages.
    architectures: from `architecture`, by setting; nothing else is needed then.
    Raises FoundationError if the model cannot be loaded.
    """
    package = transformers()
    model = getattr(package, kind, None)
    if model is None:
        raise FoundationError(
            f"{setting}: transformers {package.__version__} has no {kind}, expected 5.9 or later: "
            "pip install -U 'transformers>=5.9'"
        )
    with _explained(name, setting), _quiet():
        if weights:
            return model.from_pretrained(name, dtype=torch.float32)
        if architectures and setting in architectures:
            written = architectures[setting]
            config = package.AutoConfig.for_model(**written)
        elif _known(name):
            config = ARCHITECTURES[name]()
        else:
            config = (getattr(model, "config_class", None) or package.AutoConfig).from_pretrained(name)
        return model.from_config(config) if hasattr(model, "from_config") else model(config)


def segmentation_class(name: str, setting: str, architectures: Mapping[str, Any] | None = None) -> str:
    """The class of transformers that segments instances with the model of this name, a hub name or a folder.

    architectures: from `architecture`, by setting, instead of the name.
    Raises FoundationError if the model cannot be loaded, has a type without such a class, or was trained without masks.
    """
    package = transformers()
    with _explained(name, setting):
        if architectures and setting in architectures:
            config = package.AutoConfig.for_model(**architectures[setting])
        else:
            config = package.AutoConfig.from_pretrained(name)
    kinds = (package.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, package.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING)
    found = [kind[type(config)].__name__ for kind in kinds if type(config) in kind]
    if not found:
        raise FoundationError(
            f"{setting}: {name!r} is of the type {config.model_type}, of which transformers has no model that segments "
            "instances; expected a Mask2Former, MaskFormer, EoMT or RF-DETR"
        )
    trained = config.architectures or found
    if found[0] not in trained:
        raise FoundationError(
            f"{setting}: {name!r} holds the weights of {trained[0]}, expected those of {found[0]}: its masks would be "
            "random; give weights that were trained on masks"
        )
    return str(found[0])


def input_statistics(name: str, setting: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of RGB in [0, 1], by channel, that the weights of this name were trained with.

    Read from preprocessor_config.json beside the weights; None if it is missing.
    """
    reader = transformers().image_processing_base.ImageProcessingMixin
    try:
        written, _ = reader.get_image_processor_dict(name)
    except OSError as error:
        if (Path(name) / "preprocessor_config.json").is_file():
            raise FoundationError(
                f"{setting}: {name!r} has a preprocessor_config.json that cannot be read ({error}); copy it again"
            ) from error
        return None
    if not written.get("do_normalize", True) or "image_mean" not in written:
        return None
    # The numbers are for pixels after scaling, mostly by 1/255.
    unit = 255 * float(written.get("rescale_factor", 1 / 255)) if written.get("do_rescale", True) else 255.0
    mean, std = (tuple(float(v) / unit for v in written[key]) for key in ("image_mean", "image_std"))
    return mean, std


def architecture(model: Any) -> dict[str, Any]:
    """The configuration of a model of transformers as plain data, from which `load` builds it again."""
    written: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return written


def _known(name: str) -> bool:
    return name in ARCHITECTURES and not Path(name).is_dir()


class WordTokenizer:
    """A stand-in for a tokenizer if only the architecture is wanted: every word is one token, numbered in order."""

    special: ClassVar[dict[str, int]] = {"[CLS]": 101, "[SEP]": 102, ".": 1012}

    def convert_tokens_to_ids(self, token: str) -> int:
        """The number of a special token, the same as in BERT's vocabulary."""
        return self.special[token]

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Text -> {"input_ids": a number for every word}."""
        return {"input_ids": [2000 + i for i, _ in enumerate(text.split())]}


def load_tokenizer(name: str, setting: str, *, weights: bool) -> Any:
    """The tokenizer beside a detector's weights; a stand-in for an architecture of ARCHITECTURES without weights."""
    if not weights and _known(name):
        return WordTokenizer()
    with _explained(name, setting):
        return transformers().AutoTokenizer.from_pretrained(name)


@contextmanager
def _explained(name: str, setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FoundationError(
            f"{setting}: {name!r} cannot be loaded ({first}); give a folder that save_pretrained wrote, or a name of "
            f"the Hugging Face hub on a machine that reaches it (or has it in its cache){_gate(name)}"
        ) from error


def _gate(name: str) -> str:
    """Instructions for weights that the hub only gives after acceptance of their licence; "" for all others."""
    licence = licence_of(name)
    if not licence.gated:
        return ""
    return (
        f"; it is gated: accept the {licence.licence} on {licence.source} and log in (hf auth login, or HF_TOKEN), or "
        "take kind: grounded_sam, which is not"
    )


def prompt_texts(foundation: FoundationConfig, class_names: Sequence[str]) -> Sequence[str]:
    """The prompt texts of the classes, in order.  Raises FoundationError unless there is one for each class."""
    texts = foundation.prompts or class_names
    if len(texts) != len(class_names):
        raise FoundationError(
            f"foundation.prompts: found {len(texts)} texts for {len(class_names)} classes, expected one for each"
        )
    return texts


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns off transformers' progress bars, which would break the run's live lines."""
    logging = transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def adapt(model: nn.Module, config: ModelConfig, setting: str) -> None:
    """Prepares a loaded model for training in place: low-rank adapters and gradient checkpointing, if configured.

    With `lora_rank`, linear layers get adapters of that rank, and the rest of the model is frozen.  Layers with shared
    weights get no adapters, so that they stay shared.
    """
    if config.foundation.lora_rank:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise FoundationError(f"{setting}: foundation.lora_rank needs peft: {INSTALL}") from error
        rank = config.foundation.lora_rank
        linear = {f"model.{name}": m for name, m in model.named_modules() if type(m) is nn.Linear}
        shared = Counter(id(layer.weight) for layer in linear.values())
        layers = [name for name, layer in linear.items() if shared[id(layer.weight)] == 1]
        # Wrapped in a plain module: peft asks models of transformers for input embeddings, which detectors lack.
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), nn.ModuleDict({"model": model})
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    if config.gradient_checkpointing and not checkpoint_layers(model):
        raise FoundationError(
            f"{setting}: {type(model).__name__} has no layers that transformers can compute again; "
            "set gradient_checkpointing: false"
        )


def checkpoint_layers(model: nn.Module) -> int:
    """Makes the backward pass recompute the innermost repeated layers; returns their number.

    These are the layers that transformers can recompute.  Otherwise they are the items of lists of equal modules, such
    as the layers of an encoder or decoder.  Random numbers are redrawn identically.
    """
    own: Any = transformers().modeling_layers.GradientCheckpointingLayer
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    repeated = {x for alike in lists if len(alike) > 1 and len({type(x) for x in alike}) == 1 for x in alike}
    layers = {m for m in model.modules() if isinstance(m, own) or (m in repeated and len(list(m.children())))}
    innermost = [m for m in model.modules() if m in layers and layers.isdisjoint(list(m.modules())[1:])]
    for layer in innermost:
        if isinstance(layer, own):
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _again
        else:
            kind: Any = type(layer)
            layer.__class__ = _computed_again(kind)
    return len(innermost)


def _again(function: Any, *args: Any, **named: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False, **named)


@cache
def _computed_again(kind: Any) -> Any:
    """A subclass whose forward pass is recomputed; a class, so that copies of a layer run their own forward pass."""

    def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
        of_kind = partial(kind.forward, self)
        again = self.training and torch.is_grad_enabled()
        return _again(of_kind, *args, **named) if again else of_kind(*args, **named)

    return type(kind.__name__, (kind,), {"forward": forward, "gradient_checkpointing": True})


def _mm_grounding_dino_large() -> Any:
    """MM-Grounding-DINO with a Swin-L: the only Grounding DINO of that size whose weights were published."""
    package = transformers()
    swin = package.SwinConfig(
        image_size=384,
        window_size=12,
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return package.MMGroundingDinoConfig(backbone_config=swin, num_feature_levels=5)


def _sam2_hiera_large() -> Any:
    package = transformers()
    hiera = package.Sam2HieraDetConfig(
        hidden_size=144,
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        blocks_per_stage=[2, 6, 36, 4],
        global_attention_blocks=[23, 33, 43],
        window_size_per_stage=[8, 4, 16, 8],
        window_positional_embedding_background_size=[7, 7],
    )
    vision = package.Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=[1152, 576, 288, 144])
    return package.Sam2Config(vision_config=vision)


def _sam3() -> Any:
    """SAM 3; the configuration's defaults are those of the only published size."""
    return transformers().Sam3Config()


ARCHITECTURES = {
    "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg": _mm_grounding_dino_large,
    "openmmlab-community/mm_grounding_dino_large_all": _mm_grounding_dino_large,
    "facebook/sam2.1-hiera-large": _sam2_hiera_large,
    "facebook/sam3": _sam3,
}
