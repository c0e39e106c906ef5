# ResNet-18 decomposed at rank 3 and pruned to 70 % of its channels at the start of the run, then fine-tuned.
_base_ = "../_base_/timm_classification.py"

model = dict(model=dict(spec="timm:resnet18"))
default_hooks = dict(norton=dict(type="NortonHook", rank=3, keep=0.7))
