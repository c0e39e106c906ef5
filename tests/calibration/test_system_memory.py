"""What can still be had, by the files of Linux."""

import pytest

from norton_plugin.modules import system_memory
from norton_plugin.modules.system_memory import available_bytes


@pytest.fixture
def files(monkeypatch, tmp_path):
    """A machine with 8 GiB available, and a container without a limit."""
    first = [tmp_path / name for name in ("memory.max", "memory.current")]
    second = [tmp_path / "v1" / name for name in ("limit", "usage")]
    monkeypatch.setattr(system_memory, "_MEMINFO", tmp_path / "meminfo")
    groups = ((*first, "inactive_file"), (*second, "total_inactive_file"))
    monkeypatch.setattr(system_memory, "_GROUPS", groups)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    return tmp_path


def test_of_a_machine(files):
    assert available_bytes() == 8 * 2**30


def test_of_a_container(files):
    (files / "memory.max").write_text(f"{2**30}\n")
    assert available_bytes() == 2**30 - 1000
    (files / "memory.stat").write_text("anon 10\ninactive_file 400\n")  # pages of files can be had back
    assert available_bytes() == 2**30 - 600
    (files / "memory.current").write_text(f"{2**31}\n")
    assert available_bytes() == 0


def test_of_a_container_of_the_first_kind(files):
    (files / "v1").mkdir()
    (files / "v1" / "limit").write_text("5000\n")
    (files / "v1" / "usage").write_text("3000\n")
    assert available_bytes() == 2000


def test_where_nothing_tells(files):
    for path in files.iterdir():
        path.unlink()
    assert available_bytes() is None
