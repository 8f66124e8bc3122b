# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that take tensors from one checkpoint's names and layout to another's.

A table of rules is read forwards to import and backwards to export; a name
that no rule takes, or that nothing gives, is never passed over in silence.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.tensors import Tensor, Tensors
from pixel_llm.checkpoints.transforms import Fields, Pieces, Transform

# A field of a template: `{name}`, or `{name:regex}` where it matters.
_FIELD = re.compile(r'\{(\w+)(?::([^{}]*))?\}')
_ANY = r'[^/.]+'


class MappingError(ValueError):
  """Tensors do not fit their table of rules, or what they are wanted for."""


@dataclasses.dataclass(frozen=True)
class Rule:
  r"""Names of a source, names of a target, and what happens between them.

  A name with fields, `encoder.block.{layer:\d+}.w`, stands for a regular
  expression when it is matched and for a template when it is filled. A field
  has its regular expression where it stands first, else any text without dots
  and slashes. Fields of both sides are carried over; one of the source alone
  is what a transform joins pieces by, one of the target alone what it forks
  them by.

  Attributes:
    source: the names it takes.
    target: the names it gives.
    transforms: in the order of source to target.

  Raises:
    ValueError: the transforms do not join and fork what the names say.
  """

  source: str
  target: str
  transforms: tuple[Transform, ...] = ()

  def __post_init__(self):
    source, target = set(_fields(self.source)), set(_fields(self.target))
    joins = {t.joins for t in self.transforms if t.joins}
    forks = {t.forks for t in self.transforms if t.forks}
    if source - target != joins - forks or target - source != forks - joins:
      raise ValueError(
        f'{self.source} -> {self.target}: expected transforms that join '
        f'{sorted(source - target)} and fork {sorted(target - source)}, got '
        f'{sorted(joins)} and {sorted(forks)}.'
      )

  @functools.cached_property
  def pattern(self) -> re.Pattern:
    """Matches the names of the source whole, fields by their names."""
    regexes = _fields(self.target) | _fields(self.source)
    text, end, seen = '', 0, set()
    for match in _FIELD.finditer(self.source):
      name = match[1]
      text += re.escape(self.source[end : match.start()])
      regex = f'(?P<{name}>{regexes[name] or _ANY})'
      text += f'(?P={name})' if name in seen else regex
      seen.add(name)
      end = match.end()
    return re.compile(text + re.escape(self.source[end:]))

  def inverse(self) -> Rule:
    """The rule from target to source."""
    regexes = _fields(self.source) | {
      n: r for n, r in _fields(self.target).items() if r
    }

    def spelled(template):
      # Regular expressions of both sides go to both, so that none is lost.
      return _FIELD.sub(
        lambda m: f'{{{m[1]}:{regexes.get(m[1]) or _ANY}}}', template
      )

    return Rule(
      spelled(self.target),
      spelled(self.source),
      tuple(t.inverse() for t in reversed(self.transforms)),
    )


@dataclasses.dataclass(frozen=True)
class Ignored:
  """Names of a source that are known and left out; there is no way back.

  Attributes:
    source: a regular expression of them.
    same_as: the name of the tensor that they repeat; it is an error when they
      do not. None leaves them out whatever they hold.
  """

  source: str
  same_as: str | None = None


Table = Sequence[Rule | Ignored]


@dataclasses.dataclass(frozen=True)
class Report:
  """What does not fit, all of it.

  Attributes:
    unmatched: names of the source that no rule takes.
    unknown: names that rules give and that the target does not have.
    missing: names of the target that nothing gives.
    misshapen: names of the target, with both shapes or why there is none.
    mistyped: names of the target, with both dtypes.
    repeated: names of the target that several sources give, with these.
    unfound: regular expressions that are found in no name.
  """

  unmatched: tuple[str, ...] = ()
  unknown: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  misshapen: tuple[str, ...] = ()
  mistyped: tuple[str, ...] = ()
  repeated: tuple[str, ...] = ()
  unfound: tuple[str, ...] = ()

  def __bool__(self) -> bool:
    """Whether anything does not fit."""
    return any(dataclasses.astuple(self))

  def __str__(self) -> str:
    titles = {
      'unmatched': 'names of the source that no rule takes',
      'unknown': 'names that the target does not have',
      'missing': 'names of the target that nothing gives',
      'misshapen': 'shapes',
      'mistyped': 'dtypes',
      'repeated': 'names of the target that several sources give',
      'unfound': 'regular expressions that are found in no name',
    }
    return '\n'.join(
      line
      for field, title in titles.items()
      if (lines := getattr(self, field))
      for line in (f'{len(lines)} {title}:', *(f'  {x}' for x in lines))
    )


def inverse(table: Table) -> list[Rule]:
  """The table from target to source."""
  return [rule.inverse() for rule in table if isinstance(rule, Rule)]


def apply(table: Table, tensors: Tensors) -> tuple[dict[str, Tensor], Report]:
  """Takes tensors through a table; loads nothing.

  Args:
    table: of a name, the first rule that matches it counts.
    tensors: of the source.

  Returns:
    tensors of the target, those of one rule one after the other, and the
    report of what the table does not take or can't make.
  """
  matches = {name: _first(table, name) for name in tensors}
  unmatched = [name for name, match in matches.items() if match is None]
  copies: dict[str, dict[str, Tensor]] = {}
  for name, match in matches.items():
    rule = table[match[0]] if match else None
    if isinstance(rule, Ignored) and rule.same_as is not None:
      if rule.same_as in tensors:
        copies.setdefault(rule.same_as, {})[name] = tensors[name]
      else:
        unmatched.append(name)
  groups: dict[tuple[int, Fields], Pieces] = {}
  for name, match in matches.items():
    rule = table[match[0]] if match else None
    if not match or not isinstance(rule, Rule):
      continue
    index, fields = match
    kept = _fields(rule.target)
    common = tuple(f for f in fields if f[0] in kept)
    own = tuple(f for f in fields if f[0] not in kept)
    tensor = tensors[name]
    if name in copies:
      tensor = _checked(name, tensor, copies[name])
    groups.setdefault((index, common), {})[own] = tensor
  result: dict[str, Tensor] = {}
  misshapen: list[str] = []
  for (index, common), pieces in groups.items():
    rule = table[index]
    assert isinstance(rule, Rule)
    try:
      for transform in rule.transforms:
        pieces = transform.apply(pieces)
    except ValueError as e:
      misshapen.append(f'{_shown(rule.target, dict(common))}: {e}')
      continue
    for fields, tensor in pieces.items():
      name = _filled(rule.target, dict(common) | dict(fields))
      if name in result:
        misshapen.append(f'{name}: expected one source, got several')
      result[name] = tensor
  return result, Report(unmatched=tuple(unmatched), misshapen=tuple(misshapen))


def convert(
  table: Table,
  tensors: Tensors,
  expected: Mapping[str, tuple[int, ...]],
  allow_missing: Iterable[str] = (),
) -> dict[str, Tensor]:
  """`apply`, for a target whose names and shapes are known.

  Args:
    table: of rules.
    tensors: of the source.
    expected: shape by name of the target.
    allow_missing: regular expressions of names that nothing need give.

  Returns:
    tensors of the target, in its order.

  Raises:
    MappingError: anything does not fit; the message lists all of it.
  """
  given, report = apply(table, tensors)
  report = compare(given, expected, allow_missing, report)
  if report:
    raise MappingError(str(report))
  return {name: given[name] for name in expected if name in given}


def compare(
  tensors: Tensors,
  expected: Mapping[str, tuple[int, ...]],
  allow_missing: Iterable[str] = (),
  report: Report | None = None,
) -> Report:
  """What of the tensors does not fit, added to a report; see `convert`."""
  report = report or Report()
  allowed = [re.compile(regex) for regex in allow_missing]
  missing = [
    f'{name} {list(shape)}'
    for name, shape in expected.items()
    if name not in tensors and not any(r.fullmatch(name) for r in allowed)
  ]
  unknown = [
    f'{name} {list(tensor.shape)}'
    for name, tensor in tensors.items()
    if name not in expected
  ]
  misshapen = [
    f'{name}: expected {list(shape)}, got {list(tensors[name].shape)}'
    for name, shape in expected.items()
    if name in tensors and tensors[name].shape != tuple(shape)
  ]
  return dataclasses.replace(
    report,
    unknown=(*report.unknown, *unknown),
    missing=(*report.missing, *missing),
    misshapen=(*report.misshapen, *misshapen),
  )


def cast(tensors: Tensors, dtype: np.dtype) -> dict[str, Tensor]:
  """The floating point tensors in another dtype; the others as they are."""

  def one(tensor: Tensor) -> Tensor:
    if not tensors_lib.is_floating(tensor.dtype) or tensor.dtype == dtype:
      return tensor
    return Tensor(tensor.shape, dtype, lambda: tensor.read().astype(dtype))

  return {name: one(tensor) for name, tensor in tensors.items()}


def finite(tensors: Tensors, source: str) -> dict[str, Tensor]:
  """The tensors, each checked to be finite when it is read.

  Args:
    tensors: by name.
    source: where they are from, for the ValueError that names the tensor with
      NaN or infinite numbers.
  """

  def one(name: str, tensor: Tensor) -> Tensor:
    if not tensors_lib.is_floating(tensor.dtype):
      return tensor

    def load():
      array = tensor.read()
      if not (good := np.isfinite(array)).all():
        count = array.size - np.count_nonzero(good)
        raise ValueError(
          f'{source}: {name}: expected finite numbers, got {count} NaN or '
          f'infinite ones among {array.size}.'
        )
      return array

    return Tensor(tensor.shape, tensor.dtype, load)

  return {name: one(name, tensor) for name, tensor in tensors.items()}


def merge_lora(tensors: Tensors, scale: float) -> dict[str, Tensor]:
  """Every kernel with its low-rank update in it, and no update beside it.

  Args:
    tensors: by name; `X/lora_a` [..., in, rank] and `X/lora_b`
      [..., rank, out] belong to `X/kernel` [..., in, out].
    scale: factor of the updates.

  Raises:
    MappingError: an update without its other half or its kernel.
  """
  result = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.endswith(('/lora_a', '/lora_b'))
  }
  for name in tensors:
    if name in result:
      continue
    stem = name.rpartition('/')[0]
    parts = [f'{stem}/{leaf}' for leaf in ('kernel', 'lora_a', 'lora_b')]
    lost = [part for part in parts if part not in tensors]
    if lost:
      raise MappingError(f'{name}: expected {", ".join(lost)} beside it.')
    kernel, a, b = (tensors[part] for part in parts)
    result[parts[0]] = _merged(kernel, a, b, scale)
  return result


def _merged(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
  def load():
    update = (a.read().astype(np.float32) * np.float32(scale)) @ (
      b.read().astype(np.float32)
    )
    merged = kernel.read().astype(np.float32) + update
    return merged.astype(kernel.dtype)

  return Tensor(kernel.shape, kernel.dtype, load)


def _checked(name: str, tensor: Tensor, copies: Tensors) -> Tensor:
  def load():
    array = tensor.read()
    for other, copy in copies.items():
      same = copy.shape == array.shape and copy.dtype == array.dtype
      if not same or copy.read().tobytes() != array.tobytes():
        raise MappingError(
          f'{other}: expected the values of {name}, got others.'
        )
    return array

  return Tensor(tensor.shape, tensor.dtype, load)


def _first(table: Table, name: str) -> tuple[int, Fields] | None:
  for i, rule in enumerate(table):
    if isinstance(rule, Ignored):
      if re.fullmatch(rule.source, name):
        return i, ()
    elif match := rule.pattern.fullmatch(name):
      return i, tuple(sorted(match.groupdict().items()))
  return None


def _fields(template: str) -> dict[str, str]:
  """Regular expressions by field; '' where a field has none."""
  result: dict[str, str] = {}
  for name, regex in _FIELD.findall(template):
    result[name] = result.get(name) or regex
  return result


def _filled(template: str, fields: dict[str, str]) -> str:
  return _FIELD.sub(lambda m: fields[m[1]], template)


def _shown(template: str, fields: dict[str, str]) -> str:
  """`_filled` as far as the fields go."""
  return _FIELD.sub(lambda m: fields.get(m[1], f'{{{m[1]}}}'), template)
