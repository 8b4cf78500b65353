"""The report: what the file says and holds, and what it does in a real browser."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.big_log import make_big_log, make_unstarted_log
from peers.studies import Cast, make_study
from typer.testing import CliRunner

from wardround_common.audit import rows as rows_module
from wardround_common.audit.cli import audit_app
from wardround_common.audit.events import RoundEvaluated
from wardround_common.audit.history import collect
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.proof import open_proof
from wardround_common.audit.reader import LogFolder, load_identity
from wardround_common.audit.report import page
from wardround_common.audit.report.timeline import draw
from wardround_common.audit.rows import read_rows
from wardround_common.audit.search import matches
from wardround_common.audit.trust import load_trust
from wardround_common.errors import WardroundError
from wardround_common.plain_words import explain
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.signing import fingerprint, public_key_text
from wardround_common.study import Cohort, Member

CHROMIUM = shutil.which("chromium")


def write(big, out, *options):
    keys = ["--trust", str(big.trust), "--identity", str(big.identity), "--last-seen", str(out.with_suffix(".seen"))]
    result = CliRunner().invoke(audit_app, ["report", str(big.folder), *keys, "--out", str(out), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def written(big, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    write(big, out)
    return out


@pytest.fixture(scope="session")
def html(written):
    return written.read_text(encoding="utf-8")


def data_of(html):
    packed = re.search(r'id="data">([^<]*)<', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def proofs_of(html):
    return json.loads(re.search(r'id="proofs">(.*?)</script>', html, re.DOTALL)[1])


def test_the_file_needs_no_other(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert "@import" not in html
    assert "url(" not in html.replace("url(#hatch", "")


def test_it_says_what_a_reviewer_asks(big, html):
    for heading in (
        "Four answers",
        "What was trained",
        "Privacy spent, per hospital",
        "Rounds, dropouts and refusals",
        "Gaps and contradictions",
        "Entries and their proofs",
        "What this does not show",
        "Check it yourself",
    ):
        assert heading in html
    for words in ("ε at δ = 1e-05 per patient", "add-or-remove-one", "PLD (dp-accounting", "lifetime budget"):
        assert words in html
    for words in ("execution", "never logged", "Later entries", "poisoning", "Compliance"):
        assert words in html
    assert big.study.purpose in html
    assert fingerprint(big.study.server.identity) in html
    assert html.count('class="answer ') == 4


def test_every_entry_is_in_it_with_its_leaf_hash(big, html):
    size = open_checkpoint(LogFolder(big.folder).checkpoint(), load_trust(big.trust).log_key()).size
    found = data_of(html)
    assert {len(column) for column in found["columns"].values()} == {size}
    assert len(base64.b64decode(proofs_of(html)["leaves"])) == 32 * size
    kinds = {found["tables"]["kind"][at] for at in found["columns"]["kind"]}
    assert {"segment.open", "study.created", "dp.spent", "client.dropped", "model.released"} <= kinds


def test_no_secret_of_reviewer_or_log_is_in_it(big, html):
    everything = html + json.dumps(data_of(html))
    assert "AGE-SECRET" not in everything
    assert str(big.reviewer) not in everything
    for key in (big.cast.log, big.cast.operator, *big.cast.members.values()):
        assert base64.b64encode(key.private_bytes_raw()).decode() not in everything


def test_redacted_by_name_it_names_nobody(big, tmp_path):
    html = write(big, tmp_path / "r.html", "--redact", "names")
    everything = html + json.dumps(data_of(html), ensure_ascii=False)
    trust = load_trust(big.trust)
    secrets = [*big.sites, big.study.name, big.study.purpose, big.study.server.name + ".wardround", trust.log]
    for secret in (*secrets, trust.operator, *trust.members.values(), *map(fingerprint, trust.members.values())):
        assert secret not in everything
    assert "hospital-1" in everything
    assert "Taken out of this copy: names" in html
    assert "ε at δ" in html  # what the reader needs is still there


def test_redacted_details_leave_place_and_proof(big, tmp_path):
    html = write(big, tmp_path / "r.html", "--redact", "details")
    found = data_of(html)
    assert found["tables"]["text"] == [""]
    assert found["tables"]["site"] == [""]
    assert len(found["columns"]["time"]) * 32 == len(base64.b64decode(proofs_of(html)["leaves"]))


def test_text_from_the_log_cannot_become_markup(big, tmp_path, monkeypatch):
    """Purposes and labels are lines of text from people."""
    bad = "</script><script>alert(1)</script>"
    real = rows_module.row_of

    def spoilt(entry, trust):
        row = real(entry, trust)
        if row.kind == "study.created":
            row.facts["envelope"]["content"]["purpose"] = bad
        return row

    monkeypatch.setattr(rows_module, "row_of", spoilt)
    html = write(big, tmp_path / "r.html")
    assert bad not in html
    assert "&lt;/script&gt;" in html


def test_a_log_without_rounds_has_a_report_too(tmp_path):
    html = write(make_unstarted_log(tmp_path / "log"), tmp_path / "r.html")
    assert "Nothing yet." in html
    assert "no signed mechanism record yet" in html


def test_a_log_too_large_for_one_page(big, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_ROWS", 100)
    with pytest.raises(WardroundError) as caught:
        write(big, tmp_path / "r.html")
    assert caught.value.code == "audit-report-too-large"
    start = int(re.search(r"--from (\d+)", caught.value.next_step)[1])
    html = write(big, tmp_path / "r.html", "--from", str(start))
    assert len(data_of(html)["columns"]["time"]) == 100


def test_a_log_of_long_entries_is_too_large_for_one_page(big, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_CHARACTERS", 20_000)
    with pytest.raises(WardroundError) as caught:
        write(big, tmp_path / "r.html")
    assert caught.value.code == "audit-report-too-large"
    assert "--from" in caught.value.next_step


def test_the_timeline_merges_equal_neighbours(big):
    rows = read_rows(LogFolder(big.folder), load_identity(big.identity), load_trust(big.trust))
    (study,) = collect(rows, load_trust(big.trust)).studies.values()
    drawing = draw(study)
    late = [bar for bar in drawing.bars if bar.css == "late"]
    assert [bar.title for bar in late] == ["hospital-02, rounds 11 to 12: late"]
    assert sum(bar.title.startswith("hospital-01") for bar in drawing.bars) < 5
    assert [name for name, _ in drawing.names] == ["outcome", *big.sites]


# -- in Chromium


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, written):
    """The report in a page that is offline and fails on any error and any request but the file itself."""
    context = browser.new_context(offline=True, accept_downloads=True)
    tab = context.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: problems.append(request.url) if request.url != written.as_uri() else None)
    tab.goto(written.as_uri())
    tab.wait_for_selector("html[data-ready]")
    yield tab
    assert [problem for problem in problems if not problem.startswith("blob:")] == []
    context.close()


def shown(tab):
    tab.wait_for_timeout(150)
    return int(tab.text_content("#count").split(" of ")[0].replace(",", ""))


def test_search_in_the_browser_finds_what_search_on_the_command_line_finds(big, opened):
    rows = list(read_rows(LogFolder(big.folder), load_identity(big.identity), load_trust(big.trust)))
    queries = ("", "dp.spent", "kind:client.dropped", "site:hospital-02 round:12", "round:7", "17", "late", "failed")
    digest = big.adapter[7:27]
    for query in (*queries, digest, "HOSPITAL-03", "kind:round. site:hospital-02", "2026-11-22", "nothing-like-this"):
        opened.fill("#q", query)
        assert shown(opened) == sum(matches(row, query) for row in rows), query


def test_the_lists_narrow_it_down(big, opened):
    opened.select_option("#kind", "dp.spent")
    assert shown(opened) == 24 * 4 - 2
    opened.select_option("#site", "hospital-02")
    assert shown(opened) == 22


def test_a_click_shows_the_proof(big, opened, tmp_path):
    opened.fill("#q", "kind:update.received site:hospital-03 round:5")
    assert shown(opened) == 1
    opened.click("#list .row")
    opened.wait_for_selector("#detail .checks li")
    checks = opened.locator("#detail .checks li")
    assert [checks.nth(n).get_attribute("class") for n in range(3)] == [None, None, None]
    assert checks.nth(0).text_content().startswith("In the tree of ")
    assert checks.nth(1).text_content() == "Signed by the log operator.wardround"
    assert checks.nth(2).text_content().startswith("Cosigned by 4 hospitals (3 needed)")
    with opened.expect_download() as saved:
        opened.click("text=Save .tlog-proof")
    proof = Path(saved.value.path()).read_text()
    index = int(re.search(r"Entry (\d+)", opened.text_content("#detail h3"))[1])
    folder = LogFolder(big.folder)
    entry = folder.entry(index, open_checkpoint(folder.checkpoint(), load_trust(big.trust).log_key()).size)
    assert open_proof(proof, entry, load_trust(big.trust)) == index


def test_every_proof_of_the_page_holds(big, opened):
    """The page's own arithmetic, for first, last and many entries between."""
    size = len(data_of(opened.content())["columns"]["time"])
    for index in sorted({0, 1, 255, 256, 257, size - 2, size - 1, *range(3, size, 97)} & set(range(size))):
        opened.fill("#q", str(index))
        assert shown(opened) == 1
        opened.click("#list .row")
        opened.wait_for_function(f"document.querySelector('#detail h3').textContent.startsWith('Entry {index}:')")
        opened.wait_for_selector("#detail .checks li")
        text = opened.locator("#detail .checks li").nth(0).text_content()
        assert "the path leads to the checkpoint's root" in text, index


def test_a_changed_leaf_is_seen_by_the_page(browser, html, tmp_path):
    leaves = bytearray(base64.b64decode(proofs_of(html)["leaves"]))
    leaves[32 * 20] ^= 1
    altered = html.replace(proofs_of(html)["leaves"], base64.b64encode(bytes(leaves)).decode())
    (tmp_path / "altered.html").write_text(altered, encoding="utf-8")
    tab = browser.new_page()
    tab.goto((tmp_path / "altered.html").as_uri())
    tab.wait_for_selector("html[data-ready]")
    tab.fill("#q", "20")
    tab.wait_for_timeout(150)
    tab.click("#list .row")
    tab.wait_for_selector("#detail .checks li")
    assert tab.locator("#detail .checks li").nth(0).get_attribute("class") == "no"
    tab.close()


def test_the_keyboard_moves_through_the_entries(opened):
    opened.focus("#list")
    for _ in range(3):
        opened.keyboard.press("ArrowDown")
    opened.wait_for_selector("#detail .checks li")
    assert opened.text_content("#detail h3").startswith("Entry 2:")
    assert opened.get_attribute("#list", "aria-activedescendant") == "row-2"
    assert opened.get_attribute("#row-2", "aria-selected") == "true"


def test_a_click_on_the_timeline_searches(opened):
    opened.click("svg.timeline rect.late")
    assert opened.input_value("#q") == "site:hospital-02 round:11"
    assert shown(opened) > 0


def test_it_prints_to_pdf_with_everything_but_the_controls(opened, tmp_path):
    opened.fill("#q", "kind:client.dropped")
    assert shown(opened) > 0
    opened.emulate_media(media="print")
    for selector in ("#q", ".panes", ".contents"):
        assert not opened.is_visible(selector)
    for selector in (".timeline", ".eps", "#limits", "details table"):
        assert opened.is_visible(selector), selector
    opened.pdf(path=str(tmp_path / "report.pdf"), format="A4", print_background=True)
    data = (tmp_path / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") + data.count(b"/Type /Page/") >= 3
    assert opened.is_visible("#print-rows table")
    assert "client.dropped" in opened.text_content("#print-rows")


def test_light_and_dark(opened):
    paper = "getComputedStyle(document.body).backgroundColor"
    opened.emulate_media(color_scheme="light")
    light = opened.evaluate(paper)
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(paper) != light
    opened.click("#theme")
    assert opened.evaluate(paper) == light


def test_it_tells_what_hospitals_measured_and_what_it_cost(tmp_path):
    evaluation = Evaluation(every=2, held_out=0.2, noise_multiplier=6.0, loss_bound=4.0)
    big = make_big_log(tmp_path / "measured", hospitals=3, rounds=2, evaluation=evaluation)
    trust = load_trust(big.trust)
    history = collect(read_rows(LogFolder(big.folder), load_identity(big.identity), trust), trust)
    (study,) = history.studies.values()
    told = RoundEvaluated(
        study=big.study.sha256(),
        round=2,
        survivors=tuple(big.sites),
        adapter=study.rounds[2].before,
        sums=(602.1, -310.4, 401.9),
    )
    with big.open() as log:
        big.append(log, told)
        big.cosign(log)
    shown = " ".join(write(big, tmp_path / "report.html").split())
    assert "What hospitals measured" in shown
    assert "held-out accuracy 83.4% ± 1.8%, loss 0.969 ± 0.067 (noised;" in shown
    assert "These noised sums leave with the update" in shown
    assert "evaluates by the study, but its figures" not in shown


def test_a_study_without_an_evaluation_has_no_such_table(html):
    assert "What hospitals measured" not in html


@pytest.mark.parametrize("members", [3, 5])
def test_every_sentence_of_the_study_has_a_heading(members):
    """Also where some hospitals may vanish: that sentence begins with a number."""
    cohort = {"colluders": 0, "min_cohort": 3, "witness_quorum": members}
    cast = Cast(members={f"site-{n}": Ed25519PrivateKey.generate() for n in range(members)})
    named = tuple(Member(name=n, identity=public_key_text(k.public_key())) for n, k in cast.members.items())
    found = [page._topic(sentence) for sentence in explain(make_study(cast, cohort=Cohort(members=named, **cohort)))]
    assert all(0 < len(heading) < 30 and text for heading, text in found), found
    assert [text for heading, text in found if heading == "If one is away"]
