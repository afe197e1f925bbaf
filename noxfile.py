"""Recipes: `nox --list` shows them, `nox -s NAME` runs one; docs/developing.md says when."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
EVERYTHING = ".[test,models,photos,cityscapes,export,results,scale,demo,docs]"
nox.options.sessions = ["lint", "tests"]


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Lints, format, types and spelling."""
    session.install("-e", ".[test]", "codespell")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("codespell", ".")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The fast tests."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session(python="3.11")
def slow(session: nox.Session) -> None:
    """The slow tests."""
    session.install("-e", ".[test,models,photos,export,results,scale,docs]")
    session.run("pytest", "-m", "slow", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session(python="3.11", venv_backend="uv")
def oldest(session: nox.Session) -> None:
    """The fast tests with the oldest version of every dependency that pyproject.toml allows, all at once."""
    session.install("--resolution", "lowest-direct", "-e", EVERYTHING)
    session.run("python", "-m", "sskd_fast.info")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The fast tests with every optional library, in the newest version that pip finds."""
    session.install("--upgrade", "-e", EVERYTHING)
    session.run("python", "-m", "sskd_fast.info")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Lines and branches that the fast tests run, as a table; `-- --cov-report=html` writes pages to htmlcov/."""
    session.install("-e", EVERYTHING, "pytest-cov")
    session.run("pytest", "-n", "2", "--dist", "loadfile", "--cov", "--cov-report=term-missing", *session.posargs)


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """The site, with warnings as errors; its commands parsed, its notebook executed."""
    session.install("-e", ".[test,docs]")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "-m", "slow or not slow", "tests/test_docs.py", "tests/test_notebook.py")


@nox.session(python="3.11")
def sanitizers(session: nox.Session) -> None:
    """The C++ operators and the emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow", "tests/test_native.py", "-k", "sanitizers")
    session.run("pytest", "-m", "slow or not slow", "tests/test_emulation.py")


@nox.session(python="3.11")
def mutants(session: nox.Session) -> None:
    """Mutation testing of losses, pseudo-labels, evaluation and operators; names of mutants may follow."""
    session.install("-e", ".[test]", "pyarrow", "mutmut>=3.8,<4")
    session.run("mutmut", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    if not session.posargs:
        session.run("mutmut", "results")


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """A wheel with the compiled operators and a source distribution, into dist/."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build", "cmake", "setuptools>=77", "torch", "numpy")
    session.run("python", "-m", "build", "--no-isolation", env={"SSKD_FAST_AOT": "1"})


@nox.session(python=PYTHONS)
def strangers(session: nox.Session) -> None:
    """The wheel of dist/, installed and run away from the checkout, with deprecations as errors."""
    (built,) = Path("dist").glob("*.whl")
    session.install(str(built))
    away = session.create_tmp()
    session.env["PYTHONWARNINGS"] = "error::DeprecationWarning"
    with session.chdir(away):
        session.run("sskd", "info")
        session.run("sskd", "train", "--preset", "smoke", "--max-steps", "2", "--output", "run", "train.threads=1")
        session.run("sskd", "predict", "run", "run/data/val", "--output", "found")
