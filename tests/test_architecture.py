"""The rooms, and which way their imports point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = {
    "orchestrator": {"orchestrator", "rnp", "baselines", "testbed"},
    "rnp": {"rnp", "testbed"},
    "baselines": {"baselines", "testbed"},
    "testbed": {"testbed"},
}
ORCHESTRATORS_OWN = {"ray", "optuna", "mlflow"}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written from the top"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    files = sorted((PROJECT / room).rglob("*.py"))
    assert files
    for path in files:
        names = imported(path)
        assert names & set(ROOMS) <= ROOMS[room], path
        if room != "orchestrator":
            assert not names & ORCHESTRATORS_OWN, path


def test_a_sweep_runs_on_a_machine_without_ray_optuna_and_mlflow(tmp_path: Path) -> None:
    sweep = tmp_path / "small.yaml"
    sweep.write_text(
        "data: {name: digits, train_images: 200}\n"
        "backbone: {name: conv, depth: 4, width: 0.25}\n"
        "training: {epochs: 1}\n"
        "methods: {dense: {}, l1_filter: {keep_ratio: 0.5}}\n"
    )
    without = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(ORCHESTRATORS_OWN))
    program = f"import sys; {without}; from orchestrator.trial import main; sys.exit(main())"
    arguments = [str(sweep), "--output", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "small" / "trials.csv").read_text().splitlines()
    assert len(rows) == 3
    assert (tmp_path / "runs" / "small" / "report.html").exists()
