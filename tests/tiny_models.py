"""Tiny models with random weights of transformers' own classes, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ("disc", "triangle", "cross", "ring", "traffic", "light", "sign", "train", "##s", "cell", "red", "blue")


def save(name: str, path: Path) -> None:
    """Writes the model of this name of MODELS to a folder, with a tokenizer where it reads words."""
    MODELS[name]().save_pretrained(path)
    if name.endswith("grounding_dino"):
        tiny_tokenizer(path)
    if name == "sam3":
        tiny_processor(path)


def tiny_tokenizer(path: Path) -> None:
    """A BERT tokenizer of a few words whose special tokens have the numbers that the detectors' code counts on."""
    vocabulary = [f"[unused{i}]" for i in range(1200)]
    for token, number in (("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), ("[MASK]", 103)):
        vocabulary[number] = token
    vocabulary[1012], vocabulary[1029] = ".", "?"
    vocabulary[1100 : 1100 + len(WORDS)] = WORDS
    (path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)


def tiny_processor(path: Path) -> None:
    """SAM 3's image processor for a square of 64 pixels, and a CLIP tokenizer that knows single letters."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    images = transformers.Sam3ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 32, "width": 32})
    transformers.Sam3Processor(images, tokenizer).save_pretrained(path)


def _detector(kind: str) -> Any:
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = transformers.BertConfig(
        vocab_size=1200,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=swin, text_config=text, num_queries=8, d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, max_text_len=32,
        num_feature_levels=4,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def _sam2() -> Any:
    torch.manual_seed(0)
    hiera = transformers.Sam2HieraDetConfig(
        image_size=[64, 64], hidden_size=8, embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], blocks_per_stage=[1, 1, 2, 1], global_attention_blocks=[3],
        window_size_per_stage=[4, 4, 4, 2], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    prompt = transformers.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4)
    masks = transformers.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    return transformers.Sam2Model(
        transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=masks)
    )


def _sam3() -> Any:
    torch.manual_seed(0)
    vit = transformers.Sam3ViTConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], pretrain_image_size=32,
    )  # fmt: skip
    vision = transformers.Sam3VisionConfig(
        backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    text = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=16, intermediate_size=16, projection_dim=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    layers = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return transformers.Sam3Model(
        transformers.Sam3Config(
            vision_config=vision,
            text_config=text,
            geometry_encoder_config={**layers, "roi_size": 3},
            detr_encoder_config=layers,
            detr_decoder_config={**layers, "num_queries": 6},
            mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
        )
    )


def _mask2former() -> Any:
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=3, num_attention_heads=2, num_queries=6,
        id2label={0: "ring", 1: "Cross", 2: "cat"}, label2id={"ring": 0, "Cross": 1, "cat": 2},
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> Any:
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    detr = transformers.DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=swin,
        decoder_config=detr,
        fpn_feature_size=32,
        mask_feature_size=16,
        id2label={0: "ring", 1: "Cross", 2: "cat"},
        label2id={"ring": 0, "Cross": 1, "cat": 2},
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def _eomt(kind: str = "Eomt", **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16, num_blocks=1,
        num_queries=6, num_register_tokens=1, id2label={0: "ring", 1: "cross"}, label2id={"ring": 0, "cross": 1},
        **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForUniversalSegmentation")(config)


def _rf_detr(task: str = "InstanceSegmentation") -> Any:
    torch.manual_seed(0)
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=60, patch_size=8,
        num_windows=2, out_features=["stage1", "stage2"], use_mask_token=False,
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, d_model=16, num_queries=6, group_detr=3, decoder_layers=2, decoder_ffn_dim=16,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, decoder_n_points=2, c2f_num_blocks=1,
        intermediate_size=16, dropout=0.0, id2label={0: "ring", 1: "Cross", 2: "cat"},
        label2id={"ring": 0, "Cross": 1, "cat": 2},
    )  # fmt: skip
    return getattr(transformers, f"RfDetrFor{task}")(config)


MODELS: dict[str, Callable[[], Any]] = {
    "mm_grounding_dino": lambda: _detector("MMGroundingDino"),
    "grounding_dino": lambda: _detector("GroundingDino"),
    "sam2": _sam2,
    "sam3": _sam3,
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "eomt": _eomt,
    "eomt_dinov3": lambda: _eomt("EomtDinov3", intermediate_size=32),
    "rf_detr": _rf_detr,
    "rf_detr_boxes": lambda: _rf_detr("ObjectDetection"),
}
