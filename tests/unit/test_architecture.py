"""The house as it stands: imports go downwards only, doors stay doors, light things stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "nlp_distill"

TIERS = [
    {"errors"},
    {"allocator", "attention", "embedding", "noise", "layers", "presets"},
    {"settings", "strict_yaml", "outcome", "sessions"},
    {"terms", "trouble"},
    {"recipe"},
    {"task", "rundir", "families", "vetting", "hub_trouble", "overrides"},
    {"sources", "shelf", "first_token"},
    {"hub_data", "hub"},
    {"web", "recipe_file", "loading", "signals", "losses", "batches", "checkpoint", "data", "cutting"},
    {"student", "vocabulary", "stage_keys", "precision", "starter", "starts", "testing", "records", "rows", "asking"},
    {"objective", "scores", "cache", "graphs"},
    {"loop"},
    {"teacher", "exports", "compress"},
    {"measuring", "prediction", "light"},
    {"preflight", "road", "reports", "comparing"},
    {"doctor", "estimate", "targets", "teaching", "publishing"},
    {"retraining"},
    {"variants"},
    {"stages"},
    {"display", "reference", "serving"},
    {"service"},
    {"verbs"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(TIERS) for room in rooms}
NO_TORCH = [
    "errors",
    "layers",
    "recipe",
    "task",
    "rundir",
    "overrides",
    "recipe_file",
    "data",
    "sources",
    "vetting",
    "hub_data",
    "hub",
    "shelf",
    "loading",
    "sessions",
    "display",
    "prediction",
    "web.app",
    "light.door",
    "serving.app",
    "serving.catalog",
    "serving.frames",
    "web.listening",
    "service.api.app",
    "service.worker",
    "service.client",
    "service.server",
    "verbs.common",
    "cli",
]


def modules(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def room(path):
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imported(path, package):
    """Rooms of `package` that a module imports when it runs (type-checking imports are not)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            parts = node.module.split(".")
            yield parts[1] if len(parts) > 1 else ""
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == package:
                    yield [*name.name.split("."), ""][1]


def test_every_room_has_a_tier():
    assert {room(path) for path in modules(CORE)} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_imports_go_downwards_only(path):
    if room(path) == "__init__":
        return
    for other in imported(path, "nlp_distill"):
        if other and other != room(path):
            assert LEVEL[other] < LEVEL[room(path)], f"{path.name} imports {other}"
    assert not list(imported(path, "nlp_distill_tasks"))


def test_adapters_import_the_contract_and_public_names_only():
    allowed = {"", "task", "recipe", "settings", "errors"}
    for path in modules(ROOT / "tasks"):
        assert set(imported(path, "nlp_distill")) <= allowed, path


def test_models_enter_through_one_door():
    # What a card shows its readers is text.
    doors = {"uses.py": "from_pretrained", "loading.py": "from_pretrained"}
    for path in [*modules(CORE), *modules(ROOT / "tasks")]:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if "from_pretrained" in line and not line.lstrip().startswith(("#", '"')):
                assert doors.get(path.name, "-") in line, f"{path}: {line}"


FORBIDDEN = (
    *("torch.load", "pickle.", "import pickle", "joblib", "dill", "marshal", "import shelve", "allow_pickle=True"),
    *("trust_remote_code=True", "yaml.load(", "unsafe_load", "full_load", "shell=True", "os.system", "eval(", "exec("),
    *("evaluate.load", "load_dataset(", "hub.load", "importlib.util.spec_from_file_location", "weights_only"),
)


def test_the_core_asks_for_no_task_and_no_architecture_by_name():
    """What differs between them is in adapters and tables; see `families.py`, `light/door.py`."""
    from nlp_distill.families import known_model_types
    from nlp_distill.task import load_task, task_names

    names = {*task_names(), *known_model_types(), *(load_task(name).pipeline_task for name in task_names())}
    for path in modules(CORE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                asked = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not asked & names, f"{path}:{node.lineno}"
    compared = re.compile(rf"""(?:[=!]=+|\bin)\s*["'](?:{"|".join(map(re.escape, sorted(names)))})["']""")
    pages = [path for kind in ("html", "js") for path in CORE.rglob(f"*.{kind}")]
    assert pages and compared.search('{% if task == "seq2seq" %}')
    for path in pages:
        assert not compared.search(path.read_text(encoding="utf-8")), path


def test_nothing_that_runs_data_is_written_anywhere():
    for path in [*modules(CORE), *modules(ROOT / "tasks"), *modules(ROOT / "benchmarks")]:
        for line in path.read_text(encoding="utf-8").split("\n"):
            code = line.replace(".eval()", "").replace("model.eval(", "")
            assert not [word for word in FORBIDDEN if re.search(rf"(?<![\w.]){re.escape(word)}(?![a-z])", code)], (
                f"{path}: {line}"
            )


def test_files_and_functions_stay_small():
    for path in [*modules(CORE), *modules(ROOT / "tasks")]:
        text = path.read_text(encoding="utf-8")
        # The list of errors is a table: one tree, read in one place.
        assert text.count("\n") <= (600 if path.name == "errors.py" else 400), path
        for node in ast.walk(ast.parse(text)):
            # A migration is a table in code, and is never touched once it is out.
            if isinstance(node, ast.FunctionDef) and "migrations" not in path.parts:
                length = (node.end_lineno or 0) - node.lineno + 1
                limit = 120 if (path.name, node.name) == ("loop.py", "train") else 60
                assert length <= limit, f"{path.name}: {node.name} has {length} lines"


def test_no_public_name_is_a_submodule():
    import nlp_distill

    assert not set(nlp_distill.__all__) & set(LEVEL)
    for name in nlp_distill.__all__:
        assert getattr(nlp_distill, name) is not None


def test_the_picture_in_the_docs_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in LEVEL:
        assert f"{name}.py" in text or f"{name}/" in text, name


def loaded_after(code):
    """Heavy libraries that a fresh interpreter has loaded after some code."""
    heavy = "[m for m in ('torch', 'transformers', 'datasets', 'numpy', 'pandas') if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint({heavy})"], capture_output=True, text=True, check=True
    )
    return ast.literal_eval(done.stdout.strip().split("\n")[-1])


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import nlp_distill") == []
    assert loaded_after("\n".join(f"import nlp_distill.{name}" for name in NO_TORCH)) == []


def test_help_loads_nothing_heavy():
    code = "from nlp_distill.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == []


def test_listing_recipes_loads_nothing_heavy():
    code = "from nlp_distill.cli import main\ntry:\n    main(['recipes', 'list'])\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == []
