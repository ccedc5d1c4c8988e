"""What code shows: pictures, sounds and tables.

`show(x)` shows anything anywhere. The value of a run is shown in the same way, and `plt.show()` and
`image.show()` do what they do in a notebook. A picture becomes PNG and gets a line of text in its
place, as not every client shows pictures.

Rule 1: standard library only, Python >= 3.9. Figures, images and tables are recognised by what they
can do; nothing is imported for them.
Rule 2: what is shown is bounded here, so that it fits; the host checks it again.
"""

from __future__ import annotations

import builtins
import sys
from functools import cached_property

from ...protocol.library_names import SHOW_NAME
from ...protocol.media import (
    MAX_ALL_MEDIA_BYTES,
    MAX_IMAGE_SIDE,
    MAX_MEDIA_BYTES,
    MAX_MEDIA_ITEMS,
    Media,
    identify_media,
)
from ...protocol.presentation import present_value
from ...protocol.truncation import PythonPresenter, type_name

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional

    from ...protocol.payloads import JsonObject

SHRINK_FACTOR = 0.7  # of a picture's sides, when it has too many bytes
MAX_SHRINKS = 6
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of PIL images
MAX_SEARCHED_ITEMS = 100  # of a list that may hold pictures
MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".wav", ".mp3", ".ogg", ".flac")
MAX_SHOW_CHARS = 20_000  # of one value that is shown as text
# How much of a table is tried, until it fits: rows, and characters of a cell.
TABLE_SIZES = ((60, 60), (40, 40), (20, 40), (20, 20), (10, 20), (6, 12), (2, 8))
MANY_ROWS = 60
ROWS_OF_MANY = 20


class Display:
    """What the present run has shown, in order."""

    def __init__(self) -> None:
        self._items: List[Media] = []
        self._size = 0

    @cached_property
    def _drawn(self) -> Any:
        """The hash of the PNG by figure, in all runs."""
        from weakref import WeakKeyDictionary  # the library of figures has imported it

        return WeakKeyDictionary()

    def start_run(self) -> None:
        """Forget what the last run has shown."""
        self._items = []
        self._size = 0

    def take_media(self) -> Optional[List[Dict[str, str]]]:
        """Return what was shown, as `RunDone` carries it."""
        if not self._items:
            return None
        from base64 import b64encode

        return [
            {"mime_type": item.mime_type, "data": b64encode(item.data).decode()}
            for item in self._items
        ]

    def add(self, media: Media) -> str:
        """Add a picture or sound and return the line that stands for it."""
        for number, item in enumerate(self._items, 1):
            if item.data == media.data:
                return item.describe(number)  # it is there already
        problem = media.problem
        if not problem and len(self._items) >= MAX_MEDIA_ITEMS:
            problem = f"a run shows at most {MAX_MEDIA_ITEMS}; save the others to files"
        if not problem and self._size + len(media.data) > MAX_ALL_MEDIA_BYTES:
            limit = f"{MAX_ALL_MEDIA_BYTES / 1e6:.0f} MB"
            problem = f"a run shows at most {limit}; save the others to files"
        if problem:
            return f"[{media.kind} not shown: {problem}]"
        self._items.append(media)
        self._size += len(media.data)
        return media.describe(len(self._items))

    def show(self, *values: Any) -> None:
        """Show values where they stand in the output: pictures, sounds, tables, anything else."""
        for value in values:
            media = self._find_media(value) or read_media(value)
            if media is not None:
                print(self.add(media))
            elif isinstance(value, str):
                print(value)
            else:
                print(self.present(value, MAX_SHOW_CHARS, None, 0)["text"])

    def present(
        self, value: Any, max_chars: int, max_items: Optional[int], whole_chars: int
    ) -> JsonObject:
        """Return the `value` of `RunDone`; pictures in it are added, and lines stand for them."""
        if is_blank(value):
            return present_value(value, max_chars, max_items, whole_chars)
        media = self._find_media(value)
        if media is not None:
            return _as_text(value, self.add(media))
        if type(value) in (list, tuple) and len(value) <= MAX_SEARCHED_ITEMS:
            found = [self._find_media(item) for item in value]
            if any(found):
                pairs = zip(value, found)  # noqa: B905 - `strict` is newer than Python 3.9
                value = [item if each is None else self.add(each) for item, each in pairs]
        elif is_data_frame(value):
            return _as_text(value, format_table(value, max_chars))
        return present_value(value, max_chars, max_items, whole_chars)

    def show_figures(self, figures: Iterable[Any]) -> None:
        """Show those figures that have changed since they were shown."""
        for figure in figures:
            before = self._drawn.get(figure)
            media = self._find_media(figure)
            if media is not None and self._drawn[figure] != before:
                print(self.add(media))

    def _find_media(self, value: Any) -> Optional[Media]:
        figure = find_figure(value)
        if figure is None:
            return find_media(value)
        media = draw_figure(figure)
        self._drawn[figure] = None if media is None else hash(media.data)
        return media


def _as_text(value: Any, text: str) -> JsonObject:
    return {"kind": "repr", "text": text, "type": type_name(value), "cut": False}


# pictures -----------------------------------------------------------------------------------------


def find_media(value: Any) -> Optional[Media]:
    """Return the picture or sound that `value` is; None for a figure, or something else."""
    if value is None or isinstance(value, (int, float, complex)):
        return None
    if isinstance(value, dict):
        return _decode_content_block(value)
    if _is_from(value, "PIL") and hasattr(value, "save") and hasattr(value, "resize"):
        return encode_image(value)
    draw = getattr(type(value), "_repr_png_", None)  # what notebooks ask for
    if draw is not None and not isinstance(value, type):
        try:
            data = draw(value)
        except Exception:  # noqa: BLE001 - then it is shown by its repr, as in a notebook
            return None
        return identify_media(data) if isinstance(data, bytes) else None
    return None


def _decode_content_block(value: Dict[Any, Any]) -> Optional[Media]:
    """Return the content of an image or audio block, as tools return it."""
    if value.get("type") not in ("image", "audio") or not isinstance(value.get("data"), str):
        return None
    from base64 import b64decode

    try:
        return identify_media(b64decode(value["data"]))
    except ValueError:
        return None


def read_media(value: Any) -> Optional[Media]:
    """Return the picture or sound that `value` is in bytes, or names as a file; else None."""
    if isinstance(value, (bytes, bytearray)):
        return identify_media(bytes(value))
    if not isinstance(value, str) and not hasattr(value, "__fspath__"):
        return None
    path = value if isinstance(value, str) else value.__fspath__()
    if not isinstance(path, str) or not path.lower().endswith(MEDIA_SUFFIXES):
        return None
    try:
        with open(path, "rb") as file:
            return identify_media(file.read(4 * MAX_MEDIA_BYTES))
    except (OSError, ValueError):
        return None


def _is_from(value: Any, package: str) -> bool:
    """Return whether a class of `value` comes from a package."""
    return any(
        str(getattr(cls, "__module__", "")).partition(".")[0] == package
        for cls in type(value).__mro__
    )


def find_figure(value: Any) -> Any:
    """Return the matplotlib figure that `value` is, or that it is a part of; None otherwise.

    Plotting functions return parts, and lists of them.
    """
    if type(value) in (list, tuple) and 0 < len(value) <= MAX_SEARCHED_ITEMS:
        figures = [_own_figure(item) for item in value]
        return figures[0] if all(each is not None for each in figures) else None
    if isinstance(value, tuple) and value and _is_from(value, "matplotlib"):
        return _own_figure(value[0])  # the bars of a chart
    return _own_figure(value)


def _own_figure(value: Any) -> Any:
    if not _is_from(value, "matplotlib"):
        return None
    if hasattr(value, "savefig"):
        return value
    get_figure = getattr(value, "get_figure", None)
    figure = get_figure() if callable(get_figure) else None
    return figure if hasattr(figure, "savefig") else None


def is_blank(value: Any) -> bool:
    """Return whether `value` is a figure without any data yet, as `subplots` returns it."""
    figure = find_figure(value)
    return figure is not None and not any(axes.has_data() for axes in figure.axes)


def draw_figure(figure: Any) -> Optional[Media]:
    """Return a figure as PNG, at its own resolution as far as that fits."""
    from io import BytesIO

    dpi = min(float(figure.dpi), MAX_IMAGE_SIDE / max(*figure.get_size_inches(), 0.1))

    def draw(factor: float) -> bytes:
        buffer = BytesIO()
        options = {"format": "png", "dpi": dpi * factor, "metadata": {"Software": None}}
        figure.savefig(buffer, bbox_inches="tight", **options)
        return buffer.getvalue()

    return _shrink_to_fit(draw)


def encode_image(image: Any) -> Optional[Media]:
    """Return a PIL image as PNG, smaller if it has more pixels than a model looks at."""
    from io import BytesIO

    width, height = image.size
    scale = min(MAX_IMAGE_SIDE / max(width, height, 1), 1.0)
    if image.mode not in PNG_MODES:
        image = image.convert("RGB")

    def encode(factor: float) -> bytes:
        shown = image
        if scale * factor < 1:
            size = (max(int(width * scale * factor), 1), max(int(height * scale * factor), 1))
            shown = image.resize(size)
        buffer = BytesIO()
        shown.save(buffer, format="PNG")
        return buffer.getvalue()

    return _shrink_to_fit(encode)


def _shrink_to_fit(encode: Callable[[float], bytes]) -> Optional[Media]:
    """Return a picture; `encode` gets a factor for its sides, which falls until it fits."""
    factor = 1.0
    media = identify_media(encode(factor))
    for _ in range(MAX_SHRINKS):
        if media is None:
            return None
        side = max(media.width, media.height)
        if len(media.data) <= MAX_MEDIA_BYTES and side <= MAX_IMAGE_SIDE:
            break
        factor *= min(SHRINK_FACTOR, MAX_IMAGE_SIDE / side)
        media = identify_media(encode(factor))
    return media


# tables -------------------------------------------------------------------------------------------


def is_data_frame(value: Any) -> bool:
    """Return whether `value` is a DataFrame of pandas."""
    return _is_from(value, "pandas") and hasattr(value, "to_string") and hasattr(value, "columns")


def format_table(table: Any, max_chars: int) -> str:
    """Return a table with all its columns and its shape, and as many rows as fit."""
    rows, columns = table.shape
    shape = f"[{rows:,} {_plural('row', rows)} x {columns:,} {_plural('column', columns)}]"
    if columns * 3 <= max_chars:
        for max_rows, max_width in TABLE_SIZES:
            shown = min(max_rows, ROWS_OF_MANY) if rows > MANY_ROWS else max_rows
            text = table.to_string(max_rows=shown, max_colwidth=max_width)
            if len(text) + len(shape) + 1 <= max_chars:
                return f"{text}\n{shape}"
    names = PythonPresenter().cut(list(table.columns), max(max_chars - len(shape) - 20, 100))
    return f"{shape}\ncolumns: {names}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


# what libraries call "show" -----------------------------------------------------------------------


def install_display(
    run_after_import: Callable[[str, Callable[[Any], None]], None],
) -> Display:
    """Make `show` a builtin, so that modules and skills have it, too; return the display.

    `run_after_import` calls a function with a module once code has imported it.
    """
    display = Display()

    def show_open_figures(*_: Any, **__: Any) -> None:
        """Show all open figures and close them, as in a notebook."""
        pyplot = sys.modules["matplotlib.pyplot"]
        display.show_figures([pyplot.figure(number) for number in pyplot.get_fignums()])
        pyplot.close("all")

    def replace_pyplot_show(module: Any) -> None:
        module.show = show_open_figures

    def replace_figure_show(module: Any) -> None:
        module.Figure.show = lambda figure, *_, **__: display.show(figure)

    def replace_image_show(module: Any) -> None:
        module.Image.show = lambda image, *_, **__: display.show(image)

    run_after_import("matplotlib.pyplot", replace_pyplot_show)
    run_after_import("matplotlib.figure", replace_figure_show)
    run_after_import("PIL.Image", replace_image_show)
    setattr(builtins, SHOW_NAME, display.show)
    return display
