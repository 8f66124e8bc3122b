# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The root of the config tree: the only place where defaults live.

Free of TensorFlow, so that a config loads anywhere.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from etils import epath

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import files, sharding
from pixel_llm.augmentation import Augmentation
from pixel_llm.checkpoints import initialization, manager
from pixel_llm.model import decoding, pixel_llm
from pixel_llm.train import optimizer


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """Batches of one SeqIO mixture or task, all of one shape.

  Attributes:
    mixture: name of a SeqIO mixture or task.
    rate: share of the steps, relative to the other streams.
    batch: images a global batch.
    regions: regions an image.
    context: text prompt tokens, end token included.
    length: target tokens, end token included.
    objects: things to detect an image at most; 0 for none.
    mask: side of the masks to learn from, over the padded input; 0 for none.
    prompt_points: points of a location prompt at most; 0 for boxes alone.
  """

  mixture: str = ''
  rate: float = 1.0
  batch: int = 256
  regions: int = 1
  context: int = 8
  length: int = 128
  objects: int = 0
  mask: int = 0
  prompt_points: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the data is and how it is shaped.

  Attributes:
    records: record set -> directory. Names in `pixel_llm.data.datasets.TASKS`
      give the tasks there; any other gives `<name>_<capability>` for all of
      them.
    vocabulary: SentencePiece model, a path or `gs://` URL.
    extra_ids: sentinel ids above its pieces (T5: 100).
    modules: Python modules to import, which register tasks of your own.
    mixtures: SeqIO mixture -> task -> rate, beside those of `datasets`.
    augmentation: task -> instead of that in `datasets`.
    prompts: task -> texts that ask, instead of the capability's; the first is
      for evaluation. `{text}` and `{prompt}` stand for the region's.
    streams: name -> what a step's batch is drawn from.
    image: side of the padded square input, pixels.
    points: P, points a token.
    image_maps: folder of `pixel-llm precompute`, for streams whose images are
      not augmented; '' encodes every image at every step.
  """

  records: dict[str, str] = dataclasses.field(default_factory=dict)
  vocabulary: str = ''
  extra_ids: int = 100
  modules: tuple[str, ...] = ()
  mixtures: dict[str, dict[str, float]] = dataclasses.field(
    default_factory=dict
  )
  augmentation: dict[str, Augmentation] = dataclasses.field(
    default_factory=dict
  )
  prompts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  streams: dict[str, StreamConfig] = dataclasses.field(default_factory=dict)
  image: int = 384
  points: int = 2
  image_maps: str = ''

  def sizes(self, shape: StreamConfig | EvalTaskConfig) -> batch_lib.BatchSizes:
    """The shape table of a stream or an evaluation task."""
    return batch_lib.BatchSizes(
      batch=shape.batch,
      image=self.image,
      regions=shape.regions,
      context=shape.context,
      length=shape.length,
      points=self.points,
      objects=shape.objects,
      mask=shape.mask,
      prompt_points=shape.prompt_points,
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the losses.

  Attributes:
    label_smoothing: of the words.
    point_weight: of the points' L1 in sides of the padded input. Reference:
      the published weight is 0.1 on pixels of a 384 px input, 38.4 in this
      unit; ours does not change with the input size.
    proposal_weight: of the boxes that cells propose; without `model.region`
      there are none.
    focal_weight: of the masks' focal loss, if `model.mask` learns from masks.
    dice_weight: of their dice loss.
    mask_iou_weight: of the squared error of the IoU that they predict.
    center_weight: of where the centres of things are, if `model.detector`
      learns from things.
    side_weight: of how far their sides are.
    thing_weight: of which boxes hold a thing.
    move_weight: of where exactly it is in them.
    presence_weight: of whether what is asked for is there, if there is
      `model.presence`.
  """

  label_smoothing: float = 0.1
  point_weight: float = 38.4
  proposal_weight: float = 1.0
  focal_weight: float = 20.0
  dice_weight: float = 1.0
  mask_iou_weight: float = 1.0
  center_weight: float = 0.5
  side_weight: float = 1.0
  thing_weight: float = 1.0
  move_weight: float = 1.0
  presence_weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvalTaskConfig:
  """Shape of the evaluation of one SeqIO task (see `StreamConfig`)."""

  batch: int = 32
  regions: int = 1
  context: int = 8
  length: int = 128
  objects: int = 0
  mask: int = 0
  prompt_points: int = 0


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
  """Which of the things that are found in an image are captioned.

  Attributes:
    most: of an image.
    score: that they must be above.
  """

  most: int = 100
  score: float = 0.05


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation.

  Attributes:
    tasks: SeqIO task -> shape.
    split: of the tasks.
    examples: at most so many images a task; 0 takes all.
    decoding: how answers are written; `length` comes from the task's shape.
    detection: which things of an image are captioned, of tasks that detect.
    gallery: answers a task that the report shows: the best, the worst and
      random ones.
    targets: bounds that the report marks, 'refer/p_at_0.5 >= 0.6'.
  """

  tasks: dict[str, EvalTaskConfig] = dataclasses.field(default_factory=dict)
  split: str = 'val'
  examples: int = 0
  decoding: decoding.DecodingConfig = dataclasses.field(
    default_factory=decoding.DecodingConfig
  )
  detection: DetectionConfig = dataclasses.field(
    default_factory=DetectionConfig
  )
  gallery: int = 8
  targets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """The loop.

  Attributes:
    steps: how many in all.
    log_every: steps between lines of log and TensorBoard scalars.
    checkpoint_every: steps between checkpoints; the last step always has one.
    eval_every: steps between evaluations while training; 0 evaluates only
      by `pixel-llm evaluate`. With `checkpoint.keep_best` a multiple of
      `checkpoint_every`, and the last step is evaluated too.
    workers: threads of each host that prepare examples; 0 takes as many as
      there are cores.
    microbatches: parts that a step's batch is learned from one after another,
      which takes less memory; the result is that of the whole, but for rounding
      and what is drawn.
    max_damaged: examples that each host may pass over since they cannot be
      read; one more ends the run.
    stall_seconds: without a finished step (compiling and restoring included)
      after which all processes write their stacks and end; 0 waits forever.
    heartbeat_seconds: after which a process of a cluster that says nothing is
      dead, and the others end.
    writers: where scalars and pictures go, any of 'tensorboard', 'wandb',
      'mlflow'; `pip install` the last two.
    profile: first and last step to trace into `profile` of the workdir; None
      traces five steps when a process gets SIGUSR1.
    compile_cache: folder for compiled programs, which a restart does not
      compile again; below the workdir unless absolute, '' is none. Processes
      share it: the first writes, all read.
    on_bad_step: 'stop' ends the run at a step that is not finite or a spike,
      and keeps its batch in `bad_batches`; 'skip' leaves its update out, counts
      and logs it, and stops after ten in a row.
    spike: a step whose gradient's norm is more than so many times the mean of
      about the last fifty is bad, too; 0 bounds nothing.
  """

  steps: int = 10_000
  log_every: int = 100
  checkpoint_every: int = 1000
  eval_every: int = 0
  workers: int = 0
  microbatches: int = 1
  max_damaged: int = 100
  stall_seconds: int = 1800
  heartbeat_seconds: int = 100
  writers: tuple[Literal['tensorboard', 'wandb', 'mlflow'], ...] = (
    'tensorboard',
  )
  profile: tuple[int, int] | None = None
  compile_cache: str = 'compile_cache'
  on_bad_step: Literal['stop', 'skip'] = 'stop'
  spike: float = 0.0

  def __post_init__(self):
    if self.spike and self.spike <= 1:
      raise ValueError(f'spike: expected 0 or > 1, got {self.spike}.')
    first, last = self.profile or (1, 1)
    if not 1 <= first <= last:
      raise ValueError(
        f'profile: expected 1 <= first <= last step, got {self.profile}.'
      )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that a run depends on.

  Attributes:
    init: checkpoints that a new run's parameters start from; None draws all
      of them. A run that goes on does not look at it.
    seed: of what is drawn, and of the order of examples.
  """

  model: pixel_llm.ModelConfig = dataclasses.field(
    default_factory=pixel_llm.ModelConfig
  )
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  optimizer: optimizer.OptimizerConfig = dataclasses.field(
    default_factory=optimizer.OptimizerConfig
  )
  mesh: sharding.MeshConfig = dataclasses.field(
    default_factory=sharding.MeshConfig
  )
  init: initialization.InitConfig | None = None
  checkpoint: manager.CheckpointConfig = dataclasses.field(
    default_factory=manager.CheckpointConfig
  )
  loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  seed: int = 0

  def __post_init__(self):
    if self.model.regression.points != self.data.points:
      raise ValueError(
        f'model.regression.points = {self.model.regression.points}, but '
        f'data.points = {self.data.points}; they must be equal.'
      )


# A restarted run may differ from its workdir in these alone.
_MAY_CHANGE = ('loop', 'eval', 'mesh', 'checkpoint')


def save(config: ExperimentConfig, workdir: str) -> None:
  """Writes `workdir/config.json`.

  Raises:
    ConfigError: see `check`.
  """
  check(config, workdir)
  path = epath.Path(workdir) / 'config.json'
  files.write(path, json.dumps(config_lib.to_dict(config), indent=2) + '\n')


def check(config: ExperimentConfig, workdir: str) -> None:
  """Checks that the workdir's config, if it has one, says the same.

  Raises:
    ConfigError: the workdir belongs to another config; lists what differs.
  """
  if (epath.Path(workdir) / 'config.json').exists():
    # A field that the version which wrote it did not have yet is as by default.
    left, right = (
      {k: v for k, v in config_lib.to_dict(c).items() if k not in _MAY_CHANGE}
      for c in (load(workdir), config)
    )
    lines = config_lib.difference(left, right)
    if lines:
      raise config_lib.ConfigError(
        f'{workdir} belongs to another config; choose another --workdir, or '
        'undo these differences (there -> here):\n  ' + '\n  '.join(lines)
      )


def load(workdir: str) -> ExperimentConfig:
  """Reads `workdir/config.json`.

  Raises:
    FileNotFoundError: the directory has no run.
    ConfigError: its config does not fit this version.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(
      f'{path}: no such file; expected a --workdir that `pixel-llm train` '
      'has written.'
    )
  try:
    values: dict[str, Any] = json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise config_lib.ConfigError(f'{path}: not JSON: {e}.') from e
  return config_lib.from_dict(ExperimentConfig, values)
