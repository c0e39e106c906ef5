# The same fine-tuning, after the detector was decomposed and pruned to 50 % of its MACs.
_base_ = "retinanet_r18-thin_bccd_finetune.py"

# Multiples of 4 channels: layers of 24 and 48 channels leave too few choices at the default of 8.
default_hooks = dict(norton=dict(type="norton_plugin.NortonHook", rank=5, keep=0.8, round_to=4))
