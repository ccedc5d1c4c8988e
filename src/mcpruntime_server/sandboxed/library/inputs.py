"""What sandboxed code sees of its inputs: `CONTEXT`, `CONTEXT_DATA` and the pieces of them.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: a piece is a light reference (input, start, end); its text is read when somebody asks for it.
Rule 3: offsets and sizes are bytes of the text as UTF-8, unpacked where it is a gzip file; an offset that lies within a
character is taken back to its beginning. What is no UTF-8 is shown as U+FFFD.
Rule 4: a pass over an input takes the same memory whatever its size; only what is asked for as text is in memory.
"""

from __future__ import annotations

from itertools import islice

from ...protocol.library_names import SLICE_KEY
from ...protocol.suggestions import did_you_mean
from . import input_scan as scan
from .input_source import InputChanged, InputError, InputSource
from .results import Slots, map_concurrently

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, Iterator, List, Optional, Sequence, Union

MAX_TEXT_BYTES = 16 << 20  # bytes that become one text; more of them is what passes are for
MAX_FIELD_CHARS = (
    4 << 20
)  # characters of a field of CSV: one that is never closed must not take the memory of all
DEFAULT_CHUNK_CHARS = 20_000  # characters of a chunk, where `map` is not told
DEFAULT_PEEK_CHARS = 1000
MAX_LISTED_INPUTS = 10  # inputs that an error names
MAX_PREVIEW_CHARS = 80  # of a text in a repr
MAX_CACHED_SLICES = 50_000
MAX_SHOWN_SLICES = 10  # in a repr
CONTEXT_NAMES = ("CONTEXT", "CONTEXT_DATA", "InputError", "InputChanged")


class Readable:
    """What can be gone through: an input, a piece of one, or all inputs one after the other.

    .peek(n)  .lines(start, end)  .grep(pattern)  .sample(n)  .chunks(max_chars)  .map(fn)  .records()  .rows()
    `for line in ...` yields lines as text; `"word" in ...` looks for a text; `[start:end]` is `.slice(start, end)`.
    """

    __slots__ = ()
    __module__ = "__main__"

    def _slices(self) -> Sequence[InputSlice]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [each for each in dir(type(self)) if not each.startswith("_")]
        raise AttributeError(
            f"an input has no {name!r}. {did_you_mean(name, known)}It has {', '.join(known)}."
        )

    def __getitem__(self, which: Any) -> InputSlice:
        if isinstance(which, slice) and which.step in (None, 1):
            return self.slice(which.start or 0, which.stop)
        raise TypeError(
            f"[{which!r}] of an input: [start:end] is a piece of it, .lines()[i] a line; CONTEXT_DATA[i] is an input."
        )

    def slice(self, start: int = 0, end: Optional[int] = None) -> InputSlice:
        """Return the piece between two offsets."""
        raise NotImplementedError

    def peek(self, n: int = DEFAULT_PEEK_CHARS) -> str:
        """Return the first `n` characters."""
        [part] = self._slices()
        end = part.start + 4 * (n + 1)  # the bytes that so many characters have at most
        return scan.decode_text(
            scan.read_head(part._source, part.start, end if part._end is None else part._end, n)
        )

    def lines(self, start: int = 0, end: Optional[int] = None) -> InputSlices:
        """Return the lines from number `start` to `end`, as slices count (the first is 0), each a piece."""
        return InputSlices(lambda: self._iter_line_slices(start, end))

    def _iter_line_slices(self, start: int, end: Optional[int]) -> Iterator[InputSlice]:
        if start < 0 or (end is not None and end < 0):
            start, end, _ = slice(start, end).indices(self.line_count())
        left = None if end is None else end - start
        for part in self._slices():
            if left is not None and left <= 0:
                return
            at = part.start
            if start:
                count = part.line_count()
                if start >= count:
                    start -= count
                    continue
                at = part._find_line_start(start)
                start = 0
            for first, last in islice(scan.iter_line_spans(part._source, at, part._end), left):
                yield InputSlice(part.input, first, last)
                left = None if left is None else left - 1

    def line_count(self) -> int:
        """Return how many lines there are."""
        return sum(part._line_count() for part in self._slices())

    def grep(self, pattern: Any, ignore_case: bool = False) -> InputSlices:
        """Return the lines in which `pattern`, a regular expression, is found, each a piece; `.line` is its number.

        Of a line of more than a mebibyte, each hit is returned with what is around it.
        """
        scan.build_line_finder(
            pattern, ignore_case
        )  # raises what is wrong with it here, and not at the first look
        return InputSlices(lambda: self._iter_matches(pattern, ignore_case))

    def _iter_matches(self, pattern: Any, ignore_case: bool) -> Iterator[InputSlice]:
        for part in self._slices():
            for first, last in scan.iter_matches(
                part._source, part.start, part._end, pattern, ignore_case
            ):
                yield InputSlice(part.input, first, last)

    def sample(self, n: int) -> List[InputSlice]:
        """Return `n` lines taken by chance, each at most once, in their order; the same in a replay."""
        import random

        counts = [part._line_count() for part in self._slices()]
        numbers = sorted(random.Random().sample(range(sum(counts)), min(n, sum(counts))))  # noqa: S311 - guards nothing
        found = []
        for part, count in zip(self._slices(), counts):  # noqa: B905 - Python 3.9 has no `strict`
            found += [part._get_line(number) for number in numbers if 0 <= number < count]
            numbers = [number - count for number in numbers]
        return found

    def chunks(self, max_chars: int, overlap: int = 0, by: str = "lines") -> InputSlices:
        """Return pieces of at most `max_chars` characters each, one after the other.

        They end behind a line (`by="lines"`), a paragraph ("paragraphs"), or anywhere ("chars"); a line that is too
        long is cut. Each begins up to `overlap` characters before the end of the one before.
        """
        if by not in scan.CHUNK_BREAKS:
            raise ValueError(
                f"by={by!r}: {did_you_mean(str(by), scan.CHUNK_BREAKS)}It is one of {', '.join(scan.CHUNK_BREAKS)}."
            )
        if not 0 <= overlap < max_chars <= MAX_TEXT_BYTES:
            raise ValueError(
                f"0 <= overlap < max_chars <= {MAX_TEXT_BYTES:,} must hold, not {overlap} and {max_chars}."
            )
        return InputSlices(lambda: self._iter_chunks(max_chars, overlap, by))

    def _iter_chunks(self, max_chars: int, overlap: int, by: str) -> Iterator[InputSlice]:
        for part in self._slices():
            limit = part._resolve_end()
            for first, last in scan.iter_chunk_spans(
                part._source, part.start, limit, max_chars, overlap, by
            ):
                yield InputSlice(part.input, first, last)

    def map(
        self,
        fn: Callable[[InputSlice], Any],
        max_chars: int = DEFAULT_CHUNK_CHARS,
        overlap: int = 0,
        by: str = "lines",
        max_concurrency: int = 16,
    ) -> Slots:
        """Call `fn(piece)` for every chunk, several at a time; return a slot each: `.ok`, `.value`, `.error`."""
        return map_concurrently(fn, self.chunks(max_chars, overlap, by), max_concurrency)

    def records(self) -> Iterator[Any]:
        """Yield what each line holds as JSON; empty lines are passed over. Raises `InputError` for one that is none."""
        import json

        for number, line in enumerate(self._iter_whole_lines()):
            text = line.lstrip("\ufeff") if number == 0 else line
            if text.strip():
                try:
                    yield json.loads(text)
                except ValueError as exc:
                    raise InputError(
                        f"Line {number} is not JSON ({exc}): {text[:MAX_PREVIEW_CHARS]!r}"
                    ) from None

    def rows(self, header: bool = True, delimiter: str = ",") -> Iterator[Any]:
        """Yield the rows of CSV: dicts by the names in the first row, or lists where `header` is false."""
        import csv

        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
        for part in self._slices():
            lines = (line.lstrip("\ufeff") + "\n" for line in part._iter_whole_lines())
            read = (
                csv.DictReader(lines, delimiter=delimiter)
                if header
                else csv.reader(lines, delimiter=delimiter)
            )
            try:
                yield from read
            except csv.Error as exc:
                raise InputError(
                    f"Line {read.line_num} of {part.name!r} is not CSV: {exc}."
                ) from None

    def _iter_whole_lines(self) -> Iterator[str]:
        for part in self._slices():
            yield from scan.iter_whole_lines(part._source, part.start, part._end, MAX_TEXT_BYTES)

    def __iter__(self) -> Iterator[str]:
        for part in self._slices():
            yield from scan.iter_lines(part._source, part.start, part._end)

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str):
            raise TypeError(
                f"a text is looked for, not {type(text).__name__}; grep takes patterns."
            )
        return any(
            scan.contains_text(part._source, part.start, part._end, text) for part in self._slices()
        )


class InputSlice(Readable):
    """A part of an input, from offset `start` to `end`: `.text`, `.name`, `.size`, `.line`, and all that an input has.

    `ask_llm(prompt, piece)` sends the reference; the server reads the text.
    """

    __slots__ = ("_end", "input", "start")
    __module__ = "__main__"

    def __init__(self, input: Input, start: int, end: Optional[int]) -> None:
        self.input, self.start, self._end = input, start, end

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
        """Where it ends, as an offset of its input."""
        return self._resolve_end()

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._resolve_end() - self.start

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return (
            bool(self._source.read(self.start, self.start + 1))
            if self._end is None
            else self._end > self.start
        )

    @property
    def name(self) -> str:
        """The name of its input."""
        return self.input.name

    @property
    def text(self) -> str:
        """What it says; raises `InputError` if that is more than fits into one text."""
        data = self._source.read_uncached(
            self.start,
            self.start + MAX_TEXT_BYTES + 1 if self._end is None else self._text_read_end(),
        )
        if len(data) > MAX_TEXT_BYTES:
            self._raise_too_large()
        return scan.decode_text(data)

    def _text_read_end(self) -> int:
        return min(self._resolve_end(), self.start + MAX_TEXT_BYTES + 1)

    def _raise_too_large(self) -> None:
        raise InputError(
            f"This is more than {MAX_TEXT_BYTES:,} bytes of {self.name!r}, too much for one text. Go through it with "
            ".lines(), .grep(pattern), .chunks(max_chars) or .map(fn), or take a part with .slice(start, end)."
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{self.name!r} {self.start}:{'' if self._end is None else self._end} {self._preview()}>"

    def _preview(self) -> str:
        try:
            text = self.peek(MAX_PREVIEW_CHARS + 1)
        except InputError as exc:
            return f"! {exc}"
        return repr(text if len(text) <= MAX_PREVIEW_CHARS else text[:MAX_PREVIEW_CHARS] + "...")

    def slice(self, start: int = 0, end: Optional[int] = None) -> InputSlice:
        """Return the piece from offset `start` to `end` of this one, as slices count, between whole characters."""
        if end is None and start >= 0 and self._end is None:
            return InputSlice(
                self.input, scan.align_to_character(self._source, self.start + start), None
            )
        first, last, _ = slice(start, end).indices(self.size)
        return InputSlice(
            self.input,
            scan.align_to_character(self._source, self.start + first),
            scan.align_to_character(self._source, self.start + max(first, last)),
        )

    def to_argument(self) -> Any:
        """Return what stands for its text in a question: a reference, or the text where the host does not unpack it."""
        if self._source.is_gzip:
            return self.text
        return {
            SLICE_KEY: {"input": self.input.id, "start": self.start, "end": self._resolve_end()}
        }

    # lines ----------------------------------------------------------------------------------------

    @property
    def line(self) -> int:
        """The number of the line of its input that it begins in; the first is 0."""
        return self._source.count_newlines_before(self.start) - self._source.count_newlines_before(
            self.input.start
        )

    def _line_count(self) -> int:
        source, end = self._source, self._resolve_end()
        if end <= self.start:
            return 0
        is_open = source.read(end - 1, end) != b"\n"
        return (
            source.count_newlines_before(end) - source.count_newlines_before(self.start) + is_open
        )

    def _find_line_start(self, number: int) -> int:
        return (
            self._source.find_line_start(self._source.count_newlines_before(self.start) + number)
            if number
            else self.start
        )

    def _get_line(self, number: int) -> InputSlice:
        first, last = next(
            scan.iter_line_spans(self._source, self._find_line_start(number), self._resolve_end())
        )
        return InputSlice(self.input, first, last)


class InputSlices:
    """Pieces that are found when they are asked for: iterate, `.first(n)`, `[i]`, `len()`, `.map(fn)`.

    Each look is a pass over the input, until they have been counted and are few enough to be kept.
    """

    __slots__ = ("_count", "_kept", "_make")
    __module__ = "__main__"

    def __init__(self, make: Callable[[], Iterator[InputSlice]]) -> None:
        self._make = make
        self._kept: Optional[List[InputSlice]] = None
        self._count: Optional[int] = None

    def __iter__(self) -> Iterator[InputSlice]:
        return iter(self._kept) if self._kept is not None else self._make()

    def __len__(self) -> int:
        if self._count is None:
            count, kept = 0, []
            for piece in self._make():
                count += 1
                if count <= MAX_CACHED_SLICES:
                    kept.append(piece)
            self._count = count
            if count <= MAX_CACHED_SLICES:
                self._kept = kept
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
            raise IndexError(f"there are {len(self):,} pieces, and none at {which}")
        return found

    def first(self, n: int = MAX_SHOWN_SLICES) -> List[InputSlice]:
        """Return the first `n` of them."""
        return list(islice(self, n))

    def map(self, fn: Callable[[InputSlice], Any], max_concurrency: int = 16) -> Slots:
        """Call `fn(piece)` for each, several at a time; return a slot each: `.ok`, `.value`, `.error`."""
        return map_concurrently(fn, self, max_concurrency)

    def __repr__(self) -> str:
        shown = self.first(MAX_SHOWN_SLICES + 1)
        lines = [repr(piece) for piece in shown[:MAX_SHOWN_SLICES]] or ["no pieces"]
        return "\n".join(lines + ["..."] * (len(shown) > MAX_SHOWN_SLICES))


class Input(InputSlice):
    """One input of a run: `.name`, `.size`, `.path` (a file to be opened by libraries), and what a piece has."""

    __slots__ = ("id", "source")
    __module__ = "__main__"

    def __init__(self, description: Dict[str, Any]) -> None:
        self.source = InputSource(description)
        self.id: str = description["id"]
        end = description["end"]
        super().__init__(self, description["start"], end)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.source.name

    @property
    def path(self) -> str:
        """The file, as it is; raises `InputError` where the input is only a part of it."""
        if self.start or (self._end is not None and self._end < self.source.size):
            raise InputError(
                f"{self.name!r} is a part of a file, and no file. Read its .text or its .lines()."
            )
        return self.source.path

    def __repr__(self) -> str:
        size = "" if self._end is None else f" {self.size:,} bytes"
        return f"<input {self.name!r}{size} {self._preview()}>"


class AllInputs(Readable):
    """Several inputs, gone through one after the other; `CONTEXT_DATA[0]` and `CONTEXT_DATA["name"]` are one each."""

    __slots__ = ("_inputs",)
    __module__ = "__main__"

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = inputs

    def _slices(self) -> Sequence[InputSlice]:
        return self._inputs

    @property
    def size(self) -> int:
        """The bytes of all."""
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
            f"There are {len(self._inputs)} inputs, and offsets are those of one: {self._list_slice_calls()}"
        )

    def _list_slice_calls(self) -> str:
        return ", ".join(
            f"CONTEXT_DATA[{each.name!r}].slice(...)" for each in self._inputs[:MAX_LISTED_INPUTS]
        )

    @property
    def text(self) -> str:
        """What all of them say; raises `InputError` if that is more than fits into one text."""
        if self.size > MAX_TEXT_BYTES:
            self._inputs[-1]._raise_too_large()
        return "\n".join(each.text for each in self._inputs)

    def __str__(self) -> str:
        return self.text

    def to_argument(self) -> str:
        """Return what stands for their text in a question."""
        return self.text

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._inputs))


class InputList:
    """The inputs of a run: `CONTEXT_DATA[0]`, `CONTEXT_DATA["name"]`, `.names`; iterating yields them."""

    __slots__ = ("_inputs",)
    __module__ = "__main__"

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)

    @property
    def names(self) -> List[str]:
        """What they are called, in order."""
        return [each.name for each in self._inputs]

    def __getitem__(self, which: Union[int, str]) -> Input:
        if not isinstance(which, str):
            return self._inputs[which]
        for each in self._inputs:
            if each.name == which:
                return each
        listed = ", ".join(map(repr, self.names))
        raise KeyError(
            f"no input is called {which!r}. {did_you_mean(which, self.names)}There are {listed}."
        )

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Input]:
        return iter(self._inputs)

    def __repr__(self) -> str:
        return "\n".join(f"[{number}] {each!r}" for number, each in enumerate(self._inputs))


class ProvidedInputs:
    """The inputs that the namespace has now."""

    keys: ClassVar[List[Any]] = []


def set_context(namespace: Dict[str, Any], descriptions: Sequence[Dict[str, Any]]) -> None:
    """Have `CONTEXT` and `CONTEXT_DATA` be the inputs that the host tells of, if they are not; none: remove them."""
    ids = [(each["id"], each["name"], each["path"], each["problem"]) for each in descriptions]
    if ids == ProvidedInputs.keys:
        return
    ProvidedInputs.keys = ids
    for name in CONTEXT_NAMES:
        namespace.pop(name, None)
    if descriptions:
        inputs = [Input(each) for each in descriptions]
        context = inputs[0] if len(inputs) == 1 else AllInputs(inputs)
        namespace.update(
            CONTEXT=context,
            CONTEXT_DATA=InputList(inputs),
            InputError=InputError,
            InputChanged=InputChanged,
        )
