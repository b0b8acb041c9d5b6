"""The generated reference pages: complete, and readable without MkDocs."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.settings import setting_names
from zephyr_jax.commands import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The hook as MkDocs loads it."""
    spec = importlib.util.spec_from_file_location("reference_hook", ROOT / "docs" / "hooks" / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_of_every_command_is_described(hook: ModuleType) -> None:
    """Each setting stands on one of the pages, with a text."""
    cli_page, configuration = hook.cli_page(), hook.configuration_page()
    for name, command in COMMANDS.items():
        section = cli_page.partition(f"## {name} {{")[2].partition("\n## ")[0]
        assert section, name
        for setting in setting_names(command.config_type()):
            if "." in setting:
                text = configuration.partition(f"### `{setting}` {{")[2].partition("\n### ")[0]
                assert re.search(r"^[A-Z`][^\n]{8,}", text, re.MULTILINE), setting
                assert f"[`{setting.partition('.')[0]}`](configuration.md#" in section, (name, setting)
            else:
                assert re.search(
                    rf"^`--{setting}(?:\.NAME)?`[^\n]* \*[^\n]+\*\n:   [^\n]{{8,}}", section, re.MULTILINE
                ), (
                    name,
                    setting,
                )


def test_facts_of_a_setting(hook: ModuleType) -> None:
    """Type, bounds, default and whether it is resumable, of settings of each kind."""
    page = hook.configuration_page()
    for setting, facts in {
        "batch.rows": "integer or None, at least 1, default by context",
        "data.max_skipped_fraction": "number, at least 0, at most 1, default `0.1`, resumable",
        "data.packing": "flag, default on",
        "optimizer.b1": "number, at least 0, below 1, default `0.9`",
        "dpo.loss": "one of `sigmoid`, `ipo`, `ipo_sum`, `hinge`, `robust`, default `sigmoid`",
        "mesh.fsdp": "integer, default `-1`, resumable",
        "anomaly.spike_factor": "number, above 1, default `4.0`, resumable",
    }.items():
        assert f"### `{setting}` {{ #{setting} }}\n\n*{facts}*\n" in page, setting
    assert "\n`--resume` `--no_resume` *flag, default on*\n:   " in hook.cli_page()


def test_links_between_the_pages_lead_to_anchors(hook: ModuleType) -> None:
    pages = {"cli.md": hook.cli_page(), "configuration.md": hook.configuration_page()}
    anchors = {name: set(re.findall(r"\{ #(\S+) \}", text)) for name, text in pages.items()}
    links = [(page, anchor) for text in pages.values() for page, anchor in re.findall(r"\((\w+\.md)#([^)]+)\)", text)]
    assert len(links) > 100
    assert not [link for link in links if link[1] not in anchors[link[0]]]


@pytest.mark.parametrize(
    ("tag", "fails"),
    [
        ('<script src="https://cdn.example/a.js"></script>', True),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', True),
        ('<a href="https://example.org">a link to follow</a><script src="assets/a.js"></script>', False),
    ],
)
def test_pages_load_nothing_from_other_hosts(hook: ModuleType, tag: str, fails: bool) -> None:
    errors = pytest.importorskip("mkdocs.exceptions")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    if not fails:
        assert hook.on_post_page(tag, page, None) == tag
        return
    with pytest.raises(errors.PluginError, match="index.md loads from another host"):
        hook.on_post_page(tag, page, None)
