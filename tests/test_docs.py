"""The README and the pages of docs/: the programs take every command in them, and links and names lead somewhere."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from sskd_fast.__main__ import COMMANDS
from sskd_fast.run.command_line import FLAGS
from sskd_fast.settings import Config
from sskd_fast.study.__main__ import settings_of
from sskd_fast.study.run import rows_of
from sskd_fast.study.tables import TABLES
from sskd_fast.yaml_settings import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
# Words that a reader replaces, by something that the parsers take in their place.
STANDS_FOR = {
    "N": "1",
    "TABLE": "ablations",
    "FILE": "configs/nuclei.yaml",
    "FILE.yaml": "configs/nuclei.yaml",
    "FORMAT": "onnx",
    "PRECISION": "fp32",
}
SECTIONS = {field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.default_factory)}


def command_lines(page: Path) -> list[str]:
    """The lines of ```bash blocks and of indented blocks, without comments, continued ones joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    blocks += re.findall(r"^ {4}(?:sskd|python|pip|pytest|torchrun) .*$(?:\n {4}.*$)*", outside, re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.search(r"\b(sskd|python|pytest|pip|nox|torchrun|accelerate) ", line)]


def programs(line: str) -> Iterator[list[str]]:
    """The words of each sskd, -m MODULE, pytest, pip and nox command in a line, with `sskd NAME` as its module."""
    words = shlex.split(line, comments=True)
    for part in " ".join(map(shlex.quote, words)).replace("'&&'", "\n").replace("'&'", "\n").splitlines():
        found = [STANDS_FOR.get(word, word) for word in shlex.split(part)]
        for start, word in enumerate(found):
            if word == "sskd" and found[start + 1 : start + 2] and found[start + 1] in COMMANDS:
                yield [f"sskd_fast.{COMMANDS[found[start + 1]][0]}", *found[start + 2 :]]
            elif word == "-m":
                yield found[start + 1 :]
            elif word in ("pytest", "pip", "nox", "sskd"):
                yield found[start:]
            else:
                continue
            break


def parsed(module: str, words: list[str]) -> argparse.Namespace:
    """The words as the command's parser reads them; AssertionError with its message if it refuses them."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    package = spec.submodule_search_locations is not None
    parser = importlib.import_module(module + ".__main__" * package).parser()
    try:
        return parser.parse_intermixed_args(words)
    except SystemExit as ended:
        assert ended.code == 0, f"{module} does not take {words}"
        return argparse.Namespace()


def check_settings_exist(module: str, arguments: argparse.Namespace) -> None:
    """Raises ConfigError for settings, presets, rows and YAML files that are not there."""
    if module == "sskd_fast.run":
        flags = [f"{key}={value}" for name, key in FLAGS.items() if (value := getattr(arguments, name)) is not None]
        files = [ROOT / path for path in arguments.config if path.name.islower() and path.parts[0] == "configs"]
        load_config(files, [*flags, *arguments.overrides], arguments.preset or "default")
    elif module == "sskd_fast.study":
        settings_of(arguments)
        rows_of(TABLES[arguments.table], arguments.rows)


def check_options_exist(module: str, words: list[str]) -> None:
    """For programs outside of the package: the module is there, and its text names every option."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"there is no module {module}"
    start = Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)
    text = start.read_text(encoding="utf-8")
    if "add_page_option(" in text:  # an option that several of them share
        text += (ROOT / "benchmarks" / "marked.py").read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{module} has no option {word}"


def check_command(words: list[str]) -> None:
    """AssertionError or ConfigError for a command that its program does not take."""
    program, *rest = words
    for word in rest:
        if re.match(r"(configs|tests|benchmarks|docs|csrc|kernels)/", word):
            assert list(ROOT.glob(word.partition("::")[0])), f"{word} is not there"
    if program.startswith("sskd_fast."):
        check_settings_exist(program, parsed(program, rest))
    elif program.startswith(("benchmarks", "tests")):
        check_options_exist(program, rest)
    elif program == "pip" and rest[0] == "install":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"(?:sskd_fast|\.)\[(.*?)\]", " ".join(rest)):
            assert set(named.split(",")) <= set(extras), f"there is no extra {named}"
    elif program == "nox" and "-s" in rest:
        assert f"def {rest[rest.index('-s') + 1]}(" in (ROOT / "noxfile.py").read_text()


@every_page
def test_every_command_is_taken_by_its_program(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in command_lines(page):
        for words in programs(line):
            check_command(words)


@every_page
def test_every_command_within_the_text_names_what_there_is(page: Path) -> None:
    """A command within a sentence may be a part of one: its name and its options are looked up."""
    for span in re.findall(r"`((?:sskd|python -m sskd_fast\.)[^`]*)`", page.read_text(encoding="utf-8")):
        name = re.match(r"(?:sskd |python -m sskd_fast\.)([a-z]+)", span)
        if name is None:
            continue
        modules = {module for module, _ in COMMANDS.values()}
        module = COMMANDS[name[1]][0] if span.startswith("sskd ") else name[1]
        assert module in modules, span
        package = (ROOT / "sskd_fast" / module).is_dir()
        home = importlib.import_module(f"sskd_fast.{module}" + ".__main__" * package)
        known = set(home.parser()._option_string_actions)
        assert set(re.findall(r"(?<!\S)--[a-z-]+", span)) <= known, span


@every_page
def test_every_setting_within_the_text_exists(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for name in (word.partition("=")[0] for word in span.split()):
            section, *rest = name.split(".")
            if section not in SECTIONS or not rest or not re.fullmatch(r"[a-z_.0-9]+", name):
                continue
            kind: typing.Any = Config
            for part in (section, *rest) if rest[-1] not in ("json", "yaml") else ():
                kind = typing.get_type_hints(kind).get(part)
                assert kind is not None, f"{page.name}: there is no setting {name}"


@every_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {link} has no such heading"


def test_every_environment_variable_that_is_read_is_described() -> None:
    read = re.compile(r"""(?:environ(?:\.get)?[\[(]|set_default\(|default_within\(|name = )"([A-Z][A-Z_]+)""")
    files = [*(ROOT / "sskd_fast").rglob("*.py"), ROOT / "setup.py", ROOT / "tests" / "conftest.py"]
    found = {name for path in files for name in read.findall(path.read_text(encoding="utf-8"))}
    assert {"SSKD_FAST_BACKEND", "SSKD_FAST_AOT", "CXX", "GOMP_SPINCOUNT"} <= found
    described = set(re.findall(r"`([A-Za-z_]+)`", (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")))
    assert {name for name in found if not name.startswith("PYTEST_")} - described == set()


def test_the_benchmarks_side_by_side_are_those_of_their_pages() -> None:
    places = [
        r"8x703: {} times faster than the fastest dense",
        r"\| 2x4096 \| float32 \| dense-compiled \| [^|]+ \| {} \|",
        r"of 2x4096: {} times its time",
        r"\| expected_pixel_contrast \| backward \| 8x703 \| float32 \| [^|]+ \| {} \|",
        r"\| Mask2Former of transformers \| [^|]+ \| [^|]+ \| {} \|",
        r"\| `--preset paper` \| 2 \| 2,048 \| [^|]+ \| {} \|",
    ]
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "benchmarks_amd.md")]
    _, _, *rows = [line for line in pages[0].split("<!--")[0].splitlines() if line.startswith("|")]
    for row, place in zip(rows, places, strict=True):
        for page, figure in zip(pages, row.split("|")[2:4], strict=True):
            assert re.search(place.format(re.escape(figure.strip())), page), row
