"""Detectors small enough for tests, a tiny COCO data set, and a whole mmdet config."""

import json

import numpy as np
import torch
from PIL import Image

SIZE = 64


def retinanet():
    """The model of a RetinaNet with a thin ResNet-18."""
    return {
        "type": "RetinaNet",
        "data_preprocessor": _preprocessor(),
        "backbone": _backbone(),
        "neck": _neck(5),
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": 2,
            "in_channels": 16,
            "stacked_convs": 2,
            "feat_channels": 16,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 1,
                "ratios": [1.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss"},
        },
        "train_cfg": {"assigner": _assigner(0.5, 0.4, 0), "allowed_border": -1, "pos_weight": -1, "debug": False},
        "test_cfg": {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": _nms(), "max_per_img": 10},
    }


def faster_rcnn(mask=False):
    """The model of a Faster or Mask R-CNN with a thin ResNet-18."""
    coder = {"type": "DeltaXYWHBBoxCoder"}
    cross = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
    sampler = {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5, "neg_pos_ub": -1}
    model = {
        "type": "MaskRCNN" if mask else "FasterRCNN",
        "data_preprocessor": {**_preprocessor(), "pad_mask": mask},
        "backbone": _backbone(),
        "neck": _neck(5, start_level=0),
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 16,
            "feat_channels": 16,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [4],
                "ratios": [0.5, 1.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": coder,
            "loss_cls": cross,
            "loss_bbox": {"type": "L1Loss"},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": _extractor(7),
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 16,
                "fc_out_channels": 32,
                "roi_feat_size": 7,
                "num_classes": 2,
                "bbox_coder": coder,
                "loss_cls": {"type": "CrossEntropyLoss"},
                "loss_bbox": {"type": "L1Loss"},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": _assigner(0.7, 0.3, 0.3),
                "sampler": sampler,
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": {"nms_pre": 100, "max_per_img": 50, "nms": _nms(0.7), "min_bbox_size": 0},
            "rcnn": {
                "assigner": _assigner(0.5, 0.5, 0.5),
                "sampler": {**sampler, "add_gt_as_proposals": True},
                "mask_size": 28,
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": {"nms_pre": 100, "max_per_img": 20, "nms": _nms(0.7), "min_bbox_size": 0},
            "rcnn": {"score_thr": 0.0, "nms": _nms(), "max_per_img": 10, "mask_thr_binary": 0.5},
        },
    }
    if mask:
        model["roi_head"]["mask_roi_extractor"] = _extractor(14)
        model["roi_head"]["mask_head"] = {
            "type": "FCNMaskHead",
            "num_convs": 2,
            "in_channels": 16,
            "conv_out_channels": 16,
            "num_classes": 2,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True},
        }
    return model


def _preprocessor():
    return {"type": "DetDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3, "pad_size_divisor": 32}


def _backbone():
    return {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "num_stages": 4,
        "out_indices": [0, 1, 2, 3],
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "init_cfg": {"type": "Kaiming", "layer": "Conv2d"},
    }


def _neck(outs, start_level=1):
    return {
        "type": "FPN",
        "in_channels": [8, 16, 32, 64],
        "out_channels": 16,
        "num_outs": outs,
        "start_level": start_level,
        "add_extra_convs": "on_input" if start_level else False,
    }


def _extractor(size):
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": 16,
        "featmap_strides": [4, 8, 16, 32],
    }


def _assigner(positive, negative, least):
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": True,
        "ignore_iof_thr": -1,
    }


def _nms(threshold=0.5):
    return {"type": "nms", "iou_threshold": threshold}


def detected(model, image):
    """What mmdet itself finds in an image (1, 3, SIZE, SIZE)."""
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo={"img_shape": (SIZE, SIZE), "ori_shape": (SIZE, SIZE), "scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        [result] = model.eval().predict(image, [sample])
    return result.pred_instances


def write_coco(folder, images=6):
    """Grey noise with bright rectangles: pictures and ``annotations.json``."""
    random = np.random.default_rng(0)
    pictures, annotations = [], []
    for index in range(images):
        picture = random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        x, y, width, height = (int(v) for v in random.integers(8, 30, 4))
        picture[y : y + height, x : x + width] = 200
        Image.fromarray(picture).save(folder / f"{index}.png")
        pictures.append({"id": index, "file_name": f"{index}.png", "width": SIZE, "height": SIZE})
        annotations.append(
            {
                "id": index,
                "image_id": index,
                "category_id": 1 + index % 2,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
            }
        )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    data = {"images": pictures, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(data))


def write_config(path, model, data, *, epochs=2):
    """A stock mmdet config without anything of this package, as a user has it."""
    load = [{"type": "LoadImageFromFile"}]
    resize = {"type": "Resize", "scale": (SIZE, SIZE), "keep_ratio": True}
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pack = {"type": "PackDetInputs", "meta_keys": keys}
    labels = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": model["type"] == "MaskRCNN"}
    data_set = {
        "type": "CocoDataset",
        "data_root": str(data),
        "ann_file": "annotations.json",
        "data_prefix": {"img": ""},
        "metainfo": {"classes": ("a", "b")},
    }
    loader = {"batch_size": 2, "num_workers": 0, "persistent_workers": False}
    test = {
        **loader,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**data_set, "test_mode": True, "pipeline": [*load, resize, labels, pack]},
    }
    evaluator = {"type": "CocoMetric", "ann_file": str(data / "annotations.json"), "metric": "bbox"}
    config = {
        "default_scope": "mmdet",
        "model": model,
        "train_dataloader": {
            **loader,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "dataset": {**data_set, "pipeline": [*load, labels, resize, pack]},
        },
        "val_dataloader": test,
        "test_dataloader": test,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": epochs, "val_interval": 1},
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.001, "momentum": 0.9}},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}, "logger": {"type": "LoggerHook"}},
        "env_cfg": {"cudnn_benchmark": False},
        "vis_backends": [{"type": "LocalVisBackend"}],
        "visualizer": {
            "type": "DetLocalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}],
            "name": "visualizer",
        },
        "randomness": {"seed": 0},
        "load_from": None,
        "resume": False,
        "log_level": "INFO",
        "auto_scale_lr": {"enable": False, "base_batch_size": 16},
    }
    path.write_text("\n".join(f"{key} = {value!r}" for key, value in config.items()) + "\n")
    return path
