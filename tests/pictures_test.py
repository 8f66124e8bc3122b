# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from pixel_llm import masks, pictures
from pixel_llm.prediction import Prediction, Word

GREY = (128, 128, 128)
EVIL = '</p><script>alert("1")</script>&amp; <img src=x onerror=alert(2)>'


def grey(height, width):
  return np.full((height, width, 3), GREY, np.uint8)


def word(text, x, y, half=4.0):
  return Word(text, ((x - half, y - half), (x + half, y + half)))


def narrative(
  size=(60, 100), text='a dog runs', xys=((25, 30), (50, 15), None)
):
  words = tuple(
    word(t, *xy) if xy else Word(t)
    for t, xy in zip(text.split(), xys, strict=True)
  )
  return Prediction('narrate', 'a.jpg', size, text, words)


def referred(box, size=(60, 100), prompt='the dog'):
  return Prediction('refer', 'a.jpg', size, prompt=prompt, box_orig=box)


def captioned(box, text, size=(60, 100)):
  return Prediction('caption_at', 'a.jpg', size, text, prompt_box_orig=box)


class Page(html.parser.HTMLParser):
  """The elements of a page: (tag, attributes, text inside)."""

  def __init__(self, page):
    super().__init__()
    self.elements = []
    self._open = []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ''])
    if tag not in ('meta', 'img', 'br'):
      self._open.append(self.elements[-1])

  def handle_startendtag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ''])

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag, f'</{tag}> closes nothing'

  def handle_data(self, data):
    for element in self._open:
      element[2] += data

  def of(self, tag, kind=None):
    return [
      (a, text)
      for t, a, text in self.elements
      if t == tag and (kind is None or kind in a.get('class', '').split())
    ]


def luminance(color):
  linear = [
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
    for v in (c / 255 for c in color)
  ]
  return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
  low, high = sorted((luminance(a), luminance(b)))
  return (high + 0.05) / (low + 0.05)


def test_every_color_of_the_run_can_be_read():
  for color in pictures.color_run(50, 0.52):
    assert contrast(color, (255, 255, 255)) > 4.5
  for color in pictures.color_run(50):
    assert contrast(color, (20, 22, 26)) > 4.5


def oklab(colors):
  """sRGB to OKLab, in which distances are what eyes see (Ottosson, 2020)."""
  rgb = np.array(colors) / 255
  rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  cones = rgb @ np.array(
    [
      [0.4122214708, 0.2119034982, 0.0883024619],
      [0.5363325363, 0.6806995451, 0.2817188376],
      [0.0514459929, 0.1073969566, 0.6299787005],
    ]
  )
  return np.cbrt(cones) @ np.array(
    [
      [0.2104542553, 1.9779984951, 0.0259040371],
      [0.7936177850, -2.4285922050, 0.7827717662],
      [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
  )


@pytest.mark.parametrize('lightness, evenness', [(0.76, 1.5), (0.52, 3.0)])
def test_colors_change_evenly_and_never_return(lightness, evenness):
  colors = oklab(pictures.color_run(40, lightness))
  np.testing.assert_allclose(colors[:, 0], lightness, atol=0.005)
  steps = np.linalg.norm(np.diff(colors, axis=0), axis=1)
  assert steps.max() / steps.min() < evenness
  hues = np.degrees(np.unwrap(np.arctan2(colors[:, 2], colors[:, 1])))
  # Less than a full circle in equal turns: no hue comes twice.
  np.testing.assert_allclose(np.diff(hues), -270 / 39, atol=1)


@pytest.mark.parametrize(
  'image, size, scale, shown',
  [
    ((60, 100), (60, 100), 8.0, (800, 480)),
    ((2000, 3000), (2000, 3000), 1280 / 3000, (1280, 853)),
    ((900, 700), (900, 700), 1.0, (700, 900)),
    # A small copy of the file: predictions still speak of the file.
    ((20, 30), (2000, 3000), 1280 / 3000, (1280, 853)),
  ],
)
def test_dots_are_where_their_words_are(image, size, scale, shown):
  height, width = size
  xys = ((0.25 * width, 0.5 * height), (0.75 * width, 0.25 * height), None)
  picture = pictures.draw(grey(*image), [narrative(size, xys=xys)])
  assert (picture.width, picture.height > shown[1]) == (shown[0], True)
  colors = pictures.color_run(3)
  for (x, y), color in zip(xys[:2], colors, strict=False):
    assert picture.getpixel((round(x * scale), round(y * scale))) == color
  quiet = round(0.9 * width * scale), round(0.9 * height * scale)
  assert picture.getpixel(quiet) == GREY


def test_a_trace_links_the_dots():
  first, last = (10.0, 30.0), (90.0, 30.0)
  picture = pictures.draw(
    grey(60, 100), [narrative(text='a dog', xys=(first, last))]
  )
  for x in range(15, 80, 5):
    assert picture.getpixel((x * 8, 240)) == pictures.color_run(2)[1]


def test_the_sentence_stands_below_in_its_colors():
  picture = pictures.draw(grey(60, 100), [narrative()])
  text = np.asarray(picture)[480:].reshape(-1, 3)
  found = {tuple(int(v) for v in c) for c in text}
  dark = pictures.color_run(3, 0.52)
  assert set(dark[:2]) <= found
  # The last word has no place, hence no color.
  assert dark[2] not in found


def test_more_words_need_more_lines_and_never_more_width():
  heights = []
  for count in (3, 45, 90):
    text = ' '.join(f'word{i}' for i in range(count))
    xys = tuple((i % 10 * 10, i % 6 * 10) for i in range(count))
    picture = pictures.draw(grey(60, 100), [narrative(text=text, xys=xys)])
    assert picture.width == 800
    heights.append(picture.height)
  assert heights == sorted(set(heights))
  endless = captioned((0, 0, 9, 9), 'x' * 500)
  assert pictures.draw(grey(60, 100), [endless]).width == 800


def test_a_box_is_drawn_on_its_edges_only():
  picture = pictures.draw(grey(60, 100), [referred((20, 10, 60, 40))])
  (_, color) = pictures.color_run(2)
  for x, y in ((160, 200), (480, 200), (320, 80), (320, 320)):
    assert picture.getpixel((x, y)) == color
  assert picture.getpixel((320, 200)) == GREY


def test_a_true_box_is_white_and_dashed():
  picture = pictures.draw(
    grey(60, 100),
    [referred((20, 10, 60, 40))],
    [referred((30, 20, 90, 50))],
  )
  edge = [picture.getpixel((x, 400)) for x in range(240, 720)]
  whites = edge.count((255, 255, 255))
  assert 0.3 < whites / len(edge) < 0.7
  assert GREY not in edge


def test_a_place_that_is_not_finite_is_no_place():
  nan = float('nan')
  broken = Prediction(
    'narrate', 'a', (60, 100), 'a dog', (word('a', nan, 1), word('dog', 9, 9))
  )
  lost = referred((0.0, nan, 1.0, 1.0))
  picture = pictures.draw(grey(60, 100), [broken, lost])
  assert picture.getpixel((72, 72)) == pictures.color_run(2)[1]
  page = Page(pictures.html(grey(60, 100), [broken, lost]))
  assert len(page.of('circle')) == 1
  assert 'nan' not in str(page.of('rect'))


def test_encoded_files_are_set_upright():
  rgb = grey(30, 20)
  rgb[:10, :10] = (250, 10, 10)
  file = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 3  # Upside down.
  Image.fromarray(rgb[::-1, ::-1]).save(file, 'PNG', exif=exif)
  expected = pictures.draw(rgb, [])
  assert pictures.draw(file.getvalue(), []).tobytes() == expected.tobytes()


def test_predictions_of_two_images_are_refused():
  both = [referred((0, 0, 1, 1)), referred((0, 0, 1, 1), size=(61, 100))]
  with pytest.raises(ValueError, match=r'\(60, 100\), \(61, 100\)'):
    pictures.draw(grey(60, 100), both)
  with pytest.raises(ValueError, match='picture: expected an image'):
    pictures.html(np.zeros((4, 5), np.uint8), [])


def test_html_stands_alone():
  source = pictures.html(
    grey(60, 100),
    [narrative(), referred((1, 2, 3, 4)), captioned((1, 2, 3, 4), 'a dog')],
    [narrative(), referred((1, 2, 3, 5))],
    'title',
  )
  assert 'http' not in source and '@import' not in source
  page = Page(source)
  assert not page.of('link') and not page.of('iframe')
  links = [
    a[key] for _, a, _ in page.elements for key in ('src', 'href') if key in a
  ]
  data = [link for link in links if link.startswith('data:image/jpeg;base64,')]
  assert len(data) == 1
  assert set(links) == {data[0], '#image'}


def test_each_word_is_a_span_linked_with_its_mark():
  prediction = narrative()
  page = Page(pictures.html(grey(60, 100), [prediction]))
  spans = page.of('span', 'word')
  assert [text for _, text in spans] == [w.text for w in prediction.words]
  keys = [a['data-key'] for a, _ in spans if 'data-key' in a]
  assert keys == [a['data-key'] for a, _ in page.of('g', 'mark')] == ['0', '1']
  assert all((a.get('tabindex') == '0') == ('data-key' in a) for a, _ in spans)


def test_marks_are_in_pixels_of_the_original_file():
  prediction = narrative((2000, 3000), xys=((250.5, 300), (500, 150), None))
  page = Page(pictures.html(grey(20, 30), [prediction]))
  assert page.of('svg')[0][0]['viewbox'] == '0 0 3000 2000'
  circles = [(a['cx'], a['cy']) for a, _ in page.of('circle')]
  assert circles == [('250.5', '300'), ('500', '150')]
  mark = page.of('g', 'mark')[0][0]
  assert mark['data-box'] == '246.5 296 254.5 304'


def test_the_text_reads_as_it_was_said():
  words = tuple(word(t, 5, 5) for t in ('don', "'t", 'run', '.', 'Dog'))
  text = "don't  run. Dog"
  prediction = Prediction('narrate', 'a', (60, 100), text, words)
  page = Page(pictures.html(grey(60, 100), [prediction]))
  assert page.of('p', 'said')[0][1].strip() == "don't run. Dog"


def test_captions_titles_and_names_cannot_break_out():
  predictions = [
    captioned((1, 2, 30, 40), EVIL),
    referred((1, 2, 30, 40), prompt=EVIL),
    Prediction('narrate', EVIL, (60, 100), EVIL, (word(EVIL, 5, 5),)),
  ]
  page = Page(pictures.html(grey(60, 100), predictions, predictions, EVIL))
  assert len(page.of('script')) == 1
  assert 'alert' not in page.of('script')[0][1]
  assert not page.of('img')
  assert not any('onerror' in a for _, a, _ in page.elements)
  assert page.of('title')[0][1] == page.of('h1')[0][1] == EVIL
  assert [text for _, text in page.of('span', 'word')].count(EVIL) == 4


def test_a_truth_that_repeats_the_expression_is_not_repeated():
  args = [referred((1, 2, 3, 4))], [referred((2, 2, 4, 4))]
  page = Page(pictures.html(grey(60, 100), *args))
  assert [t for _, t in page.of('span', 'word')] == ['the dog', 'ground truth']
  # The truth lies under the answer, so that equal boxes show the answer.
  kinds = [a['class'].split() for a, _ in page.of('g', 'mark')]
  assert kinds == [['mark', 'dashed'], ['mark']]


def test_save_goes_by_the_ending(tmp_path):
  args = grey(60, 100), [narrative()]
  pictures.save(tmp_path / 'deep' / 'a.PNG', *args)
  with Image.open(tmp_path / 'deep' / 'a.PNG') as picture:
    assert picture.format == 'PNG'
    assert picture.tobytes() == pictures.draw(*args).tobytes()
  pictures.save(tmp_path / 'a.html', *args)
  page = (tmp_path / 'a.html').read_text(encoding='utf-8')
  assert Page(page).of('title')[0][1] == 'a.jpg'
  with pytest.raises(ValueError, match=r'b\.gif: expected .*\.png or \.html'):
    pictures.save(tmp_path / 'b.gif', *args)
  assert not (tmp_path / 'b.gif').exists()


def test_half_a_surrogate_pair_can_be_saved(tmp_path):
  prediction = captioned((1, 2, 3, 4), 'a dog \ud83d')
  pictures.save(tmp_path / 'a.html', grey(60, 100), [prediction])
  assert 'a dog &#55357;' in (tmp_path / 'a.html').read_text(encoding='utf-8')


def segmented(confidence=0.9):
  inside = np.zeros((60, 100), bool)
  inside[10:40, 20:60] = True
  inside[20:30, 30:50] = False
  return Prediction(
    'segment', 'a.jpg', (60, 100), prompt='a ring', box_orig=(20, 10, 60, 40),
    mask_orig=masks.encode(inside), confidence=confidence,
    there=confidence >= 0.5,
  )  # fmt: skip


def test_a_mask_is_tinted_but_for_its_hole():
  picture = pictures.draw(grey(60, 100), [segmented()])
  assert picture.getpixel((320, 200)) == GREY == picture.getpixel((700, 400))
  assert picture.getpixel((200, 200)) != GREY
  page = Page(pictures.html(grey(60, 100), [segmented()]))
  (path,) = page.of('path')
  assert path[0]['d'].count('M') == 2
  assert ', 0.90' in page.of('g', 'mark')[0][0]['data-where']


def test_what_is_not_there_is_said_and_not_drawn():
  picture = pictures.draw(grey(60, 100), [segmented(0.1)])
  assert {picture.getpixel((x, 200)) for x in range(100, 700)} == {GREY}
  page = Page(pictures.html(grey(60, 100), [segmented(0.1)]))
  assert not page.of('path') and not page.of('g', 'mark')
  assert page.of('span', 'word')[0][1] == 'a ring (not there)'


def test_points_that_were_asked_about_are_dots():
  asked = Prediction(
    'caption_at', 'a', (60, 100), 'a dog', prompt_points_orig=((25, 30),)
  )
  picture = pictures.draw(grey(60, 100), [asked])
  assert picture.getpixel((200, 240)) == pictures.color_run(2)[1]
  page = Page(pictures.html(grey(60, 100), [asked]))
  assert [(a['cx'], a['cy']) for a, _ in page.of('circle')] == [('25', '30')]
