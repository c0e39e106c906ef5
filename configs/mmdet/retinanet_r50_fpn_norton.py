# RetinaNet R50-FPN from its COCO weights, compressed as a whole and fine-tuned 1x.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/retinanet/"
    "retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth"
)
model = dict(backbone=dict(init_cfg=None))  # load_from brings all weights
default_hooks = dict(norton=dict(type="norton_plugin.NortonHook", rank=3, keep=0.7))
optim_wrapper = dict(optimizer=dict(lr=0.001))  # a tenth of the base's
auto_scale_lr = dict(enable=True)
