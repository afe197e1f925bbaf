"""Training with parameters sharded by FSDP2, in processes that meet by gloo, equals that of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import sharded_training
import torch
from accelerate import FullyShardedDataParallelPlugin
from forked_ranks import ranks_of
from joint_gradients import model_and_objective
from torch import Tensor
from torch.torch_version import TorchVersion

from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.sharding import check_sharding, sharding_of
from sskd_fast.typed_settings import ConfigError

pytestmark = pytest.mark.skipif(TorchVersion(torch.__version__) < "2.14", reason="FSDP needs torch 2.14")

# As `accelerate launch --use_fsdp --fsdp_version 2 ...` sets them.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def in_float64(state: TrainingState, **settings: Any) -> dict[str, Tensor]:
    """The weights of one process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return sharded_training.weights(state, **settings)
    finally:
        torch.set_default_dtype(before)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Weights are equal to 1e-10."""
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"parts"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)


def test_sharded_training_has_the_weights_of_one_process(tmp_path: Path) -> None:
    """To 1e-10 in float64, with the model and its layers as sharding units; bit-identical after resuming."""
    settings = FSDP | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "MaskTransformer,DecoderLayer,ConvBackbone"}
    expected = in_float64(TrainingState(tmp_path / "alone.pt", "key", resume=False))
    dense = in_float64(TrainingState(tmp_path / "alone_dense.pt", "key", resume=False), kind="dense")
    few = in_float64(TrainingState(tmp_path / "alone_few.pt", "key", resume=False), strong_every=5)
    assert float(expected["parts"]) == 1
    done = ranks_of(2, sharded_training.main, tmp_path, log=tmp_path / "stderr.txt", environment=settings)
    assert done.statuses == [0, 0], done.stderr[-3000:]
    for number in (0, 1):
        found: dict[str, dict[str, Tensor]] = torch.load(tmp_path / f"{number}.pt")
        for name in ("straight", "in micro batches"):
            assert float(found[name]["parts"]) == 2
            assert_close(found[name], expected)
        assert float(found["of another kind"]["parts"]) > 1.9  # of an odd number of rows
        assert_close(found["of another kind"], dense)
        assert_close(found["few strong views"], few)
        assert all(torch.equal(found["resumed"][key], value) for key, value in found["straight"].items())
    unsharded = in_float64(TrainingState(tmp_path / "state.pt", "key", resume=True))
    assert_close(unsharded, expected)


def test_layers_to_shard_are_those_that_the_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "DecoderLayer,ConvBackbone")
    wrapped = [
        sharding_of(model_and_objective(kind, "paper", 0)[0]).transformer_cls_names_to_wrap
        for kind in ("mask_transformer", "dense")
    ]
    assert wrapped == [["DecoderLayer", "ConvBackbone"], ["ConvBackbone"]]
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "SwinLayer")
    with pytest.raises(
        ConfigError, match=r"found SwinLayer, none of which this model has; expected some of .*ConvBackbone"
    ):
        sharding_of(model_and_objective("dense", "paper", 0)[0])


@pytest.mark.parametrize(
    ("settings", "share", "changes", "words"),
    [
        ({"fsdp_version": 1}, 0, {}, "found FSDP of version 1; expected --fsdp_version 2"),
        ({"cpu_ram_efficient_loading": True}, 0, {}, "add --fsdp_cpu_ram_efficient_loading false"),
        ({"cpu_offload": True}, 0, {}, "add --fsdp_offload_params false"),
        ({"activation_checkpointing": True}, 0, {}, "set student.gradient_checkpointing=true"),
        ({}, 0.15, {}, "set train.pxl_gradient_share=0"),
        ({}, 0, {"precision": "float16"}, "found FSDP and float16, .* use bfloat16"),
        (
            {},
            0,
            {"kind": "sam3"},
            "found FSDP for a model of kind 'sam3', .* expected mask_transformer, dense, universal",
        ),
    ],
)
def test_settings_that_sharding_does_not_support_are_refused(
    settings: dict[str, Any], share: float, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # accelerate sets it
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **settings})
    model, objective = model_and_objective("mask_transformer", "paper", share)
    model.config = dataclasses.replace(model.config, **changes)
    with pytest.raises(ConfigError, match=words):
        check_sharding(plugin, model, objective)


def test_scalars_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # accelerate sets it
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    model, objective = model_and_objective("mask_transformer", "paper", 0)
    check_sharding(plugin, model, objective)
    model.temperature = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"whose parameters temperature are scalars, .* use DDP \(--multi_gpu\)"):
        check_sharding(plugin, model, objective)


@pytest.mark.slow
def test_models_of_transformers_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    """In float32, to 1e-6 of the largest gradient: some of these models compute in it whatever their weights are."""
    pytest.importorskip("transformers")
    from tiny_models import save

    kinds = ["mask2former", "maskformer", "eomt", "eomt_dinov3", "rf_detr"]
    for kind in kinds:
        save(kind, tmp_path / kind)
    done = ranks_of(2, sharded_training.universal_gradients, tmp_path, log=tmp_path / "stderr.txt", environment=FSDP)
    assert done.statuses == [0, 0], done.stderr[-3000:]
    sharded_training.universal_gradients(tmp_path)
    expected, *found = (torch.load(tmp_path / f"gradients-{who}.pt") for who in ("alone", 0, 1))
    for kind in kinds:
        largest = max(float(value.abs().max()) for value in expected[kind].values())
        for own in found:
            assert own[kind].keys() == expected[kind].keys() and len(own[kind]) > 80
            for name, value in expected[kind].items():
                torch.testing.assert_close(own[kind][name], value, rtol=0, atol=1e-6 * largest, msg=f"{kind}: {name}")
