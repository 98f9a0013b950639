"""The pages: their links lead somewhere, the files that they name exist, the tree is complete."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.*")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
PAGES = [file for file in FILES if file.endswith(".md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
_PATH = re.compile(r"`((?:app|engine|bench|demo|docker|configs|tests|docs)/[\w./-]+)`")


def prose(page: str) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Returns the names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    for target, anchor in _LINK.findall(prose(page)):
        if "://" in target:
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor[1:] in anchors(file), f"{page} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    for name in _PATH.findall(prose(page)):
        assert (ROOT / name).exists(), f"{page} names {name}"


def tree() -> list[str]:
    """Returns the files in the tree of docs/architecture.md."""
    block = ARCHITECTURE[ARCHITECTURE.index("\napp/  ") :].split("```")[0]
    folders: list[str] = []
    files = []
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.append("".join([*folders, name]))
    return files


def test_the_tree_has_every_file_of_the_product_once():
    product = [
        file
        for file in FILES
        if re.fullmatch(r"(app|engine)/.*\.py", file) and not file.endswith("__init__.py")
    ]
    assert sorted(tree()) == sorted(product)
