"""Loading of a trained model from a path, a run's folder or a hub repository."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError

from sskd_fast.exported import Exported, load_exported
from sskd_fast.method import BASELINE, FINAL_STUDENTS
from sskd_fast.predictor.predictor import WEIGHTS, ModelError, Predictor

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load(model: str | Path, *, stage: str | None = None, device: str = "auto") -> Predictor:
    """The predictor of a trained model.

    model: a checkpoint (.safetensors), a run's folder, a folder of `save_pretrained`, or a hub id ("owner/name").  An
    exported file (.onnx, .xml) is taken too and runs on the CPU.  stage: stage of the model in a run's folder; by
    default the last student.  device: "auto" takes a GPU if there is one.
    Raises ModelError if there is no model or no such device, and CheckpointError or ExportError for a bad file.
    """
    if device not in ("auto", "cpu") and _is_exported(Path(model)):
        raise ModelError(
            f"device {device}: {model} is an exported file, which runs on the CPU; choose auto or cpu, or give the "
            "checkpoint that it was made from"
        )
    found = torch.cuda.is_available()
    if device.startswith("cuda") and not found:
        raise ModelError(
            f"device {device}: PyTorch finds no CUDA device; use cpu, or install a CUDA build and a driver"
        )
    predictor = _found(model, stage)
    if isinstance(predictor.model, Exported):
        return predictor
    chosen = device if device != "auto" else "cuda" if found else "cpu"
    try:
        return predictor.to(torch.empty(0, device=chosen).device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device}: PyTorch cannot use it ({reason}); choose auto, cpu or cuda") from error


def _found(model: str | Path, stage: str | None) -> Predictor:
    path = Path(model)
    if stage is not None and not (path / "checkpoints").is_dir():
        raise ModelError(f"{model}: not the folder of a run, so it has no stage {stage}; leave the stage out")
    if _is_exported(path):
        exported = load_exported(path)
        return Predictor(exported, exported.description.checkpoint)
    if path.is_file():
        return Predictor.read(path)
    if (path / "checkpoints").is_dir():
        return Predictor.read(checkpoint_of(path, stage))
    if (path / WEIGHTS).is_file():
        return Predictor.from_pretrained(path)
    if path.exists():
        raise ModelError(
            f"{path}: has neither checkpoints/ nor {WEIGHTS}; expected a run's folder, a folder of save_pretrained "
            "or a .safetensors file"
        )
    if not _HUB_ID.fullmatch(str(model)) or path.suffix == ".safetensors" or path.parent.is_dir():
        raise ModelError(
            f"{model}: there is no such file or folder; expected a checkpoint (.safetensors), an exported file (.onnx, "
            ".xml), a run's folder such as runs/embedded, or a hub id such as owner/name"
        )
    return _from_hub(str(model))


def _is_exported(path: Path) -> bool:
    return path.suffix in (".onnx", ".xml") and path.is_file()


def _from_hub(model: str) -> Predictor:
    try:
        return Predictor.from_pretrained(model)
    except (OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{model}: there is no such folder here, and the hub does not provide it ({reason}); check the path, the "
            "id and the network, or log in with `hf auth login`"
        ) from error


def checkpoint_of(run: Path, stage: str | None = None) -> Path:
    """The weights file of a run's stage, by default the last student.  Raises ModelError listing finished stages."""
    names = sorted(path.stem for path in (run / "checkpoints").glob("*.safetensors"))
    wanted = [stage] if stage else [*FINAL_STUDENTS, BASELINE]
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise ModelError(
            f"{run}: has no finished {' or '.join(wanted)}; found {', '.join(names) or 'no finished stage'}; resume "
            f"with `python -m sskd_fast.run --output {run} --resume`, or choose a stage that is there (--stage)"
        )
    return run / "checkpoints" / f"{found}.safetensors"
