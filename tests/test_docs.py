"""Commands, settings and paths in the documentation exist."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from dreamteacher import cli
from dreamteacher.settings.table import known_keys, markdown
from pipelines import __main__ as pipelines_cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


PROGRAMS = {"dreamteacher": cli, "python -m pipelines": pipelines_cli, "dreamteacher pipelines": pipelines_cli}


def commands(program: str) -> dict[str, set[str]]:
    """Options of each command of a command line."""
    subparsers = next(action for action in PROGRAMS[program].build_parser()._actions if action.dest == "command")
    assert isinstance(subparsers.choices, dict)
    return {name: {s for action in p._actions for s in action.option_strings} for name, p in subparsers.choices.items()}


def test_the_page_of_parameters_is_up_to_date() -> None:
    assert markdown() in (ROOT / "docs/parameters.md").read_text(), "run `dreamteacher params --markdown`"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_names_exists(page: Path, program: str) -> None:
    known = commands(program)
    for name, rest in re.findall(rf"(?:^ +|`){program} ([a-z][a-z-]*)([^`\n#]*)", page.read_text(), re.M):
        assert name in known, name
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known[name], (name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_sets_exists(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"(?:--set '?|-S \+?)([\w.]+)=", text)
    # A recipe may override settings of these groups: recipes.NAME.distill.T.
    assert {re.sub(r"^recipes\.\w+\.(?=(taps|student|distill)\b)", "", name) for name in named} <= set(known_keys())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_setting_that_the_file_lacks_gets_a_plus_in_dvc_exp_run(page: Path) -> None:
    """`dvc exp run -S` refuses a name that is not in params.yaml, unless it is preceded by a +."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    for plus, name in re.findall(r"-S (\+?)([\w.]+)=", page.read_text()):
        group, _, key = name.partition(".")
        assert bool(plus) != (key in settings[group]), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_backbone_is_loaded_with_its_weights(page: Path) -> None:
    """Without `pretrained=True`, timm silently initialises at random."""
    calls = re.findall(r"""timm\.create_model\(["']local-dir:[^)]*\)""", page.read_text())
    assert all("pretrained=True" in call for call in calls), calls
    assert calls or page.name not in ("getting-started.md", "artifacts.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_in_a_link_is_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target if target else page).read_text(), re.M)
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        repeated = {f"{slug}-{slugs[:number].count(slug)}" for number, slug in enumerate(slugs) if slug in slugs[:number]}  # as GitHub does
        assert anchor in {*slugs, *repeated}, (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_is_a_line(page: Path) -> None:
    lines = page.read_text().splitlines()
    for above, line in pairwise(lines):
        if "| --- |" in line:
            cells = [re.sub(r"`[^`]*`", "", each).count("|") for each in (above, line)]
            assert re.fullmatch(r"[| :-]+", line.strip()) and cells[0] == cells[1], (above, line)


def test_every_page_is_linked_from_another() -> None:
    linked = {target.rpartition("/")[2] for page in PAGES for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text())}
    assert {page.name for page in PAGES} - {"README.md"} <= linked


def test_every_module_that_the_explanation_names_exists() -> None:
    for file in re.findall(r"`((?:\w+/)*\w+\.py)", (ROOT / "docs/how-it-works.md").read_text()):
        assert (ROOT / "src/dreamteacher" / file).exists(), file


FOLDERS = "src|docs|tests|benchmarks|k8s|docker|components|pipelines|samples|scripts"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    """Except for names with a placeholder, such as components/STAGE.py, and results of benchmarks."""
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text()):
        assert re.search("[A-Z]{3}", name) or name.startswith("benchmarks/results/") or (ROOT / name).exists(), name


def test_every_environment_variable_of_ours_that_a_page_names_exists() -> None:
    places = [path for folder in ("src", "pipelines", "components", "docker", "k8s", "tests") for path in (ROOT / folder).rglob("*")]
    code = "\n".join(path.read_text() for path in places if path.suffix in (".py", ".yaml", ".Dockerfile") or path.name == "Dockerfile")
    known = set(re.findall(r"\bDREAMTEACHER_[A-Z_]+", code))
    for page in PAGES:
        assert set(re.findall(r"\bDREAMTEACHER_[A-Z_]+", page.read_text())) <= known, page.name
