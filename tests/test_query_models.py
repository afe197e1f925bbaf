"""Models of transformers that segment by queries: read by their parts, with class heads for other classes, trained by
the set loss.  Tiny models of the real classes with random weights, loaded from folders of `save_pretrained`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sskd_fast
from sskd_fast.data.instances import Instances
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import load_checkpoint
from sskd_fast.models.class_heads import ClassHeads, head_for, rows_for
from sskd_fast.models.class_scores import independent_scores, with_no_object
from sskd_fast.models.inference import InferenceConfig, read_queries
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.models.universal import UniversalSegmenter
from tests.described import save_described

transformers = pytest.importorskip("transformers")

Folder = Callable[[str], Path]
KINDS = ["mask2former", "maskformer", "eomt", "eomt_dinov3", "rf_detr"]
NAMES = ["cross", "disc", "ring"]
SIZE = (64, 96)


def segmenter(folder: Folder | Path, kind: str = "", names: list[str] = NAMES, **settings: Any) -> UniversalSegmenter:
    place = folder if isinstance(folder, Path) else folder(kind)
    foundation = FoundationConfig(universal=str(place), lora_rank=settings.pop("lora_rank", 0))
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(kind="universal", embedding=6, foundation=foundation, **settings), names)
    assert isinstance(model, UniversalSegmenter)
    return model


def original(folder: Folder, kind: str) -> Any:
    """The model of transformers as it lies in its folder."""
    auto = "InstanceSegmentation" if kind == "rf_detr" else "UniversalSegmentation"
    return getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder(kind)).eval()


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Instances:
    """Filled boxes x0, y0, x1, y1, of classes 0, 1, ..."""
    masks = torch.zeros((len(boxes), *size), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    count = len(boxes)
    return Instances(masks, torch.arange(count) % 3, torch.ones(count), torch.zeros(count, dtype=torch.bool))


TRUTH = [scene((4, 4, 30, 40), (40, 10, 90, 50)), scene()]


# Scores


def test_sigmoid_scores_get_a_no_object() -> None:
    probs = torch.tensor([[0.9, 0.3, 0.3], [0.01, 0.02, 0.01]])
    found = with_no_object(probs.logit()).exp()
    torch.testing.assert_close(found[0], torch.tensor([0.9 * 0.6, 0.9 * 0.2, 0.9 * 0.2, 0.1]))
    torch.testing.assert_close(found[1], torch.tensor([0.005, 0.01, 0.005, 0.98]))
    torch.testing.assert_close(with_no_object(torch.tensor([[2.0]])).softmax(-1)[0, 0], torch.tensor(2.0).sigmoid())
    assert with_no_object(torch.zeros(2, 5, 3).bfloat16()).dtype == torch.float32


def test_a_score_does_not_fall_with_the_number_of_other_classes() -> None:
    probs = torch.tensor([0.5, *[0.02] * 100])
    torch.testing.assert_close(independent_scores(with_no_object(probs.logit())), probs)
    torch.testing.assert_close(independent_scores(with_no_object(probs.logit()) + 3.0), probs)
    hopeless = torch.tensor([-30.0, -31.0])
    torch.testing.assert_close(independent_scores(with_no_object(hopeless)), hopeless.sigmoid())
    sure = independent_scores(with_no_object(torch.tensor([200.0, -200.0])))
    assert sure.tolist() == [1.0, 0.0]


def test_sure_and_hopeless_scores_keep_finite_values_and_gradients() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, -200.0]], requires_grad=True)
    found = with_no_object(logits)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(2))
    F.cross_entropy(found, torch.tensor([2, 1])).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, 0.0], [0.0, -0.5]]))
    inputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(with_no_object, inputs)


# Class heads


def test_heads_are_found_by_their_rows_and_names(tiny_foundation: Folder) -> None:
    heads = ClassHeads.of(original(tiny_foundation, "rf_detr"), "s")
    encoder = [f"model.model.enc_out_class_embed.{i}" for i in range(3)]
    assert set(heads.layers) == {"model.class_embed", *encoder} and not heads.no_object
    heads = ClassHeads.of(original(tiny_foundation, "eomt_dinov3"), "s")
    assert heads.tensors == ("class_predictor.weight", "class_predictor.bias") and heads.no_object


class Shared(nn.Module):
    """A model with one head in two places, and a further one with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PreTrainedConfig(num_labels=3)
        self.class_embed = nn.ModuleList([nn.Linear(4, 3)] * 2)
        self.enc_score_head = nn.Linear(4, 3)
        self.enc_score_head.weight, self.enc_score_head.bias = self.class_embed[0].weight, self.class_embed[0].bias
        self.classify = nn.Linear(4, 7)


def test_heads_that_share_weights_still_do() -> None:
    model = Shared()
    heads = ClassHeads.of(model, "s")
    assert list(heads.layers) == ["class_embed.0", "class_embed.1", "enc_score_head"]
    heads.take_out(model)
    assert not any(isinstance(m, nn.Linear) and m.out_features == 3 for m in model.modules())
    heads.remade(["a", "b", "c"], ["c", "d"]).put_in(model)
    first, second = model.class_embed
    assert first is second is model.enc_score_head and first.out_features == 2 and model.classify.out_features == 7
    assert ClassHeads({"a": first, "b": first}, False).tensors == ("a.weight", "a.bias")


def test_models_without_a_class_head_are_named() -> None:
    model = Shared()
    model.config = transformers.PreTrainedConfig(num_labels=9)
    found = r"class_embed\.0 \(3 rows\), .*classify \(7 rows\)"
    with pytest.raises(FoundationError, match=rf"s: Shared has no class head .*found {found}\); expected .* of 9 rows"):
        ClassHeads.of(model, "s")
    model.enc_score_head, model.config = nn.Linear(4, 4), transformers.PreTrainedConfig(num_labels=3)
    with pytest.raises(FoundationError, match=r"enc_score_head \(4 rows\)"):
        ClassHeads.of(model, "s")


def test_heads_without_no_object_keep_the_prior_of_unknown_classes() -> None:
    head = nn.Linear(3, 2)
    nn.init.constant_(head.bias, -4.6)
    new = head_for(head, ["ring", "Cross"], ["cross", "disc", "ring"])
    assert new.weight.shape == (3, 3)
    assert torch.equal(new.weight[0], head.weight[1]) and torch.equal(new.weight[2], head.weight[0])
    torch.testing.assert_close(new.weight[1], head.weight.mean(0))
    torch.testing.assert_close(new.bias, torch.full((3,), -4.6))


def test_classes_that_differ_in_capitals_alone_keep_their_own_rows() -> None:
    rows = torch.arange(3.0).unsqueeze(1)
    assert rows_for(rows, ["cell", "Cell"], ["Cell", "cell"]).flatten().tolist() == [1.0, 0.0, 2.0]


def test_all_heads_are_made_anew(tiny_foundation: Folder) -> None:
    model, theirs = segmenter(tiny_foundation, "rf_detr"), original(tiny_foundation, "rf_detr")
    names = ["model.model.class_embed", "model.model.model.enc_out_class_embed.0"]
    assert set(model.class_tensors) == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    for name in names:
        new, old = model.get_submodule(name), theirs.get_submodule(name.removeprefix("model."))
        assert torch.equal(new.weight, torch.stack([old.weight[1], old.weight.mean(0), old.weight[0]]))
        assert torch.equal(new.bias, torch.stack([old.bias[1], old.bias.mean(0), old.bias[0]]))


# Predictions


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_model_itself(tiny_foundation: Folder, kind: str) -> None:
    """With the classes that it was trained on, a model gives what it gives without us."""
    theirs = original(tiny_foundation, kind)
    names = [theirs.config.id2label[i] for i in range(theirs.config.num_labels)]
    model = segmenter(tiny_foundation, kind, names).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours, output = model(images), theirs(pixel_values=(images - model.mean) / model.std)
    masks, classes = ("pred_masks", "logits") if kind == "rf_detr" else ("masks_queries_logits", "class_queries_logits")
    assert torch.equal(ours.mask_logits, output[masks])
    assert torch.equal(ours.class_logits, with_no_object(output[classes]) if kind == "rf_detr" else output[classes])
    assert ours.class_logits.shape == (2, 6, len(names) + 1)


def test_post_processing_of_rf_detr_finds_the_same(tiny_foundation: Folder) -> None:
    """Masks, labels, and scores of a query's best class, which is where its probability of an object lies."""
    theirs = original(tiny_foundation, "rf_detr")
    model = segmenter(tiny_foundation, "rf_detr", ["ring", "Cross", "cat"]).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for head in (theirs.model.class_embed, model.model.model.class_embed):
            head.weight.mul_(30)  # random weights score all classes alike
        predictions = model(images)
        output = theirs(pixel_values=(images - model.mean) / model.std)
    processor = transformers.RfDetrImageProcessor()
    (found,) = processor.post_process_instance_segmentation(
        output, threshold=0.0, target_sizes=[(64, 64)], return_binary_maps=True, top_k=18
    )
    best: dict[float, tuple[int, Tensor]] = {}
    for info, mask in zip(found["segments_info"], found["segmentation"], strict=True):
        best[round(info["score"], 4)] = (info["label_id"], mask.bool())
    probs = predictions.class_logits.softmax(-1)[0]
    masks = F.interpolate(predictions.mask_logits, size=(64, 64), mode="bilinear")[0] > 0
    for query in range(6):
        label, mask = best[round(1 - float(probs[query, -1]), 4)]
        assert label == int(probs[query, :-1].argmax()) and torch.equal(mask, masks[query])


def test_post_processing_of_mask2former_finds_the_same(tiny_foundation: Folder) -> None:
    theirs = original(tiny_foundation, "mask2former")
    model = segmenter(tiny_foundation, "mask2former", ["ring", "Cross", "cat"]).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        predictions = model(images)
        output = theirs(pixel_values=(images - model.mean) / model.std)
    (found,) = transformers.Mask2FormerImageProcessor().post_process_instance_segmentation(
        output, threshold=0.0, return_binary_maps=True
    )
    config = InferenceConfig(tile=(384, 384), overlap=0, score_floor=0.0)
    probs = predictions.class_logits.softmax(-1)[0, :, :-1]
    masks, labels, scores = read_queries(predictions.mask_logits[0], probs, config)
    ours = {(label, round(score, 4)): mask for label, score, mask in zip(labels, scores, masks, strict=True)}
    assert len(found["segments_info"]) == 6
    for info, mask in zip(found["segments_info"], found["segmentation"], strict=True):
        assert torch.equal(mask.bool(), torch.from_numpy(ours[info["label_id"], round(info["score"], 4)]))


@pytest.mark.parametrize(
    ("kind", "masks", "features", "earlier", "boxes"),
    [
        ("mask2former", (16, 24), (32, 8, 12), 2, 0),
        ("maskformer", (16, 24), (16, 8, 12), 0, 0),
        ("eomt_dinov3", (16, 16), (16, 4, 4), 1, 0),
        ("rf_detr", (16, 16), (16, 8, 8), 2, 3),
    ],
)
def test_training_predictions(
    tiny_foundation: Folder, kind: str, masks: Any, features: Any, earlier: int, boxes: int
) -> None:
    """Every layer's in training; gradients of set loss and embeddings reach heads, backbone and projection."""
    model = segmenter(tiny_foundation, kind, gradient_checkpointing=kind not in ("maskformer", "mask2former")).train()
    encoded = model.encode(torch.rand(2, 3, *SIZE))
    predictions = model.decode(encoded)
    assert predictions.mask_logits.shape == (2, 6, *masks) and predictions.class_logits.shape == (2, 6, 4)
    assert predictions.pixel_features.shape == (2, *features)
    assert len(predictions.auxiliary) == earlier and len(predictions.boxes) == boxes
    assert all(m.shape == (2, 6, *masks) and c.shape == (2, 6, 4) for m, c in predictions.auxiliary)
    embeddings = model.embed(encoded)
    assert embeddings.shape == (2, 6, *features[1:])
    output = SetLoss(SetLossConfig())(predictions, TRUTH, torch.ones(2, *SIZE, dtype=torch.bool))
    (output.loss + embeddings.square().mean()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    reached = {name for name, gradient in gradients.items() if bool(gradient.abs().sum() > 0)}
    assert set(model.class_tensors) <= reached and any(n.startswith("projection.") for n in reached)
    assert model.backbone_parts and all(any(n.startswith(part) for n in reached) for part in model.backbone_parts)
    if boxes:  # the last layers of new box heads are zero, so that the first step reaches no further
        for head in ("model.model.bbox_embed", "model.model.model.enc_out_bbox_embed.0"):
            assert {f"{head}.layers.2.weight", f"{head}.layers.2.bias"} <= reached


def test_a_part_of_the_batch_has_its_own_boxes(tiny_foundation: Folder) -> None:
    predictions = segmenter(tiny_foundation, "rf_detr").train()(torch.rand(3, 3, *SIZE))
    part = predictions.part(slice(1, 2))
    assert [b.shape for b in part.boxes] == [(1, 6, 4)] * 3 and torch.equal(part.boxes[0], predictions.boxes[0][1:2])


def test_models_in_bfloat16_predict_in_float32(tiny_foundation: Folder) -> None:
    model = segmenter(tiny_foundation, "rf_detr", precision="bfloat16").train()
    predictions = model(torch.rand(2, 3, *SIZE))
    tensors = [predictions.mask_logits, predictions.class_logits, predictions.pixel_features, *predictions.boxes]
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in tensors)


def test_rf_detr_sees_the_square_of_its_training_and_keeps_one_group(tiny_foundation: Folder) -> None:
    """60 pixels are no multiple of two windows of 8: the next is 64."""
    model = segmenter(tiny_foundation, "rf_detr").eval()
    assert model.reader.size == (64, 64) and model.max_stride == 1 and model.stride == 4.0
    wide = torch.rand(1, 3, *SIZE)
    square = F.interpolate((wide - model.mean) / model.std, size=(64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(model(wide).mask_logits, model.model(pixel_values=square).pred_masks)
    whole = original(tiny_foundation, "rf_detr").state_dict()
    assert model.model.config.group_detr == 1
    assert torch.equal(model.model.model.model.query_feat.weight, whole["model.model.query_feat.weight"][:6])
    assert not any(".enc_output.1." in name for name in model.state_dict())


# Loading, saving, input


@pytest.mark.parametrize("kind", ["eomt_dinov3", "rf_detr"])
def test_checkpoints_predict_the_same_and_take_classes_by_name(
    tiny_foundation: Folder, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_foundation(kind), folder)
    model = segmenter(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "model.safetensors"
    save_described(path, model, NAMES)
    shutil.rmtree(folder)
    again, _ = load_checkpoint(path)
    image = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        ours, theirs = model.eval()(image), again(image)
    assert torch.equal(ours.mask_logits, theirs.mask_logits) and torch.equal(ours.class_logits, theirs.class_logits)
    predictor = sskd_fast.load(path, device="cpu").with_inference(score_floor=0.0)
    found = predictor.predict((image[0] * 255).byte())
    assert len(found.masks) and set(found.names) <= set(NAMES)
    assert found.masks.shape[1:] == SIZE and all(0 < score <= 1 for score in found.scores)


def test_class_rows_of_a_checkpoint_are_reordered_without_no_object(tiny_foundation: Folder, tmp_path: Path) -> None:
    from sskd_fast.models.checkpoint import load_weights

    model = segmenter(tiny_foundation, "rf_detr")
    save_described(tmp_path / "model.safetensors", model, NAMES)
    names = ["ring", "wheel"]
    other = build_segmenter(model.config, names, weights=False)
    load_weights(other, tmp_path / "model.safetensors", names)
    for name in model.class_tensors:
        rows = model.state_dict()[name]
        assert torch.equal(other.state_dict()[name], torch.stack([rows[2], rows.mean(0)]))


def test_adapters_leave_the_new_heads_whole(tiny_foundation: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = segmenter(tiny_foundation, "rf_detr", lora_rank=2).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(model.class_tensors) <= trained
    assert all("lora_" in n or n.startswith("projection.") or n in model.class_tensors for n in trained)
    save_described(tmp_path / "model.safetensors", model, NAMES)
    again, _ = load_checkpoint(tmp_path / "model.safetensors")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def with_settings(folder: Path, place: Path, **written: Any) -> Path:
    shutil.copytree(folder, place)
    (place / "preprocessor_config.json").write_text(json.dumps(written))
    return place


def test_pixels_are_normalised_as_in_the_models_training(tiny_foundation: Folder, tmp_path: Path) -> None:
    plain = tiny_foundation("eomt_dinov3")
    statistics = {"image_mean": [0.5, 0.25, 0.75], "image_std": [0.5, 0.5, 0.25]}
    model = segmenter(with_settings(plain, tmp_path / "a", **statistics))
    assert model.mean.flatten().tolist() == [0.5, 0.25, 0.75] and model.std.flatten().tolist() == [0.5, 0.5, 0.25]
    save_described(tmp_path / "model.safetensors", model, NAMES)
    assert torch.equal(load_checkpoint(tmp_path / "model.safetensors")[0].mean, model.mean)
    model = segmenter(with_settings(plain, tmp_path / "b", **statistics, do_rescale=False))
    torch.testing.assert_close(model.mean.flatten() * 255, torch.tensor([0.5, 0.25, 0.75]))
    model = segmenter(tmp_path / "a", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    (tmp_path / "a" / "preprocessor_config.json").write_text("{")
    with pytest.raises(FoundationError, match=r"has a preprocessor_config\.json that cannot be read"):
        segmenter(tmp_path / "a")


def test_models_that_do_not_fit_are_named(tiny_foundation: Folder, tmp_path: Path) -> None:
    start = r"foundation\.universal: "
    with pytest.raises(FoundationError, match=start + ".* holds the weights of RfDetrForObjectDetection, expected"):
        segmenter(tiny_foundation, "rf_detr_boxes")
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(FoundationError, match=start + ".* is of the type vit, of which transformers has no model"):
        segmenter(tmp_path / "vit")
    video = transformers.VideomtConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16, num_blocks=1,
        num_queries=2,
    )  # fmt: skip
    transformers.VideomtForUniversalSegmentation(video).save_pretrained(tmp_path / "video")
    with pytest.raises(FoundationError, match="called with pixel_values_videos, expected pixel_values alone"):
        segmenter(tmp_path / "video")


@pytest.mark.parametrize(
    ("kind", "steps", "rate"),
    [("eomt_dinov3", 60, 1e-2), pytest.param("rf_detr", 120, 5e-3, marks=pytest.mark.slow)],
)
def test_two_images_are_learned_by_heart(tiny_foundation: Folder, kind: str, steps: int, rate: float) -> None:
    torch.manual_seed(0)
    size = (64, 64)
    truth = [scene((4, 4, 30, 40), (36, 20, 60, 60), size=size), scene((20, 8, 56, 30), size=size)]
    images = torch.rand(2, 3, *size) * 0.2
    for image, record in zip(images, truth, strict=True):
        for mask, label in zip(record.masks, record.labels, strict=True):
            image[int(label), mask] += 0.8
    model, valid = segmenter(tiny_foundation, kind).train(), torch.ones(2, *size, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = SetLoss(SetLossConfig())(model(images), truth, valid).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        predictions = model.eval()(images)
    probs = predictions.class_logits.softmax(-1)
    masks = F.interpolate(predictions.mask_logits, size=size, mode="bilinear") > 0
    assert losses[-1] < 0.4 * losses[0]
    for image, record in enumerate(truth):
        for mask, label in zip(record.masks, record.labels, strict=True):
            query = int(probs[image, :, int(label)].argmax())
            overlap = (masks[image, query] & mask).sum() / (masks[image, query] | mask).sum()
            assert overlap > 0.7 and probs[image, query, int(label)] > 0.5
