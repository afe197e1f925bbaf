"""Puts the presets of `configs/` into built distributions; everything else is declared in pyproject.toml.

It never imports torch: an isolated build has none.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithPresets(build_py):
    """Copies `configs/*.yaml` to `sskd_fast/configs/`; an editable install reads them where they lie."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "sskd_fast" / "configs"
        self.mkpath(str(target))
        for preset in sorted((ROOT / "configs").glob("*.yaml")):
            self.copy_file(str(preset), str(target / preset.name))


setup(cmdclass={"build_py": BuildWithPresets})
