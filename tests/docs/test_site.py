"""The site builds offline with warnings as errors (links and anchors among them), and loads nothing from elsewhere."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r'<(?:script|img|iframe)[^>]*src="([^"]+)"|<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="([^"]+)"'
)
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # nobody answers there


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "properdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **NO_NETWORK}, cwd=config.parent)


slow = pytest.mark.slow  # mkdocstrings reads three packages; the fast tier checks links in test_snippets.py


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@slow
def test_every_page_is_built(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for page in pages:
        built = page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")
        assert (site / built).exists() or page.name == "0000-template.md", page


@slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = LOADED.findall(text)
        assert loaded
        assert [url for pair in loaded for url in pair if url.startswith(("http", "//"))] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@slow
def test_no_absolute_path_of_the_machine_is_in_the_site(site: Path) -> None:
    assert [page for page in site.rglob("*.html") if str(ROOT) in page.read_text(encoding="utf-8")] == []


@slow
def test_the_python_reference_has_docstrings(site: Path) -> None:
    text = (site / "api" / "audit.html").read_text(encoding="utf-8")
    assert "wardround_common.audit.verify.verify_log" in text
    assert "Check an audit folder" in text


@slow
@pytest.mark.parametrize("mistake", ["[x](nowhere.md)", "[x](faults.md#nowhere)"])
def test_a_dead_link_fails_the_build(tmp_path: Path, mistake: str) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [{"Start": "index.md"}, {"Faults": "faults.md"}]
    config.update(plugins=[], nav=pages, theme={"name": "material", "font": False})
    config.pop("extra_css")
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "adr" / "0022-documentation-site.md", tmp_path / "docs" / "faults.md")
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[faults](faults.md)\n", encoding="utf-8")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n{mistake}\n", encoding="utf-8")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0


@slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium")
def test_search_works_from_a_folder_and_asks_nobody(site: Path) -> None:
    asked: list[str] = []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.fill("input[name=query]", "roll-over")
        page.fill("input[name=query]", "firewall")
        page.wait_for_selector(".md-search-result__item a", timeout=60_000)
        assert "firewall" in page.inner_text(".md-search-result__list").lower()
        chromium.close()
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_lists_of_docstrings_stand_apart() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "docstring_lists.py"))
    assert (
        module["apart"]("Rules.\n- One\n  more\n- two\nNot done: x") == "Rules.\n\n- One\n  more\n- two\n\nNot done: x"
    )
    assert module["apart"]("A line\nanother one\n\n    >>> 1 - 1") == "A line\nanother one\n\n    >>> 1 - 1"
