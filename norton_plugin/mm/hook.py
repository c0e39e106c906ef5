"""NortonHook: compression inside a training run of mmengine, resumable and testable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from ..errors import ArtifactError, NortonError, RecipeError
from ..pipeline import CompressionReport
from ..surgery.structure import Structure, apply_structure_, structure_hash
from . import after_surgery, guard
from .compression import compressed_copy, without_frozen
from .export_config import write_config
from .hook_report import tell
from .migration import check_wrapper, migrate_, unwrap
from .options import recipe_from_options
from .step_seed import StepSeedHook
from .tracing import example_image

_OPTIONS = ("at_epoch", "frozen", "input_size", "export", "step_seeds", "evaluate")
# Fewer than of the recipe's default: detectors' images are large.
_CALIBRATION_IMAGES = 256


@HOOKS.register_module()
class NortonHook(Hook):
    """Compresses the model when training starts, and rebuilds compressed models when checkpoints arrive.

    In a config: ``default_hooks = dict(norton=dict(type='norton_plugin.NortonHook', rank=4, keep=0.6))``.

    Weight decay: factors take the parameter group, hence the decay, of the convolution they replace. Decay of d on
    each of three factors shrinks their product by about 3 d a step; divide ``weight_decay`` (or the group's
    ``decay_mult``) by 3 for the shrinkage the dense weight had.

    Args:
        at_epoch: Epochs to train densely first, at least 0.
        frozen: Also change layers that need no gradient, such as the frozen first stages of mmdet's backbones; they
            cannot be fine-tuned afterwards.
        input_size: (H, W) of the image to trace and count MACs with; ``None`` for that of the training data.
        export: After training, write ``norton_config.py`` into the work dir: a config that builds the compressed
            model without this hook.
        step_seeds: Seed all random generators from the run's seed and the step's number (``StepSeedHook``), without
            which a resumed run draws other samples and augmentations than an uninterrupted one.
        evaluate: Validate straight after surgery, before any fine-tuning; the metrics are logged and written to
            ``norton_report.json``.
        **recipe: Keys of the recipe, in its sections or flat (``rank``, ``keep``, ``scope`` ...). After surgery the
            statistics of BatchNorms are re-estimated on ``images`` (256) training images, those of norms kept in
            evaluation mode (``norm_eval``) too; ``batch_norm=False`` leaves them as they are.

    Raises:
        RecipeError: An unknown key, or a value out of its range.
    """

    # Before EMAHook (NORMAL, 50) and CheckpointHook: what they copy and write has to be the compressed model.
    priority = "HIGH"

    def __init__(
        self,
        *,
        at_epoch: int = 0,
        frozen: bool = False,
        input_size: Sequence[int] | None = None,
        export: bool = True,
        step_seeds: bool = True,
        evaluate: bool = False,
        **recipe: Any,
    ) -> None:
        if "calibration" not in recipe:
            recipe.setdefault("images", _CALIBRATION_IMAGES)
        self.recipe = recipe_from_options(recipe, others=_OPTIONS)
        if not (self.recipe.decomposition.active or self.recipe.pruning.active):
            raise RecipeError("NortonHook is asked for nothing: set rank, or keep below 1, or both")
        if not isinstance(at_epoch, int) or isinstance(at_epoch, bool) or at_epoch < 0:
            raise RecipeError(f"at_epoch is {at_epoch!r}; expected a number of epochs, at least 0")
        if input_size is not None and (len(input_size) != 2 or any(int(size) < 1 for size in input_size)):
            raise RecipeError(f"input_size is {input_size!r}; expected (height, width) in pixels, or None")
        self.at_epoch = at_epoch
        self.frozen = frozen
        self.input_size = None if input_size is None else [int(size) for size in input_size]
        self.export = export
        self.seeds = StepSeedHook() if step_seeds else None
        self.evaluate = evaluate
        self.structure: Structure | None = None
        self.report: CompressionReport | None = None

    def before_run(self, runner: Runner) -> None:
        """Refuses runs in which compression would fail later, or silently do nothing.

        Raises:
            RecipeError: A wrapper that owns the parameters, ``efficient_conv_bn_eval``, a mean teacher, or an
                ``at_epoch`` that never comes.
        """
        check_wrapper(runner)
        if not _trains(runner):
            return
        if runner.cfg.get("efficient_conv_bn_eval") or _has_efficient_conv_bn_eval(unwrap(runner.model)):
            raise RecipeError(
                "efficient_conv_bn_eval keeps the old convolutions, so compression would change nothing; remove it "
                "from the config"
            )
        if any(type(hook).__name__ == "MeanTeacherHook" for hook in runner.hooks):
            raise RecipeError(
                "MeanTeacherHook pairs the parameters of two models; compress the detector in a supervised run first, "
                "and use its exported config as both student and teacher"
            )
        if self.at_epoch:
            if not isinstance(runner.train_loop, EpochBasedTrainLoop):
                raise RecipeError("at_epoch needs an epoch-based training loop; leave it out to compress at the start")
            if self.at_epoch >= runner.max_epochs:
                raise RecipeError(f"at_epoch is {self.at_epoch}, but training ends after {runner.max_epochs} epochs")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Gives the model the checkpoint's structure, before its weights arrive.

        Raises:
            ArtifactError: No structure where one is expected, another model's, or a damaged one.
            RecipeError: The checkpoint was compressed with another recipe.
        """
        entry = guard.stored(checkpoint)
        structure = None if entry is None else entry["structure"]
        if structure is None:
            self._take_dense(runner, written_by_us=entry is not None)
            return
        assert entry is not None  # noqa: S101
        self._check_recipe(entry)
        if self.structure is not None:
            if structure_hash(self.structure) != structure_hash(structure):
                raise ArtifactError(
                    "the model of this run already has another structure than the checkpoint; load it in a new run"
                )
            return
        migrate_(runner, lambda model: apply_structure_(model, structure))
        self.structure = structure
        runner.logger.info("NORTON: the model has the structure of the checkpoint, %s", entry["structure_hash"][:12])

    def before_train(self, runner: Runner) -> None:
        """Compresses at the start, where no checkpoint brought a structure."""
        if self.structure is None and self.at_epoch == 0:
            self._compress(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Compresses after ``at_epoch`` epochs, and seeds the epoch."""
        if self.structure is None and runner.epoch >= self.at_epoch:
            self._compress(runner)
        if self.seeds is not None:
            self.seeds.before_train_epoch(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds the step."""
        if self.seeds is not None:
            self.seeds.before_train_iter(runner, batch_idx, data_batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Writes structure, hash and recipe into ``checkpoint['meta']['norton']``: JSON primitives only.

        Raises:
            ArtifactError: The model has lost the structure.
        """
        self._check_model(runner)
        checkpoint["meta"][guard.KEY] = {
            "structure": self.structure,
            "structure_hash": None if self.structure is None else structure_hash(self.structure),
            "recipe": self.recipe.to_dict(),
        }

    def after_train(self, runner: Runner) -> None:
        """Checks that the model is still the compressed one, and exports the config.

        Raises:
            ArtifactError: The model has lost the structure.
        """
        self._check_model(runner)
        if self.export and runner.rank == 0 and self.structure is not None:
            path = write_config(runner.cfg, self.structure, Path(runner.work_dir))
            if path is not None:
                runner.logger.info("NORTON: %s builds the compressed model without the hook", path)

    def _take_dense(self, runner: Runner, *, written_by_us: bool) -> None:
        """A checkpoint without structure: fine as a start, or before ``at_epoch``; an error otherwise."""
        resumed = bool(getattr(runner, "_resume", False))
        if self.structure is None and _trains(runner) and (not resumed or written_by_us):
            return
        if _trains(runner) and resumed:
            raise ArtifactError(
                "the checkpoint to resume from holds no structure, so it is of a run without NortonHook; to compress "
                "its model and start a run from it, give it as load_from and leave resume out"
            )
        raise ArtifactError(
            "the checkpoint holds no structure: its model is not compressed; take NortonHook out of the config "
            "(leave the key default_hooks.norton out; mmengine rejects None there) to work with the dense model"
        )

    def _check_recipe(self, entry: dict[str, Any]) -> None:
        stored, own = entry.get("recipe"), json.loads(json.dumps(self.recipe.to_dict()))
        if stored is None or stored == own:
            return
        differences = ", ".join(_differences(stored, own))
        raise RecipeError(
            f"the checkpoint was compressed with another recipe ({differences}); give NortonHook the checkpoint's "
            "recipe, or start from the dense weights"
        )

    def _check_model(self, runner: Runner) -> None:
        if self.structure is None:
            return
        difference = guard.mismatch(unwrap(runner.model), self.structure)
        if difference is not None:
            raise ArtifactError(
                f"the model lost its compressed structure during the run: {difference}; something rebuilt it after "
                "NortonHook (another hook, or code that builds the model from the config)"
            )

    def _compress(self, runner: Runner) -> None:
        """Decides on the first rank, changes every rank's model in the same way, and tells."""
        model = unwrap(runner.model)
        state: dict[str, Tensor] = {}
        plan: list[Any] = [None]
        covered = ""
        if runner.rank == 0:
            try:
                example = example_image(runner, model, self.input_size)
                recipe = self.recipe if self.frozen else without_frozen(self.recipe, model)
                compressed, self.report, covered = compressed_copy(model, example, recipe, logger=runner.logger)
                state, plan = dict(compressed.state_dict()), [self.report.structure]
            except NortonError as error:
                if not is_distributed():
                    raise
                plan = [error]  # the other ranks wait, and have to fail as well
        if is_distributed():
            broadcast_object_list(plan)
        if isinstance(plan[0], NortonError):
            raise plan[0]
        structure: Structure = plan[0]

        def change(live: nn.Module) -> None:
            apply_structure_(live, structure)
            if runner.rank == 0:  # the others get the values when the model is wrapped again
                live.load_state_dict(state)

        migration = migrate_(runner, change)
        self.structure = json.loads(json.dumps(structure))
        runner.logger.info(
            "NORTON: %d parameters replaced, %d slots of the optimizer renewed, %d moving averages restarted",
            migration.replaced,
            migration.moved,
            migration.averages,
        )
        images = 0
        if self.recipe.calibration.batch_norm:
            images = after_surgery.reestimate_(runner, structure, images=self.recipe.calibration.images)
        metrics = after_surgery.evaluate(runner) if self.evaluate else {}
        if self.report is not None:
            self.report = replace(self.report, calibration_images=images)
            tell(runner, self.report, covered=covered, metrics=metrics)


def _trains(runner: Runner) -> bool:
    """Whether ``train`` was called: only then is the training loop built."""
    return isinstance(getattr(runner, "_train_loop", None), BaseLoop)


def _has_efficient_conv_bn_eval(model: nn.Module) -> bool:
    return any(getattr(module, "efficient_conv_bn_eval_forward", None) is not None for module in model.modules())


def _differences(stored: dict[str, Any], own: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*stored, *own}):
        there, here = stored.get(key), own.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            lines.append(f"{prefix}{key} {there!r} there, {here!r} here")
    return lines
