"""``norton doctor``: what is wrong is named with the command that fixes it."""

import json
from importlib import metadata

from norton_plugin import environment


def test_the_command(norton):
    answer = norton("doctor", "--json")
    content = json.loads(answer.out)
    assert answer.code == (1 if content["wrong"] else 0)
    found = {f["name"]: f["found"] for f in content["findings"]}
    assert found["torch-pruning"] == metadata.version("torch-pruning")


def test_the_command_names_what_is_wrong(norton, monkeypatch):
    bad = environment.Finding("timm", "not installed", "wrong", "pip install 'norton-plugin[timm]'")
    monkeypatch.setattr(environment, "diagnose", lambda: [bad])
    answer = norton("doctor")
    assert answer.code == 1 and "wrong: timm" in answer.out and "norton-plugin[timm]" in answer.out
