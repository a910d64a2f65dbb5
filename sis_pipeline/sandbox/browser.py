"""A person's browser, as far as granting access needs one: opens the authorization URL and follows the redirect back.
`BROWSER='python -m sis_pipeline.sandbox.browser'` lets a program under test open it; nothing here knows the answer."""

from __future__ import annotations

import sys

import requests


def open_page(authorize_url: str) -> str:
    """The address that the server redirects to, with the code or the error in it; nothing is sent there."""
    answer = requests.get(authorize_url, allow_redirects=False, timeout=30)
    if answer.status_code not in {302, 303}:
        raise ValueError(f"the authorization endpoint answered {answer.status_code} instead of a redirect")
    return answer.headers["Location"]


def grant_access(authorize_url: str) -> str:
    """Go all the way: the text of the page that the redirect ends on."""
    return requests.get(open_page(authorize_url), timeout=30).text


if __name__ == "__main__":
    grant_access(sys.argv[1])
