"""The three lists of dependencies agree: floors in pyproject.toml, versions in constraints.txt, hashes beside them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]

# The first release without the faults that are public on 2026-11-29 and reach a user of secateur. docs/SECURITY.md
# has the list with what each fault was.
SAFE = {
    "torch": "2.10",
    "jinja2": "3.1.6",
    "pillow": "12.3",
    "pyarrow": "14.0.1",
    "filelock": "3.20.3",
    "scikit-learn": "1.5",
    "transformers": "4.57.2",
    "timm": "1.0.26",
    "lightning": "2.6.6",
    "onnx": "1.21",
    "ray": "2.56",
    "mlflow": "3.15",
}


def floors() -> dict[str, Version]:
    """The lower bound of each dependency, those of the extras among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    found = {}
    for requirement in map(Requirement, every):
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        found[canonicalize_name(requirement.name)] = Version(bound)
    return found


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line) for line in lines]
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


def test_floors_are_above_the_releases_with_known_faults() -> None:
    bounds = floors()
    assert {name: str(bounds[name]) for name, safe in SAFE.items() if bounds[name] < Version(safe)} == {}


def test_security_page_names_every_floor_that_a_fault_set() -> None:
    page = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    assert [name for name, safe in SAFE.items() if f"| {name} | {safe} |" not in page] == []


def test_the_tested_versions_satisfy_the_floors() -> None:
    tested, bounds = pinned("constraints.txt"), floors()
    assert {name for name in tested.keys() & bounds.keys() if tested[name] < bounds[name]} == set()


def test_hashes_are_of_the_tested_versions() -> None:
    tested, hashed = pinned("constraints.txt"), pinned("requirements-hashed.txt")
    assert len(hashed) > 80
    assert {name for name in tested.keys() & hashed.keys() if tested[name] != hashed[name]} == set()
    text = (ROOT / "requirements-hashed.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    assert [block.split("==")[0] for block in blocks if "--hash=sha256:" not in block] == []
