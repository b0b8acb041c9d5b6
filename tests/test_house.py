"""The house keeps its shape: layers, sizes, names, and a README whose commands are the ones that CI runs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.thorough import THOROUGH

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zephyr_jax"
LAYERS = [
    {"cli"},
    {"commands"},
    {"demo"},
    {"api"},
    {"train_command"},
    {"feedback", "serve", "export", "plan"},
    {"report"},
    {"evaluate"},
    {"train"},
    {"clients", "reference"},
    {"generate"},
    {"checkpoint"},
    {"methods"},
    {"objective", "prepare"},
    {"model", "parallel"},
    {"data"},
    {"chat"},
    {"batch", "mean", "config"},
    {"storage"},
    {"charts", "log", "startup", "progress", "seeded_random"},
    {"errors"},
]
"""Top first. A package imports from lower layers and from itself; the exceptions stand in BESIDE."""
BESIDE: set[tuple[str, str]] = set()
LONGEST_FILE, LONGEST_FUNCTION = 350, 60


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "zephyr_jax"


def imports(path: Path) -> list[str]:
    """Absolute imports of our own package anywhere in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zephyr_jax"):
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "zephyr_jax"]
    return [name for name in found if name != "zephyr_jax"]


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def test_imports_go_down() -> None:
    """No room imports from one above or beside it."""
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in files():
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            there = room(name)
            if here != there and (here, there) not in BESIDE and height[there] <= height[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_package_is_too_large() -> None:
    """None has more than 15 % of the lines."""
    lines: dict[str, int] = {}
    for path in files():
        package = path.relative_to(PACKAGE).parts[0]
        lines[package] = lines.get(package, 0) + len(path.read_text().splitlines())
    assert max(lines.values()) <= 0.15 * sum(lines.values())


def test_the_architecture_page_is_true() -> None:
    """Files that it names exist, and its map has the packages in the order of the layers."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/hf|/families))`", page)
    assert len(names) > 30
    assert not [name for name in names if not any((parent / name).exists() for parent in (ROOT, PACKAGE))]
    rows = [line.split("   ")[0].split() for line in page.split("```")[1].strip().splitlines()]
    order = [name for row in rows for name in row]
    height = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    assert set(order) == set(height)
    assert [height[name] for name in order] == sorted(height.values())


def test_modules_do_not_import_in_circles() -> None:
    """The graph of modules has no cycle."""
    graph = {
        "zephyr_jax." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): set(imports(path))
        for path in files()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_data_and_settings_never_import_jax() -> None:
    """Nor anything of ours that does: rows are read and settings checked without an accelerator."""
    rooms = ("data", "chat", "prepare", "config", "storage", "batch", "mean", "errors", "log")
    ours = [path for path in files() if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in rooms]
    assert len(ours) > 10
    assert not [path.name for path in ours if re.search(r"^\s*(from|import) (jax|flax|optax)", path.read_text(), re.M)]


def test_every_import_is_a_declared_dependency() -> None:
    """What happens to be there through another package may not be there tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in project["dependencies"]}
    declared |= {
        re.split(r"[<>=\[ ]", line)[0] for extra in project["optional-dependencies"].values() for line in extra
    }
    names = {"yaml": "pyyaml", "orbax": "orbax-checkpoint", "huggingface_hub": "huggingface-hub", "lm_eval": "lm-eval"}
    used = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    foreign = {names.get(name, name.lower()) for name in used - set(sys.stdlib_module_names) - {"zephyr_jax"}}
    assert foreign <= declared


def test_files_and_functions_fit_on_a_page() -> None:
    long_files = [path.name for path in files() if len(path.read_text().splitlines()) > LONGEST_FILE]
    long_functions = [
        f"{path.name}:{node.name}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long_files
    assert not long_functions


def test_every_public_thing_says_what_it_is() -> None:
    """Modules, public classes and public functions have docstrings."""
    silent = []
    for path in files():
        tree = ast.parse(path.read_text())
        public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        silent += [path.name] if not ast.get_docstring(tree) else []
        silent += [f"{path.name}:{n.name}" for n in public if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not silent


def test_no_suppressions_and_no_rooms_without_a_name() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "lib"}
    marks = re.compile(r"type: ignore|noqa|pyright: ignore|fmt: skip|fmt: off|TODO|FIXME|XXX")
    assert not [path.name for path in files() if marks.search(path.read_text())]


def test_readme_commands_are_those_of_ci() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install uv && uv run pytest" in readme
    assert "pip install uv && uv run zephyr-jax demo" in readme
    assert "uv run pytest" in ci
    assert "{{" not in readme


def test_every_data_file_is_packaged() -> None:
    """A wheel holds the files that modules read, not only the modules."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["zephyr_jax"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert len(data) > 8
    assert not data - packaged


def test_files_and_tests_that_conftest_names_exist() -> None:
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
    for name in THOROUGH:
        file, _, test = name.partition("::")
        assert not test or f"def {test.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(), name


def test_pins_stand_in_one_place() -> None:
    """constraints.txt (for pip) and pyproject's constraints (for uv) are the same list, from which CI reads those of peft."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["uv"]["constraint-dependencies"] == pins
    read = re.findall(r"grep -E '\^\(([\w|-]+)\)==' constraints.txt", (ROOT / ".ci" / "run").read_text())
    assert read == ["accelerate|peft|transformers"]
    assert set(read[0].split("|")) <= {pin.partition("==")[0] for pin in pins}


@pytest.mark.skipif(os.name != "posix", reason="shell")
def test_the_recipe_file_is_sound_shell() -> None:
    """Parses, and every verb in it exists."""
    script = ROOT / "launch" / "zephyr.sh"
    subprocess.run(["bash", "-n", script], check=True)
    verbs = re.findall(r"^zephyr-jax (\w+)", script.read_text(), re.M)
    assert verbs == ["sft", "reference", "dpo", "export"]
