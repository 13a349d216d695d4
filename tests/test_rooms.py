"""The package's rooms: what lives where, and who may import whom. `make lint` runs the same contract."""

import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
ROOMS = ("store", "world", "models", "scores", "game", "training", "exhibits", "mini", "build")  # from below


def diagram() -> str:
    """Mermaid, an arrow from each room to those it imports, but for what it reaches by way of another."""
    graph = grimp.build_graph("dfl_utils")
    uses = {room: set() for room in ROOMS}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            one, other = (name.split(".")[1:2] for name in (module, imported))
            if one and other and one != other and other[0] in uses:
                uses[one[0]].add(other[0])
    lines = []
    for room in reversed(ROOMS):
        reached = {far for near in uses[room] for far in _below(near, uses)}
        lines += [f"    {room} --> {other}" for other in ROOMS if other in uses[room] - reached]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def _below(room: str, uses: dict[str, set[str]]) -> set[str]:
    return uses[room] | {far for near in uses[room] for far in _below(near, uses)}


def test_a_room_imports_only_rooms_below_it():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # called here, it turns off all loggers
    assert told.returncode == 0, told.stdout


def test_contributing_shows_the_rooms_as_they_are():
    assert diagram() in (ROOT / "CONTRIBUTING.md").read_text(), f"put this into CONTRIBUTING.md:\n{diagram()}"


def test_every_module_lies_in_a_room():
    assert {path.name for path in (ROOT / "dfl_utils").glob("*.py")} == {"__init__.py"}
    assert {path.parent.name for path in (ROOT / "dfl_utils").glob("*/*.py")} == set(ROOMS)
