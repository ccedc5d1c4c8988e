"""The inputs of a run as code sees them: `CONTEXT`, `CONTEXT_DATA` and slices of them.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: a slice is a light reference (input, start, end); its text is read only when it is needed.
Rule 3: offsets and sizes are bytes of the text as UTF-8; a gzip file counts as decompressed. An
offset inside a character is moved back to its start. Bytes that are not UTF-8 appear as U+FFFD.
Rule 4: the memory of a pass does not depend on the size of the input; only text that is asked for
is held.
"""

from __future__ import annotations

from itertools import islice

from ...protocol.library_names import SLICE_KEY
from ...protocol.suggestions import did_you_mean
from . import input_scan as scan
from .input_source import InputChanged, InputError, InputSource
from .results import Slots, map_concurrently

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, Iterator, List, Optional, Sequence, Union

    from ...protocol.payloads import InputDescription, SliceReference

MAX_TEXT_BYTES = 16 << 20  # of one text; larger inputs are for passes
MAX_FIELD_CHARS = 4 << 20  # of a CSV field: an unclosed quote must not take all memory
DEFAULT_CHUNK_CHARS = 20_000  # of a chunk in `map`
DEFAULT_PEEK_CHARS = 1000
MAX_LISTED_INPUTS = 10  # inputs that an error names
MAX_PREVIEW_CHARS = 80  # of a text in a repr
MAX_CACHED_SLICES = 50_000  # of one result, kept after they have been counted
MAX_SHOWN_SLICES = 10  # in a repr
CONTEXT_HELP = """CONTEXT is the input of this run, or all of them; CONTEXT_DATA lists them.
It is read in parts, however large it is; a part is a slice, and has everything that follows.

.peek(n=1000)                the first n characters
.text                        all of it as one text; an error if it is too long
.lines(start, end)           lines, numbered from 0, each a slice; .line_count()
for line in CONTEXT          lines as text
.grep(pattern, ignore_case)  the lines that a regular expression matches; .line is the number
.records()                   the JSON value of each line
.rows(header=True, delimiter=",")  the rows of CSV, dicts or lists
.chunks(max_chars, overlap=0, by="lines")  slices that cover it
.map(fn, max_chars=20000, ...)     calls fn(chunk) for each, several at once; slots: .ok .value
.sample(n)                   some lines of it
CONTEXT[start:end]           a slice by offsets in bytes; .start .end .size .name .line
"word" in CONTEXT            whether it contains a text
.path                        the file, for libraries that open one (of a whole input)

CONTEXT_DATA[0], CONTEXT_DATA["name"], CONTEXT_DATA.names: one of several inputs.
ask_llm(prompt, slice) sends a reference; the server reads the text.
Errors are InputError, or InputChanged if the file has changed since.
"""
CONTEXT_NAMES = ("CONTEXT", "CONTEXT_DATA", "InputError", "InputChanged")


class Readable:
    """Something to read: an input, a slice of one, or all inputs one after the other.

    .peek(n)  .lines(start, end)  .grep(pattern)  .sample(n)  .chunks(max_chars)  .map(fn)
    .records()  .rows() `for line in ...` yields lines as text; `"word" in ...` searches for text;
    `[start:end]` is a slice.
    """

    __slots__ = ()
    __module__ = "__main__"

    def _slices(self) -> Sequence[InputSlice]:
        raise NotImplementedError

    @property
    def _help_text(self) -> str:
        """What `help(CONTEXT)` prints."""
        return CONTEXT_HELP

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [each for each in dir(type(self)) if not each.startswith("_")]
        hint = did_you_mean(name, known)
        raise AttributeError(f"an input has no {name!r}. {hint}It has {', '.join(known)}.")

    def __getitem__(self, which: Any) -> InputSlice:
        if isinstance(which, slice) and which.step in (None, 1):
            return self.slice(which.start or 0, which.stop)
        raise TypeError(
            f"an input has no [{which!r}]: [start:end] is a slice of it, .lines()[i] a line; "
            "CONTEXT_DATA[i] is an input."
        )

    def slice(self, start: int = 0, end: Optional[int] = None) -> InputSlice:
        """Return the slice between two offsets."""
        raise NotImplementedError

    def peek(self, n: int = DEFAULT_PEEK_CHARS) -> str:
        """Return the first `n` characters."""
        [part] = self._slices()
        end = part.start + 4 * (n + 1)  # so many characters have at most so many bytes
        if part._end is not None:
            end = part._end
        return scan.decode_text(scan.read_head(part._source, part.start, end, n))

    def lines(self, start: int = 0, end: Optional[int] = None) -> InputSlices:
        """Return lines `start` to `end`, numbered from 0 like a Python slice, each as a slice."""
        return InputSlices(lambda: self._iter_line_slices(start, end))

    def _iter_line_slices(self, start: int, end: Optional[int]) -> Iterator[InputSlice]:
        if start < 0 or (end is not None and end < 0):
            start, end, _ = slice(start, end).indices(self.line_count())
        remaining = None if end is None else end - start
        for part in self._slices():
            if remaining is not None and remaining <= 0:
                return
            offset = part.start
            if start:
                count = part.line_count()
                if start >= count:
                    start -= count
                    continue
                offset = part._find_line_start(start)
                start = 0
            spans = scan.iter_line_spans(part._source, offset, part._end)
            for first, last in islice(spans, remaining):
                yield InputSlice(part.input, first, last)
                if remaining is not None:
                    remaining -= 1

    def line_count(self) -> int:
        """Return the number of lines."""
        return sum(part._line_count() for part in self._slices())

    def grep(self, pattern: Any, ignore_case: bool = False) -> InputSlices:
        """Return the lines that a regular expression matches, each a slice; `.line` is its number.

        In a line of more than a mebibyte, each match is returned with the text around it.
        """
        scan.build_line_finder(pattern, ignore_case)  # reports a bad pattern now, not at first use
        return InputSlices(lambda: self._iter_matches(pattern, ignore_case))

    def _iter_matches(self, pattern: Any, ignore_case: bool) -> Iterator[InputSlice]:
        for part in self._slices():
            spans = scan.iter_matches(part._source, part.start, part._end, pattern, ignore_case)
            for first, last in spans:
                yield InputSlice(part.input, first, last)

    def sample(self, n: int) -> List[InputSlice]:
        """Return `n` random lines, each at most once, in their order.

        A replay gets the same ones.
        """
        import random

        counts = [part._line_count() for part in self._slices()]
        total = sum(counts)
        generator = random.Random()  # noqa: S311 - no secret
        numbers = sorted(generator.sample(range(total), min(n, total)))
        found = []
        for part, count in zip(self._slices(), counts):  # noqa: B905 - Python 3.9 has no `strict`
            found += [part._get_line(number) for number in numbers if 0 <= number < count]
            numbers = [number - count for number in numbers]
        return found

    def chunks(self, max_chars: int, overlap: int = 0, by: str = "lines") -> InputSlices:
        """Return slices of at most `max_chars` characters each, one after the other.

        They end after a line (`by="lines"`), after a paragraph ("paragraphs"), or anywhere
        ("chars"); a longer line is split. Each starts up to `overlap` characters before the end of
        the one before.
        """
        if by not in scan.CHUNK_BREAKS:
            hint = did_you_mean(str(by), scan.CHUNK_BREAKS)
            raise ValueError(f"by={by!r}: {hint}It is one of {', '.join(scan.CHUNK_BREAKS)}.")
        if not 0 <= overlap < max_chars <= MAX_TEXT_BYTES:
            raise ValueError(
                f"0 <= overlap < max_chars <= {MAX_TEXT_BYTES:,} must hold, "
                f"not {overlap} and {max_chars}."
            )
        return InputSlices(lambda: self._iter_chunks(max_chars, overlap, by))

    def _iter_chunks(self, max_chars: int, overlap: int, by: str) -> Iterator[InputSlice]:
        for part in self._slices():
            end = part._resolve_end()
            spans = scan.iter_chunk_spans(part._source, part.start, end, max_chars, overlap, by)
            for first, last in spans:
                yield InputSlice(part.input, first, last)

    def map(
        self,
        fn: Callable[[InputSlice], Any],
        max_chars: int = DEFAULT_CHUNK_CHARS,
        overlap: int = 0,
        by: str = "lines",
        max_concurrency: int = 16,
    ) -> Slots:
        """Call `fn(chunk)` for every chunk, several at once.

        Return one slot each: `.ok`, `.value`, `.error`.
        """
        return map_concurrently(fn, self.chunks(max_chars, overlap, by), max_concurrency)

    def records(self) -> Iterator[Any]:
        """Yield the JSON value of each line; empty lines are skipped.

        Raises `InputError` for other lines.
        """
        import json

        for number, line in enumerate(self._iter_whole_lines()):
            text = line.lstrip("\ufeff") if number == 0 else line
            if not text.strip():
                continue
            try:
                yield json.loads(text)
            except ValueError as exc:
                shown = text[:MAX_PREVIEW_CHARS]
                raise InputError(f"Line {number} is not JSON ({exc}): {shown!r}") from None

    def rows(self, header: bool = True, delimiter: str = ",") -> Iterator[Any]:
        """Yield the rows of CSV: dicts by the names in the first row, or lists without `header`."""
        import csv

        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
        for part in self._slices():
            lines = (line.lstrip("\ufeff") + "\n" for line in part._iter_whole_lines())
            make_reader = csv.DictReader if header else csv.reader
            reader = make_reader(lines, delimiter=delimiter)
            try:
                yield from reader
            except csv.Error as exc:
                raise InputError(
                    f"Line {reader.line_num} of {part.name!r} is not CSV: {exc}."
                ) from None

    def _iter_whole_lines(self) -> Iterator[str]:
        for part in self._slices():
            yield from scan.iter_whole_lines(part._source, part.start, part._end, MAX_TEXT_BYTES)

    def __iter__(self) -> Iterator[str]:
        for part in self._slices():
            yield from scan.iter_lines(part._source, part.start, part._end)

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str):
            raise TypeError(f"`in` needs text, not {type(text).__name__}; grep takes patterns.")
        return any(
            scan.contains_text(part._source, part.start, part._end, text) for part in self._slices()
        )


class InputSlice(Readable):
    """A part of an input, from offset `start` to `end`.

    It has `.text`, `.name`, `.size`, `.line`, and everything that an input has. `ask_llm(prompt,
    slice)` sends a reference; the server reads the text.
    """

    __slots__ = ("_end", "input", "start")
    __module__ = "__main__"

    def __init__(self, input: Input, start: int, end: Optional[int]) -> None:
        self.input = input
        self.start = start
        self._end = end  # None: the end of the input

    def _slices(self) -> Sequence[InputSlice]:
        return (self,)

    @property
    def _source(self) -> InputSource:
        return self.input.source

    def _resolve_end(self) -> int:
        if self._end is None:
            self._end = self._source.size
        return self._end

    @property
    def end(self) -> int:
        """The offset in its input where it ends."""
        return self._resolve_end()

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._resolve_end() - self.start

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        if self._end is None:
            return bool(self._source.read(self.start, self.start + 1))
        return self._end > self.start

    @property
    def name(self) -> str:
        """The name of its input."""
        return self.input.name

    @property
    def text(self) -> str:
        """The text; raises `InputError` if it is too long for one text."""
        end = self.start + MAX_TEXT_BYTES + 1
        if self._end is not None:
            end = min(end, self._end)
        data = self._source.read_uncached(self.start, end)
        if len(data) > MAX_TEXT_BYTES:
            self._raise_too_large()
        return scan.decode_text(data)

    def _raise_too_large(self) -> None:
        raise InputError(
            f"This is more than {MAX_TEXT_BYTES:,} bytes of {self.name!r}, too many for one text. "
            "Go through it with .lines(), .grep(pattern), .chunks(max_chars) or .map(fn), "
            "or take a part with .slice(start, end)."
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        end = "" if self._end is None else self._end
        return f"<{self.name!r} {self.start}:{end} {self._preview()}>"

    def _preview(self) -> str:
        try:
            text = self.peek(MAX_PREVIEW_CHARS + 1)
        except InputError as exc:
            return f"! {exc}"
        if len(text) > MAX_PREVIEW_CHARS:
            text = text[:MAX_PREVIEW_CHARS] + "..."
        return repr(text)

    def slice(self, start: int = 0, end: Optional[int] = None) -> InputSlice:
        """Return a part of this slice, by offsets that count as in `[start:end]`."""
        if end is None and start >= 0 and self._end is None:
            first = scan.align_to_character(self._source, self.start + start)
            return InputSlice(self.input, first, None)
        first, last, _ = slice(start, end).indices(self.size)
        return InputSlice(
            self.input,
            scan.align_to_character(self._source, self.start + first),
            scan.align_to_character(self._source, self.start + max(first, last)),
        )

    def to_argument(self) -> Union[str, SliceReference]:
        """Return what stands for its text in a call.

        This is a reference, or the text itself if the host would have to decompress it.
        """
        if self._source.is_gzip:
            return self.text
        bounds = {"input": self.input.id, "start": self.start, "end": self._resolve_end()}
        return {SLICE_KEY: bounds}  # type: ignore[return-value] # the key is a constant

    # lines ----------------------------------------------------------------------------------------

    @property
    def line(self) -> int:
        """The number of the line of its input in which it starts; the first line is 0."""
        before_slice = self._source.count_newlines_before(self.start)
        return before_slice - self._source.count_newlines_before(self.input.start)

    def _line_count(self) -> int:
        source, end = self._source, self._resolve_end()
        if end <= self.start:
            return 0
        newlines = source.count_newlines_before(end) - source.count_newlines_before(self.start)
        ends_in_line = source.read(end - 1, end) != b"\n"
        return newlines + ends_in_line

    def _find_line_start(self, number: int) -> int:
        if not number:
            return self.start
        before_slice = self._source.count_newlines_before(self.start)
        return self._source.find_line_start(before_slice + number)

    def _get_line(self, number: int) -> InputSlice:
        line_start = self._find_line_start(number)
        first, last = next(scan.iter_line_spans(self._source, line_start, self._resolve_end()))
        return InputSlice(self.input, first, last)


class InputSlices:
    """Slices that are found when they are needed: iterate, `.first(n)`, `[i]`, `len()`, `.map(fn)`.

    Each use is a pass over the input, until the slices have been counted and are few enough to be
    kept.
    """

    __slots__ = ("_cached", "_count", "_find")
    __module__ = "__main__"

    def __init__(self, find: Callable[[], Iterator[InputSlice]]) -> None:
        self._find = find
        self._cached: Optional[List[InputSlice]] = None
        self._count: Optional[int] = None

    def __iter__(self) -> Iterator[InputSlice]:
        return iter(self._cached) if self._cached is not None else self._find()

    def __len__(self) -> int:
        if self._count is None:
            count = 0
            cached = []
            for each in self._find():
                count += 1
                if count <= MAX_CACHED_SLICES:
                    cached.append(each)
            self._count = count
            if count <= MAX_CACHED_SLICES:
                self._cached = cached
        return self._count

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            first, last, step = which.indices(len(self))
            return list(islice(self, first, last, step)) if step > 0 else list(self)[which]
        place = which + len(self) if which < 0 else which
        found = next(islice(self, place, None), None) if place >= 0 else None
        if found is None:
            raise IndexError(f"there are {len(self):,} slices, and none at {which}")
        return found

    def first(self, n: int = MAX_SHOWN_SLICES) -> List[InputSlice]:
        """Return the first `n` slices."""
        return list(islice(self, n))

    def map(self, fn: Callable[[InputSlice], Any], max_concurrency: int = 16) -> Slots:
        """Call `fn(slice)` for each, several at once.

        Return one slot each: `.ok`, `.value`, `.error`.
        """
        return map_concurrently(fn, self, max_concurrency)

    def __repr__(self) -> str:
        shown = self.first(MAX_SHOWN_SLICES + 1)
        lines = [repr(each) for each in shown[:MAX_SHOWN_SLICES]] or ["no slices"]
        if len(shown) > MAX_SHOWN_SLICES:
            lines.append("...")
        return "\n".join(lines)


class Input(InputSlice):
    """One input of a run: what a slice has, and `.path`, a file for libraries to open."""

    __slots__ = ("id", "source")
    __module__ = "__main__"

    def __init__(self, description: InputDescription) -> None:
        self.source = InputSource(description)
        self.id = description["id"]
        super().__init__(self, description["start"], description["end"])

    @property
    def name(self) -> str:
        """Its name."""
        return self.source.name

    @property
    def path(self) -> str:
        """The path of the unchanged file.

        Raises `InputError` if the input is only a part of the file.
        """
        if self.start or (self._end is not None and self._end < self.source.size):
            raise InputError(
                f"{self.name!r} is a part of a file, so it has no path. Read its .text or .lines()."
            )
        return self.source.path

    def __repr__(self) -> str:
        size = "" if self._end is None else f" {self.size:,} bytes"
        return f"<input {self.name!r}{size} {self._preview()}>"


class AllInputs(Readable):
    """Several inputs, one after the other.

    `CONTEXT_DATA[0]` or `CONTEXT_DATA["name"]` is one of them.
    """

    __slots__ = ("_inputs",)
    __module__ = "__main__"

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = inputs

    def _slices(self) -> Sequence[InputSlice]:
        return self._inputs

    @property
    def size(self) -> int:
        """The number of bytes of all inputs."""
        return sum(each.size for each in self._inputs)

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def peek(self, n: int = DEFAULT_PEEK_CHARS) -> str:
        """Return the first `n` characters of each, under its name."""
        return "\n".join(f"== {each.name} ==\n{each.peek(n)}" for each in self._inputs)

    def slice(self, start: int = 0, end: Optional[int] = None) -> InputSlice:
        """Raise `InputError`: offsets are those of one input."""
        raise InputError(
            f"There are {len(self._inputs)} inputs. Take a slice of one: {self._list_slice_calls()}"
        )

    def _list_slice_calls(self) -> str:
        named = self._inputs[:MAX_LISTED_INPUTS]
        return ", ".join(f"CONTEXT_DATA[{each.name!r}].slice(...)" for each in named)

    @property
    def text(self) -> str:
        """The text of all inputs; raises `InputError` if it is too long for one text."""
        if self.size > MAX_TEXT_BYTES:
            self._inputs[-1]._raise_too_large()
        return "\n".join(each.text for each in self._inputs)

    def __str__(self) -> str:
        return self.text

    def to_argument(self) -> str:
        """Return what stands for their text in a call."""
        return self.text

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._inputs))


class InputList:
    """The inputs of a run: `CONTEXT_DATA[0]`, `CONTEXT_DATA["name"]`, `.names`.

    Iterating yields them.
    """

    __slots__ = ("_inputs",)
    __module__ = "__main__"

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)

    @property
    def _help_text(self) -> str:
        """What `help(CONTEXT_DATA)` prints."""
        return CONTEXT_HELP

    @property
    def names(self) -> List[str]:
        """The names of the inputs, in order."""
        return [each.name for each in self._inputs]

    def __getitem__(self, which: Union[int, str]) -> Input:
        if not isinstance(which, str):
            return self._inputs[which]
        for each in self._inputs:
            if each.name == which:
                return each
        listed = ", ".join(map(repr, self.names))
        hint = did_you_mean(which, self.names)
        raise KeyError(f"no input is called {which!r}. {hint}The inputs are {listed}.")

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Input]:
        return iter(self._inputs)

    def __repr__(self) -> str:
        return "\n".join(f"[{number}] {each!r}" for number, each in enumerate(self._inputs))


class ProvidedInputs:
    """Which inputs the namespace has now."""

    keys: ClassVar[List[Any]] = []


def set_context(namespace: Dict[str, Any], descriptions: Sequence[InputDescription]) -> None:
    """Bind `CONTEXT` and `CONTEXT_DATA` to the described inputs; remove both if there are none.

    If the namespace has these inputs already, it stays as it is.
    """
    keys = [(each["id"], each["name"], each["path"], each["problem"]) for each in descriptions]
    if keys == ProvidedInputs.keys:
        return
    ProvidedInputs.keys = keys
    for name in CONTEXT_NAMES:
        namespace.pop(name, None)
    if not descriptions:
        return
    inputs = [Input(each) for each in descriptions]
    namespace.update(
        CONTEXT=inputs[0] if len(inputs) == 1 else AllInputs(inputs),
        CONTEXT_DATA=InputList(inputs),
        InputError=InputError,
        InputChanged=InputChanged,
    )
