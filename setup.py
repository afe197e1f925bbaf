"""Adds csrc/ and kernels/, which lie beside the package, to wheels; pyproject.toml declares everything else.

With SSKD_FAST_AOT=1 the native operators are built ahead of time as well (CMakeLists.txt). The wheel is then for one
platform, Python 3.11 and later, and PyTorch 2.10 and later. The build needs PyTorch installed (`pip wheel
--no-build-isolation`).
CMAKE_ARGS has further arguments for cmake, such as -DSSKD_FAST_CUDA=OFF. CMAKE_BUILD_PARALLEL_LEVEL: how many files are
compiled at once; one per processor if it is not set.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
AHEAD_OF_TIME = os.environ.get("SSKD_FAST_AOT", "") == "1"


class BuildWithSources(build_py):
    """build_py with csrc/ and kernels/ as folders of the package: users' machines compile the operators from them."""

    def run(self) -> None:
        super().run()
        if AHEAD_OF_TIME:
            self.build_operators()
        if self.editable_mode:  # an editable install reads both folders from the checkout
            return
        for source in sorted([*(ROOT / "csrc").rglob("*"), *(ROOT / "kernels").rglob("*")]):
            if source.suffix in {".h", ".cpp", ".cu", ".py"}:
                target = Path(self.build_lib) / "sskd_fast" / source.relative_to(ROOT)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def build_operators(self) -> None:
        """Builds the libraries into sskd_fast/lib of the build folder."""
        build = Path(self.get_finalized_command("build").build_temp).resolve() / "ahead_of_time"
        target = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        settings = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={target}"]
        more = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *settings, *more], check=True)
        jobs = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        subprocess.run(["cmake", "--build", str(build), "--target", "install"], env={**jobs, **os.environ}, check=True)


class PlatformDistribution(Distribution):
    """Marks the wheel as platform-specific if it holds machine code."""

    def has_ext_modules(self) -> bool:
        return AHEAD_OF_TIME


# The libraries have no symbol of Python's at all, so the oldest Python of pyproject.toml may stand for all later ones.
OPTIONS = {"bdist_wheel": {"py_limited_api": "cp311"}} if AHEAD_OF_TIME else {}
setup(cmdclass={"build_py": BuildWithSources}, distclass=PlatformDistribution, options=OPTIONS)
