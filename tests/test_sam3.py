"""SAM 3 as a teacher: what it says, what it learns from, what its checkpoints carry; tiny models of the real class."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.data.instances import Instances
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig, SetLossOutput, boxes_of
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import describe_again, load_checkpoint, read_description
from sskd_fast.models.class_queries import ClassQueries, match_within_classes, query_losses
from sskd_fast.models.licences import Ancestor, ancestors_of, as_labels, licence_of
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.sam3 import Sam3, Sam3Predictions
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.predictor.card import card_text
from sskd_fast.train.loop import build_optimizer
from sskd_fast.train.schedule import Schedule, StageConfig, TrainConfig
from tests.described import save_described

transformers = pytest.importorskip("transformers")

Folder = Callable[[str], Path]
NAMES = ["red disc", "ring", "cell"]
SIZE = (48, 64)


def sam3(folder: Folder, **changes: Any) -> Sam3:
    foundation = FoundationConfig(sam3=str(folder("sam3")), prompts_at_once=4)
    foundation = dataclasses.replace(foundation, **changes.pop("foundation", {}))
    torch.manual_seed(0)
    model = build_segmenter(
        ModelConfig(kind="sam3", num_queries=5, embedding=6, foundation=foundation, **changes), NAMES
    )
    assert isinstance(model, Sam3)
    return model


def instances(*boxes: tuple[int, int, int, int], labels: list[int]) -> Instances:
    """Filled boxes x0, y0, x1, y1 on an image of SIZE."""
    masks = torch.zeros((len(boxes), *SIZE), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    count = len(boxes)
    return Instances(masks, torch.tensor(labels).long(), torch.ones(count), torch.zeros(count, dtype=torch.bool))


TRUTH = [
    instances((4, 4, 30, 40), (40, 10, 60, 30), (36, 2, 50, 20), labels=[1, 2, 2]),
    instances((8, 8, 20, 30), labels=[0]),
]
VALID = torch.ones(2, *SIZE, dtype=torch.bool)


def step(model: Sam3, images: Tensor) -> SetLossOutput:
    encoded = model.encode(images)
    output = SetLoss(SetLossConfig())(model.decode(encoded), TRUTH, VALID)
    (output.loss + model.embed(encoded).square().mean()).backward()
    return output


def reached(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


# Predictions


def test_every_class_is_answered_as_the_model_itself_answers_its_prompt(tiny_foundation: Folder) -> None:
    """Scores, boxes and masks of Sam3Model's own forward with the processor's tokens, class by class."""
    model = sam3(tiny_foundation).eval()
    processor = transformers.Sam3Processor.from_pretrained(tiny_foundation("sam3"))
    theirs = transformers.Sam3Model.from_pretrained(tiny_foundation("sam3")).eval()
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        encoded = model.encode(images)
        asked = model.ask(encoded)
        image, query = torch.arange(2).repeat_interleave(18), torch.arange(18).repeat(2)
        masks = model.draw(encoded, asked, image, query).view(2, 3, 6, 32, 32)
        square = F.interpolate((images - 0.5) / 0.5, size=(64, 64), mode="bilinear", antialias=True)
        for label, name in enumerate(NAMES):
            text = processor(text=[name, name], return_tensors="pt")
            expected = theirs(pixel_values=square, **text)
            close = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(asked.queries.logits[:, label], expected.pred_logits, **close)
            torch.testing.assert_close(asked.queries.presence[:, label], expected.presence_logits[:, 0], **close)
            torch.testing.assert_close(asked.queries.boxes[:, label], expected.pred_boxes, **close)
            torch.testing.assert_close(masks[:, label], expected.pred_masks, **close)
    assert float(asked.queries.logits.std()) > 0 and float(masks.std()) > 0


def test_input_is_normalised_as_the_processor_does(tiny_foundation: Folder) -> None:
    processor = transformers.Sam3Processor.from_pretrained(tiny_foundation("sam3"))
    model = sam3(tiny_foundation)
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    theirs = processor(images=pixels, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close((pixels / 255 - model.mean) / model.std, theirs, atol=1e-5, rtol=0)


def test_predictions_are_the_best_queries_with_their_own_masks(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation).eval()
    with torch.no_grad():
        encoded = model.encode(torch.rand(2, 3, *SIZE))
        found, asked = model.decode(encoded), model.ask(encoded)
        queries = asked.queries
        scores = (queries.presence.sigmoid().unsqueeze(2) * queries.logits.sigmoid()).flatten(1)
        best = scores.topk(5, dim=1).indices
        masks = model.draw(encoded, asked, torch.arange(2).repeat_interleave(5), best.flatten())
    assert found.mask_logits.shape == (2, 5, 32, 32) and found.class_logits.shape == (2, 5, 4)
    assert model.cell_size(SIZE) == (SIZE[0] / 32, SIZE[1] / 32)
    assert found.pixel_features.shape == (2, 32, 8, 8) and model.embed(encoded).shape == (2, 6, 8, 8)
    probs = found.class_logits.softmax(-1)
    torch.testing.assert_close(probs[..., :-1].amax(-1), scores.gather(1, best), atol=1e-6, rtol=1e-5)
    assert torch.equal(probs[..., :-1].argmax(-1), best // 6)
    torch.testing.assert_close(found.mask_logits, masks.unflatten(0, (2, 5)), atol=1e-5, rtol=1e-5)


def test_the_image_is_encoded_once_and_the_prompts_once_a_run(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation)
    calls: dict[str, int] = {"image": 0, "text": 0, "prompts": 0}

    def count(name: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            calls[name] += 1

        return called

    model.model.vision_encoder.register_forward_hook(count("image"))
    model.model.text_encoder.register_forward_hook(count("text"))
    model.model.detr_decoder.register_forward_hook(count("prompts"))
    with torch.inference_mode():
        model.eval()(torch.rand(2, 3, *SIZE))
    assert calls == {"image": 1, "text": 1, "prompts": 2}  # 2 images x 3 classes, 4 pairs at a time
    step(model.train(), torch.rand(2, 3, *SIZE))  # the features of the prompts serve here, too
    assert calls == {"image": 2, "text": 1, "prompts": 4}
    with torch.no_grad():
        next(model.model.text_encoder.parameters()).add_(1.0)
        model.eval()(torch.rand(1, 3, *SIZE))
    assert calls["text"] == 2


def test_images_of_a_batch_and_chunks_of_prompts_do_not_influence_each_other(tiny_foundation: Folder) -> None:
    model, one = sam3(tiny_foundation).eval(), sam3(tiny_foundation, foundation={"prompts_at_once": 1}).eval()
    images = torch.rand(3, 3, *SIZE)
    with torch.no_grad():
        both, alone = model(images), one(images[1:2])
    torch.testing.assert_close(both.mask_logits[1:2], alone.mask_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.class_logits[1:2], alone.class_logits, rtol=1e-4, atol=1e-5)


# Scores


def test_a_score_is_presence_times_the_querys_own_probability() -> None:
    queries = ClassQueries(
        torch.tensor([[[0.0, 2.0], [-1.0, 3.0]]]), torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2, 2, 4)
    )
    index, logits = queries.best(3)
    probs = logits.exp()

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert index.tolist() == [[1, 0, 3]]
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 3))
    torch.testing.assert_close(logits.softmax(-1), probs)
    expected = [[s(1) * s(2), 0.0], [s(1) * s(0), 0.0], [0.0, s(-2) * s(3)]]
    torch.testing.assert_close(probs[0, :, :-1], torch.tensor(expected))


def test_sure_and_impossible_queries_have_finite_scores_and_gradients() -> None:
    logits = torch.tensor([[[12.0, -12.0]]], requires_grad=True)
    presence = torch.tensor([[10.0]], requires_grad=True)
    _, given = ClassQueries(logits, presence, torch.zeros(1, 1, 2, 4)).best(9)
    assert given.shape == (1, 2, 2)
    p, q = 1 / (1 + math.exp(-10.0)), 1 / (1 + math.exp(-12.0))
    assert given[0, 0, 1].item() == pytest.approx(math.log((1 - p) + p * (1 - q)), rel=1e-4)
    given.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


# Matching and losses


def test_a_query_is_matched_to_instances_of_its_own_class_alone() -> None:
    """The query that fits an instance best asks for another class; a class without a free query leaves it out."""
    box = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.2, 0.5, 0.4, 0.9]])
    boxes = torch.stack([torch.stack([box[0], box[1]]), torch.stack([torch.tensor([0.0, 0.0, 1.0, 1.0]), box[1]])])
    queries = ClassQueries(torch.zeros(1, 2, 2), torch.zeros(1, 2), boxes[None])
    assigned = match_within_classes(queries, [box[[0, 1]]], [torch.tensor([1, 0])])
    assert assigned.tolist() == [[3, 1]]  # of class 1, query 3 lies nearer than query 2
    assigned = match_within_classes(queries, [box], [torch.tensor([1, 1, 1])])
    assert sorted(assigned[0].tolist()) == [-1, 2, 3] and assigned[0, 1] == 3
    queries.logits[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="class logits or boxes are not finite"):
        match_within_classes(queries, [box], [torch.tensor([1, 1, 1])])


def bce(logit: float, target: float) -> float:
    return math.log1p(math.exp(-logit)) if target else math.log1p(math.exp(logit))


def test_losses_are_those_of_presence_own_probability_and_box() -> None:
    logits, presence = torch.tensor([[[0.5, -1.0], [2.0, 1.0]]]), torch.tensor([[0.7, -0.3]])
    boxes = torch.tensor([[[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], [[0.1, 0.1, 0.2, 0.2]] * 2]])
    truth = [torch.tensor([[0.0, 0.0, 0.5, 0.25]])]
    given = [torch.tensor([0])], [torch.tensor([0.8])]
    losses = query_losses(ClassQueries(logits, presence, boxes), torch.tensor([[0]]), truth, *given, None)
    expected = 2 * (0.8 * bce(0.7, 1) + bce(-0.3, 0)) / 1.8
    assert losses["presence"].item() == pytest.approx(expected, rel=1e-5)
    # The class that is not there says nothing of its queries; weights sum to less than one instance.
    assert losses["query"].item() == pytest.approx(2 * (0.8 * bce(0.5, 1) + bce(-1.0, 0)), rel=1e-5)
    distance = 0.125 + 0.25  # centre and height
    assert losses["box"].item() == pytest.approx(0.8 * (5 * distance + 2 * (1 - 0.5)), rel=1e-4)


def test_pixels_that_do_not_count_hold_neither_negatives_nor_absent_classes() -> None:
    logits, presence = torch.tensor([[[0.5, -1.0], [2.0, 1.0]]]), torch.tensor([[0.7, -0.3]])
    boxes = torch.tensor([[[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], [[0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.2, 0.2]]]])
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    valid[:, 10:, 10:] = False
    truth = [torch.tensor([[0.0, 0.0, 0.5, 0.5]])]
    given = [torch.tensor([0])], [torch.ones(1)]
    losses = query_losses(ClassQueries(logits, presence, boxes), torch.tensor([[0]]), truth, *given, valid)
    assert losses["query"].item() == pytest.approx(2 * bce(0.5, 1), rel=1e-5)
    assert losses["presence"].item() == pytest.approx(2 * bce(0.7, 1), rel=1e-5)


def test_a_part_of_the_batch_has_the_loss_of_a_batch_of_its_own(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation).eval()
    images = torch.rand(2, 3, *SIZE)
    boxes, labels = [boxes_of(TRUTH[1])], [TRUTH[1].labels]
    part = model(images).part(slice(1, 2))
    assert isinstance(part, Sam3Predictions)
    answers, alone = part.answer(boxes, labels), model(images[1:]).answer(boxes, labels)
    torch.testing.assert_close(answers.mask_logits, alone.mask_logits, rtol=1e-4, atol=1e-5)
    for name in ("presence", "query", "box"):
        torch.testing.assert_close(answers.terms[name], alone.terms[name], rtol=1e-4, atol=1e-5)


def test_more_instances_than_queries_are_reported(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation).eval()
    truth = [instances(*[(4 * i, 2, 4 * i + 3, 20) for i in range(8)], labels=[1] * 8)]
    output = SetLoss(SetLossConfig())(model(torch.rand(1, 3, *SIZE)), truth, VALID[:1])
    assert output.matched.item() == 6 / 8 and bool(output.loss.isfinite())


def test_images_without_instances_teach_absence(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation).train()
    empty = [Instances.empty(*SIZE)] * 2
    output = SetLoss(SetLossConfig())(model(torch.rand(2, 3, *SIZE)), empty, VALID)
    output.loss.backward()
    assert output.parts["query"] == 0 and output.parts["presence"] > 0
    assert any(n.startswith("model.detr_decoder.presence_head.") for n in reached(model))


# Training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adaptation_reaches_encoder_detector_and_decoder(tiny_foundation: Folder, precision: Any) -> None:
    model = sam3(tiny_foundation, precision=precision, gradient_checkpointing=True).train()
    output = step(model, torch.rand(2, 3, *SIZE))
    assert set(output.parts) == {"mask", "dice", "presence", "query", "box"} and output.matched == 1
    assert all(bool(p.isfinite()) for p in output.parts.values())
    names = reached(model)
    for prefix in (
        "vision_encoder.backbone.layers.", "vision_encoder.neck.", "text_projection.", "detr_encoder.layers.",
        "detr_decoder.layers.", "detr_decoder.box_head.", "detr_decoder.presence_head.", "dot_product_scoring.",
        "mask_decoder.mask_embedder.", "mask_decoder.pixel_decoder.",
    ):  # fmt: skip
        assert any(n.startswith("model." + prefix) for n in names), prefix
    assert any(n.startswith("projection.") for n in names)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("model.text_encoder.", "model.geometry_encoder.")) for n in frozen)


def test_the_text_encoder_trains_if_it_shall(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation, foundation={"train_text": True}).train()
    step(model, torch.rand(2, 3, *SIZE))
    assert any(n.startswith("model.text_encoder.") for n in reached(model))


def test_checkpointing_changes_memory_and_not_gradients(tiny_foundation: Folder) -> None:
    gradients = []
    for again in (False, True):
        model = sam3(tiny_foundation, gradient_checkpointing=again).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(1)
        step(model, torch.rand(2, 3, *SIZE))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_adapters_train_alone(tiny_foundation: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = sam3(tiny_foundation, foundation={"lora_rank": 2}).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n or n.startswith("projection.") for n in trained)
    step(model, torch.rand(2, 3, *SIZE))
    for prefix in ("model.vision_encoder.", "model.detr_decoder.", "model.mask_decoder."):
        assert any(n.startswith(prefix) for n in reached(model)), prefix
    assert not any("lora_" in n for n in model.state_dict() if "geometry_encoder" in n or "text_encoder" in n)
    save_described(tmp_path / "adapted.safetensors", model, NAMES)
    again, _ = load_checkpoint(tmp_path / "adapted.safetensors")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_the_loss_falls_and_so_do_its_parts(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation).train()
    torch.manual_seed(3)
    images = torch.rand(2, 3, *SIZE)
    optimizer = build_optimizer(model, Schedule(TrainConfig(lr=2e-3, backbone_lr=1.0), StageConfig(steps=1)))
    outputs = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs.append(step(model, images))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert outputs[-1].loss < 0.5 * outputs[0].loss
    assert all(outputs[-1].parts[name] < outputs[0].parts[name] for name in ("mask", "dice", "query", "box"))


# Loading, saving and licences


def test_checkpoints_need_neither_the_folder_nor_the_network(tiny_foundation: Folder, tmp_path: Path) -> None:
    model = sam3(tiny_foundation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "model.safetensors"
    save_described(path, model, NAMES)
    described = read_description(path).model
    describe_again(path, model=dataclasses.replace(described, foundation=FoundationConfig(sam3="gone")))
    again, description = load_checkpoint(path)
    images = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        ours, theirs = model(images), again(images)
    assert torch.equal(ours.mask_logits, theirs.mask_logits) and torch.equal(ours.class_logits, theirs.class_logits)
    assert list(description.class_names) == NAMES and type(again) is Sam3


def test_prompts_are_one_text_a_class_and_not_too_long(tiny_foundation: Folder) -> None:
    model = sam3(tiny_foundation, foundation={"prompts": ("a", "b", "cd")})
    assert model.attention.sum(1).tolist() == [3, 3, 4]
    with pytest.raises(FoundationError, match="found 1 texts for 3 classes"):
        sam3(tiny_foundation, foundation={"prompts": ("disc",)})
    with pytest.raises(FoundationError, match=r"class 1 \('z+'\) is 42 tokens of SAM 3's text, expected .* at most 32"):
        sam3(tiny_foundation, foundation={"prompts": ("a", "z" * 40, "b")})
    with pytest.raises(ValueError, match="prompts_at_once=0: expected at least 1"):
        FoundationConfig(prompts_at_once=0)


def test_weights_that_cannot_be_had_come_with_the_way_out(
    tiny_foundation: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert licence_of("facebook/sam3").gated and not licence_of("facebook/sam2.1-hiera-large").gated
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    way_out = (
        r"'facebook/sam3' cannot be loaded.*it is gated: accept the SAM License on "
        r"https://huggingface.co/facebook/sam3 and log in.*, or take kind: grounded_sam, which is not"
    )
    with pytest.raises(FoundationError, match=way_out):
        build_segmenter(ModelConfig(kind="sam3"), NAMES)
    with pytest.raises(FoundationError) as caught:
        sam3(tiny_foundation, foundation={"sam3": str(tmp_path / "nowhere")})
    assert "gated" not in str(caught.value)


def test_a_transformers_without_sam3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = types.ModuleType("transformers")
    older.__version__ = "4.57.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", older)
    with pytest.raises(FoundationError, match=r"transformers 4.57.0 has no Sam3Model, expected 5.9 or later: pip inst"):
        build_segmenter(ModelConfig(kind="sam3"), NAMES)


def test_checkpoints_and_cards_name_the_licences_of_their_ancestors(tiny_foundation: Folder, tmp_path: Path) -> None:
    """A folder's licence is not known; by its name on the hub the model is SAM 3, and a student carries its labels."""
    path, folder = tmp_path / "model.safetensors", str(tiny_foundation("sam3"))
    model = sam3(tiny_foundation)
    save_described(path, model, NAMES)
    assert read_description(path).ancestors == (Ancestor(folder, "unknown, see its model card", folder),)
    model.config = dataclasses.replace(model.config, foundation=FoundationConfig())
    save_described(path, model, NAMES)
    of_sam = Ancestor("facebook/sam3", "SAM License", "https://huggingface.co/facebook/sam3", gated=True)
    described = read_description(path)
    assert described.ancestors == (of_sam,)
    taught = dataclasses.replace(described, ancestors=as_labels(described.ancestors))
    page = "https://huggingface.co/facebook/sam3 |"
    assert f"| weights of facebook/sam3 | SAM License (gated: to be accepted first) | {page}" in card_text(described)
    assert f"| labels made by facebook/sam3 | SAM License (gated: to be accepted first) | {page}" in card_text(taught)
    assert "license: other" in card_text(taught)


def test_licences_are_those_of_the_models_that_the_settings_name() -> None:
    names = {a.name: a.licence for a in ancestors_of(ModelConfig(kind="grounded_sam"))}
    assert names == {
        "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg": "Apache-2.0",
        "facebook/sam2.1-hiera-large": "Apache-2.0",
    }
    assert [a.licence for a in ancestors_of(ModelConfig(kind="universal"))] == ["unknown, see its model card"]
    assert ancestors_of(ModelConfig(kind="sam3", foundation=FoundationConfig(pretrained=False))) == ()
    results = ModelConfig(kind="results", foundation=FoundationConfig(results="seen.json"))
    assert ancestors_of(results) == (Ancestor("seen.json", "unknown, see who made it", "seen.json", part="labels"),)
    pytest.importorskip("timm")
    backbone = ModelConfig(backbone="timm/vit_small_patch14_dinov2", backbone_pretrained=True)
    (of_timm,) = ancestors_of(backbone)
    assert of_timm.licence == "apache-2.0" and of_timm.source.startswith(
        "https://huggingface.co/timm/vit_small_patch14"
    )
