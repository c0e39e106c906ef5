"""Nothing that mmdet builds is refused, and nothing that its models could open is overlooked."""

import ast
import gc
import inspect
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmcv
import mmdet
import mmengine
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import register_all_modules
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import list_models, load_source, mmdet_types, rebuild, stored
from norton_plugin.zoo import mmdet_configs as configs

pytestmark = pytest.mark.mm

# Configs whose models read more than an artefact: they need --trust-code, here or anywhere.
READING = {
    "glip": "a language model",
    "grounding_dino": "a language model",
    "mm_grounding_dino": "a language model",
    "misc": "a config of Detectron2",
    "strongsort": "weights of a tracker by their address",
    "timm_example": "timm's own arguments",
}


def refusal(name: str) -> str | None:
    """Why a config would be refused once it is stored; None where it would not."""
    model = json.loads(json.dumps(configs.to_json(configs.read(name))))
    config = configs.without_downloads(configs.from_json(model), initialised=False)
    try:
        stored.check_values(name, {"model": config}, special=mmdet_types.NAMES)
        mmdet_types.check_types(name, config)
    except SourceError as error:
        return str(error)
    return None


def covered(repository: Path) -> list[str]:
    """Configs that the coverage table says are built."""
    rows = map(json.loads, (repository / "docs" / "results" / "coverage.jsonl").read_text().splitlines())
    status = {row["model"].removeprefix("mmdet:"): row["status"] for row in rows if row["model"].startswith("mmdet:")}
    return [name.removesuffix(".py") for name, outcome in status.items() if outcome != "not buildable"]


def test_every_config_of_the_coverage_table_may_be_stored(repository):
    register_all_modules(init_default_scope=False)
    names = covered(repository)
    assert len(names) > 80
    assert {name: why for name in names if (why := refusal(name)) is not None} == {}


@pytest.mark.slow
def test_every_config_of_mmdet_may_be_stored():
    register_all_modules(init_default_scope=False)
    checked, refused = 0, set()
    for name in list_models("mmdet"):
        try:
            why = refusal(name)
        except SourceError:
            continue  # no config of a model, or one that needs what is not installed
        checked += 1
        if why is not None and "needs mmpretrain" not in why:
            assert "--trust-code" in why
            refused.add(name.split("/")[0])
    assert checked > 780
    assert refused <= set(READING)


REBUILT = ["retinanet/retinanet_r18_fpn_1x_coco", "yolox/yolox_tiny_8xb8-300e_coco"]
REBUILT_SLOWLY = [
    "ssd/ssd300_coco",
    "mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
    "detr/detr_r18_8xb2-500e_coco",
    "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco",
    "fpg/mask-rcnn_r50_fpg_crop640-50e_coco",
    "ld/ld_r18-gflv1-r101_fpn_1x_coco",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco",
    "detectors/htc_r50-rfp_1x_coco",
    "dyhead/atss_r50_fpn_dyhead_1x_coco",
    "gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco",
    "maskformer/maskformer_r50_ms-16xb1-75e_coco",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco",
]


@pytest.mark.parametrize("name", [*REBUILT, *(pytest.param(name, marks=pytest.mark.slow) for name in REBUILT_SLOWLY)])
def test_a_detector_comes_back(name):
    source = load_source(f"mmdet:{name}", input_size=64)
    spec, state = json.loads(json.dumps(source.spec)), source.model.state_dict()
    modules = [type(module) for module in source.model.modules()]
    del source
    again = rebuild({**spec, "name": "a label"})
    assert [type(module) for module in again.modules()] == modules
    again.load_state_dict(state)  # every name and shape
    gc.collect()


def test_every_registered_part_of_a_model_can_be_named():
    """All but what opens something, and wrappers that mmengine needs while training or testing."""
    register_all_modules(init_default_scope=False)
    left = set()
    for registry in (MODELS.parent, MODELS, TASK_UTILS):
        for name, kind in registry.module_dict.items():
            own = kind.__module__.startswith(("mmdet.", "mmcv.", "mmengine.", "torch."))
            if own and mmdet_types.class_of(name, registry) is not kind:
                left.add(name)
    assert left == {
        *("ATSSVLFusionHead", "BertModel", "Detectron2Wrapper", "GLIP", "GroundingDINO"),
        *("AppearanceFreeLink", "CameraMotionCompensation", "BaseTTAModel", "DetTTAModel"),
        *("ExponentialMovingAverage", "MomentumAnnealingEMA", "StochasticWeightAverage"),
    }


# Calls that open a file or a connection, evaluate text, or look something up by a name.
OPENING = {"open", "eval", "exec", "compile", "__import__", "import_module", "fromfile", "fromstring", "getattr"}
OPENING |= {"load", "load_checkpoint", "_load_checkpoint_with_prefix", "from_pretrained", "download", "load_url"}
OPENING |= {"load_state_dict_from_url", "FileClient", "get_file_backend", "get_local_path", "list_from_file", "imread"}
OPENING |= {"create_model", "system", "Popen", "get_object_from_string"}
CLOSED = {
    ("mmcv.ops.nms", "eval"): "types of NMS are two names",
    ("mmdet.models.backbones.detectors_resnet", "load_checkpoint"): "initialisers and `pretrained` are left out",
    ("mmdet.models.backbones.pvt", "load_checkpoint"): "initialisers are left out",
    ("mmdet.models.backbones.swin", "load_checkpoint"): "initialisers are left out",
    ("mmdet.models.detectors.kd_one_stage", "fromfile"): "`teacher_config` is a mapping",
    ("mmdet.models.detectors.kd_one_stage", "load_checkpoint"): "`teacher_ckpt` is left out",
    ("mmdet.models.detectors.lad", "load_checkpoint"): "`teacher_ckpt` is left out",
    ("mmdet.models.roi_heads.roi_extractors.base_roi_extractor", "getattr"): "types are classes of mmcv.ops",
    ("mmengine.model.weight_init", "load_checkpoint"): "PretrainedInit is not admitted",
    ("mmengine.model.weight_init", "_load_checkpoint_with_prefix"): "the same",
    ("mmengine.model.weight_init", "getattr"): "initialisers are left out",
}


def opening_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        if name not in OPENING or (method and name in ("eval", "compile")):  # model.eval(), re.compile()
            continue
        if ast.unparse(node.func) == "platform.system":
            continue
        if name == "getattr" and (isinstance(node.args[1], ast.Constant) or ast.unparse(node.args[0]) == "self"):
            continue
        yield name


def test_whatever_a_part_of_a_model_opens_is_known():
    found = set()
    for package in (mmdet, mmcv, mmengine):
        root = Path(inspect.getfile(package)).parent
        for path in sorted(root.rglob("*.py")):
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            parts, opening = mmdet_types._PARTS, mmdet_types._OPENING
            if mmdet_types._lies_in(module, parts) and not mmdet_types._lies_in(module, opening):
                found |= {(module, name) for name in opening_calls(path)}
    assert found == set(CLOSED)


@pytest.mark.skipif(find_spec("mmpretrain") is not None, reason="mmpretrain is installed")
def test_an_absent_package_is_named():
    with pytest.raises(SourceError, match="needs mmpretrain, which is not installed; pip install mmpretrain"):
        rebuild({"kind": "mmdet", "name": "any", "kwargs": {"model": {"type": "mmpretrain.ConvNeXt"}}})


def test_a_class_that_a_user_registers_needs_trust():
    @MODELS.register_module(name="NeckOfAUser")
    class Neck(nn.Module):
        pass

    try:
        spec = {"kind": "mmdet", "name": "any", "kwargs": {"model": {"type": "NeckOfAUser"}}}
        with pytest.raises(SourceError, match="--trust-code"):
            rebuild(spec)
        spec = {"kind": "mmdet", "name": "any", "kwargs": {"model": {"type": "mmdet.NeckOfAUser"}}}
        with pytest.raises(SourceError, match="--trust-code"):
            rebuild(spec)
    finally:
        del MODELS.module_dict["NeckOfAUser"]
