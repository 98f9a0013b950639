"""The web page's files as HTTP answers. tests/page uses the page itself."""

import re
from pathlib import Path

import pytest

from app.web_page import FOLDER

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*.*"))


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_the_root_is_the_page_for_browsers_and_the_name_for_programs(http, accept):
    page = http.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    assert page.headers["vary"] == "accept"
    assert http.get("/", headers={"accept": accept}).json()["name"] == "easel"


def test_the_head_of_the_page_has_no_body(http):
    answer = http.head("/", headers=BROWSER)
    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize("path", ["/web/", "/web/nothing.js", "/web/../server.py", "/web/vendor"])
def test_paths_that_are_no_file_of_the_page_do_not_exist(http, path):
    assert http.get(path, headers=BROWSER).status_code == 404


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_served_once_and_then_found_unchanged(http, file):
    answer = http.get(f"/web/{file}")
    assert answer.content == (FOLDER / file).read_bytes()
    again = http.get(f"/web/{file}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_file_that_the_page_loads_is_one_of_its_own(http):
    for file in FILES:
        if Path(file).suffix not in (".js", ".html", ".css") or file.startswith("vendor/"):
            continue
        text = (FOLDER / file).read_text()
        loaded = re.findall(r"""(?:import|from|import\()\s*"\./([^"]+)\"""", text)
        loaded += re.findall(r'"/web/([^"]+)"', text)
        for name in loaded:
            assert http.get(f"/web/{name}").status_code == 200, f"{file} loads {name}"
        assert not re.search(r"url\(|@import|https?://", text.replace("http://www.w3.org", "")), (
            file
        )


def test_the_page_may_load_nothing_from_elsewhere_and_run_no_inline_script(http):
    policy = http.get("/", headers=BROWSER).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    sources = {source for each in policy.split("; ") for source in each.split()[1:]}
    assert sources <= {"'none'", "'self'", "data:", "blob:", "'script'", "dompurify"}


def test_a_models_document_has_no_origin_no_network_and_by_default_no_script(http):
    policies = [
        http.get(f"/web/{name}.html").headers["content-security-policy"]
        for name in ("frame", "frame-with-scripts")
    ]
    for policy in policies:
        assert policy.startswith("sandbox allow-scripts; default-src 'none'")
        assert "connect-src" not in policy
        assert "allow-same-origin" not in policy
    assert re.search("script-src 'sha256-[^ ]+';", policies[0])
    assert "script-src 'unsafe-inline';" in policies[1]


def test_the_page_needs_no_key_but_its_requests_do(shared_server):
    http = shared_server(EASEL_API_KEY="secret").http
    assert http.get("/", headers=BROWSER).status_code == 200
    assert http.get("/web/main.js").status_code == 200
    for path in ("/", "/v1/models", "/web/nothing.js"):
        assert http.get(path).status_code == 401


def test_a_page_of_another_origin_gets_no_file(http):
    elsewhere = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    assert http.get("/web/main.js", headers=elsewhere).status_code == 403
