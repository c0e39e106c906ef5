# RTMDet-tiny from its COCO weights. Depthwise and 1x1 convolutions are pruned only; its heads share convolutions.
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"

load_from = (
    "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/"
    "rtmdet_tiny_8xb32-300e_coco/rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth"
)
model = dict(backbone=dict(init_cfg=None))  # load_from brings all weights
# The size is given: mosaic keeps images it has read, so no sample is drawn ahead of training.
default_hooks = dict(norton=dict(type="norton_plugin.NortonHook", rank=3, keep=0.75, input_size=(640, 640)))
optim_wrapper = dict(optimizer=dict(lr=0.0004))  # a tenth of the base's
