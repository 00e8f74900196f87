"""For tests of pages: what a browser would find in one."""

import base64
import hashlib
import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements, scripts and table cells of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.tables = [], [], []
        self.in_script = self.in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.in_script = True
            self.scripts.append((dict(attributes), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.in_cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.in_script = self.in_script and tag != "script"
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    @property
    def json(self):
        """What the data scripts hold, in order: a specification for each figure, then the data sets."""
        return [json.loads(text) for attributes, text in self.scripts if attributes.get("type") == "application/json"]

    def require_closed(self):
        """Nothing is loaded from elsewhere, nothing but our scripts runs, and no markup came in with a name."""
        (policy,) = [a["content"] for tag, a in self.elements if tag == "meta" and "http-equiv" in a]
        live = [script for attributes, script in self.scripts if attributes.get("type") != "application/json"]
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in live]
        expected = " ".join(f"'sha256-{value}'" for value in hashes)
        assert policy == f"default-src 'none'; script-src {expected}; style-src 'unsafe-inline'; img-src data:"
        position = {tag: index for index, (tag, _) in reversed(list(enumerate(self.elements)))}
        assert position["meta"] < position["script"]
        assert not {tag for tag, _ in self.elements} & {"img", "iframe", "object", "embed", "link", "base", "form"}
        for tag, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href", "action", "data"):
                assert not attributes.get(name, "#").startswith(("http", "//", "file")), (tag, attributes)
