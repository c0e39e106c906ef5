"""What is adjusted on unlabelled images after surgery."""

from norton_plugin.calibration.batch_norm import reestimate_batch_norm_

__all__ = ["reestimate_batch_norm_"]
