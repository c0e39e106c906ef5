# The trained blood cell detector again, for a third of the epochs: what compressed models are compared with.
_base_ = "retinanet_r18-thin_bccd.py"

load_from = "work_dirs/retinanet_r18-thin_bccd/epoch_36.pth"
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(lr=5e-4))  # half the rate of the training from scratch
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=25),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, T_max=12, end=12, eta_min=1e-5, convert_to_iter_based=True),
]
