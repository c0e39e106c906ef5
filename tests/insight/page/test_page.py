"""The page of a compression: whole, self-contained, safe, and readable where it is opened."""

import base64
import json
import os
import sys

import pytest
import torch
from browser import Reader, looked_at
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.artifact import MANIFEST
from norton_plugin.artifact.manifest import manifest_hash
from norton_plugin.errors import ArtifactError, MissingExtraError
from norton_plugin.insight.page import Table, render_page, write_page

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'norton-plugin[insight]'")

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script>&\"'{{ 7 * 7 }}"


def changed(artefact, change):
    """Let a function edit the manifest, as anyone can who knows how it is hashed."""
    path = artefact / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    data["manifest_hash"] = manifest_hash(data)
    path.write_text(json.dumps(data))


def test_the_forms_of_a_deployed_model_are_shown_once(artefact):
    table = {"format": "norton-plugin forms", "blocks": [{"name": "layers.0", "form": "grouped"}]}
    changed(artefact, lambda data: data["extra"].update(deployment=table))
    (artefact / "forms.json").write_text(json.dumps(table))
    page = Reader(render_page(artefact))
    assert page.text.count("norton-plugin forms") == 1
    assert "{'name'" not in page.text


def test_everything_of_the_report_is_there(artefact, compressed):
    report = compressed.report
    page = Reader(render_page(artefact))
    assert all(layer.name in page.text for layer in report.layers)
    assert "a.b:c" in page.text and "NMSE" in page.text
    assert {entry.code for entry in report.skipped} <= set(page.text.replace(":", " ").split())
    assert all(entry.cause.advice in page.text for entry in report.skipped)
    assert "91.25" in page.text  # accuracy that was stored after fine-tuning
    dots = [a for a in page.all("circle") if a.get("cy") and a.get("r") == "3.5"]
    assert len(dots) == len(report.decomposition.layers) == 5
    assert len({dot["cx"] for dot in dots}) == 2  # rank 2, and rank 3 of one layer
    after = 100 * report.macs_after / report.macs_before
    assert {"class": "after", "width": f"{after:.2f}", "height": "10"} in page.all("rect")


def test_a_status_of_pruning_is_told_only_where_it_was_tried(artefact):
    assert "layers in all; pruning: full" in " ".join(Reader(render_page(artefact)).text.split())
    changed(artefact, lambda data: data["report"]["pruning"].update(groups=[], skipped=[]))
    assert "pruning: full" not in Reader(render_page(artefact)).text


def test_what_images_did_is_told(artefact):
    stored = {"images": 9, "held_back": 2, "divergence": {"plain": 2.5, "fitted": 0.125}, "chosen": "fitted"}
    taught = {"images": 1, "held_back": 0, "divergence": {"before": 0.5, "after": 0.75}, "kept": "before"}
    assert "Fitted to images" not in Reader(render_page(artefact)).text
    changed(artefact, lambda data: data["report"].update(calibration=stored, distillation=taught))
    text = Reader(render_page(artefact)).text
    assert "Fitted to images: 9; divergence on 2 others: plain 2.5, fitted 0.125; kept: fitted." in text
    assert "on images: 1; divergence on the same images: before 0.5, after 0.75; kept: before." in text
    changed(artefact, lambda data: data["report"]["calibration"].update(divergence={"plain": "much"}))
    with pytest.raises(ArtifactError, match="edited or damaged"):
        render_page(artefact)


def test_warnings_are_told(artefact):
    assert "Warning:" not in Reader(render_page(artefact)).text
    changed(artefact, lambda data: data["report"].update(warnings=["the budget was missed by 9 %"]))
    assert "Warning: the budget was missed by 9 %" in " ".join(Reader(render_page(artefact)).text.split())
    changed(artefact, lambda data: data["report"].update(warnings="missed"))
    with pytest.raises(ArtifactError, match="str in place of a list of texts"):
        render_page(artefact)


def test_removed_filters_are_marked(artefact, compressed):
    groups = compressed.report.pruning.groups
    page = Reader(render_page(artefact))
    marks = [a for a in page.all("circle") if a.get("class") == "removed"]
    removed = [each for group in groups for each in group.distances.removed]
    assert len(removed) == sum(group.before - group.after for group in groups) > 0
    assert len(marks) == 2 * len(removed)
    group = groups[0]
    gone = ", ".join(str(each) for each in group.distances.removed)
    assert f"Removed of these: {gone}." in page.text


def test_nothing_is_loaded_and_nothing_runs(artefact):
    (artefact / "cam.png").write_bytes(PNG)
    text = render_page(artefact)
    page = Reader(text)
    links = [a[key] for _, a in page.elements for key in ("href", "src", "action", "srcset", "xlink:href") if key in a]
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert "url(" not in text and "@import" not in text
    assert page.all("script") == []
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert page.all("img") == [{"src": f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "alt": "cam.png"}]


def test_scrolled_tables_can_be_reached_by_keyboard(artefact):
    boxes = [a for a in Reader(render_page(artefact)).all("div") if "scroll" in (a.get("class") or "")]
    assert len(boxes) >= 4
    assert all(a.get("tabindex") == "0" and a.get("role") == "region" and a.get("aria-label") for a in boxes)


def test_hostile_names_are_text(artefact):
    def rename(data):
        data["report"]["layers"][0]["name"] = HOSTILE
        data["report"]["pruning"]["groups"][0]["root"] = HOSTILE
        data["report"]["pruning"]["skipped"].append({"name": HOSTILE, "code": HOSTILE, "reason": HOSTILE})
        data["source"]["name"] = data["extra"]["weights"] = HOSTILE
        data["extra"][HOSTILE] = {HOSTILE: HOSTILE}
        data["recipe"][HOSTILE] = HOSTILE

    changed(artefact, rename)
    (artefact / "bench.json").write_text(json.dumps({HOSTILE: [{HOSTILE: HOSTILE}]}))
    text = render_page(artefact)
    page = Reader(text)
    assert page.all("script") == [] and "<script" not in text
    assert page.text.count(HOSTILE) > 8
    assert not any("onload" in attributes for _, attributes in page.elements)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.update(macs_before="many"), "'many' stands where a whole number"),
        (lambda r: r.update(macs_before=-1), "'-1' stands where a whole number"),
        (lambda r: r.pop("layers"), "'layers' is missing"),
        (lambda r: r.update(layers=3), "not iterable"),
        (lambda r: r["layers"][0].update(name=["x"]), "where a text is expected"),
        (lambda r: r["layers"][0].update(level="deep"), "a level is 'deep'"),
        (lambda r: r["layers"][0].update(nmse=True), "where a number from 0"),
        (lambda r: r["pruning"]["groups"][0]["distances"].update(pairs="AAAA"), "distances of 16 filters"),
        (lambda r: r["pruning"]["groups"][0]["distances"].update(pairs="?"), "no base64"),
        (lambda r: r["pruning"]["groups"][0]["distances"].update(filters=[1] * 4000), "distances of 4000 filters"),
    ],
)
def test_a_damaged_report_is_refused(artefact, change, told):
    changed(artefact, lambda data: change(data["report"]))
    with pytest.raises(ArtifactError, match="edited or damaged") as raised:
        render_page(artefact)
    assert told in str(raised.value)


def test_an_artefact_without_report(artefact):
    changed(artefact, lambda data: data.update(report=None))
    with pytest.raises(ArtifactError, match="holds no report of a compression"):
        render_page(artefact)


def test_a_report_without_distances(artefact):
    def strip(data):
        for group in data["report"]["pruning"]["groups"]:
            del group["distances"]

    changed(artefact, strip)
    page = Reader(render_page(artefact))
    assert "Similar filters" not in page.text and "Left as it was" in page.text


def test_the_file_is_written_whole_or_not_at_all(artefact, tmp_path, monkeypatch):
    page = write_page(artefact)
    assert page == artefact / "report.html"
    before = page.read_bytes()
    assert before.decode() == render_page(artefact)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"report.html cannot be written \(No space left on device\)"):
            write_page(artefact, tables=[Table("T", ("a",), (("b",),))])
    assert page.read_bytes() == before
    assert sorted(p.name for p in artefact.iterdir()) == ["model.safetensors", MANIFEST, "report.html"]
    assert write_page(artefact, tmp_path / "new" / "a.html").read_bytes() == before


def test_without_jinja2(artefact, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"norton-plugin\[insight\]"):
        render_page(artefact)


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(artefact, tmp_path, width):
    def lengthen(data):
        layer = data["report"]["layers"][0]
        layer["name"] = "backbone." + "averyverylongname" * 9
        data["report"]["layers"] += [{**layer, "name": f"stage.{i}.conv"} for i in range(150)]

    changed(artefact, lengthen)
    (artefact / "bench.json").write_text(json.dumps({"rows": [{f"column {i}": 1.5 for i in range(16)}] * 30}))
    text = render_page(artefact)
    light = looked_at(text, tmp_path, width=width)
    assert (light["wide"], light["over"]) == ([], 0)
    assert light["layers"] > 300  # every layer once as a bar and once in the table
    assert light["background"] == "rgb(255, 255, 255)"
    assert looked_at(text, tmp_path, width=width, dark=True)["background"] == "rgb(18, 22, 28)"


@pytest.mark.parametrize("level", ["cluster", "layer", "spatial"])
def test_layers_of_every_level_are_shown(level, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    request = {"level": level, "share": 0.5, "sweeps": 5} | ({"clusters": 2} if level == "cluster" else {})
    result = compress(model, torch.randn(1, 16, 8, 8), Recipe.from_dict({"decomposition": request}))
    assert [layer.level for layer in result.report.decomposition.layers] == [level, level]
    page = Reader(render_page(result.save(tmp_path / "small")))
    assert level in page.text
