# Mask R-CNN R50-FPN from its COCO weights: decomposed, pruned in backbone, FPN, RPN, box and mask heads, fine-tuned 1x.
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/"
    "mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
)
model = dict(backbone=dict(init_cfg=None))  # load_from brings all weights
# Not custom_hooks: a child config replaces that list, and with it the hooks of its base.
default_hooks = dict(norton=dict(type="norton_plugin.NortonHook", rank=3, keep=0.7))
# A tenth of the rate of training from ImageNet weights: higher ones undo the start that compression leaves.
optim_wrapper = dict(optimizer=dict(lr=0.002))
auto_scale_lr = dict(enable=True)
