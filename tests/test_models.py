"""The mask transformer and its parts: shapes, attention masks, peaks, the ellipse prior, gradients, sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sskd_fast.models.backbones import ConvBackbone, norm
from sskd_fast.models.decoder import Attention, DecoderLayer, MaskHead, attention_mask, ellipse_prior, sine_position
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.queries import PeakQueries, find_peaks
from sskd_fast.models.segmenter import Predictions
from sskd_fast.models.settings import ModelConfig
from sskd_fast.yaml_settings import load_config

TINY = ModelConfig(
    channels=(8, 12, 16), blocks=(1, 1, 1), width=16, mask_width=8, layers=2, heads=2, feedforward=24, num_queries=5,
    embedding=6,
)  # fmt: skip


def tiny(**changes: object) -> MaskTransformer:
    torch.manual_seed(0)
    return MaskTransformer(dataclasses.replace(TINY, **changes), 3)  # type: ignore[arg-type]


def perturb(model: torch.nn.Module, scale: float = 0.1) -> None:
    """Moves every parameter off its initial value: some start at zero, behind which nothing gets a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize(("level", "stride"), [(0, 2), (1, 4), (2, 8), (3, 16)])
def test_embeddings_lie_on_the_level_that_is_asked_for(level: int, stride: int) -> None:
    net = tiny(embedding_level=level)
    encoded = net.encode(torch.rand(2, 3, 32, 64))
    assert net.embed(encoded).shape == (2, 6, 32 // stride, 64 // stride)
    assert net.decode(encoded).pixel_features.shape[-2:] == (32 // stride, 64 // stride)


def test_a_level_below_the_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding_level: expected 0, the masks' level, or more, found -1"):
        tiny(embedding_level=-1)


@pytest.mark.parametrize("queries", ["peaks", "learned"])
@pytest.mark.parametrize("size", [(32, 32), (64, 40), (24, 96)])
def test_prediction_shapes(queries: str, size: tuple[int, int]) -> None:
    height, width = size
    predictions = tiny(queries=queries)(torch.rand(2, 3, height, width))
    assert predictions.mask_logits.shape == (2, 5, height // 2, width // 2)
    assert predictions.class_logits.shape == (2, 5, 4)
    assert predictions.pixel_features.shape == (2, 16, height // 4, width // 4)
    assert len(predictions.auxiliary) == 2
    for masks, classes in predictions.auxiliary:
        assert masks.shape == predictions.mask_logits.shape and classes.shape == predictions.class_logits.shape
    if queries == "peaks":
        assert predictions.heat is not None and predictions.heat.shape == (2, height // 2, width // 2)
    else:
        assert predictions.heat is None


@pytest.mark.parametrize(("level", "stride"), [(0, 2), (1, 4), (2, 8)])
def test_mask_level_sets_the_stride_of_the_masks(level: int, stride: int) -> None:
    model = tiny(mask_level=level)
    predictions = model(torch.rand(1, 3, 32, 48))
    assert model.stride == stride
    assert predictions.mask_logits.shape[-2:] == (32 // stride, 48 // stride)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"found 30 x 32 pixels, expected multiples of 8"):
        tiny()(torch.rand(1, 3, 30, 32))


def test_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match=r"backbone: found 'resnet', expected 'conv' or 'timm/NAME'"):
        tiny(backbone="resnet")


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    model = tiny().eval()
    perturb(model)
    images = torch.rand(2, 3, 32, 32)
    both, alone = model(images), model(images[1:])
    torch.testing.assert_close(both.mask_logits[1:], alone.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.class_logits[1:], alone.class_logits, rtol=1e-4, atol=1e-4)


def test_part_takes_the_same_images_of_every_field() -> None:
    predictions = tiny()(torch.rand(3, 3, 16, 16))
    part = predictions.part(slice(1, 3))
    assert torch.equal(part.mask_logits, predictions.mask_logits[1:])
    assert torch.equal(part.auxiliary[1][1], predictions.auxiliary[1][1][1:])
    assert part.heat is not None and predictions.heat is not None and torch.equal(part.heat, predictions.heat[1:])
    assert len(part.class_logits) == len(part.pixel_features) == 2


def test_input_is_normalised_by_the_configured_mean_and_deviation() -> None:
    images = torch.rand(1, 3, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain, shifted = tiny(mean=(0.0,) * 3, std=(1.0,) * 3).eval(), tiny(mean=mean, std=std).eval()
    scaled = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(shifted(scaled).mask_logits, plain(images).mask_logits, rtol=1e-4, atol=1e-4)


def test_backbone_strides_and_group_sizes() -> None:
    backbone = ConvBackbone((8, 12, 16), (1, 2, 1))
    maps = backbone(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (12, 8, 8), (16, 4, 4)]
    assert backbone.strides == [2, 4, 8]
    assert [norm(c).num_groups for c in (12, 24, 40, 64, 7)] == [2, 4, 8, 8, 1]


# Attention


def test_attention_ignores_what_the_mask_forbids() -> None:
    torch.manual_seed(1)
    attention = Attention(8, 2)
    queries, memory = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    allowed = torch.zeros(2, 3, 6, dtype=torch.bool)
    allowed[:, 0, :2], allowed[:, 1, 3], allowed[:, 2] = True, True, True
    before = attention(queries, memory, allowed, None)
    changed = memory.clone()
    changed[:, 4:] += 5.0
    after = attention(queries, changed, allowed, None)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])
    changed = memory.clone()
    changed[:, 3] += 5.0
    assert not torch.allclose(attention(queries, changed, allowed, None)[:, 1], before[:, 1])


def test_attention_equals_its_definition() -> None:
    torch.manual_seed(2)
    attention = Attention(8, 2)
    queries, memory, position = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(5, 8)
    allowed = torch.rand(1, 3, 5) < 0.6
    allowed[..., 0] = True
    weight_k, weight_v = attention.key_value.weight[:8], attention.key_value.weight[8:]
    bias_k, bias_v = attention.key_value.bias[:8], attention.key_value.bias[8:]
    q, k, v = attention.query(queries), (memory + position) @ weight_k.T + bias_k, memory @ weight_v.T + bias_v
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5
        heads.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v[..., part])
    expected = attention.out(torch.cat(heads, -1))
    torch.testing.assert_close(attention(queries, memory, allowed, position), expected)


def test_queries_out_of_reach_do_not_see_each_other() -> None:
    torch.manual_seed(3)
    layer = DecoderLayer(8, 2, 16)
    x, memory = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    allowed, near = torch.ones(1, 3, 4, dtype=torch.bool), torch.eye(3, dtype=torch.bool)[None]
    near[0, 0, 1] = near[0, 1, 0] = True
    before = layer(x, memory, allowed, near, None, None)
    moved = x.clone()
    moved[0, 2] += 3.0
    after = layer(moved, memory, allowed, near, None, None)
    torch.testing.assert_close(after[0, :2], before[0, :2])
    moved = x.clone()
    moved[0, 1] += 3.0
    after = layer(moved, memory, allowed, near, None, None)
    assert not torch.allclose(after[0, 0], before[0, 0])
    torch.testing.assert_close(after[0, 2], before[0, 2])


def test_reach_limits_self_attention_in_pixels() -> None:
    """Peaks at most `reach` pixels apart see one another, whatever the stride of the masks."""
    model = tiny(reach=16.0)
    assert model.decoder.reach == 8.0
    assert tiny(reach=16.0, mask_level=1).decoder.reach == 4.0


def test_attention_mask_is_the_predicted_mask_on_the_coarser_map() -> None:
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :2, :2] = 5.0
    logits[0, 1, 0, 0] = 9.0
    allowed = attention_mask(logits, (2, 2))
    assert allowed.tolist() == [[[True, False, False, False], [True, False, False, False], [True, True, True, True]]]


def test_sine_positions_tell_cells_apart() -> None:
    code = sine_position(torch.zeros(1, 10, 6, 5))
    assert code.shape == (30, 10)
    distance = torch.cdist(code, code) + torch.eye(30)
    assert distance.min() > 0.05


# Peaks and the ellipse around them


def test_peaks_are_the_planted_maxima_highest_first() -> None:
    heat = torch.full((2, 9, 12), -6.0)
    planted = [[(3, 2, 4.0), (10, 7, 2.0), (7, 0, 0.0)], [(0, 8, 1.0), (11, 0, 0.5), (5, 5, -1.0)]]
    for image, maxima in enumerate(planted):
        for x, y, value in maxima:
            heat[image, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = value - 1.0
            heat[image, y, x] = value
    points = find_peaks(heat, 3)
    assert points.tolist() == [[[x, y] for x, y, _ in maxima] for maxima in planted]


def test_shoulders_of_a_peak_come_after_every_other_peak() -> None:
    heat = torch.full((1, 8, 8), -8.0)
    heat[0, 2, 2], heat[0, 2, 3], heat[0, 6, 6] = 5.0, 4.5, -1.0
    assert find_peaks(heat, 2).tolist() == [[[2, 2], [6, 6]]]


def test_more_queries_than_cells_gives_every_cell_once() -> None:
    points = find_peaks(torch.randn(1, 2, 3), 10)
    assert sorted(map(tuple, points[0].tolist())) == [(x, y) for x in range(3) for y in range(2)]


def test_query_content_comes_from_the_peak() -> None:
    model = tiny().eval()
    perturb(model)
    features = torch.randn(1, 16, 8, 8)
    queries = model.queries(features)
    x, y = queries.points[0, 0].long().tolist()
    assert isinstance(model.queries, PeakQueries)
    torch.testing.assert_close(queries.content[0, 0], model.queries.content(features[0, :, y, x]))
    assert queries.heat[0].argmax() == y * 8 + x


def test_ellipse_without_parameters_is_a_disc_of_four_cells() -> None:
    logits = ellipse_prior(torch.zeros(1, 1, 6), torch.tensor([[[8.0, 6.0]]]), 14, 18)[0, 0]
    assert logits.shape == (14, 18)
    assert logits[6, 8] == 3.0
    for y, x in [(6, 12), (6, 4), (2, 8), (10, 8)]:
        assert logits[y, x] == 0.0
    assert logits[6, 11] > 0 > logits[6, 13]
    assert logits[13, 0] == -12.0


def test_ellipse_parameters_scale_shift_and_bias() -> None:
    parameters = torch.zeros(1, 4, 6)
    parameters[0, 0, 0] = torch.tensor(2.0).log()
    parameters[0, 1, 3], parameters[0, 1, 4] = 1.0, -0.5
    parameters[0, 2, 5] = 1.5
    parameters[0, 3, 2] = 1.0
    logits = ellipse_prior(parameters, torch.full((1, 4, 2), 8.0), 17, 17)[0]
    assert logits[0, 8, 10].item() == pytest.approx(0.0, abs=1e-5)  # half as wide
    assert logits[0, 12, 8].item() == pytest.approx(0.0, abs=1e-5)  # as high as before
    assert logits[1].argmax().item() == 6 * 17 + 12  # 4 cells to the right, 2 up
    assert logits[2, 8, 8].item() == pytest.approx(4.5)
    assert logits[3, 10, 6] > logits[3, 10, 10]  # sheared: x + y is the short axis


def test_ellipse_is_its_formula_cell_by_cell_in_any_precision() -> None:
    torch.manual_seed(3)
    parameters, points = torch.randn(2, 5, 6), torch.randint(0, 48, (2, 5, 2)).float()
    exact, at = parameters.bfloat16().double(), points.double()
    sx, sy, shear, ox, oy, bias = (part[..., None, None] for part in exact.unbind(-1))
    dx = (torch.arange(48.0).double() - at[..., :1, None]) / 4 - ox
    dy = (torch.arange(40.0).double()[:, None] - at[..., 1:, None]) / 4 - oy
    u, v = sx.clamp(-2, 2).exp() * dx + shear * dy, sy.clamp(-2, 2).exp() * dy
    expected = (3 * (1 - u**2 - v**2)).clamp(min=-12) + bias
    torch.testing.assert_close(ellipse_prior(exact.float(), points, 40, 48).double(), expected, atol=1e-3, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ellipse_prior(parameters.bfloat16(), points, 40, 48)
    torch.testing.assert_close(rounded.double(), expected, atol=1e-3, rtol=0)


def test_masks_are_products_with_the_features_on_top_of_the_ellipse() -> None:
    torch.manual_seed(0)
    head = MaskHead(8, 4, 3, ellipse=True)
    assert head.ellipse is not None
    torch.nn.init.normal_(head.ellipse.weight, std=0.2)
    x, features = torch.randn(2, 5, 8), torch.randn(2, 4, 12, 16, requires_grad=True)
    points = torch.randint(0, 12, (2, 5, 2)).float()
    parameters = [p for n, p in head.named_parameters() if not n.startswith("classes.")]

    def by_parts() -> Tensor:
        normed = head.norm(x)
        product = torch.einsum("bkp,bphw->bkhw", head.embed(normed), features)
        return product + ellipse_prior(head.ellipse(normed), points, 12, 16)

    masks, _ = head(x, features, points)
    expected = by_parts()
    torch.testing.assert_close(masks, expected)
    weights = torch.randn_like(masks)
    for found, wanted in zip(
        torch.autograd.grad((masks * weights).sum(), [features, *parameters]),
        torch.autograd.grad((expected * weights).sum(), [features, *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = head(x, features, points)
    assert rounded.dtype == torch.float32  # the ellipse's edge is finer than bfloat16
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.3)


def test_shapes_alone_can_be_computed() -> None:
    with torch.device("meta"):
        assert ellipse_prior(torch.zeros(1, 2, 6), torch.zeros(1, 2, 2), 5, 7).shape == (1, 2, 5, 7)


# Gradients, sizes, embeddings


def summed(predictions: Predictions) -> Tensor:
    layers = [*predictions.auxiliary, (predictions.mask_logits, predictions.class_logits)]
    total = torch.stack([(m * m).mean() + (c * c).mean() for m, c in layers]).sum()
    return total if predictions.heat is None else total + predictions.heat.square().mean()


@pytest.mark.parametrize("queries", ["peaks", "learned"])
def test_gradients_reach_every_parameter(queries: str) -> None:
    model = tiny(queries=queries)
    perturb(model)
    levels = model.encode(torch.rand(2, 3, 32, 32))
    (summed(model.decode(levels)) + model.embed(levels).square().mean()).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def test_peaks_carry_no_gradient_into_the_heat_map() -> None:
    model = tiny()
    perturb(model)
    predictions = model(torch.rand(1, 3, 32, 32))
    (predictions.mask_logits.square().mean() + predictions.class_logits.square().mean()).backward()
    assert isinstance(model.queries, PeakQueries)
    assert all(p.grad is None for p in model.queries.heat.parameters())


def test_embeddings_live_one_level_above_the_masks() -> None:
    model = tiny()
    levels = model.encode(torch.rand(2, 3, 32, 48))
    assert model.embed(levels).shape == (2, 6, 8, 12)
    coarsest = tiny(mask_level=2)
    assert coarsest.embed(coarsest.encode(torch.rand(2, 3, 32, 48))).shape == (2, 6, 2, 3)


def test_projection_does_not_count_as_a_parameter_of_inference() -> None:
    model = tiny()
    everything = sum(p.numel() for p in model.parameters())
    assert model.parameter_count() == everything - sum(p.numel() for p in model.projection.parameters())


def test_default_student_is_at_least_eleven_times_smaller() -> None:
    config = load_config([])
    teacher, student = (MaskTransformer(c, 4).parameter_count() for c in (config.teacher, config.student))
    assert teacher / student >= 11


def test_same_seed_same_weights() -> None:
    one, two = tiny().state_dict(), tiny().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


# Backbones of timm and the dense prediction head


@pytest.mark.parametrize("pixel_decoder", ["fpn", "dpt"])
def test_timm_backbone_as_feature_pyramid(pixel_decoder: str) -> None:
    pytest.importorskip("timm")
    model = tiny(backbone="timm/resnet10t", pixel_decoder=pixel_decoder)
    assert (model.stride, model.max_stride) == (2, 32)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    predictions = model(torch.rand(2, 3, 64, 64))
    assert predictions.mask_logits.shape == (2, 5, 32, 32)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.rand(1, 3, 48, 48))


VIT = {
    "backbone": "timm/vit_tiny_patch16_224",
    "pixel_decoder": "dpt",
    "queries": "learned",
    "width": 16,
    "mask_width": 8,
    "layers": 3,
}


def test_plain_vision_transformer_becomes_a_pyramid_for_any_image_size() -> None:
    pytest.importorskip("timm")
    model = tiny(**VIT).eval()
    assert (model.stride, model.max_stride) == (4, 1) and model.backbone.strides == [16] * 4
    levels = model.encode(torch.rand(1, 3, 50, 81))  # seen as 64 x 96: whole patches
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 16, 24), (16, 8, 12), (16, 4, 6), (16, 2, 3)]
    assert model.decode(levels).mask_logits.shape == (1, 5, 16, 24)


def test_dense_prediction_head_leaves_no_parameter_without_a_gradient() -> None:
    pytest.importorskip("timm")
    model = tiny(**VIT, gradient_checkpointing=True)
    perturb(model, 0.02)
    levels = model.encode(torch.rand(2, 3, 32, 32))
    (summed(model.decode(levels)) + model.embed(levels).square().mean()).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def test_weights_of_a_backbone_come_from_a_local_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    published = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "vit.pth")
    model = tiny(**VIT, backbone_checkpoint=str(tmp_path / "vit.pth"))
    read = model.backbone.body.state_dict()
    assert torch.equal(read["blocks.3.attn.qkv.weight"], published.state_dict()["blocks.3.attn.qkv.weight"])
    with pytest.raises(FileNotFoundError, match=r"backbone_checkpoint: .*none\.pth does not exist"):
        tiny(**VIT, backbone_checkpoint=str(tmp_path / "none.pth"))


def test_bfloat16_computes_short_and_answers_in_float32() -> None:
    model, short = tiny().eval(), tiny(precision="bfloat16").eval()
    images = torch.rand(1, 3, 32, 32)
    predictions = short(images)
    assert predictions.mask_logits.dtype == predictions.class_logits.dtype == torch.float32
    exact, rounded = model.embed(model.encode(images)), short.embed(short.encode(images))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.99


def paper_student(**changes: object) -> MaskTransformer:
    """The student of the paper preset, without memory."""
    settings = {"backbone_pretrained": False, "num_queries": 100} | changes
    config = dataclasses.replace(load_config([], preset="paper").student, **settings)  # type: ignore[arg-type]
    with torch.device("meta"):
        return MaskTransformer(config, 8)


def test_student_of_the_paper_has_its_size_and_layout() -> None:
    """52 M parameters within 5 %: a ViT-S/14, a head of 256 channels, 9 decoder layers, 100 queries."""
    pytest.importorskip("timm")
    model = paper_student()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["backbone"] == 22_056_192 and count["pixel_decoder"] == 13_596_800 and count["decoder"] == 14_435_593
    assert model.parameter_count() == 50_114_185 and abs(model.parameter_count() / 52e6 - 1) < 0.05
    assert len(model.decoder.layers) == 9 and model.stride == 3.5
    with torch.device("meta"):
        predictions = model(torch.empty(1, 3, 512, 1024))
    assert predictions.mask_logits.shape == (1, 100, 148, 296) and len(predictions.auxiliary) == 9
    assert predictions.pixel_features.shape == (1, 256, 74, 148)


@pytest.mark.parametrize(
    ("backbone", "stride", "millions"),
    [
        ("vit_tiny_patch16_224", 4, 33.4),
        ("vit_base_patch14_dinov2", 3.5, 115.0),
        ("vit_small_patch16_dinov3", 4, 49.6),
        ("resnet50", 2, 52.9),
        ("convnext_tiny", 4, 53.5),
    ],
)
def test_other_backbones_by_their_name(backbone: str, stride: float, millions: float) -> None:
    timm = pytest.importorskip("timm")
    if not timm.is_model(backbone):
        pytest.skip(f"this timm has no {backbone}")
    model = paper_student(backbone=f"timm/{backbone}")
    assert model.stride == stride and model.parameter_count() / 1e6 == pytest.approx(millions, abs=0.1)
    with torch.device("meta"):
        predictions = model(torch.empty(1, 3, 64, 96))
    expected = (64 // stride, 96 // stride) if stride != 3.5 else (20, 28)
    assert predictions.mask_logits.shape[-2:] == expected
