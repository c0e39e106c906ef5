# ResNet-50 at half the MACs of each layer, 1x1 convolutions included: all filters of a layer share components.
_base_ = "../_base_/timm_classification.py"

model = dict(model=dict(spec="timm:resnet50"))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(norton=dict(type="NortonHook", level="layer", share=0.5, exclude=["model.conv1"]))
# SGD trains shared factors badly (docs/method.md, section 6).
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-3))
