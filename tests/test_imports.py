"""The imports of the package point one way, importing it is light, and the training loop stays readable."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sskd_fast"

# The rooms of the package, highest first: a room may import from lower lines only, and from itself.
ROOMS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"study", "label"}),
    frozenset({"run", "predict", "evaluate", "check", "rank", "export", "demo", "info"}),
    frozenset({"yaml_settings"}),
    frozenset({"settings"}),
    frozenset({"train", "predictor"}),
    frozenset({"report", "exported"}),
    frozenset({"losses", "pseudo_labels", "evaluation"}),
    frozenset({"source_prediction"}),
    frozenset({"models", "data"}),
    frozenset({"ops", "mask_matching"}),
    frozenset({"reference", "kernels", "_native"}),
    frozenset({"rng", "rle", "boxed_masks", "_build", "method", "files", "journal", "arguments", "typed_settings"}),
    frozenset({"_backend", "_process", "_interrupt", "folder_lock", "ranks", "scalars", "screen", "yaml_text"}),
    frozenset({"_backend_costs", "_env"}),
)
LEVEL = {room: level for level, rooms in enumerate(reversed(ROOMS)) for room in rooms}
# Rooms that may import even less than what lies below them.
ONLY = {"reference": {"rng"}, "rng": set()}
# What any room may take from the package itself.
PACKAGE_NAMES = {"__version__"}


def imported_names(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str, str | None]]:
    """Every import of a module, wherever it stands: (line, absolute module, imported name or None)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, source, alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, None


def target_room(package: str, source: str, name: str | None) -> str | None:
    """The room of the package that an import reaches: None for other packages, "" for the package itself."""
    head, *rest = source.split(".")
    if head != package:
        return None
    if rest:
        return rest[0]
    return name if name in LEVEL else ""


def may_import(room: str, target: str) -> bool:
    """True if a room may import another."""
    if room == target:
        return True
    return target in ONLY[room] if room in ONLY else LEVEL[target] < LEVEL[room]


def violations(package: Path) -> list[str]:
    """Every import inside a package folder that does not point down, as "file:line: what is wrong"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue  # it names all rooms, and imports them on first use only (tested below)
        room, where = parts[0], f"{package.name}/{path.relative_to(package)}"
        if room not in LEVEL:
            found.append(f"{where}: {room!r} has no place in ROOMS of tests/test_imports.py")
            continue
        is_package = parts[-1] == "__init__"
        module = ".".join([package.name, *(parts[:-1] if is_package else parts)])
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, source, name in imported_names(tree, module, is_package):
            target = target_room(package.name, source, name)
            if target is None or (target == "" and name in PACKAGE_NAMES):
                continue
            if target not in LEVEL:
                wanted = f"{source} import {name}" if name else source
                found.append(f"{where}:{line}: {wanted}: import from the room that defines it")
            elif not may_import(room, target):
                found.append(f"{where}:{line}: {room} may not import {target}")
    return found


def test_imports_point_one_way(tmp_path: Path) -> None:
    """With kernels/, which lies beside the package in a checkout, as the room that it is."""
    package = shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for source in (PACKAGE.parent / "kernels").glob("*.py"):
        shutil.copy(source, package / "kernels")
    assert violations(package) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("data/views.py", "from sskd_fast.losses import x", "data may not import losses"),
        ("data/views.py", "from sskd_fast import losses", "data may not import losses"),
        ("data/views.py", "import sskd_fast.losses.set_loss as s", "data may not import losses"),
        ("data/views.py", "from ..losses import x", "data may not import losses"),
        ("data/deep/views.py", "from ... import losses", "data may not import losses"),
        ("data/deep/__init__.py", "from ...losses.set_loss import x", "data may not import losses"),
        ("data/views.py", "def f():\n    from sskd_fast.models import x", "data may not import models"),
        ("data/views.py", "import importlib\nimportlib.import_module('sskd_fast.run')", "data may not import run"),
        ("losses/set_loss.py", "from sskd_fast.evaluation import x", "losses may not import evaluation"),
        ("losses/set_loss.py", "from sskd_fast.yaml_settings import x", "losses may not import yaml_settings"),
        ("losses/set_loss.py", "from sskd_fast.settings import x", "losses may not import settings"),
        ("pseudo_labels.py", "from sskd_fast.evaluation import x", "pseudo_labels may not import evaluation"),
        ("mask_matching.py", "from sskd_fast.models import x", "mask_matching may not import models"),
        ("mask_matching.py", "from sskd_fast.ops import x", "mask_matching may not import ops"),
        ("train/loop.py", "from sskd_fast.run import stages", "train may not import run"),
        ("train/loop.py", "from sskd_fast.settings import x", "train may not import settings"),
        ("models/checkpoint.py", "from sskd_fast.train import checkpoint", "models may not import train"),
        ("models/checkpoint.py", "from sskd_fast.data.coco import x", "models may not import data"),
        ("source_prediction.py", "from sskd_fast.evaluation import x", "source_prediction may not import evaluation"),
        ("yaml_settings.py", "from sskd_fast.run import stages", "yaml_settings may not import run"),
        ("reference/pixel_contrast.py", "from sskd_fast import _env", "reference may not import _env"),
        ("rng.py", "from sskd_fast._env import x", "rng may not import _env"),
        ("_env.py", "from sskd_fast._backend import x", "_env may not import _backend"),
        ("ops/pixel_contrast.py", "from sskd_fast import Instances", "import from the room that defines it"),
        ("utils.py", "", "'utils' has no place in ROOMS"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, problem: str) -> None:
    planted = tmp_path / "sskd_fast" / file
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    found = violations(tmp_path / "sskd_fast")
    assert len(found) == 1
    assert found[0].startswith(f"sskd_fast/{file}:")
    assert problem in found[0]


def test_what_points_down_is_allowed(tmp_path: Path) -> None:
    package = tmp_path / "sskd_fast"
    texts = {
        "__init__.py": "from sskd_fast.losses import InstancePixelContrast",
        "run/__main__.py": "import torch\nfrom sskd_fast import __version__\nfrom sskd_fast.train.loop import x",
        "run/stages.py": "from sskd_fast.yaml_settings import x\nfrom .labels import z\nfrom ..pseudo_labels import y",
        "losses/contrast.py": "from sskd_fast.data.instances import Instances\nfrom sskd_fast import ops, rng",
        "ops/score_fusion.py": "from sskd_fast.reference import score_fusion\nfrom sskd_fast._backend import resolve",
        "reference/pixel_contrast.py": "from sskd_fast import rng\nfrom sskd_fast.reference import score_fusion",
        "data/views.py": "from torchvision import ops, models\nimport sskd_faster.losses",
    }
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert violations(package) == []


def printed_by(script: str) -> list[str]:
    """The words that a script prints in a fresh interpreter."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "torchvision", "triton", "numpy", "scipy", "PIL", "pycocotools"]
    script = f"import sys, sskd_fast; print(*[name for name in {heavy} if name in sys.modules])"
    assert printed_by(script) == []


def test_commands_start_without_what_only_training_needs() -> None:
    """Each of these takes half a second to three seconds of processor time to import."""
    heavy = ["torchvision", "triton", "torch._dynamo", "torch.distributed.tensor", "timm", "transformers"]
    script = f"import sys, sskd_fast.run.__main__; print(*[name for name in {heavy} if name in sys.modules])"
    assert printed_by(script) == []


def test_every_public_name_resolves_without_starting_cuda() -> None:
    script = """
import sys, sskd_fast
for name in sskd_fast.__all__:
    assert getattr(sskd_fast, name) is not None, name
torch = sys.modules.get("torch")
print(len(sskd_fast.__all__), torch is not None and torch.cuda.is_initialized())
"""
    count, initialized = printed_by(script)
    assert int(count) > 0
    assert initialized == "False"


def test_the_training_loop_is_short() -> None:
    loop = PACKAGE / "train" / "loop.py"
    text = loop.read_text(encoding="utf-8")
    functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert "train" in functions
    assert len(text.splitlines()) < 150
