# A timm model on an ImageFolder: data/train/CLASS/*.jpg and data/val/CLASS/*.jpg.
# Override `model.model.spec` and the roots, e.g. with --cfg-options.
custom_imports = dict(imports=["norton_plugin.mm"], allow_failed_imports=False)

preprocessing = dict(input_size=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
model = dict(type="TimmClassifier", model=dict(spec="timm:resnet18", num_classes=1000))

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="collate_batch"),
    dataset=dict(type="NortonImageFolder", root="data/train", preprocessing=preprocessing, training=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="collate_batch"),
    dataset=dict(type="NortonImageFolder", root="data/val", preprocessing=preprocessing),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy")
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=29, end=30, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)

default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="auto"),
    logger=dict(type="LoggerHook", interval=50),
)
default_scope = "mmengine"
