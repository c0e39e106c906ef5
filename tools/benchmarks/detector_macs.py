"""MACs of five detectors, dense and compressed, by three counters: NortonHook's, mmdet's get_flops.py, and torch's.

Each detector is compressed as the hook does it, its config is exported, and mmdet's own script counts both configs on
an image of the same size. Weights are random, nothing is downloaded. Written to ``detector_macs.json`` as it goes.

    python tools/benchmarks/detector_macs.py --output docs/results
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name for the table: config of mmdet, and what is changed in its model's test_cfg.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "RetinaNet R50-FPN": ("retinanet/retinanet_r50_fpn_1x_coco", {}),
    "Faster R-CNN R50-FPN, 200 proposals": (
        "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
        {"rpn": {"max_per_img": 200}, "rcnn": {"max_per_img": 200}},
    ),
    "Mask R-CNN R50-FPN": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", {}),
    "RTMDet-tiny": ("rtmdet/rtmdet_tiny_8xb32-300e_coco", {}),
    "Double-Head R-CNN R50-FPN, 50 proposals": (
        "double_heads/dh-faster-rcnn_r50_fpn_1x_coco",
        {"rpn": {"max_per_img": 50}, "rcnn": {"max_per_img": 50}},
    ),
}
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def measure(name: str, size: int, folder: Path) -> dict[str, Any]:
    """Compress one detector in this process and count it in three ways.

    Args:
        name: A key of ``MODELS``.
        size: Side of the image in pixels, a multiple of 32.
        folder: For the configs and the image that mmdet's script reads.

    Returns:
        JSON-able: what was traced, and MACs of each counter before and after.
    """
    import torch
    from mmdet.registry import MODELS as REGISTRY
    from mmdet.utils import register_all_modules

    from norton_plugin.mm.configs.export import export_config
    from norton_plugin.mm.run.compression import compressed_copy
    from norton_plugin.recipe import Decomposition, Pruning, Recipe

    register_all_modules()
    config = _config(name, size, folder)
    torch.manual_seed(0)
    model = REGISTRY.build(config.model)
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    # How exact the factors are does not change what they cost.
    recipe = Recipe(decomposition=Decomposition(rank=3, restarts=1, sweeps=3), pruning=Pruning(keep=0.7))
    compressed, report, traced = compressed_copy(model, example, recipe, logger=logging.getLogger(__name__))
    row: dict[str, Any] = {"config": MODELS[name][0], "size": size, "traced": traced}
    row["hook"] = [report.macs_before, report.macs_after]
    row["torch"] = [_by_torch(each, example) for each in (model, compressed)]
    paths = [folder / "dense.py", folder / "compressed.py"]
    for path, each in zip(paths, (config, export_config(config, report.structure)), strict=True):
        each.dump(path)
    row["get_flops"] = [_by_mmdet(path) for path in paths]
    return row


def _config(name: str, size: int, folder: Path) -> Any:
    """Return the detector's config with one grey image of the given side as validation data, and without weights."""
    import numpy as np
    from mmengine.config import Config
    from PIL import Image

    Image.fromarray(np.full((size, size, 3), 128, dtype=np.uint8)).save(folder / "image.png")
    image = {"id": 0, "file_name": "image.png", "width": size, "height": size}
    data = {"images": [image], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in range(80)]}
    (folder / "annotations.json").write_text(json.dumps(data))
    source, changes = MODELS[name]
    path = folder / "source.py"
    path.write_text(f"_base_ = {f'mmdet::{source}.py'!r}\ncustom_imports = dict(imports=['norton_plugin.mm'])\n")
    config = Config.fromfile(path)
    config.merge_from_dict({"model": {"test_cfg": changes}})
    config.model.backbone.init_cfg = None
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    steps = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (size, size), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": meta},
    ]
    config.val_dataloader = {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {
            "type": "CocoDataset",
            "data_root": str(folder),
            "ann_file": "annotations.json",
            "data_prefix": {"img": ""},
            "metainfo": {"classes": tuple(str(i) for i in range(80))},
            "test_mode": True,
            "pipeline": steps,
        },
    }
    return config


def _by_torch(model: Any, example: Any) -> int:
    """Return MACs of mode ``tensor`` by torch's own counter: with the proposals that the weights make."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from norton_plugin.blocks import ConvBlock
    from norton_plugin.zoo.detector_cost import run_tensor_mode

    model.eval()
    for block in (module for module in model.modules() if isinstance(module, ConvBlock)):
        block.form = "separable"  # whatever runs, MACs are reported for the factors
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_tensor_mode(model, example)
    return counter.get_total_flops() // 2


def _by_mmdet(config: Path) -> float:
    """Return what mmdet's own script prints, which is in MACs whatever it calls them."""
    import mmdet

    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "analysis_tools" / "get_flops.py"
    command = [sys.executable, "-W", "ignore", str(script), str(config), "--num-images", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    found = re.search(r"^Flops: ([\d.]+)([KMGT]?)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"get_flops.py says nothing of {config}: {done.stderr.strip().splitlines()[-1:]}")
    return float(found[1]) * _UNITS[found[2]]


def main() -> None:
    """Parse the arguments, count every detector and write ``detector_macs.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of the table; default: all")
    parser.add_argument("--size", type=int, default=320, help="side of the image in pixels, a multiple of 32")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for detector_macs.json")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if name not in MODELS]:
        parser.error(f"unknown models {unknown}; expected some of {list(MODELS)}")
    path = arguments.output / "detector_macs.json"
    rows = json.loads(path.read_text()) if path.is_file() else {}
    for name in arguments.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, arguments.size, Path(folder))
        print(json.dumps({name: rows[name]}))
        path.write_text(json.dumps({name: rows[name] for name in MODELS if name in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
