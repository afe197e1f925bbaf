"""An open-vocabulary detector: boxes with class logits from a text prompt of class names, and the detector's own loss.

Grounding DINO and MM-Grounding-DINO of transformers.  Shape letters: B images, Q detector queries, T text tokens,
C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.class_scores import with_no_object
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.segmenter import JointTotal, at_least_float32, own_total

# Class logit of a class that a query's prompt does not contain.
_NOT_ASKED = -20.0
_SURE = 1e-6
_TOKENS = (".", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class Prompt:
    """A text prompt: token ids (T,), the classes it asks for, and spans (n, T), each class's weights of the tokens.

    The rows of `spans` sum to 1: a class's probability is the mean over its tokens.
    """

    tokens: Tensor
    classes: list[int]
    spans: Tensor

    def to_lists(self) -> dict[str, Any]:
        """The prompt as plain data."""
        return {"tokens": self.tokens.tolist(), "classes": self.classes, "spans": self.spans.tolist()}

    @classmethod
    def of_lists(cls, written: Mapping[str, Any]) -> Prompt:
        """The prompt that `to_lists` wrote."""
        return cls(torch.tensor(written["tokens"]), list(written["classes"]), torch.tensor(written["spans"]))


def build_prompts(texts: Sequence[str], tokenizer: Any, limit: int) -> list[Prompt]:
    """Pack texts, one for each class, into prompts of at most `limit` tokens.

    Every text is tokenised separately, so that the position of a token tells its class, even if the token occurs
    several times.  Full stops and question marks, which separate classes in a prompt, are removed.  Raises
    FoundationError if a text has no tokens or is too long.
    """
    stop, first, last = (int(tokenizer.convert_tokens_to_ids(token)) for token in _TOKENS)
    groups: list[list[tuple[int, list[int]]]] = [[]]
    used = 2
    for index, text in enumerate(texts):
        clean = " ".join(text.lower().replace(".", " ").replace("?", " ").split())
        tokens: list[int] = tokenizer(clean, add_special_tokens=False)["input_ids"]
        if not tokens or len(tokens) + 3 > limit:
            raise FoundationError(
                f"class {index} ({text!r}) is {len(tokens)} tokens of the detector's text, expected 1 to {limit - 3}; "
                "name it otherwise in foundation.prompts"
            )
        if used + len(tokens) + 1 > limit:
            groups.append([])
            used = 2
        groups[-1].append((index, tokens))
        used += len(tokens) + 1
    return [_prompt(group, stop, first, last) for group in groups]


def _prompt(group: Sequence[tuple[int, list[int]]], stop: int, first: int, last: int) -> Prompt:
    ids, places = [first], []
    for _, tokens in group:
        places.append(slice(len(ids), len(ids) + len(tokens)))
        ids += [*tokens, stop]
    ids.append(last)
    spans = torch.zeros(len(group), len(ids))
    for row, place in zip(spans, places, strict=True):
        row[place] = 1 / (place.stop - place.start)
    return Prompt(torch.tensor(ids), [index for index, _ in group], spans)


@dataclass
class Detections:
    """boxes (B, Q, 4): centre x, y, width, height as shares of the image; class_logits (B, Q, C+1), no-object last.

    raw: for each prompt, the inputs of the detector's loss, tensors by name.
    """

    boxes: Tensor
    class_logits: Tensor
    raw: list[dict[str, Tensor]]

    def part(self, rows: slice) -> Detections:
        """The detections of some images of the batch."""
        raw = [{n: t[:, rows] if n in _BY_LAYER else t[rows] for n, t in of_prompt.items()} for of_prompt in self.raw]
        return Detections(self.boxes[rows], self.class_logits[rows], raw)

    def best(self, count: int) -> Detections:
        """The `count` likeliest detections of each image, of any class, without the inputs of the loss."""
        scores = -self.class_logits[..., -1]  # rises with the likeliest class's own probability
        index = scores.topk(min(count, scores.shape[1]), dim=1).indices.unsqueeze(-1)
        boxes, logits = (t.gather(1, index.expand(-1, -1, t.shape[-1])) for t in (self.boxes, self.class_logits))
        return Detections(boxes, logits, [])


# Inputs of a detector's loss whose first dimension is the decoder layer, before the images.
_BY_LAYER = ("outputs_class", "outputs_coord")


def _hand_out(
    logits: Tensor, labels: Any, device: Any, boxes: Tensor, config: Any, maps: Any, text_mask: Tensor, **more: Any
) -> tuple[None, dict[str, Any], None]:
    """Replaces a detector's loss: returns its inputs as terms, so that the loss can be computed later, per image."""
    tensors = {"logits": logits, "pred_boxes": boxes, "text_mask": text_mask, **more}
    return None, {name: tensor for name, tensor in tensors.items() if tensor is not None}, None


class Detector(nn.Module):
    """A (MM-)Grounding DINO that detects given classes.

    prompts: from `build_prompts`, for all classes.  side: shorter side that images are resized to, 0 = unchanged.
    """

    def __init__(self, model: Any, prompts: list[Prompt], side: int = 0) -> None:
        super().__init__()
        self.model, self.side, self.prompts = model, side, prompts
        self.classes = sum(len(prompt.classes) for prompt in prompts)
        # DETR-like training applies the loss to every decoder layer; published configurations turn this off.
        model.config.auxiliary_loss = True
        self.own_loss: Callable[..., Any] = model.loss_function
        model.loss_function = _hand_out

    def forward(self, images: Tensor) -> Detections:
        """Detect in normalised images (B, 3, H, W), with Q queries for every prompt, one prompt after the other.

        The detections keep the inputs of the loss only in training mode.
        """
        if self.side:
            factor = self.side / min(images.shape[-2:])
            size = [round(length * factor) for length in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        boxes, logits, raw = [], [], []
        for prompt in self.prompts:
            tokens = prompt.tokens.to(images.device).expand(len(images), -1)
            out = self.model(pixel_values=images, input_ids=tokens, labels=[] if self.training else None)
            boxes.append(at_least_float32(out.pred_boxes))
            logits.append(self._class_logits(out.logits.detach(), prompt))
            if self.training:
                raw.append({n: at_least_float32(t) for n, t in out.loss_dict.items()})
        return Detections(torch.cat(boxes, 1), torch.cat(logits, 1), raw)

    def _class_logits(self, token_logits: Tensor, prompt: Prompt) -> Tensor:
        """Class logits (B, Q, C+1) of `with_no_object`: a class's probability is a mean over its tokens (B, Q, T')."""
        spans = prompt.spans.to(token_logits.device)
        probs = at_least_float32(token_logits[..., : spans.shape[1]]).sigmoid()
        # Sums, not a matrix product: autocast would round it to bfloat16, in which sure classes become 1.
        given = torch.stack([(probs * row).sum(-1) for row in spans], -1).clamp(_SURE, 1 - _SURE).logit()
        logits = given.new_full((*given.shape[:2], self.classes), _NOT_ASKED)
        logits[..., prompt.classes] = given
        return with_no_object(logits)

    def loss(
        self, detections: Detections, boxes: Sequence[Tensor], labels: Sequence[Tensor], total: JointTotal = own_total
    ) -> Tensor:
        """The detector's own loss (matching, focal, box and overlap terms of every layer), a mean over the prompts.

        boxes: an image's (n, 4), x0 y0 x1 y1 as shares of the image; labels: its classes (n,).
        total: gives sums over the joint batch; the loss divides by its number of boxes for each prompt.
        """
        if not detections.raw:
            raise ValueError("detections: found no inputs of the loss; call the detector in training mode")
        losses = []
        for number, (prompt, raw) in enumerate(zip(self.prompts, detections.raw, strict=True)):
            given = dict(raw)
            logits, pred, mask = (given.pop(name) for name in ("logits", "pred_boxes", "text_mask"))
            targets = [self._targets(b.to(pred), c, prompt) for b, c in zip(boxes, labels, strict=True)]
            width = logits.shape[-1] - prompt.spans.shape[1]
            label_map = F.pad((prompt.spans > 0).long(), (0, width)).to(logits.device)
            with _own_boxes():
                loss, _, _ = self.own_loss(
                    logits, targets, logits.device, pred, self.model.config, (label_map,) * len(logits), mask, **given
                )
            count = loss.new_tensor(float(sum(len(target["boxes"]) for target in targets)))
            joint = total(f"boxes of prompt {number}", count).clamp(min=1)
            losses.append(loss * (count.clamp(min=1) / joint))
        return torch.stack(losses).mean()

    @staticmethod
    def _targets(boxes: Tensor, labels: Tensor, prompt: Prompt) -> dict[str, Tensor]:
        """An image's instances of a prompt's classes, with class indices in the prompt, boxes as centre and size."""
        asked = torch.tensor(prompt.classes, device=labels.device)
        where = (labels.unsqueeze(1) == asked).long()
        keep = where.any(1)
        corners = boxes[keep]
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        return {"class_labels": where.argmax(1)[keep], "boxes": torch.cat([centre, size], 1)}


@contextlib.contextmanager
def _own_boxes() -> Iterator[None]:
    """Makes transformers' loss divide by its own boxes.

    With accelerate in use, it would sum boxes over all ranks, and divide by the number of ranks twice.
    """
    module = import_module("transformers.loss.loss_for_object_detection")
    asked, module.is_accelerate_available = module.is_accelerate_available, lambda: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.is_accelerate_available = asked  # type: ignore[attr-defined]
