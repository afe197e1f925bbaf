"""SAM 3 as a teacher: masks, boxes and scores from one text prompt per class, with one encoder pass per image.

Shape letters: B images, C classes, T text tokens, K queries per class, N queries kept, F channels. P places of the
coarsest map, S side of the input, h x w cells of the masks (S/3.5 of the published model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from sskd_fast.models import pretrained
from sskd_fast.models.class_queries import ClassQueries
from sskd_fast.models.pixel_decoder import Projection
from sskd_fast.models.sam3_predictions import Asked, Encoded, Sam3Predictions
from sskd_fast.models.segmenter import Predictions, Segmenter, at_least_float32
from sskd_fast.models.settings import ModelConfig

_SETTING = "foundation.sam3"
# From the image processor: SAM 3 does not use ImageNet's statistics.
_MEAN = _STD = (0.5, 0.5, 0.5)


class Sam3(Segmenter):
    """SAM 3 of transformers: zero-shot from the classes' texts, and trained with our own losses, since it has none.

    The image encoder runs once per image.  The detector runs once per pair of image and class, `prompts_at_once` pairs
    at a time.  The mask decoder runs only for pairs with queries to draw.  With `gradient_checkpointing`, both are
    recomputed in the backward pass.  The geometry encoder, for boxes as prompts, stays frozen and unused.

    Crops are resized to SAM 3's training square, so masks have the same cells for any shape of the crop.
    """

    backbone_parts = ("model.vision_encoder.backbone.", "model.text_encoder.")
    reusable_parts = ()
    mean: Tensor
    std: Tensor
    tokens: Tensor
    attention: Tensor

    def __init__(
        self,
        config: ModelConfig,
        class_names: Sequence[str],
        *,
        weights: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        foundation = config.foundation
        texts = pretrained.prompt_texts(foundation, class_names)
        weights = weights and foundation.pretrained
        self.model: Any = pretrained.load(
            "Sam3Model", foundation.sam3, _SETTING, weights=weights, architectures=architecture
        )
        if architecture:
            self.prompts: list[list[int]] = architecture["foundation.prompts"]
        else:
            tokenizer = pretrained.load_tokenizer(foundation.sam3, _SETTING, weights=weights)
            limit = int(self.model.config.text_config.max_position_embeddings)
            self.prompts = text_tokens(texts, tokenizer, limit)
        self._adapt()
        self.gradient_checkpointing = config.gradient_checkpointing
        self.projection = Projection(self._channels(), 128, config.embedding)
        vision = self.model.config.vision_config
        self.input_size = (int(vision.image_size), int(vision.image_size))
        self.stride = vision.backbone_config.patch_size / 4  # the finest map has four cells along a patch
        rows = [torch.tensor(row) for row in self.prompts]
        self.register_buffer("tokens", pad_sequence(rows, batch_first=True), persistent=False)
        ones = [torch.ones_like(row) for row in rows]
        self.register_buffer("attention", pad_sequence(ones, batch_first=True), persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean or _MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or _STD).view(3, 1, 1), persistent=False)
        self._read: tuple[Any, Tensor] | None = None

    def _channels(self) -> int:
        return int(self.model.config.vision_config.fpn_hidden_size)

    def _adapt(self) -> None:
        """Adds adapters and checkpointing to the trainable parts; the rest is set aside meanwhile, and frozen."""
        aside = ["geometry_encoder"] + ["text_encoder"] * (not self.config.foundation.train_text)
        frozen = {name: getattr(self.model, name) for name in aside}
        for name in aside:
            setattr(self.model, name, nn.Identity())
        pretrained.adapt(self.model, self.config, _SETTING)
        for name, module in frozen.items():
            setattr(self.model, name, module.requires_grad_(False))

    def architecture(self) -> dict[str, Any]:
        """The configuration of SAM 3, and the prompts as tokens."""
        return {_SETTING: pretrained.architecture(self.model), "foundation.prompts": self.prompts}

    def encode(self, images: Tensor) -> Encoded:
        """SAM 3's features, independent of the prompts, of images (B, 3, H, W) in [0, 1]."""
        images = (images - self.mean) / self.std
        square = F.interpolate(images, size=self.input_size, mode="bilinear", antialias=True)
        with self.autocast():
            out = self.model.get_vision_features(pixel_values=square)
        # The coarsest map of all is for points and videos; the detector does not use it.
        maps = tuple(at_least_float32(m) for m in out.fpn_hidden_states[:-1])
        return Encoded(maps, out.fpn_position_encoding[-2].to(maps[-1]).expand_as(maps[-1]))

    def embed(self, encoded: Encoded) -> Tensor:
        """Embeddings (B, D, S/14, S/14) of the coarsest features."""
        with self.autocast():
            embeddings: Tensor = self.projection(encoded.maps[-1])
        return at_least_float32(embeddings)

    def decode(self, encoded: Encoded) -> Predictions:
        """The `num_queries` best queries of all classes; their masks have no gradient: training draws others."""
        asked = self.ask(encoded)
        index, class_logits = asked.queries.best(self.config.num_queries)
        image = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
        with torch.no_grad():
            masks = self.draw(encoded, asked, image, index.flatten())
        return Sam3Predictions(
            masks.unflatten(0, index.shape), class_logits, encoded.maps[-1], model=self, encoded=encoded, asked=asked
        )

    def texts(self) -> Tensor:
        """Features (C, T, F) of the prompts; a frozen text encoder computes them once."""
        encoder, parameters = self.model.text_encoder, list(self.model.text_encoder.parameters())
        prompts = {"input_ids": self.tokens, "attention_mask": self._shown(self.attention)}
        if self.training and torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            hidden = encoder(**prompts).last_hidden_state
        else:
            state = (self.tokens.device, self.config.precision, [(p.data_ptr(), p._version) for p in parameters])
            if self._read is None or self._read[0] != state:
                # Outside inference mode, so that later training can use them.
                with torch.inference_mode(False), torch.no_grad():
                    hidden = encoder(**prompts).last_hidden_state
                self._read = state, hidden
            hidden = self._read[1]
        projected: Tensor = self.model.text_projection(hidden)
        return projected

    def ask(self, encoded: Encoded) -> Asked:
        """The detector's answers to every prompt on every image."""
        with self.autocast():
            texts, mask = self.texts(), self.attention.bool()
            images, classes = len(encoded.position), len(texts)
            parts: list[tuple[Tensor, ...]] = []
            for pairs in torch.arange(images * classes, device=mask.device).split(self._at_once):
                of, prompt = pairs // classes, pairs % classes
                coarse, position = encoded.maps[-1][of], encoded.position[of]
                parts.append(self._again(self._detect, coarse, position, texts[prompt], self._shown(mask[prompt])))
        logits, presence, boxes, states, memory = (
            at_least_float32(torch.cat(t)).unflatten(0, (images, classes)) for t in zip(*parts, strict=True)
        )
        return Asked(ClassQueries(logits, presence.squeeze(2), boxes), states, memory)

    @property
    def _at_once(self) -> int:
        return self.config.foundation.prompts_at_once

    def _again(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's value; in training with checkpointing, the backward pass recomputes it."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    @staticmethod
    def _shown(mask: Tensor) -> Tensor | None:
        """A token mask for transformers, which reads its values: None on the meta device."""
        return None if mask.is_meta else mask

    def _detect(self, coarse: Tensor, position: Tensor, texts: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Class logits (n, K), presence logits (n, 1), boxes (n, K, 4), query states and memory of n pairs."""
        from transformers.models.sam3 import modeling_sam3

        own: Any = modeling_sam3
        model, decoder = self.model, self.model.detr_decoder
        memory = model.detr_encoder(
            vision_features=[coarse], text_features=texts, vision_pos_embeds=[position], text_mask=mask
        )
        found = decoder(
            vision_features=memory.last_hidden_state,
            text_features=texts,
            text_mask=mask,
            vision_pos_encoding=memory.pos_embeds_flattened,
            # On the CPU, where it can be read without waiting for the device.
            spatial_shapes=torch.tensor([coarse.shape[-2:]], device="cpu"),
        )
        states = found.intermediate_hidden_states[-1]
        boxes = own.inverse_sigmoid(found.reference_boxes[-1]) + decoder.box_head(states)
        logits = model.dot_product_scoring(decoder_hidden_states=states[None], text_features=texts, text_mask=mask)
        corners = own.box_cxcywh_to_xyxy(boxes.sigmoid())
        return logits[0].squeeze(-1), found.presence_logits[-1], corners, states, memory.last_hidden_state

    def draw(self, encoded: Encoded, asked: Asked, image: Tensor, query: Tensor) -> Tensor:
        """Mask logits (n, h, w) of queries (n,), indices in C*K, on images (n,)."""
        classes, each = asked.states.shape[1:3]
        if not len(query):
            return encoded.maps[0].new_zeros((0, *encoded.maps[0].shape[-2:]))
        pairs, order, counts = _by_pair(image * classes + query // each, len(asked.states) * classes)
        states = asked.states.flatten(1, 2)[image, query][order].split(counts)
        masks: list[Tensor] = []
        with self.autocast():
            texts = self.texts()
            for start in range(0, len(pairs), self._at_once):
                some = slice(start, start + self._at_once)
                of, prompt = pairs[some] // classes, pairs[some] % classes
                drawn = self._again(
                    self._masks,
                    [m[of] for m in encoded.maps],
                    asked.memory[of, prompt],
                    texts[prompt],
                    self._shown(self.attention[prompt].bool()),
                    pad_sequence(list(states[some]), batch_first=True),
                )
                masks += [m[:count] for m, count in zip(drawn, counts[some], strict=True)]
        return at_least_float32(torch.cat(masks))[order.argsort()]

    def _masks(self, maps: list[Tensor], memory: Tensor, texts: Tensor, mask: Tensor | None, states: Tensor) -> Tensor:
        """Mask logits (n, k, h, w) of k queries of each of n pairs."""
        out = self.model.mask_decoder(
            decoder_queries=states,
            backbone_features=maps,
            encoder_hidden_states=memory,
            prompt_features=texts,
            prompt_mask=mask,
        )
        masks: Tensor = out.pred_masks
        return masks


def _by_pair(pair: Tensor, most: int) -> tuple[Tensor, Tensor, list[int]]:
    """Group rows by pair (n,), below `most`: returns the pairs that occur, the order of rows, and rows per pair."""
    each = [] if pair.is_meta else (pair == torch.arange(most, device=pair.device)[:, None]).sum(1).tolist()
    if sum(each) != len(pair):  # no values: assume that rows are spread over all pairs, the costliest case
        count, more = divmod(len(pair), most)
        each = [count + (i < more) for i in range(most)]
    pairs = torch.tensor([i for i, rows in enumerate(each) if rows], dtype=torch.int64, device=pair.device)
    return pairs, pair.argsort(stable=True), [rows for rows in each if rows]


def text_tokens(texts: Sequence[str], tokenizer: Any, limit: int) -> list[list[int]]:
    """Token ids of texts, one text per class.  Raises FoundationError if a text has more than `limit` tokens."""
    tokens: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]
    for index, (text, row) in enumerate(zip(texts, tokens, strict=True)):
        if not text.strip() or len(row) > limit:
            raise pretrained.FoundationError(
                f"class {index} ({text!r}) is {len(row)} tokens of SAM 3's text, expected a text of at most {limit}; "
                "name it otherwise in foundation.prompts"
            )
    return tokens
