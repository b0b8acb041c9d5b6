"""Files for people who use, cite or change the repository: they parse, agree with each other and name what exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def commands_of_ci() -> list[str]:
    return [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]


def test_the_workflow_runs_ci_and_nothing_else() -> None:
    """So both are equal: each step is a checkout, Python of the version that the project names, or `.ci/run`."""
    workflow = read(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    actions = {step["uses"].partition("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
    version = (ROOT / ".python-version").read_text().strip()
    assert actions == {"actions/checkout": {}, "actions/setup-python": {"python-version": version}}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    weekly = read(".github/workflows/thorough.yml")
    (thorough,) = weekly["jobs"].values()
    assert "schedule" in weekly[True]
    assert thorough["steps"] == [*job["steps"][:-1], {"run": ".ci/run -m thorough"}]


def test_pre_commit_runs_the_checks_of_ci() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "mypy"}
    for hook in hooks.values():
        assert hook["entry"] in commands_of_ci()
        assert hook["language"] == "system" and hook["pass_filenames"] is False and hook["name"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    """By GitHub's rules for forms: required keys, known kinds of fields, one id for each field."""
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    identifiers = [field["id"] for field in fields]
    assert identifiers and len(identifiers) == len(set(identifiers))
    for field in fields:
        assert field["type"] in ("textarea", "dropdown") and field["attributes"]["label"]
        options = field["attributes"].get("options", [])
        assert all(isinstance(option, str) for option in options) and bool(options) == (field["type"] == "dropdown")


def test_issue_forms_are_there() -> None:
    assert [path.stem for path in FORMS] == ["bug_report", "feature_request"]
    assert read(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": True}


def test_the_citation_is_valid() -> None:
    """The keys that the Citation File Format 1.2.0 requires, and the version and license of the package."""
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["authors"] == PROJECT["authors"] == [{"name": "zephyr-jax contributors"}]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["type"] == "article" and paper["title"] and len(paper["authors"]) == 14
    assert all(author["family-names"] for author in paper["authors"])


def test_the_license_is_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert re.search(r"^   Copyright \d{4} zephyr-jax contributors$", text, re.M)
    assert "[yyyy]" not in text
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]


def test_type_information_is_packaged() -> None:
    """PEP 561: without the marker, type checkers of users ignore the annotations."""
    assert (ROOT / "zephyr_jax" / "py.typed").read_bytes() == b""
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["zephyr_jax"]
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    """Keep a Changelog: known headings only, and no command that does not exist."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)", text, re.M)[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)", text, re.M)) <= kinds


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    paths = re.findall(r"`((?:\.ci|benchmarks|configs|docs|launch|tests|zephyr_jax)/[\w./-]*)", text)
    assert links or paths
    assert not [path for path in [*links, *paths] if not (ROOT / path).exists()]
