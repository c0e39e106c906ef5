# Blood cells (BCCD, 205 training images) from scratch: a RetinaNet with a thin ResNet-18, images of 320x240. An epoch
# takes about a quarter of a minute on one core.
_base_ = "mmdet::_base_/default_runtime.py"
# Lets torch >= 2.6 read mmengine's checkpoints, and refuses compressed weights in the dense model.
custom_imports = dict(imports=["norton_plugin.mm"], allow_failed_imports=False)

data_root = "data/bccd/"
classes = ("RBC", "WBC", "Platelets")
randomness = dict(seed=0)
norm = dict(type="BN", requires_grad=True)

model = dict(
    type="RetinaNet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=24,
        frozen_stages=-1,
        norm_cfg=norm,
        norm_eval=False,
    ),
    neck=dict(
        type="FPN",
        in_channels=[24, 48, 96, 192],
        out_channels=48,
        start_level=1,
        num_outs=4,
        norm_cfg=norm,
    ),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=3,
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        norm_cfg=norm,
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=3,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)

resize = dict(type="Resize", scale=(320, 240), keep_ratio=True)
meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    resize,
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    resize,
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=meta),
]
data = dict(type="CocoDataset", data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img="images/"))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(ann_file="train.json", pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="val.json", test_mode=True, pipeline=test_pipeline, **data),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="test.json", test_mode=True, pipeline=test_pipeline, **data),
)
val_evaluator = dict(type="CocoMetric", ann_file=data_root + "val.json", metric="bbox", classwise=True)
test_evaluator = dict(type="CocoMetric", ann_file=data_root + "test.json", metric="bbox", classwise=True)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=36, val_interval=12)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, T_max=36, end=36, eta_min=1e-5, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=1), logger=dict(interval=10))
