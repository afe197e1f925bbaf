"""Models of transformers behind the one interface: prompts, predictions, losses, loading and saving."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.instances import Instances
from sskd_fast.losses.box_loss import boxes_of
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import describe_again, load_checkpoint, load_weights, read_description
from sskd_fast.models.class_heads import head_for
from sskd_fast.models.detector import Detector, build_prompts
from sskd_fast.models.grounded_sam import GroundedSam, jittered
from sskd_fast.models.pretrained import FoundationError, WordTokenizer
from sskd_fast.models.results_file import ResultsFile
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.models.universal import UniversalSegmenter
from sskd_fast.train.loop import build_optimizer
from sskd_fast.train.schedule import Schedule, StageConfig, TrainConfig
from tests.described import save_described

pytest.importorskip("transformers")

Folder = Callable[[str], Path]
NAMES = ["disc", "traffic light", "traffic signs", "train"]
SIZE = (64, 96)


def grounded(folder: Folder, detector: str = "mm_grounding_dino", **changes: Any) -> GroundedSam:
    foundation = FoundationConfig(detector=str(folder(detector)), masks=str(folder("sam2")))
    foundation = dataclasses.replace(foundation, **changes.pop("foundation", {}))
    torch.manual_seed(0)
    model = build_segmenter(
        ModelConfig(kind="grounded_sam", num_queries=5, embedding=6, foundation=foundation, **changes), NAMES
    )
    assert isinstance(model, GroundedSam)
    return model


def universal(folder: Folder, name: str, **changes: Any) -> UniversalSegmenter:
    foundation = FoundationConfig(universal=str(folder(name)), **changes.pop("foundation", {}))
    model = build_segmenter(ModelConfig(kind="universal", embedding=6, foundation=foundation, **changes), NAMES)
    assert isinstance(model, UniversalSegmenter)
    return model


def instances(*boxes: tuple[int, int, int, int], labels: list[int] | None = None) -> Instances:
    """Filled boxes x0, y0, x1, y1 on an image of SIZE."""
    masks = torch.zeros((len(boxes), *SIZE), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    classes = torch.tensor(labels if labels is not None else [i % len(NAMES) for i in range(len(boxes))])
    return Instances(masks, classes.long(), torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.bool))


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# Prompts


def tokens_of(prompt: Any, row: int) -> list[int]:
    return [int(t) for t, share in zip(prompt.tokens, prompt.spans[row], strict=True) if share > 0]


def test_repeated_tokens_belong_to_the_class_at_their_place(tiny_foundation: Folder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_foundation("mm_grounding_dino"))
    (prompt,) = build_prompts(NAMES, tokenizer, 32)
    words = tokenizer.convert_ids_to_tokens(prompt.tokens.tolist())
    assert words == [
        "[CLS]",
        "disc",
        ".",
        "traffic",
        "light",
        ".",
        "traffic",
        "sign",
        "##s",
        ".",
        "train",
        ".",
        "[SEP]",
    ]
    assert [tokenizer.convert_ids_to_tokens(tokens_of(prompt, row)) for row in range(4)] == [
        ["disc"],
        ["traffic", "light"],
        ["traffic", "sign", "##s"],
        ["train"],
    ]
    assert prompt.classes == [0, 1, 2, 3]
    torch.testing.assert_close(prompt.spans.sum(1), torch.ones(4))
    assert (prompt.spans > 0).sum(0).max() == 1


def test_classes_that_do_not_fit_into_one_prompt_go_into_the_next() -> None:
    prompts = build_prompts(["red disc", "blue ring", "cross", "red cross"], WordTokenizer(), 9)
    assert [p.classes for p in prompts] == [[0, 1], [2, 3]]
    assert all(len(p.tokens) <= 9 and p.tokens[0] == 101 and p.tokens[-1] == 102 for p in prompts)


def test_stops_within_a_name_do_not_split_its_class() -> None:
    (prompt,) = build_prompts(["st. ring?", "disc"], WordTokenizer(), 32)
    assert prompt.tokens.tolist().count(1012) == 2 and (prompt.spans[0] > 0).sum() == 2
    with pytest.raises(FoundationError, match=r"class 1 \('\?'\) is 0 tokens"):
        build_prompts(["disc", "?"], WordTokenizer(), 32)
    with pytest.raises(FoundationError, match="is 7 tokens of the detector's text, expected 1 to 5"):
        build_prompts(["a b c d e f g"], WordTokenizer(), 8)


def test_labels_of_the_prompt_are_those_that_the_detectors_code_finds(tiny_foundation: Folder) -> None:
    """Our spans and transformers' own segmentation of the prompt agree class by class."""
    from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import build_label_maps

    detector = grounded(tiny_foundation).detector
    (prompt,) = detector.prompts
    (theirs,) = build_label_maps(torch.zeros(1, 1, 32), prompt.tokens[None])
    assert torch.equal(theirs[:, : len(prompt.tokens)].bool(), prompt.spans > 0)


def test_class_logits_are_the_mean_token_probabilities(tiny_foundation: Folder) -> None:
    detector = grounded(tiny_foundation).detector
    (prompt,) = detector.prompts
    probs = torch.full((1, 2, 32), 1e-6)
    place = {token: int(torch.nonzero(prompt.spans[row])[0]) for row, token in enumerate(("disc", "light"))}
    probs[0, 0, place["disc"]] = 0.7
    probs[0, 1, place["light"]], probs[0, 1, place["light"] + 1] = 0.9, 0.5
    given = detector._class_logits(probs.logit(), prompt).softmax(-1)
    torch.testing.assert_close(given[0, 0, [0, 4]], torch.tensor([0.7, 0.3]), atol=1e-4, rtol=0)
    torch.testing.assert_close(given[0, 1, [1, 4]], torch.tensor([0.7, 0.3]), atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(detector._class_logits(probs.logit(), prompt).softmax(-1), given)


def test_sure_classes_have_finite_logits_in_bfloat16(tiny_foundation: Folder) -> None:
    """Token probabilities that bfloat16 rounds to 1."""
    detector = grounded(tiny_foundation, precision="bfloat16").detector
    with torch.autocast("cpu", torch.bfloat16):
        logits = detector._class_logits(torch.full((1, 2, 32), 20.0).bfloat16(), detector.prompts[0])
    assert bool(logits.isfinite().all()) and bool((logits.softmax(-1)[..., -1] < 1e-5).all())


# The composite teacher


@pytest.mark.parametrize("detector", ["mm_grounding_dino", "grounding_dino"])
def test_composite_predictions(tiny_foundation: Folder, detector: str) -> None:
    model = grounded(tiny_foundation, detector).eval()
    predictions = model(torch.rand(2, 3, *SIZE))
    assert predictions.mask_logits.shape == (2, 5, 16, 16)
    assert predictions.class_logits.shape == (2, 5, 5)
    assert predictions.pixel_features.shape == (2, 32, 4, 4)
    assert model.embed(model.encode(torch.rand(1, 3, *SIZE))).shape == (1, 6, 4, 4)


def test_images_of_a_batch_do_not_influence_each_other(tiny_foundation: Folder) -> None:
    model = grounded(tiny_foundation).eval()
    images = torch.rand(3, 3, *SIZE)
    both, alone = model(images), model(images[1:2])
    torch.testing.assert_close(both.mask_logits[1:2], alone.mask_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both.class_logits[1:2], alone.class_logits, rtol=1e-3, atol=1e-3)


def test_several_prompts_give_the_classes_of_each_to_their_own_queries(tiny_foundation: Folder) -> None:
    model = grounded(tiny_foundation).eval()
    detector = Detector(model.detector.model, build_prompts(NAMES, WordTokenizer(), 32))
    detector.prompts = build_prompts(NAMES, WordTokenizer(), 8)
    for prompt in detector.prompts:
        prompt.tokens.clamp_(max=1110)
    found = detector.eval()(torch.rand(1, 3, *SIZE))
    groups = [p.classes for p in detector.prompts]
    assert (
        len(groups) > 1
        and [c for group in groups for c in group] == [0, 1, 2, 3]
        and found.boxes.shape[1] == 8 * len(groups)
    )
    for number, classes in enumerate(groups):
        logits = found.class_logits[0, 8 * number : 8 * (number + 1), :-1]
        assert all(bool((logits[:, c] > -19).all()) == (c in classes) for c in range(4))


def test_boxes_prompt_the_masks_in_the_square_of_sam(tiny_foundation: Folder) -> None:
    """`masks_in` says what SAM 2 says of the same boxes in pixels of its own input."""
    model = grounded(tiny_foundation).eval()
    images = torch.rand(1, 3, *SIZE)
    encoded = model.encode(images)
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]]])
    square = nn.functional.interpolate(encoded.images, size=(64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        theirs = model.sam(pixel_values=square, input_boxes=boxes * 64, multimask_output=False)
        torch.testing.assert_close(model.masks_in(encoded.maps, boxes), theirs.pred_masks.squeeze(2))


@pytest.mark.parametrize(("kind", "cell"), [("grounded_sam", (4, 6)), ("eomt", (4, 6)), ("mask2former", (4, 4))])
def test_cells_of_masks_have_the_shape_of_the_crop_if_it_is_resized(
    tiny_foundation: Folder, kind: str, cell: tuple[float, float]
) -> None:
    """On crops of 64 x 96, which become squares of 64."""
    model: Segmenter = grounded(tiny_foundation) if kind == "grounded_sam" else universal(tiny_foundation, kind)
    masks = model.eval()(torch.rand(1, 3, *SIZE)).mask_logits
    assert model.cell_size(SIZE) == cell == (SIZE[0] / masks.shape[-2], SIZE[1] / masks.shape[-1])
    assert model.cell_size((2 * SIZE[0], SIZE[1])) == (4 if kind == "mask2former" else 2 * cell[0], cell[1])


def test_a_part_of_the_batch_has_the_loss_of_a_batch_of_its_own(tiny_foundation: Folder) -> None:
    model = grounded(tiny_foundation).eval()
    model.detector.training = True  # keeps what the loss needs; the layers below draw nothing at random
    images, truth = (
        torch.rand(3, 3, *SIZE),
        [instances((4, 4, 30, 40)), instances(), instances((50, 8, 90, 60), labels=[2])],
    )
    boxes, labels = [boxes_of(i) for i in truth], [i.labels for i in truth]
    part = model(images).part(slice(1, 3)).answer(boxes[1:], labels[1:])
    alone = model(images[1:]).answer(boxes[1:], labels[1:])
    torch.testing.assert_close(part.terms["detector"], alone.terms["detector"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(part.mask_logits, alone.mask_logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("detector", ["mm_grounding_dino", "grounding_dino"])
def test_adaptation_loss_is_the_detectors_own(tiny_foundation: Folder, detector: str) -> None:
    """The term equals what transformers computes when it is given the labels itself."""
    from transformers import AutoModelForZeroShotObjectDetection

    model = grounded(tiny_foundation, detector)
    theirs = AutoModelForZeroShotObjectDetection.from_pretrained(tiny_foundation(detector))
    theirs.config.auxiliary_loss = True
    images = torch.rand(2, 3, *SIZE)
    truth = [instances((4, 4, 30, 40), (40, 10, 90, 50), labels=[1, 3]), instances((8, 8, 20, 30), labels=[2])]
    model.detector.eval()
    theirs.eval()
    model.detector.training = True  # keeps what the loss needs; the layers below draw nothing at random
    detections = model.detector(images)
    ours = model.detector.loss(detections, [boxes_of(i) for i in truth], [i.labels for i in truth])
    targets = []
    for record in truth:
        x0, y0, x1, y1 = boxes_of(record).unbind(1)
        targets.append(
            {"class_labels": record.labels, "boxes": torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)}
        )
    tokens = model.detector.prompts[0].tokens.expand(2, -1)
    expected = theirs(pixel_values=images, input_ids=tokens, labels=targets).loss
    torch.testing.assert_close(ours, expected)


def test_each_side_of_a_box_moves_by_a_share_of_its_extent_within_the_image() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[0.3, 0.4, 0.5, 0.8], [0.0, 0.5, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]).expand(4000, 3, 4)
    moved = (jittered(boxes, 0.1) - boxes)[:, 0] / torch.tensor([0.2, 0.4, 0.2, 0.4])
    torch.testing.assert_close(moved.mean(0), torch.zeros(4), atol=0.005, rtol=0)
    torch.testing.assert_close(moved.std(0), torch.full((4,), 0.1 / 3**0.5), atol=0.002, rtol=0)
    assert 0.0999 < float(moved.abs().max()) <= 0.1 + 1e-6
    assert bool((torch.corrcoef(moved.T) - torch.eye(4)).abs().max() < 0.06), "each side by itself"
    wide, nothing = jittered(boxes, 0.1)[:, 1:].unbind(1)
    assert bool(((wide >= 0) & (wide <= 1)).all()) and bool((wide[:, 1::2] == 0.5).all()) and not bool(nothing.any())
    assert jittered(boxes, 0.0) is boxes
    with pytest.raises(ValueError, match=r"box_jitter=0\.5: expected a share of a box's side from 0 up, below 0.5"):
        FoundationConfig(box_jitter=0.5)


def test_boxes_that_prompt_are_jittered_in_training_alone(tiny_foundation: Folder) -> None:
    """By the state of the generator, so that a resumed training draws the same; the detector sees no jitter."""
    model = grounded(tiny_foundation).eval()
    model.detector.training = True  # keeps what the loss needs; the layers below draw nothing at random
    truth = [instances((4, 4, 30, 40), (40, 10, 90, 50), labels=[1, 3])]
    boxes, labels = [boxes_of(i) for i in truth], [i.labels for i in truth]
    predictions = model(torch.rand(1, 3, *SIZE))
    assert predictions.maps and model.config.foundation.box_jitter == 0.1
    plain = predictions.answer(boxes, labels)
    assert torch.equal(plain.mask_logits, model.masks_in(predictions.maps, boxes[0][None]))
    model.training = True
    state = torch.get_rng_state()
    answers = predictions.answer(boxes, labels)
    torch.set_rng_state(state)
    assert torch.equal(answers.mask_logits, model.masks_in(predictions.maps, jittered(boxes[0][None], 0.1)))
    torch.set_rng_state(state)
    assert torch.equal(answers.mask_logits, predictions.answer(boxes, labels).mask_logits)
    assert not torch.equal(answers.mask_logits, plain.mask_logits)
    assert torch.equal(answers.terms["detector"], plain.terms["detector"])


def adaptation_step(model: GroundedSam) -> dict[str, Tensor]:
    truth = [instances((4, 4, 30, 40), (40, 10, 90, 50)), instances()]
    encoded = model.encode(torch.rand(2, 3, *SIZE))
    output = SetLoss(SetLossConfig())(model.decode(encoded), truth, torch.ones(2, *SIZE, dtype=torch.bool))
    (output.loss + model.embed(encoded).square().mean()).backward()
    return output.parts


def reached(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adaptation_trains_detector_encoder_decoder_and_projection(tiny_foundation: Folder, precision: Any) -> None:
    model = grounded(tiny_foundation, precision=precision, gradient_checkpointing=True).train()
    parts = adaptation_step(model)
    assert set(parts) == {"mask", "dice", "detector"} and all(bool(p.isfinite()) for p in parts.values())
    names = reached(model)
    for prefix in (
        "detector.model.model.backbone.", "detector.model.model.text_backbone.", "detector.model.model.encoder.",
        "detector.model.model.decoder.layers.", "detector.model.model.decoder.bbox_embed.",
        "sam.vision_encoder.backbone.", "sam.mask_decoder.transformer.", "sam.prompt_encoder.point_embed",
        "projection.",
    ):  # fmt: skip
        assert any(n.startswith(prefix) for n in names), prefix


def test_checkpointing_changes_memory_and_not_gradients(tiny_foundation: Folder) -> None:
    gradients = []
    for again in (False, True):
        model = grounded(tiny_foundation, gradient_checkpointing=again).train()
        for module in model.modules():
            for name in ("p", "drop_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        torch.manual_seed(1)
        adaptation_step(model)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("detector", ["mm_grounding_dino", "grounding_dino"])
def test_layers_that_are_computed_again_draw_the_same_numbers(tiny_foundation: Folder, detector: str) -> None:
    """Same loss and gradients with dropout, which no tolerance hides; more boxes than are computed at once."""
    truth = [instances(*((4 * i, 4 * i, 4 * i + 20, 4 * i + 16) for i in range(10))), instances()]
    results = []
    for again in (False, True):
        model = grounded(tiny_foundation, detector, gradient_checkpointing=again).train()
        torch.manual_seed(1)
        predictions = model.decode(model.encode(torch.rand(2, 3, *SIZE)))
        loss = SetLoss(SetLossConfig())(predictions, truth, torch.ones(2, *SIZE, dtype=torch.bool)).loss
        loss.backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    kept, again = results
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_repeated_layers_are_computed_again(tiny_foundation: Folder) -> None:
    """A copy of such a layer, as the moving average has them, runs its own weights."""
    model = grounded(tiny_foundation, gradient_checkpointing=True).train()
    transformer = model.detector.model.model
    for layer in transformer.decoder.layers:
        assert layer.gradient_checkpointing and type(layer).__name__ == "MMGroundingDinoDecoderLayer"
    head = transformer.decoder.bbox_embed[0]
    nn.init.ones_(head.layers[-1].bias)
    other = copy.deepcopy(head)
    nn.init.zeros_(other.layers[-1].bias)
    x = torch.rand(1, 64, requires_grad=True)
    assert not bool(other(x).any()) and bool(head(x).any())


def test_adapters_train_alone(tiny_foundation: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = grounded(tiny_foundation, foundation={"lora_rank": 2}).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n or n.startswith("projection.") for n in trained)
    adaptation_step(model)
    assert any(n.startswith("detector.") for n in reached(model)) and any(n.startswith("sam.") for n in reached(model))
    optimizer = build_optimizer(model, Schedule(TrainConfig(lr=1e-3, backbone_lr=0.1), StageConfig(steps=1)))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    save_described(tmp_path / "adapted.safetensors", model, NAMES)
    again, _ = load_checkpoint(tmp_path / "adapted.safetensors")
    assert same(model, again)


def test_the_new_class_head_trains_whole_beside_adapters(tiny_foundation: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    foundation = FoundationConfig(universal=str(tiny_foundation("mask2former")), lora_rank=2)
    model = build_segmenter(ModelConfig(kind="universal", foundation=foundation), NAMES)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(model.class_tensors) <= trained
    assert all("lora_" in n or n.startswith(("projection.", "model.class_predictor.")) for n in trained)
    save_described(tmp_path / "model.safetensors", model, NAMES)
    turned = NAMES[::-1]
    other = build_segmenter(model.config, turned, weights=False)
    load_weights(other, tmp_path / "model.safetensors", turned)
    rows, theirs = (m.state_dict()["model.class_predictor.weight"] for m in (other, model))
    assert torch.equal(rows[:-1], theirs[:-1].flip(0)) and torch.equal(rows[-1], theirs[-1])


def test_backbones_learn_at_their_own_rate(tiny_foundation: Folder) -> None:
    model = grounded(tiny_foundation)
    optimizer = build_optimizer(model, Schedule(TrainConfig(lr=1e-3, backbone_lr=0.1), StageConfig(steps=1)))
    rate = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert rate[id(next(p for n, p in named.items() if n.startswith("sam.vision_encoder.")))] == pytest.approx(1e-4)
    assert rate[id(next(p for n, p in named.items() if ".text_backbone." in n))] == pytest.approx(1e-4)
    assert rate[id(next(p for n, p in named.items() if n.startswith("sam.mask_decoder.")))] == 1e-3


# Universal segmentation models


@pytest.mark.parametrize(
    ("name", "masks", "features", "earlier"), [("mask2former", (16, 24), (8, 12), 2), ("eomt", (16, 16), (4, 4), 1)]
)
def test_universal_predictions(
    tiny_foundation: Folder, name: str, masks: tuple[int, int], features: tuple[int, int], earlier: int
) -> None:
    model = universal(tiny_foundation, name).eval()
    predictions = model(torch.rand(2, 3, *SIZE))
    assert predictions.mask_logits.shape == (2, 6, *masks) and predictions.class_logits.shape == (2, 6, 5)
    assert predictions.pixel_features.shape[-2:] == features and len(predictions.auxiliary) == earlier
    output = SetLoss(SetLossConfig())(
        predictions, [instances((4, 4, 30, 40)), instances()], torch.ones(2, *SIZE).bool()
    )
    output.loss.backward()
    assert any(n.startswith(model.backbone_parts) for n in reached(model))


def test_known_classes_keep_their_rows() -> None:
    head = nn.Linear(3, 4)
    new = head_for(head, ["ring", "Cross", "cat"], ["cross", "disc", "ring"])
    assert torch.equal(new.weight[0], head.weight[1]) and torch.equal(new.weight[2], head.weight[0])
    torch.testing.assert_close(new.weight[1], head.weight[:3].mean(0))
    assert torch.equal(new.weight[3], head.weight[3]) and torch.equal(new.bias[3], head.bias[3])


# Loading and saving


@pytest.mark.parametrize("kind", ["grounded_sam", "mask2former", "eomt"])
def test_checkpoints_of_every_kind_are_read_back(tiny_foundation: Folder, tmp_path: Path, kind: str) -> None:
    model: Segmenter = grounded(tiny_foundation) if kind == "grounded_sam" else universal(tiny_foundation, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_described(tmp_path / "model.safetensors", model, NAMES, steps=1)
    gone = FoundationConfig(detector="gone", masks="gone", universal="gone")
    described = read_description(tmp_path / "model.safetensors").model
    describe_again(tmp_path / "model.safetensors", model=dataclasses.replace(described, foundation=gone))
    again, description = load_checkpoint(tmp_path / "model.safetensors")
    image = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        ours, theirs = model.eval()(image), again(image)
    assert torch.equal(ours.mask_logits, theirs.mask_logits) and torch.equal(ours.class_logits, theirs.class_logits)
    assert list(description.class_names) == NAMES and type(again) is type(model) and same(model, again)
    assert same(copy.deepcopy(model), model)


def test_a_student_takes_class_rows_by_name(tiny_foundation: Folder, tmp_path: Path) -> None:
    model = universal(tiny_foundation, "mask2former")
    save_described(tmp_path / "model.safetensors", model, NAMES)
    other = build_segmenter(model.config, ["train", "wheel"], weights=False)
    load_weights(other, tmp_path / "model.safetensors", ["train", "wheel"])
    rows = model.model.class_predictor.weight
    assert torch.equal(other.state_dict()["model.class_predictor.weight"][0], rows[3])
    torch.testing.assert_close(other.state_dict()["model.class_predictor.weight"][1], rows[:4].mean(0))


def test_weights_come_from_the_folder_and_random_ones_do_not(tiny_foundation: Folder) -> None:
    one, two = grounded(tiny_foundation), grounded(tiny_foundation)
    assert same(one.sam, two.sam) and same(one.detector.model, two.detector.model)
    torch.manual_seed(5)
    random = build_segmenter(one.config, NAMES, weights=False)
    assert isinstance(random, GroundedSam) and not same(random.sam, one.sam)
    assert random.state_dict().keys() == one.state_dict().keys()


def test_weights_of_a_video_model_serve_too(tmp_path: Path, tiny_foundation: Folder) -> None:
    """Published SAM 2 checkpoints are those of the video model: more tensors, another model type."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "video"
    folder.mkdir()
    config = json.loads((tiny_foundation("sam2") / "config.json").read_text())
    config |= {"model_type": "sam2_video", "architectures": ["Sam2VideoModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(str(tiny_foundation("sam2") / "model.safetensors")) | {"memory_encoder.extra": torch.zeros(3)}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model = grounded(tiny_foundation, foundation={"masks": str(folder)})
    assert same(model.sam, grounded(tiny_foundation).sam)


def test_a_model_that_cannot_be_had_is_named(tiny_foundation: Folder, tmp_path: Path) -> None:
    with pytest.raises(FoundationError, match=r"foundation\.masks: '.*nowhere' cannot be loaded"):
        grounded(tiny_foundation, foundation={"masks": str(tmp_path / "nowhere")})
    with pytest.raises(FoundationError, match="found 1 texts for 4 classes"):
        grounded(tiny_foundation, foundation={"prompts": ("disc",)})
    with pytest.raises(FoundationError, match=r"'timm/no_such_net' cannot be had \(Unknown model"):
        build_segmenter(ModelConfig(backbone="timm/no_such_net"), NAMES)
    broken = tmp_path / "weights.bin"
    broken.write_bytes(b"")
    with pytest.raises(FoundationError, match="'timm/vit_tiny_patch16_224' cannot be had"):
        build_segmenter(ModelConfig(backbone="timm/vit_tiny_patch16_224", backbone_checkpoint=str(broken)), NAMES)


@pytest.mark.parametrize(
    ("package", "settings", "message"),
    [
        (
            "transformers",
            {"kind": "grounded_sam"},
            "kind grounded_sam, sam3 and universal need transformers: pip install",
        ),
        ("transformers", {"kind": "universal"}, "kind grounded_sam, sam3 and universal need transformers: pip install"),
        ("timm", {"backbone": "timm/resnet50"}, "'timm/resnet50' needs the timm package: pip install"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises((FoundationError, ImportError), match=message):
        build_segmenter(ModelConfig(**settings), NAMES)


def test_missing_adapters_are_named(monkeypatch: pytest.MonkeyPatch, tiny_foundation: Folder) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(FoundationError, match=r"foundation.detector: foundation.lora_rank needs peft: pip install"):
        grounded(tiny_foundation, foundation={"lora_rank": 2})


# Predictions made elsewhere


def recorded(path: Path, content: Any) -> ResultsFile:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    model = build_segmenter(ModelConfig(kind="results", foundation=FoundationConfig(results=str(path))), NAMES)
    assert isinstance(model, ResultsFile)
    return model


def test_results_by_id_never_belong_to_images_that_were_only_numbered(tmp_path: Path) -> None:
    """Images of a plain folder have the numbers 1, 2, ... here, which a file of predictions cannot mean."""
    mask = {"size": [4, 4], "counts": "04<"}
    result = {"category_id": 1, "segmentation": mask, "score": 0.5}
    model = recorded(tmp_path / "r.json", [result | {"image_id": 1}, result | {"image_id": 2}])
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    plain = [record.named_by for record in ImageFolder(tmp_path).records]
    assert plain == [(None, "a.png"), (None, "b.png")]
    assert model.results_of(*plain[0]) == [] and not model.covers(plain)
    model.check_images([(1, "x.png"), (2, "y.png"), *plain])  # results of labelled images alone
    with pytest.raises(FoundationError, match=r"image_id 2, which no image of this data set has, and none of its 2 im"):
        model.check_images([(1, "x.png"), *plain])
    named = recorded(tmp_path / "s.json", [result | {"image_id": 5}, result | {"file_name": "b.png"}])
    named.check_images([(1, "x.png"), *plain])
    assert len(named.results_of(*plain[1])) == 1


def test_results_belong_to_images_by_file_name_or_id(tmp_path: Path) -> None:
    mask = {"size": [4, 4], "counts": "04<"}
    results = [
        {"image_id": 7, "category_id": 1, "segmentation": mask, "score": 0.5, "bbox": [0, 0, 1, 1]},
        {"image_id": 9, "file_name": "a.png", "category_id": 2, "segmentation": mask, "score": 0.25},
    ]
    model = recorded(tmp_path / "r.json", results)
    assert model.results_of(7, "x.png") == [{"category_id": 1, "segmentation": mask, "score": 0.5}]
    (named,) = model.results_of(3, "a.png")
    assert named["score"] == 0.25
    assert [found["score"] for found in model.results_of(7, "a.png")] == [0.25, 0.5]  # of both names
    assert model.results_of(9, "b.png") == [] and not model.covers([(9, "b.png")]) and model.covers([(7, "b.png")])
    model.check_images([(7, "b.png"), (8, "a.png"), (3, "c.png"), (3, "d.png")])
    with pytest.raises(FoundationError, match="the image_id 7 stands for 2 images of this data set"):
        model.check_images([(7, "b.png"), (7, "c.png")])
    with pytest.raises(FoundationError, match=r"the file_name 'a\.png' stands for 2 images"):
        model.check_images([(1, "a.png"), (2, "a.png")])
    assert not model.config.trainable
    other = recorded(tmp_path / "s.json", results[:1])
    assert not torch.equal(model.state_dict()["digest"], other.state_dict()["digest"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ({}, "holds a dict, expected a list"),
        ([{"image_id": 1}], "result 0 lacks category_id, score"),
        (
            [{"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": [[1, 1, 5, 1, 5, 5]]}],
            "result 0 has a segmentation of polygons, expected RLE",
        ),
        (
            [{"image_id": 1, "category_id": 1, "score": 87, "segmentation": {"size": [4, 4], "counts": [3, 13]}}],
            "result 0: `score` is 87, expected a number from 0 to 1; divide percent",
        ),
        (
            [{"image_id": 1, "category_id": 1, "score": -0.1, "segmentation": {"size": [4, 4], "counts": [3, 13]}}],
            "result 0: `score` is -0.1, expected a number from 0 to 1",
        ),
        (
            [{"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": {"size": [4, 4], "counts": [3, 2]}}],
            r"result 0 has a segmentation that is no sound RLE \(RLE counts that cover 5 pixels",
        ),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(FoundationError, match=message):
        recorded(tmp_path / "r.json", content)
