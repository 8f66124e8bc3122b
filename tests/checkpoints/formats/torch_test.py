# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from pixel_llm.checkpoints.formats import torch as torch_lib
from pixel_llm.checkpoints.tensors import TensorFileError

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
# What PyTorch 2.13 saved: views, shared storages, every kind of number.
STATE = GOLDEN / 'torch_state.pth'


def rewritten(path, changes):
  """A copy of the golden file with members replaced, or dropped by None."""
  with zipfile.ZipFile(STATE) as source, zipfile.ZipFile(path, 'w') as out:
    for member in source.namelist():
      end = member.split('/', 1)[1]
      data = changes.get(end, source.read(member))
      if data is not None:
        out.writestr(member, data)
  return path


def tensor_pickle(
  offset=0, shape=(2, 3), stride=(3, 1), count=6, storage='FloatStorage'
):
  """Opcodes of a tensor over storage 0, as `torch.save` has them."""

  def number(n):
    # LONG1 of eight bytes.
    return b'\x8a\x08' + n.to_bytes(8, 'little', signed=True)

  def text(t):
    return b'X' + len(t).to_bytes(4, 'little') + t.encode()

  def numbers(ns):
    return b'(' + b''.join(map(number, ns)) + b't'

  kind = f'ctorch\n{storage}\n'.encode()
  return b''.join(
    [
      b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(',
      *(b'(', text('storage'), kind, text('0'), text('cpu'), number(count)),
      b'tQ',
      *(number(offset), numbers(shape), numbers(stride)),
      b'\x89ccollections\nOrderedDict\n)RtR.',
    ]
  )


def one_tensor(path, data=None, **kwargs):
  values = np.arange(6, dtype=np.float32).tobytes() if data is None else data
  with zipfile.ZipFile(path, 'w') as out:
    out.writestr('archive/data.pkl', tensor_pickle(**kwargs))
    out.writestr('archive/data/0', values)
  return path


def test_reads_what_torch_saved():
  got = torch_lib.read(STATE)
  with np.load(GOLDEN / 'torch_state.npz') as expected:
    assert got.keys() == set(expected.files)
    for name, tensor in got.items():
      array = tensor.read()
      if name in ('types/bfloat16', 'types/float8_e4m3fn'):
        assert array.dtype.name == name.split('/')[1]
        array = np.ascontiguousarray(array).view(expected[name].dtype)
      np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.parity
def test_reads_what_torch_here_saves(tmp_path):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
  model = model.to(torch.bfloat16)
  torch.save(model.state_dict(), tmp_path / 'x.bin')
  got = torch_lib.read(tmp_path / 'x.bin')
  for name, value in model.state_dict().items():
    np.testing.assert_array_equal(
      got[name].read().astype(np.float32), value.float().numpy(), strict=True
    )
  torch.save(torch.ones(3), tmp_path / 'one.pt')
  assert torch_lib.read(tmp_path / 'one.pt')['tensor'].read().sum() == 3
  torch.save(model, tmp_path / 'model.pt')
  with pytest.raises(TensorFileError, match=r'names torch\.nn\.modules'):
    torch_lib.read(tmp_path / 'model.pt')


def test_a_tensor_made_by_hand(tmp_path):
  got = torch_lib.read(one_tensor(tmp_path / 'x.pth'))['tensor'].read()
  np.testing.assert_array_equal(got, np.arange(6.0).reshape(2, 3))
  view = one_tensor(tmp_path / 'y.pth', offset=1, shape=(2, 2), stride=(1, 3))
  got = torch_lib.read(view)['tensor'].read()
  np.testing.assert_array_equal(got, [[1, 4], [2, 5]])


@pytest.mark.parametrize(
  ('wrong', 'match'),
  [
    ({'offset': 1}, '28 bytes in archive/data/0, got 24'),
    ({'stride': (4, 1)}, '28 bytes'),
    ({'shape': (1 << 40, 3)}, 'bytes in archive/data/0, got 24'),
    ({'stride': (-3, 1)}, 'a pickle of tensors, got a tensor of offset'),
    ({'offset': -1}, 'a pickle of tensors, got a tensor of offset'),
    ({'shape': (2, 3, 1)}, 'a pickle of tensors, got a tensor of offset'),
    ({'count': 7}, '28 bytes in archive/data/0, got 24'),
    ({'data': bytes(23)}, '24 bytes in archive/data/0, got 23'),
  ],
)
def test_views_stay_within_their_storage(tmp_path, wrong, match):
  path = one_tensor(tmp_path / 'x.pth', **wrong)
  with pytest.raises(TensorFileError, match=match):
    torch_lib.read(path)


class Hostile:
  def __init__(self, call):
    self.call = call

  def __reduce__(self):
    return self.call


def test_a_hostile_pickle_runs_nothing(tmp_path):
  mark = tmp_path / 'ran'
  for call, name in (
    ((os.system, (f'touch {mark}',)), 'posix.system'),
    ((eval, (f'open({str(mark)!r}, "w")',)), '__builtin__.eval'),
    ((getattr, (os, 'system')), '__builtin__.getattr'),
    ((np.load, ('x',)), 'numpy'),
  ):
    try:
      data = pickle.dumps({'w': Hostile(call)}, 2)
    except TypeError:
      # A module can't be pickled by itself; its name can.
      data = b'\x80\x02c__builtin__\ngetattr\ncos\nsystem\nU\x01x\x86R.'
    path = rewritten(tmp_path / 'x.pth', {'data.pkl': data})
    with pytest.raises(TensorFileError) as e:
      torch_lib.read(path)
    assert str(path) in str(e.value)
    assert f'names {name}' in str(e.value)
    assert not mark.exists()


def test_names_around_the_allowed_are_refused(tmp_path):
  for module, name in (
    ('torch', 'load'),
    ('torch', 'FloatStorage.__init__'),
    ('collections', 'OrderedDict.fromkeys'),
    ('torch._utils', '_rebuild_tensor_v2.__globals__'),
    ('torch.serialization', 'os.system'),
  ):
    data = f'\x80\x04c{module}\n{name}\n.'.encode('latin1')
    path = rewritten(tmp_path / 'x.pth', {'data.pkl': data})
    with pytest.raises(TensorFileError, match='nothing of it was run'):
      torch_lib.read(path)


def test_a_pickle_changes_nothing_of_what_it_is_given(tmp_path):
  # BUILD sets attributes: of what `find_class` gave, if it may.
  data = (
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
    b'(N}X\x08\x00\x00\x00__call__K\x01stb.'
  )
  path = rewritten(tmp_path / 'x.pth', {'data.pkl': data})
  with pytest.raises(TensorFileError, match='a pickle of tensors'):
    torch_lib.read(path)
  assert torch_lib.read(STATE)


def test_damage_is_named(tmp_path):
  whole = STATE.read_bytes()
  path = tmp_path / 'x.pth'
  for cut in (3, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:cut])
    with pytest.raises(TensorFileError, match=r'x\.pth: expected'):
      torch_lib.read(path)
  with zipfile.ZipFile(STATE) as archive:
    pickled = archive.read('torch_state/data.pkl')
  for cut in range(0, len(pickled) - 1, 7):
    rewritten(path, {'data.pkl': pickled[:cut]})
    with pytest.raises(TensorFileError, match='a pickle of tensors'):
      torch_lib.read(path)
  rewritten(path, {'data/0': None})
  with pytest.raises(TensorFileError, match='no such member'):
    torch_lib.read(path)
  rewritten(path, {'byteorder': b'big'})
  with pytest.raises(TensorFileError, match='little-endian'):
    torch_lib.read(path)
  rewritten(path, {'data.pkl': None})
  with pytest.raises(TensorFileError, match=r'NAME/data\.pkl'):
    torch_lib.read(path)
  rewritten(path, {'data.pkl': pickle.dumps({'step': 3}, 2)})
  with pytest.raises(TensorFileError, match='expected tensors, got none'):
    torch_lib.read(path)
  # The format before PyTorch 1.6.
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
  with pytest.raises(TensorFileError, match='load and save it anew'):
    torch_lib.read(path)


def test_flipped_bytes_of_the_pickle_never_give_a_traceback(tmp_path):
  with zipfile.ZipFile(STATE) as archive:
    pickled = archive.read('torch_state/data.pkl')
  path = tmp_path / 'x.pth'
  rng = np.random.default_rng(0)
  for _ in range(150):
    data = bytearray(pickled)
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    rewritten(path, {'data.pkl': bytes(data)})
    try:
      for tensor in torch_lib.read(path).values():
        tensor.read()
    except TensorFileError as e:
      assert str(path) in str(e)


def test_a_flipped_byte_of_a_storage_is_noticed(tmp_path):
  data = bytearray(STATE.read_bytes())
  values = torch_lib.read(STATE)['model/a.weight'].read().tobytes()
  data[data.index(values) + 5] ^= 1
  (tmp_path / 'x.pth').write_bytes(data)
  got = torch_lib.read(tmp_path / 'x.pth')
  with pytest.raises(TensorFileError, match='whole, got BadZipFile: Bad CRC'):
    got['model/a.weight'].read()


def test_memory_asked_for_by_noise_is_not_taken(tmp_path):
  # The index of the memo, from which Python would make a list of 64 GiB.
  data = b'\x80\x02}r\xff\xff\xff\xff.'
  path = rewritten(tmp_path / 'x.pth', {'data.pkl': data})
  with pytest.raises(TensorFileError, match='the index 4294967295'):
    torch_lib.read(path)
  # Lists of twice the same list, 30 deep.
  nested: list = []
  for _ in range(30):
    nested = [nested, nested]
  path = rewritten(tmp_path / 'x.pth', {'data.pkl': pickle.dumps(nested, 2)})
  with pytest.raises(TensorFileError, match='at most 1000000 values'):
    torch_lib.read(path)


def test_containers_within_themselves_end(tmp_path):
  loop: list = []
  loop.append(loop)
  path = rewritten(tmp_path / 'x.pth', {'data.pkl': pickle.dumps(loop, 2)})
  with pytest.raises(TensorFileError, match='containers in one another'):
    torch_lib.read(path)
