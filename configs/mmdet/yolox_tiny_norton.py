# YOLOX-tiny from its COCO weights.
_base_ = "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py"

load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/yolox/"
    "yolox_tiny_8x8_300e_coco/yolox_tiny_8x8_300e_coco_20211124_171234-b4047906.pth"
)
# The size is given: mosaic keeps images it has read, so no sample is drawn ahead of training.
default_hooks = dict(norton=dict(type="norton_plugin.NortonHook", rank=3, keep=0.75, input_size=(416, 416)))
optim_wrapper = dict(optimizer=dict(lr=0.001))  # a tenth of the base's
auto_scale_lr = dict(enable=True)
