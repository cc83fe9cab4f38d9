"""Rules of the house that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from flyball_sim.admission.policies import check

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_directory_called_operator_is_a_package() -> None:
    """With an `__init__.py` it would shadow the standard library's `operator`, and Python would not start."""
    assert not [path for path in tracked() if path.parent.name == "operator" and path.name == "__init__.py"]


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = []
    for page in [path for path in tracked() if path.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken += [f"{page.relative_to(ROOT)} -> {target}"]
    assert not broken


def test_every_make_target_named_in_a_document_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set()
    for page in [path for path in tracked() if path.suffix == ".md"]:
        named |= set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_no_file_is_a_binary_but_pictures_of_the_documentation() -> None:
    found = [path for path in tracked() if b"\0" in path.read_bytes()]
    assert all(path.suffix == ".png" and path.parent == ROOT / "docs" for path in found), found


def test_the_first_policy_of_the_readme_is_the_example_that_the_api_server_would_take() -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    assert shown == (ROOT / "docs" / "examples" / "chat.yaml").read_text(encoding="utf-8")
    assert not check(yaml.safe_load(shown))
