"""What can still be had, by the files of Linux."""

import pytest

from norton_plugin.modules import system_memory
from norton_plugin.modules.system_memory import available_bytes


@pytest.fixture
def files(monkeypatch, tmp_path):
    """A machine with 8 GiB available, and a container without a limit."""
    groups = tmp_path / "groups"
    (groups / "memory").mkdir(parents=True)
    monkeypatch.setattr(system_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(system_memory, "_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(system_memory, "_GROUPS", groups)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8388608 kB\n")
    (groups / "memory.max").write_text("max\n")
    (groups / "memory.current").write_text("1000\n")
    return groups


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
    (files / "memory" / "memory.limit_in_bytes").write_text("5000\n")
    (files / "memory" / "memory.usage_in_bytes").write_text("3000\n")
    assert available_bytes() == 2000


@pytest.mark.parametrize(("line", "root"), [("0::/slice/job/step", ""), ("9:cpu,memory:/slice/job/step", "memory")])
def test_of_a_job_in_a_group_of_its_own(files, line, root):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if root else ("memory.max", "memory.current")
    (files.parent / "cgroup").write_text(f"1:name=systemd:/other\n{line}\n")
    inner = files / root / "slice" / "job" / "step"
    inner.mkdir(parents=True)
    for folder, limit, used in ((inner, 2**20, 5), (inner.parent, 9000, 3000)):  # the outer one is the narrower
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
    assert available_bytes() == 6000


def test_where_nothing_tells(files):
    (files.parent / "meminfo").unlink()
    for path in files.glob("memory.*"):
        path.unlink()
    assert available_bytes() is None
