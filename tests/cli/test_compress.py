"""``norton compress``: what it writes, and that a fresh process loads the very same model."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from norton_plugin import Recipe, compress
from norton_plugin.artifact import read_manifest
from norton_plugin.cli.images import even_batches
from norton_plugin.recipe import Decomposition, Pruning
from norton_plugin.recipe.pruning import channels_of_a_register
from norton_plugin.zoo import load_source
from tests.stopwatch import counted_macs

FRESH = """
import sys, torch
from norton_plugin import load
from norton_plugin.artifact import read_manifest
from norton_plugin.cli.images import even_batches
from norton_plugin.zoo import rebuild
torch.set_num_threads(int(sys.argv[3]))
model = load(sys.argv[1], rebuild(read_manifest(sys.argv[1]).source))
x = torch.linspace(-2, 2, 2 * 256).reshape(2, 1, 16, 16)
with torch.no_grad():
    torch.save(model(x), sys.argv[2])
"""


def test_artefact_gives_bit_equal_outputs_in_a_fresh_process(norton, tmp_path):
    torch.manual_seed(5)
    source = load_source("demo:digits")
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    where = tmp_path / "small"
    answer = norton(
        "compress", "demo:digits", "--checkpoint", tmp_path / "weights.pth", "--rank", 2, "--keep", 0.75, "-o", where
    )
    assert (answer.code, answer.err) == (0, "")

    recipe = Recipe(decomposition=Decomposition(rank=2), pruning=Pruning(keep=0.75))
    model, _ = compress(source.model, source.example_inputs, recipe)
    x = torch.linspace(-2, 2, 2 * 256).reshape(2, 1, 16, 16)
    with torch.no_grad():
        dense, expected = source.model(x), model(x)
    assert not torch.allclose(dense, expected, atol=1e-3)

    arguments = [str(where), str(tmp_path / "out.pt"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)


def test_json_is_all_there_is_on_stdout(norton, tmp_path):
    answer = norton("compress", "demo:digits", "--rank", 1, "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert sorted(found) == ["artifact", "recipe", "report", "source", "weights"]
    assert found["weights"] == "random"
    assert answer.err == (
        "warning: demo:digits has random weights; give --pretrained or --checkpoint FILE for trained ones\n"
    )
    block = next(layer for layer in found["report"]["layers"] if layer["name"] == "layer1.conv1")
    # R N (C Hi Wi + Kh Ho Wi + Kw Ho Wo)
    assert (block["rank"], block["macs_after"]) == (1, 32 * (32 + 3 + 3) * 256)


def test_tables_name_layers_reasons_and_totals(norton, tmp_path):
    answer = norton("compress", "demo:digits", "--rank", 2, "--keep", 0.5, "-o", tmp_path / "a")
    assert answer.code == 0
    assert "CPDBlock" in answer.out
    assert "model-output" in answer.out and "docs/reasons.md" in answer.out
    assert "-92.3 %" in answer.out  # MACs
    shown = "".join(answer.out.split())  # lines break where the path happens to end
    assert "".join(f"the recipe is {tmp_path / 'a' / 'recipe.yaml'}".split()) in shown


def test_blocks_that_run_as_plain_convolutions_are_told(norton, tmp_path):
    answer = norton("compress", "demo:digits", "--rank", 1, "-o", tmp_path / "small")
    words = " ".join(answer.out.split())
    assert "blocks should be no faster in factors than as a plain convolution" in words and " MACs run, not " in words
    assert "no faster in factors" not in norton("compress", "demo:digits", "--keep", 0.5, "-o", tmp_path / "pruned").out


def test_widths_that_fill_the_registers(norton, tmp_path):
    assert norton("compress", "demo:digits", "--keep", 0.5, "--round-to", "auto", "-o", tmp_path / "small").code == 0
    written = yaml.safe_load((tmp_path / "small" / "recipe.yaml").read_text())
    assert written["pruning"]["round_to"] == channels_of_a_register()


def test_written_recipe_gives_the_same_model_again(norton, tmp_path):
    options = ["--rank", 3, "--rank-for", "layer1=none", "--rank-for", "layer1.conv2=1", "--keep", 0.75]
    options += ["--keep-for", "re:layer3.*=0.5", "--round-to", 4, "--criterion", "vbd", "--exclude", "layer2"]
    assert norton("compress", "demo:digits", *options, "-o", tmp_path / "a", "--no-verify").code == 0
    written = tmp_path / "a" / "recipe.yaml"
    plain = yaml.safe_load(written.read_text())
    assert plain["decomposition"]["ranks"] == {"layer1": None, "layer1.conv2": 1}
    assert plain["pruning"]["keeps"] == {"re:layer3.*": 0.5}
    assert plain["pruning"]["criterion"] == "vbd"
    assert plain["scope"]["exclude"] == ["layer2"]
    assert plain["verify"] is False

    assert norton("compress", "demo:digits", "--recipe", written, "-o", tmp_path / "b").code == 0
    first, second = (read_manifest(tmp_path / name) for name in "ab")
    assert first.recipe == second.recipe == plain
    assert first.structure == second.structure
    ranks = {layer["names"][0]: layer["rank"] for layer in first.report["decomposition"]["layers"]}
    assert ranks == {"layer1.conv2": 1, "layer3.conv1": 3, "layer3.conv2": 3}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_options_override_the_recipe_file(norton, tmp_path, suffix):
    file = tmp_path / f"recipe.{suffix}"
    data = {"decomposition": {"rank": 4, "ranks": {"layer1": 2}, "restarts": 1}, "pruning": {"keep": 0.5}}
    file.write_text(json.dumps(data) if suffix == "json" else yaml.safe_dump(data))
    options = ["--recipe", file, "--rank", 1, "--rank-for", "layer1.conv1=3", "--seed", 7, "--json"]
    found = json.loads(norton("compress", "demo:digits", *options, "-o", tmp_path / "a").out)["recipe"]
    assert found["decomposition"]["rank"] == 1
    assert list(found["decomposition"]["ranks"].items()) == [("layer1", 2), ("layer1.conv1", 3)]
    assert (found["decomposition"]["restarts"], found["decomposition"]["seed"]) == (1, 7)
    assert found["pruning"]["keep"] == 0.5


def test_levels_of_all_layers_and_of_some(norton, tmp_path):
    options = ["--level", "layer", "--share", 0.3, "--linear", "--layer", "layer2:level=cluster,clusters=4,rank=2"]
    options += ["--layer", "re:layer3\\.(?:conv1):components=40", "--layer", "layer1.conv1:level=filter"]
    options += ["--layer", "layer1.conv1:rank=1", "--layer", "layer1.conv2:share=none"]
    answer = norton("compress", "demo:digits", *options, "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    recipe = found["recipe"]["decomposition"]
    assert (recipe["level"], recipe["share"], recipe["linear"], recipe["rank"]) == ("layer", 0.3, True, None)
    assert recipe["layers"] == {
        "layer2": {"level": "cluster", "clusters": 4, "rank": 2},
        "re:layer3\\.(?:conv1)": {"components": 40},
        "layer1.conv1": {"level": "filter", "rank": 1},
        "layer1.conv2": {"share": None},
    }
    layers = {layer["name"]: (layer["level"], layer["components"]) for layer in found["report"]["layers"]}
    assert layers["layer1.conv1"] == ("filter", None)
    assert layers["layer1.conv2"] == (None, None)
    assert layers["layer2.conv2"][0] == "cluster" and layers["layer2.conv2"][1] % 4 == 0
    assert layers["layer3.conv1"] == ("layer", 40)
    # 0.3 of 128 * 128 * 9 MACs, at 128 + 3 + 3 + 128 for each component
    assert layers["layer3.conv2"] == ("layer", int(0.3 * 128 * 128 * 9 / (128 + 3 + 3 + 128)))
    # truncated SVD: 0.3 of 128 * 10, at 128 + 10 for each component
    assert layers["fc"] == ("layer", int(0.3 * 1280 / 138))
    assert norton("inspect", tmp_path / "a", "--json").code == 0


def test_a_spatial_svd_of_all_layers_and_of_some(norton, tmp_path):
    options = ["--level", "spatial", "--share", 0.3, "--layer", "layer1:level=layer", "-o", tmp_path / "a"]
    answer = norton("compress", "demo:digits", *options)
    assert answer.code == 0 and "spatial" in answer.out
    found = json.loads(norton("inspect", tmp_path / "a", "--json").out)
    layers = {layer["name"]: (layer["kind"], layer["level"], layer["components"]) for layer in found["layers"]}
    assert layers["layer1.conv2"][:2] == ("CPDBlock", "layer")
    # 0.3 of 128 * 128 * 9 MACs, at 3 * 128 + 3 * 128 for each component
    assert layers["layer3.conv2"] == ("SpatialSVDBlock", "spatial", int(0.3 * 128 * 128 * 9 / (6 * 128)))
    refused = norton("compress", "demo:digits", *options[:4], "--clusters", 4, "-o", tmp_path / "b")
    assert refused.code != 0 and "decomposition.clusters is 4, but decomposition.level is 'spatial'" in refused.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--share", 0.4], ("cluster", None, None, 0.4, 4)),
        (["--level", "layer", "--components", 20], ("layer", None, 20, None, None)),
        (["--level", "filter", "--rank", 2], ("filter", 2, None, None, None)),
        (["--level", "spatial", "--components", 20], ("spatial", None, 20, None, None)),
        (["--clusters", 2], ("cluster", None, 16, None, 2)),
    ],
)
def test_a_size_on_the_command_line_replaces_that_of_the_file(norton, tmp_path, options, expected):
    file = tmp_path / "recipe.yaml"
    file.write_text("decomposition: {level: cluster, clusters: 4, components: 16}")
    answer = norton("compress", "demo:digits", "--recipe", file, *options, "-o", tmp_path / "a", "--json")
    recipe = json.loads(answer.out)["recipe"]["decomposition"]
    assert tuple(recipe[name] for name in ("level", "rank", "components", "share", "clusters")) == expected


def test_no_empty_table_of_what_was_left(norton, tmp_path):
    options = ["--level", "layer", "--share", 0.5, "-o", tmp_path / "a"]
    assert "Left as they were" in norton("compress", "demo:digits", *options).out  # one-input-channel
    assert "Left as they were" not in norton("compress", "cifar:resnet20", *options).out


def test_rank_auto_aims_at_the_error(norton, tmp_path):
    options = ["--rank", "auto", "--target-nmse", 0.5, "--include", "layer3.conv2", "--json"]
    report = json.loads(norton("compress", "demo:digits", *options, "-o", tmp_path / "a").out)["report"]
    (layer,) = report["decomposition"]["layers"]
    assert layer["names"] == ["layer3.conv2"]
    assert 0 < layer["nmse_mean"] <= 0.5


def test_an_artefact_can_be_compressed_further(norton, tmp_path):
    assert norton("compress", "demo:digits", "--rank", 3, "-o", tmp_path / "a").code == 0
    answer = norton("compress", tmp_path / "a", "--keep", 0.5, "-o", tmp_path / "b", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)["report"]["decomposition"]["layers"] == []
    inspected = json.loads(norton("inspect", tmp_path / "b", "--json").out)
    block = next(layer for layer in inspected["layers"] if layer["name"] == "layer3.conv2")
    assert (block["rank"], block["in_channels"], block["out_channels"]) == (3, 64, 64)
    assert inspected["macs"] == json.loads(answer.out)["report"]["macs_after"]


def test_blocks_of_an_artefact_that_is_decomposed_again_are_told(norton, tmp_path):
    assert norton("compress", "demo:digits", "--rank", 3, "--exclude", "layer1", "-o", tmp_path / "a").code == 0
    answer = norton("compress", tmp_path / "a", "--rank", 1, "-o", tmp_path / "b")
    assert answer.err.count("blocks, which keep their level and rank") == 1
    assert "decomposed already" in " ".join(answer.out.split())


def test_calibration_changes_batch_norm_statistics(norton, tmp_path, digit_folder):
    from norton_plugin.cli.models import open_model

    options = ["--rank", 1, "--calibration-data", digit_folder / "train", "-o", tmp_path / "a", "--json"]
    answer = norton("compress", "demo:digits", *options)
    assert json.loads(answer.out)["report"]["calibration_images"] == 40
    opened = open_model(str(tmp_path / "a"))
    digits = [np.asarray(Image.open(path)) for path in sorted((digit_folder / "train").rglob("*.png"))]
    pixels = torch.from_numpy(np.stack(digits))[:, None].float() / 255
    with torch.no_grad():
        maps = opened.model.conv1((pixels - opened.preprocessing.mean[0]) / opened.preprocessing.std[0])
    expected = maps.mean((0, 2, 3))  # zeros in a network that was never trained
    torch.testing.assert_close(opened.model.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.05


def test_images_without_classes_do(norton, tmp_path, digit_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmengine", None)  # fitting trains nothing
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted((digit_folder / "train").rglob("*.png"))):
        (flat / f"{index}.png").write_bytes(path.read_bytes())
    (flat / "broken.png").write_bytes(b"no image")
    options = ["--rank", 1, "--data", flat, "-o", tmp_path / "a", "--json"]
    answer = norton("compress", "demo:digits", *options)
    assert answer.code == 0 and json.loads(answer.out)["report"]["calibration_images"] == 40
    assert "broken.png" in answer.err and "cannot be read as an image" in " ".join(answer.err.split())


def test_a_model_of_two_images_is_compressed_without_a_folder_of_them(norton, tmp_path, digit_folder, monkeypatch):
    (tmp_path / "two_images.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    input_size = (1, 16, 16)\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 4, 3)\n"
        "    def forward(self, left, right):\n"
        "        return (self.second(self.first(left).relu()) - self.second(self.first(right).relu())).mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["python:two_images:Pair", "--rank", 1, "--keep", 0.5, "-o", tmp_path / "a"]
    refused = norton("compress", *arguments, "--data", digit_folder / "train")
    assert refused.code == 2 and "takes 2 inputs" in refused.err and not (tmp_path / "a").exists()
    assert norton("compress", *arguments).code == 0
    exported = norton("export", tmp_path / "a", "-o", tmp_path / "a.onnx", "--trust-code", "--check", "onnxruntime")
    assert exported.code == 0, exported.err


@pytest.mark.parametrize(("asked", "used"), [((), 40), (("--images", 9), 9)])
def test_images_may_lie_in_the_folder_itself_and_as_many_as_asked_count(norton, tmp_path, digit_folder, asked, used):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((digit_folder / "train").rglob("*.png"))):
        (flat / f"{number:03}.png").write_bytes(path.read_bytes())
    answer = norton("compress", "demo:digits", "--rank", 1, "--data", flat, *asked, "-o", tmp_path / "a", "--json")
    assert json.loads(answer.out)["report"]["calibration_images"] == used
    (tmp_path / "none").mkdir()
    answer = norton("compress", "demo:digits", "--rank", 1, "--data", tmp_path / "none", "-o", tmp_path / "a")
    assert answer.code == 2 and "hold no image" in answer.err


@pytest.mark.parametrize(
    ("images", "fewest", "sizes"),
    [
        (1, 8, [1]),
        (3, 8, [3]),
        (5, 8, [3, 2]),
        (9, 8, [3, 2, 2, 2]),
        (100, 8, [13, 12] * 4),
        (100, 1, [50, 50]),
        (65, 1, [33, 32]),
        (640, 8, [64] * 10),
    ],
)
def test_batches_hold_all_images_and_are_of_one_size_larger_ones_first(images, fewest, sizes):
    batches = even_batches(list(range(images)), fewest=fewest)
    assert [len(batch) for batch in batches] == sizes
    assert sum(batches, []) == list(range(images))


def test_layers_are_fitted_to_images(norton, tmp_path, digit_folder):
    options = ["--level", "layer", "--share", 0.4, "--calibrate", "--images", 30, "--seed", 3]
    options += ["--data", digit_folder / "train"]
    answer = norton("compress", "demo:digits", *options, "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    report, recipe = (json.loads(answer.out)[key] for key in ("report", "recipe"))
    settings = {"batch_norm": True, "fit": True, "images": 30, "positions": 32, "seed": 3, "memory": None}
    assert recipe["calibration"] == settings
    found = report["calibration"]
    assert (found["images"], found["held_back"]) == (27, 3) and found["chosen"] in found["divergence"]
    assert any(layer["decomposed"] and layer["nmse_after"] < layer["nmse_before"] for layer in found["layers"])
    assert report["calibration_images"] == 0
    table = norton("compress", "demo:digits", *options, "-o", tmp_path / "b")
    assert "Fitted to" in table.out and "kept: " in table.out


def test_the_model_learns_from_the_dense_one(norton, tmp_path, digit_folder):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    options = ["--level", "layer", "--share", 0.4, "--distill", 3, "--seed", 3, "--data", digit_folder / "train"]
    answer = norton("compress", "demo:digits", *options, "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    report, recipe = (json.loads(answer.out)[key] for key in ("report", "recipe"))
    settings = {"passes": 3, "lr": 1e-4, "temperature": 2.0, "block_weight": 1.0, "seed": 3}
    assert recipe["distillation"] == settings
    assert report["distillation"]["passes"] == 3 and report["distillation"]["images"] == 40
    words = norton("compress", "demo:digits", *options, "-o", tmp_path / "b")
    assert "learned from the dense model on 40 images, 3 steps at a rate of " in " ".join(words.out.split())


@pytest.mark.parametrize("option", [("--calibrate",), ("--distill", 2)])
def test_a_fit_needs_images(norton, tmp_path, option):
    answer = norton("compress", "demo:digits", "--rank", 1, *option, "-o", tmp_path / "a")
    assert answer.code == 2 and "needs unlabelled images" in " ".join(answer.err.split())
    assert not (tmp_path / "a").exists()


def test_timm_model(norton, tmp_path):
    pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    options = ["--input-size", 32, "--num-classes", 5, "--rank", 2, "--keep", 0.5]
    answer = norton("compress", "timm:test_resnet", *options, "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    report = json.loads(answer.out)["report"]
    assert report["macs_after"] < 0.5 * report["macs_before"]
    assert json.loads(norton("inspect", tmp_path / "a", "--json").out)["macs"] == report["macs_after"]


def test_a_budget_is_met_and_its_sizes_are_written(norton, tmp_path):
    answer = norton("compress", "demo:digits", "--budget", "macs=0.4", "-o", tmp_path / "a", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert 0.392 <= found["report"]["macs_after"] / found["report"]["macs_before"] <= 0.4
    assert {name: value for name, value in found["report"]["budget"]["budget"].items() if value} == {"macs": 0.4}
    written = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert written == found["recipe"]
    assert not any(written["budget"].values())
    assert written["decomposition"]["level"] == "auto"
    again = norton("compress", "demo:digits", "--recipe", tmp_path / "a" / "recipe.yaml", "-o", tmp_path / "b")
    assert again.code == 0
    assert read_manifest(tmp_path / "b").structure == read_manifest(tmp_path / "a").structure
    told = norton("compress", "demo:digits", "--budget", "macs=0.4", "--level", "filter", "-o", tmp_path / "c").out
    assert "budget of the decomposed model, MACs 0.4: 0.39" in " ".join(told.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.5"], "--budget is '0.5'; expected NAME=F"),
        (["--budget", "flops=0.5"], "a budget is one of macs, params, latency"),
        (["--budget", "macs=0.5,macs=0.4"], "--budget gives macs twice"),
        (["--budget", "macs=half"], "budget.macs is 'half'"),
        (["--budget", "latency=0"], "budget.latency is 0.0; expected a number in (0, 1]"),
        (["--budget", "latency=2"], "budget.latency is 2.0; expected a number in (0, 1]"),
        (["--budget", "latency=5ms"], "budget.latency is '5ms'; expected a number in (0, 1]"),
        (["--budget", "latency=0.5", "--latency-table", "none"], "the table of milliseconds 'none' cannot be read"),
        (["--budget", "macs=0.5", "--latency-table", "none"], "budget.latency is not set"),
        (["--budget", "macs=0.5", "--reuse", "none"], "the sensitivities 'none' cannot be read"),
        (["--budget", "macs=0.5", "--memory", "much"], "calibration.memory is 'much'; expected an amount of memory"),
        (["--budget", "macs=1.5"], "budget.macs is 1.5; expected a number in (0, 1]"),
        (["--budget", "macs=1"], "changes nothing"),
        (["--budget", "macs=0.5", "--rank", 2], "decomposition.rank is 2, but a budget is given"),
        (["--budget", "macs=0.5", "--prune"], "set calibration.fit too (on the command line --calibrate)"),
        (["--rank", 2, "--prune"], "budget.prune is set, but there is no budget"),
        (["--keep", 0.5, "--criterion", "output"], "which needs unlabelled images: give calibration=batches (on the"),
        (["--budget", "macs=0.001", "--level", "filter"], "the least that can be reached is"),
    ],
)
def test_a_bad_budget_is_refused(norton, tmp_path, options, message):
    answer = norton("compress", "demo:digits", *options, "-o", tmp_path / "a")
    assert answer.code != 0
    assert message in " ".join(answer.err.split())
    assert not (tmp_path / "a").exists()


def test_a_budget_of_time_leaves_its_table_and_another_takes_it(norton, tmp_path, monkeypatch):
    options = ["compress", "demo:digits", "--level", "layer", "--budget"]
    with counted_macs(monkeypatch):
        answer = norton(*options, "latency=0.5", "-o", tmp_path / "a")
    told = " ".join(answer.out.split())
    assert answer.code == 0 and "milliseconds 0.5: 0." in told and "as delivered, predicted" in told
    assert (tmp_path / "a" / "latency.json").is_file()
    with counted_macs(monkeypatch) as seen:
        given = ["--latency-table", tmp_path / "a", "-o", tmp_path / "b", "--json"]
        found = json.loads(norton(*options, "latency=0.4,macs=0.6", *given).out)
    plan = found["report"]["budget"]
    assert seen == [] and plan["milliseconds"]["measured"] is None
    assert plan["milliseconds"]["predicted"] <= 0.4 * plan["milliseconds"]["dense"] * 1.001 and plan["macs"] <= 0.6
    front = ["inspect", "demo:digits", "--curve", "--layer", "fc", "--latency-table", tmp_path / "a", "--json"]
    assert all(point["milliseconds"] > 0 for point in json.loads(norton(*front).out)["front"])


def test_a_budget_of_time_that_is_missed_is_a_warning_of_its_own(norton, tmp_path, monkeypatch):
    """Whatever is planned, the whole compressed model takes longer the next time."""
    factors = itertools.count(1.0, 0.2)
    with counted_macs(monkeypatch, slower=lambda: next(factors)):
        options = ["compress", "demo:digits", "--level", "layer", "--budget", "latency=0.7"]
        answer = norton(*options, "-o", tmp_path / "a", "--json")
    report = json.loads(answer.out)["report"]
    warning, beside = report["warnings"]
    assert answer.code == 0 and f"warning: {warning}\n" in answer.err
    assert beside.startswith("To reach ") and f"warning: {beside}\n" in answer.err  # it took more MACs than time
    times = report["budget"]["milliseconds"]
    assert f"asked for 0.7 of the dense model's time, reached {times['measured'] / times['dense']:.4g} (mea" in warning


def test_another_budget_in_the_same_folder_measures_nothing(norton, tmp_path, digit_folder):
    options = ["compress", "demo:digits", "--level", "layer", "--data", digit_folder / "train", "--calibrate"]
    first = norton(*options, "--budget", "macs=0.5", "-o", tmp_path / "a")
    assert first.code == 0 and "sensitivities" not in first.out
    for more, words in (
        (["-o", tmp_path / "a"], f"sensitivities taken from {tmp_path / 'a'}"),
        (["-o", tmp_path / "b", "--reuse", tmp_path / "a", "--images", 16], "are not used, since the images differ"),
    ):
        answer = norton(*options, "--budget", "macs=0.4", *more)
        assert answer.code == 0 and words in " ".join(answer.out.split())


def test_criterion_and_budget_that_prune_by_images(norton, tmp_path, digit_folder):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    cut = ["--keep", 0.75, "--criterion", "output", "--data", digit_folder / "train", "--calibrate"]
    answer = norton("compress", "demo:digits", *cut, "-o", tmp_path / "a", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["recipe"]["pruning"]["criterion"] == "output"
    assert found["report"]["pruning"]["groups"] and found["report"]["calibration"]["chosen"]
    both = ["--budget", "macs=0.2", "--prune", "--data", digit_folder / "train", "--calibrate"]
    answer = norton("compress", "demo:digits", *both, "-o", tmp_path / "b", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    plan = found["report"]["budget"]
    assert plan["phases"] in plan["divergence"] and found["recipe"]["pruning"]["criterion"] == "output"
    assert found["report"]["macs_after"] <= 0.2005 * found["report"]["macs_before"]


@pytest.mark.parametrize(("terminal", "shown", "noted"), [(True, 4, 0), (False, 1, 3)])
def test_a_long_step_says_how_far_it_is(terminal, shown, noted):
    from types import SimpleNamespace

    from norton_plugin.cli.steps import shown_steps

    updates, notes = [], []
    out = SimpleNamespace(err=SimpleNamespace(is_terminal=terminal), note=notes.append)
    with shown_steps(out, lambda text: updates.append(text.plain), every=1e6) as steps:
        steps("decompose")
        for done in range(3):
            steps.detail(f"{done} of 16 layers")
            steps.goes_on()
    assert updates[0] == ("decomposing the filters" if terminal else "") and (len(updates), len(notes)) == (
        shown,
        noted,
    )
    assert (updates + notes)[-1] == "still decomposing the filters: 0 s, 2 of 16 layers"
