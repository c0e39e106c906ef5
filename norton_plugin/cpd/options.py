"""The settings that all layers of one call of a batched ALS share."""

from dataclasses import dataclass

from norton_plugin.errors import DecompositionError


@dataclass(frozen=True)
class ALSOptions:
    """Settings of a batched ALS, checked; see `norton_plugin.cpd.decompose_filters` for their meaning."""

    restarts: int
    sweeps: int
    tolerance: float
    ridge: float
    seed: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        for name, least in (("restarts", 1), ("sweeps", 1), ("tolerance", 0.0), ("chunk_bytes", 1)):
            if not getattr(self, name) >= least:
                raise DecompositionError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 < self.ridge < 1:
            raise DecompositionError(f"ridge is {self.ridge}; it must lie between 0 and 1, 1e-6 is a good value.")
