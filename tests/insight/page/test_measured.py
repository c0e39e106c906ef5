"""Measurements of any shape become tables, and pictures are told from what only looks like them."""

import json

from norton_plugin.insight.page.measured import Table, measurements, pictures, tables_of


def test_rows_and_values_become_tables():
    data = {
        "device": "cpu",
        "threads": 2,
        "empty": [],
        "rows": [
            {"layer": "conv1", "ms": {"dense": 1.23456, "lowered": 0.5}, "faster": True},
            {"layer": "conv2", "macs": 1234567, "note": None},
        ],
        "runtimes": {"onnxruntime": {"ms": 3.0}, "openvino": {"ms": 12345.678}},
        "versions": {"torch": "2.11"},
    }
    assert tables_of("Speed", data) == [
        Table("Speed", ("what", "value"), (("device", "cpu"), ("threads", "2"))),
        Table(
            "Speed: rows",
            ("layer", "ms dense", "ms lowered", "faster", "macs", "note"),
            (("conv1", "1.235", "0.5", "yes", "-", "-"), ("conv2", "-", "-", "-", "1,234,567", "-")),
        ),
        Table("Speed: runtimes", ("", "ms"), (("onnxruntime", "3"), ("openvino", "12,346"))),
        Table("Speed: versions", ("what", "value"), (("torch", "2.11"),)),
    ]
    assert tables_of("Forms", [{"name": "a", "form": "dense"}]) == [Table("Forms", ("name", "form"), (("a", "dense"),))]
    assert tables_of("Speed", 3) == []
    nested = [{"batch": 1, "timings": [{"model": "dense", "ms": 2.0}, {"model": "small", "ms": 1.0}]}, {"batch": 8}]
    assert tables_of("Speed", nested) == [
        Table("Speed", ("batch", "model", "ms"), (("1", "dense", "2"), ("1", "small", "1"), ("8", "-", "-")))
    ]


def test_tables_have_bounds():
    (table,) = tables_of("T", [{f"c{i}": "x" * 500 for i in range(50)}] * 1000)
    assert (len(table.headings), len(table.rows), table.left_out) == (16, 400, 600)
    assert len(table.rows[0][0]) == 100


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bench.json").write_text("{")
    (tmp_path / "evaluation.json").write_text(json.dumps({"top1": 91.5}))
    (tmp_path / "forms.json").mkdir()
    tables, problems = measurements(tmp_path)
    assert [table.title for table in tables] == ["Accuracy"]
    assert [problem.split()[0] for problem in problems] == ["forms.json", "bench.json"]


def test_pictures_are_known_by_what_they_hold(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (tmp_path / "b.png").write_bytes(b"<svg onload='alert(1)'/>")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 5 * 2**20)
    found, problems = pictures([tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.png")])
    assert [(each.name, each.uri.split(";")[0]) for each in found] == [("a.png", "data:image/png")]
    assert [problem.split()[0] for problem in problems] == ["b.png", "c.jpg", "d.png"]
