"""NortonHook: compression inside a training run of mmengine, resumable and testable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm.configs.export import write_config
from norton_plugin.mm.distillation.losses import FeatureDistillation
from norton_plugin.mm.distillation.teacher import DenseTeacher, DistillSettings
from norton_plugin.mm.patches import fuse, guard
from norton_plugin.mm.run.fresh import Fresh, compress_run_
from norton_plugin.mm.run.norm_statistics import NormStatistics
from norton_plugin.mm.run.options import HookRecipe
from norton_plugin.mm.run.preconditions import check_run, resumes, trains
from norton_plugin.mm.run.slow_optimizer import warn_of_sgd
from norton_plugin.mm.runner.migration import migrate_, unwrap
from norton_plugin.mm.runner.optimizer import FactorDecay, check_factor_decay
from norton_plugin.mm.runner.step_seed import StepSeedHook
from norton_plugin.pipeline import CompressionReport
from norton_plugin.surgery.geometry import Geometry, geometry
from norton_plugin.surgery.structure import Structure, apply_structure_, structure_hash

_OPTIONS = (
    "at_epoch",
    "frozen",
    "input_size",
    "export",
    "step_seeds",
    "evaluate",
    "checkpoint",
    "factor_decay",
    "norm_eval",
    "distill",
    "again",
)
# The compressed model before any fine-tuning.
_FRESH = "norton_surgery.pth"


@HOOKS.register_module()
class NortonHook(Hook):
    """Compresses the model when training starts, and rebuilds compressed models when checkpoints arrive.

    In a config: ``default_hooks = dict(norton=dict(type='norton_plugin.NortonHook', rank=4, keep=0.6))``.

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
        checkpoint: Write ``norton_surgery.pth`` into the work dir: the model straight after surgery.
        factor_decay: Multiplier of the weight decay for factors, at least 0. ``None`` leaves them the decay of the
            layer they replace: d on each of f factors shrinks their product by about f d a step. ``"auto"`` is 1/f for
            every layer, which gives the shrinkage that the dense weight had; f is 3 where filters share nothing, 4
            where they do, and 2 for shared 1x1 kernels and Linear layers.
        norm_eval: Whether BatchNorms run with their running statistics while the compressed model trains, in all parts
            of it; their weights and biases learn. ``None`` is True where trained weights were compressed, the
            statistics were estimated on training images after surgery, and a step shows a norm fewer than 32 images,
            which estimate them worse (docs/openmmlab.md). A resumed run goes on as it began.
        distill: Learn from the dense model as well: True, or ``dict(weight=0.5, layers=None, temperature=4.0,
            block_weight=0.0)`` (see ``teacher.DistillSettings``). Its weights are kept in the work dir for a resumed
            run.
        again: Compress the model of a compressed checkpoint (``load_from``) once more, by the recipe given here.
            Without it such a model is trained as it is. Not together with ``distill``.
        **recipe: Keys of the recipe, in its sections or flat (``rank``, ``level``, ``keep``, ``scope`` ...);
            ``calibrate=True`` fits the layers to training images (``calibration.fit``), ``budget=dict(macs=0.5)`` finds
            their sizes. Otherwise, after surgery, the statistics of BatchNorms are re-estimated on ``images`` (256)
            training images, those of norms kept in evaluation mode (``norm_eval``) too; ``batch_norm=False`` leaves
            them as they are.

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
        checkpoint: bool = False,
        factor_decay: FactorDecay | None = None,
        norm_eval: bool | None = None,
        distill: bool | Mapping[str, Any] | None = None,
        again: bool = False,
        **recipe: Any,
    ) -> None:
        asked = HookRecipe.from_options(recipe, others=_OPTIONS)
        self.recipe, self._named = asked.recipe, asked.named
        if not isinstance(at_epoch, int) or isinstance(at_epoch, bool) or at_epoch < 0:
            raise RecipeError(f"at_epoch is {at_epoch!r}; expected a number of epochs, at least 0")
        if input_size is not None and (len(input_size) != 2 or any(int(size) < 1 for size in input_size)):
            raise RecipeError(f"input_size is {input_size!r}; expected (height, width) in pixels, or None")
        fuse.install()
        self.at_epoch = at_epoch
        self.frozen = frozen
        self.input_size = None if input_size is None else [int(size) for size in input_size]
        self.export = export
        self.seeds = StepSeedHook() if step_seeds else Hook()
        self.evaluate = evaluate
        self.checkpoint = checkpoint
        if factor_decay is not None:
            check_factor_decay(factor_decay)
        self.factor_decay = factor_decay
        if norm_eval is not None and not isinstance(norm_eval, bool):
            raise RecipeError(f"norm_eval is {norm_eval!r}; expected True, False or None")
        self.norms = NormStatistics(norm_eval)
        self.distill = DistillSettings.from_option(distill)
        if again and self.distill is not None:
            raise RecipeError("again and distill exclude each other: a resumed run would need the teacher of before")
        self._teacher: DenseTeacher | None = None
        self._teacher_note: dict[str, str] | None = None
        self._learning: FeatureDistillation | None = None
        self.again = again
        self._dense: Geometry | None = None
        self._earlier: list[Any] = []
        self.structure: Structure | None = None
        self.report: CompressionReport | None = None

    def before_run(self, runner: Runner) -> None:
        """Refuse runs in which compression would fail later, or silently do nothing.

        Raises:
            RecipeError: See ``preconditions.check_run``.
        """
        check_run(runner, at_epoch=self.at_epoch)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Give the model the checkpoint's structure, before its weights arrive.

        Raises:
            ArtifactError: No structure where one is expected, another model's, or a damaged one.
            RecipeError: The checkpoint was compressed with another recipe.
        """
        self.seeds.after_load_checkpoint(runner, checkpoint)
        entry = guard.stored(checkpoint)
        structure = None if entry is None else entry["structure"]
        if structure is None:
            self._take_dense(runner, written_by_us=entry is not None)
            return
        assert entry is not None  # noqa: S101
        if trains(runner) and not (self.again and not resumes(runner)):
            guard.check_settings(entry, self.recipe, factor_decay=self.factor_decay, resumed=resumes(runner))
        if self.structure is not None:
            if structure_hash(self.structure) != structure_hash(structure):
                raise ArtifactError(
                    "the model of this run already has another structure than the checkpoint; load it in a new run"
                )
            return
        if self.distill is not None and trains(runner):
            self._teacher = DenseTeacher(unwrap(runner.model))
            self._teacher_note = entry.get("teacher")
            keep_in = Path(runner.work_dir) if runner.rank == 0 else None
            self._teacher.read(_folders(runner), self._teacher_note, keep_in=keep_in)
        again = self.again and trains(runner) and not resumes(runner)
        if again:
            self._dense = geometry(unwrap(runner.model))
            self._earlier = [*entry.get("earlier", []), entry.get("recipe")]
        migrate_(runner, lambda model: apply_structure_(model, structure), factor_decay=self.factor_decay)
        runner.logger.info("NORTON: the model has the structure of the checkpoint, %s", entry["structure_hash"][:12])
        if again:
            return
        self.structure, self._earlier = structure, entry.get("earlier", [])
        if trains(runner):
            self.norms.take_over(runner, entry, resumed=resumes(runner))
            warn_of_sgd(runner)

    def before_train(self, runner: Runner) -> None:
        """Compress at the start, where no checkpoint brought a structure."""
        if self.structure is None and self.at_epoch == 0:
            self._compress(runner)
        self._learn_from_teacher(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Compress after ``at_epoch`` epochs, and seed the epoch."""
        if self.structure is None and runner.epoch >= self.at_epoch:
            self._compress(runner)
            self._learn_from_teacher(runner)
        self.seeds.before_train_epoch(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step, and put norms that keep their statistics back into evaluation mode."""
        self.seeds.before_train_iter(runner, batch_idx, data_batch)
        self.norms.apply_(unwrap(runner.model))  # after mmengine's model.train(), which comes after all other events

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write structure, hash and recipe into ``checkpoint['meta']['norton']``: JSON primitives only.

        Raises:
            ArtifactError: The model has lost the structure.
        """
        self._check_model(runner)
        self.seeds.before_save_checkpoint(runner, checkpoint)
        checkpoint["meta"][guard.KEY] = {
            "structure": self.structure,
            "structure_hash": None if self.structure is None else structure_hash(self.structure),
            "recipe": self.recipe.to_dict(),
            "factor_decay": self.factor_decay,
            "norm_eval": self.norms.kept,
            **({} if self._teacher_note is None else {"teacher": self._teacher_note}),
            **({"earlier": self._earlier} if self._earlier else {}),
        }

    def after_train(self, runner: Runner) -> None:
        """Check that the model is still the compressed one, and export the config.

        Raises:
            ArtifactError: The model has lost the structure.
        """
        self._check_model(runner)
        if self._learning is not None:
            self._learning.remove()
        if self.export and runner.rank == 0 and self.structure is not None:
            path = write_config(runner.cfg, self.structure, Path(runner.work_dir))
            if path is not None:
                runner.logger.info("NORTON: %s builds the compressed model without the hook", path)

    def _take_dense(self, runner: Runner, *, written_by_us: bool) -> None:
        """Accept a checkpoint without structure: fine as a start, or before ``at_epoch``; an error otherwise."""
        if self.structure is None and trains(runner) and (not resumes(runner) or written_by_us):
            return
        if resumes(runner):
            raise ArtifactError(
                "the checkpoint to resume from holds no structure, so it is of a run without NortonHook; to compress "
                "its model and start a run from it, give it as load_from and leave resume out"
            )
        raise ArtifactError(
            "the checkpoint holds no structure: its model is not compressed; take NortonHook out of the config "
            "(leave the key default_hooks.norton out; mmengine rejects None there) to work with the dense model"
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
        """Compress the model at hand, and keep what a resumed run needs."""
        told = Fresh(
            self.recipe,
            self.frozen,
            self.input_size,
            self.factor_decay,
            self.evaluate,
            outputs=self._remember_dense(runner),
            dense=self._dense,
            norms=self.norms,
            named=self._named,
        )
        self.structure, self.report = compress_run_(runner, told)
        if self._teacher is not None and runner.rank == 0:
            self._teacher_note = self._teacher.write(Path(runner.work_dir))
        if self.checkpoint:
            runner.save_checkpoint(
                runner.work_dir, _FRESH, save_optimizer=False, save_param_scheduler=False, by_epoch=False
            )

    def _remember_dense(self, runner: Runner) -> tuple[str, ...]:
        """Keep the dense model as a teacher, where one is asked for; the layers it teaches by their outputs."""
        if self.distill is None:
            return ()
        model = unwrap(runner.model)
        layers = self.distill.layers_of(model)
        self._teacher = DenseTeacher(model)
        return layers

    def _learn_from_teacher(self, runner: Runner) -> None:
        if self._teacher is not None and self.distill is not None:
            self._learning = self._teacher.attach(unwrap(runner.model), self.distill)


def _folders(runner: Runner) -> list[Path]:
    """Return where files that a run wrote beside its checkpoints may be."""
    given = getattr(runner, "_load_from", None)
    return [*([] if given is None else [Path(given).parent]), Path(runner.work_dir)]
