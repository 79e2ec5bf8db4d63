"""The shape of the repository: what lies where, how long it is, and what may not stand in it."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "rayline"

FOLDERS = {"platform", "jobs", "serve", "tune", "cluster", "examples", "tests"}
FILES = {"pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", ".gitignore"}
ROOMS = {
    "spec",
    "planner",
    "parallel",
    "models",
    "data",
    "checkpoint",
    "train",
    "actors",
    "tracking",
    "tuning",
    "serving",
    "launch",
    "sdk",
    "console",
    "cli",
}
MODULES = {"__init__.py", "errors.py"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_JOB_LINES = 40


def listed_files() -> list[Path]:
    """Every file that git tracks, or would if it were added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


LISTED = listed_files()
SOURCES = sorted(path for path in LISTED if path.suffix == ".py" and path.is_relative_to(PACKAGE))
TREES = {path: ast.parse(path.read_text(), filename=str(path)) for path in SOURCES}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Each node of the given kinds in the package, with the file that it stands in."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield path, node


def test_the_top_level_is_complete_and_nothing_more() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in LISTED}
    assert top == FOLDERS | FILES | {".ci"}


def test_platform_holds_the_package_and_nothing_else() -> None:
    # With an __init__.py there, `import platform` would find it wherever the root is on sys.path.
    below = {
        path.relative_to(ROOT).parts[1] for path in LISTED if short(path).startswith("platform/")
    }
    assert below == {"rayline"}
    assert not (ROOT / "__init__.py").exists()


def test_the_rooms_are_those_of_the_import_table() -> None:
    found = {path.relative_to(PACKAGE).parts[0] for path in SOURCES}
    assert found == ROOMS | MODULES
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    # cli may import everything; each other room has its own contract.
    assert {contract["id"] for contract in contracts} >= (ROOMS | {"errors"}) - {"cli"}


@pytest.mark.parametrize("folder", ["serve", "tune", "cluster"])
def test_deployable_folders_hold_no_python(folder: str) -> None:
    assert not [
        short(path) for path in LISTED if re.match(rf"{folder}/.*\.(py|ipynb)$", short(path))
    ]


def test_job_scripts_are_short_and_shadow_nothing() -> None:
    scripts = [path for path in LISTED if short(path).startswith("jobs/") and path.suffix == ".py"]
    assert scripts
    # `python jobs/x.py` puts jobs/ first on sys.path: a script called like a module replaces it.
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    for path in scripts:
        assert len(path.read_text().splitlines()) <= MAX_JOB_LINES, short(path)
        assert path.stem not in taken, f"{short(path)} shadows the module {path.stem}"


@pytest.mark.parametrize("module", ["rayline", "rayline.spec", "rayline.planner", "rayline.sdk"])
def test_a_thin_client_loads_no_heavy_package(module: str) -> None:
    code = f"""
import sys
import {module}
heavy = {{"deepspeed", "mlflow", "ray", "torch", "transformers", "vllm"}}
print(*sorted(heavy & set(sys.modules)))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.split() == []


def test_a_driver_does_without_torch() -> None:
    code = "import sys, rayline.actors.chaos; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "False"


def test_files_are_short() -> None:
    long = {
        short(path): lines
        for path in SOURCES
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = {}
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            long[f"{short(path)}:{node.name}"] = lines
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [short(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert silent == []


def test_nothing_is_left_to_do() -> None:
    mark = re.compile(r"\b(TODO|FIXME|XXX)\b|NotImplementedError")
    left = [short(path) for path in SOURCES if mark.search(path.read_text())]
    assert left == []


def test_names_say_what_a_thing_is() -> None:
    vague = re.compile(r"(Manager|Handler|Helper|Utils?|Base|Impl)$")
    classes = [
        f"{short(path)}:{node.name}"
        for path, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and vague.search(node.name)
    ]
    assert classes == []
    rooms = [short(path) for path in SOURCES if re.search(r"\b(utils?|helpers?)\b", short(path))]
    assert rooms == []


def dangerous(call: ast.Call) -> bool:
    """Whether a call runs code that it reads, or hands text to a shell."""
    called = ast.unparse(call.func)
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called == "yaml.load":
        # A loader of our own is made from the safe one; these build any object that the text names.
        return arguments.get("Loader", "Loader").split(".")[-1] in {
            "Loader",
            "FullLoader",
            "UnsafeLoader",
        }
    if arguments.get("shell") == "True":
        return True
    return called in {"eval", "exec", "os.system", "os.popen", "torch.load"} or bool(
        re.fullmatch(r"(pickle|cloudpickle|dill|marshal|joblib)\.(load|loads|Unpickler)", called)
    )


def test_nothing_that_is_read_can_run() -> None:
    found = [
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func))
        for path, node in nodes(ast.Call)
        if isinstance(node, ast.Call) and dangerous(node)
    ]
    # What DeepSpeed writes is read in one place, which looks through a file before it reads it.
    assert found == [("checkpoint/torch_file.py", "torch.load")]
    text = (PACKAGE / "checkpoint" / "torch_file.py").read_text()
    assert 'torch.load(path, map_location="cpu", weights_only=True, mmap=True)' in text


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("yaml.load(text)", True),
        ("yaml.load(text, Loader=yaml.FullLoader)", True),
        ("yaml.load(text, Loader=_UniqueKeyLoader)", False),
        ("torch.load(path, weights_only=True)", True),
        ("pickle.loads(data)", True),
        ("subprocess.run(line, shell=True)", True),
        ("eval(text)", True),
        ("model.eval()", False),
    ],
)
def test_the_check_for_dangerous_calls_finds_them(code: str, bad: bool) -> None:
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert dangerous(statement.value) is bad


def test_no_registry_and_no_path_of_one_machine_is_named() -> None:
    # Written in pieces, so that this file does not name them either.
    hosts = ["pypi" + r"\.org", "python" + "hosted", r"registry\.npm" + "js", r"deb\.deb" + "ian"]
    machine = r"""(^|["'`\s=(:])/(wo""" + r"""rk|op""" + r"""t|ro""" + r"""ot)/"""
    pattern = re.compile("|".join([*hosts, machine]), re.MULTILINE)
    torch_index = re.compile(r"download\.py" + r"torch\.org")
    found = []
    for path in LISTED:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if pattern.search(text):
            found.append(short(path))
        if torch_index.search(text) and short(path) != "cluster/requirements/setup.sh":
            found.append(short(path))
    assert found == []
