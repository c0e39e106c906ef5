# ResNet-50 at the paper's 64 % fewer MACs or so: rank 3 for the 3x3 convolutions, 70 % of the channels.
_base_ = "../_base_/timm_classification.py"

model = dict(model=dict(spec="timm:resnet50"))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(norton=dict(type="NortonHook", rank=3, keep=0.7))
