"""Everything is declared in pyproject.toml; this file puts csrc/ and kernels/, beside the package, into wheels."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSources(build_py):
    """build_py, csrc/ and kernels/ as folders of the package: operators are compiled on the machine that uses them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install reads both from the checkout
            return
        root = Path(__file__).resolve().parent
        for source in sorted([*(root / "csrc").rglob("*"), *(root / "kernels").rglob("*")]):
            if source.suffix in {".h", ".cpp", ".py"}:
                target = Path(self.build_lib) / "sskd_fast" / source.relative_to(root)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithSources})
