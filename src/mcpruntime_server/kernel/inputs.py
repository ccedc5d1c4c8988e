"""What sandboxed code sees of its inputs: `CONTEXT`, `CONTEXT_DATA` and the pieces of them.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: a piece is a light reference (input, start, end); its text is read when somebody asks for it.
Rule 3: offsets and sizes are bytes of the text as UTF-8, unpacked where it is a gzip file; an offset that lies within a
character is taken back to its beginning. What is no UTF-8 is shown as U+FFFD.
Rule 4: a pass over an input takes the same memory whatever its size; only what is asked for as text is in memory.
"""

from __future__ import annotations

from itertools import islice

from . import input_scan as scan
from .input_bytes import InputChanged, InputError, Source
from .pieces import Pieces
from .results import Slots, did_you_mean, map_concurrently

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, Iterator, List, Optional, Sequence, Union

MAX_TEXT = 16 << 20  # bytes that become one text; more of them is what passes are for
MAX_FIELD = 4 << 20  # characters of a field of CSV: one that is never closed must not take the memory of all
MAP_CHARS = 20_000  # characters of a chunk, where `map` is not told
PEEK = 1000
SHOWN = 10  # inputs that an error names
SHOWN_CHARS = 80  # of a text in a repr
NAMES = ("CONTEXT", "CONTEXT_DATA", "InputError", "InputChanged")


class Readable:
    """What can be gone through: an input, a piece of one, or all inputs one after the other.

    .peek(n)  .lines(start, end)  .grep(pattern)  .sample(n)  .chunks(max_chars)  .map(fn)  .records()  .rows()
    `for line in ...` yields lines as text; `"word" in ...` looks for a text; `[start:end]` is `.slice(start, end)`.
    """

    __slots__ = ()
    __module__ = "__main__"

    def _parts(self) -> Sequence[Piece]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [each for each in dir(type(self)) if not each.startswith("_")]
        raise AttributeError(f"an input has no {name!r}. {did_you_mean(name, known)}It has {', '.join(known)}.")

    def __getitem__(self, which: Any) -> Piece:
        if isinstance(which, slice) and which.step in (None, 1):
            return self.slice(which.start or 0, which.stop)
        raise TypeError(
            f"[{which!r}] of an input: [start:end] is a piece of it, .lines()[i] a line; CONTEXT_DATA[i] is an input."
        )

    def slice(self, start: int = 0, end: Optional[int] = None) -> Piece:
        """Return the piece between two offsets."""
        raise NotImplementedError

    def peek(self, n: int = PEEK) -> str:
        """Return the first `n` characters."""
        [part] = self._parts()
        end = part.start + 4 * (n + 1)  # the bytes that so many characters have at most
        return scan.decode(scan.head(part._source, part.start, end if part._end is None else part._end, n))

    def lines(self, start: int = 0, end: Optional[int] = None) -> Pieces:
        """Return the lines from number `start` to `end`, as slices count (the first is 0), each a piece."""
        return Pieces(lambda: self._lines(start, end))

    def _lines(self, start: int, end: Optional[int]) -> Iterator[Piece]:
        if start < 0 or (end is not None and end < 0):
            start, end, _ = slice(start, end).indices(self.line_count())
        left = None if end is None else end - start
        for part in self._parts():
            if left is not None and left <= 0:
                return
            at = part.start
            if start:
                count = part.line_count()
                if start >= count:
                    start -= count
                    continue
                at = part._line_start(start)
                start = 0
            for first, last in islice(scan.line_spans(part._source, at, part._end), left):
                yield Piece(part.input, first, last)
                left = None if left is None else left - 1

    def line_count(self) -> int:
        """Return how many lines there are."""
        return sum(part._line_count() for part in self._parts())

    def grep(self, pattern: Any, ignore_case: bool = False) -> Pieces:
        """Return the lines in which `pattern`, a regular expression, is found, each a piece; `.line` is its number.

        Of a line of more than a mebibyte, each hit is returned with what is around it.
        """
        scan.finder(pattern, ignore_case)  # raises what is wrong with it here, and not at the first look
        return Pieces(lambda: self._hits(pattern, ignore_case))

    def _hits(self, pattern: Any, ignore_case: bool) -> Iterator[Piece]:
        for part in self._parts():
            for first, last in scan.hits(part._source, part.start, part._end, pattern, ignore_case):
                yield Piece(part.input, first, last)

    def sample(self, n: int) -> List[Piece]:
        """Return `n` lines taken by chance, each at most once, in their order; the same in a replay."""
        import random

        counts = [part._line_count() for part in self._parts()]
        numbers = sorted(random.Random().sample(range(sum(counts)), min(n, sum(counts))))  # noqa: S311 - guards nothing
        found = []
        for part, count in zip(self._parts(), counts):  # noqa: B905 - Python 3.9 has no `strict`
            found += [part._line(number) for number in numbers if 0 <= number < count]
            numbers = [number - count for number in numbers]
        return found

    def chunks(self, max_chars: int, overlap: int = 0, by: str = "lines") -> Pieces:
        """Return pieces of at most `max_chars` characters each, one after the other.

        They end behind a line (`by="lines"`), a paragraph ("paragraphs"), or anywhere ("chars"); a line that is too
        long is cut. Each begins up to `overlap` characters before the end of the one before.
        """
        if by not in scan.BREAKS:
            raise ValueError(f"by={by!r}: {did_you_mean(str(by), scan.BREAKS)}It is one of {', '.join(scan.BREAKS)}.")
        if not 0 <= overlap < max_chars <= MAX_TEXT:
            raise ValueError(f"0 <= overlap < max_chars <= {MAX_TEXT:,} must hold, not {overlap} and {max_chars}.")
        return Pieces(lambda: self._chunks(max_chars, overlap, by))

    def _chunks(self, max_chars: int, overlap: int, by: str) -> Iterator[Piece]:
        for part in self._parts():
            limit = part._limit()
            for first, last in scan.chunk_spans(part._source, part.start, limit, max_chars, overlap, by):
                yield Piece(part.input, first, last)

    def map(
        self,
        fn: Callable[[Piece], Any],
        max_chars: int = MAP_CHARS,
        overlap: int = 0,
        by: str = "lines",
        max_concurrency: int = 16,
    ) -> Slots:
        """Call `fn(piece)` for every chunk, several at a time; return a slot each: `.ok`, `.value`, `.error`."""
        return map_concurrently(fn, self.chunks(max_chars, overlap, by), max_concurrency)

    def records(self) -> Iterator[Any]:
        """Yield what each line holds as JSON; empty lines are passed over. Raises `InputError` for one that is none."""
        import json

        for number, line in enumerate(self._whole_lines()):
            text = line.lstrip("\ufeff") if number == 0 else line
            if text.strip():
                try:
                    yield json.loads(text)
                except ValueError as exc:
                    raise InputError(f"Line {number} is not JSON ({exc}): {text[:SHOWN_CHARS]!r}") from None

    def rows(self, header: bool = True, delimiter: str = ",") -> Iterator[Any]:
        """Yield the rows of CSV: dicts by the names in the first row, or lists where `header` is false."""
        import csv

        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
        for part in self._parts():
            lines = (line.lstrip("\ufeff") + "\n" for line in part._whole_lines())
            read = csv.DictReader(lines, delimiter=delimiter) if header else csv.reader(lines, delimiter=delimiter)
            try:
                yield from read
            except csv.Error as exc:
                raise InputError(f"Line {read.line_num} of {part.name!r} is not CSV: {exc}.") from None

    def _whole_lines(self) -> Iterator[str]:
        for part in self._parts():
            yield from scan.whole_lines(part._source, part.start, part._end, MAX_TEXT)

    def __iter__(self) -> Iterator[str]:
        for part in self._parts():
            yield from scan.texts(part._source, part.start, part._end)

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str):
            raise TypeError(f"a text is looked for, not {type(text).__name__}; grep takes patterns.")
        return any(scan.holds(part._source, part.start, part._end, text) for part in self._parts())


class Piece(Readable):
    """A part of an input, from offset `start` to `end`: `.text`, `.name`, `.size`, `.line`, and all that an input has.

    `ask_llm(prompt, piece)` sends the reference; the server reads the text.
    """

    __slots__ = ("_end", "input", "start")
    __module__ = "__main__"

    def __init__(self, input: Input, start: int, end: Optional[int]) -> None:
        self.input, self.start, self._end = input, start, end

    def _parts(self) -> Sequence[Piece]:
        return (self,)

    @property
    def _source(self) -> Source:
        return self.input.source

    def _limit(self) -> int:
        if self._end is None:
            self._end = self._source.size
        return self._end

    @property
    def end(self) -> int:
        """Where it ends, as an offset of its input."""
        return self._limit()

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._limit() - self.start

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return bool(self._source.read(self.start, self.start + 1)) if self._end is None else self._end > self.start

    @property
    def name(self) -> str:
        """The name of its input."""
        return self.input.name

    @property
    def text(self) -> str:
        """What it says; raises `InputError` if that is more than fits into one text."""
        data = self._source.fetch(self.start, self.start + MAX_TEXT + 1 if self._end is None else self._end_of_text())
        if len(data) > MAX_TEXT:
            self._refuse()
        return scan.decode(data)

    def _end_of_text(self) -> int:
        return min(self._limit(), self.start + MAX_TEXT + 1)

    def _refuse(self) -> None:
        raise InputError(
            f"This is more than {MAX_TEXT:,} bytes of {self.name!r}, too much for one text. Go through it with "
            ".lines(), .grep(pattern), .chunks(max_chars) or .map(fn), or take a part with .slice(start, end)."
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{self.name!r} {self.start}:{'' if self._end is None else self._end} {self._shown()}>"

    def _shown(self) -> str:
        try:
            text = self.peek(SHOWN_CHARS + 1)
        except InputError as exc:
            return f"! {exc}"
        return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "...")

    def slice(self, start: int = 0, end: Optional[int] = None) -> Piece:
        """Return the piece from offset `start` to `end` of this one, as slices count, between whole characters."""
        if end is None and start >= 0 and self._end is None:
            return Piece(self.input, scan.before(self._source, self.start + start), None)
        first, last, _ = slice(start, end).indices(self.size)
        return Piece(
            self.input,
            scan.before(self._source, self.start + first),
            scan.before(self._source, self.start + max(first, last)),
        )

    def as_data(self) -> Any:
        """Return what stands for its text in a question: a reference, or the text where the host does not unpack it."""
        if self._source.is_packed:
            return self.text
        return {"$piece": {"input": self.input.id, "start": self.start, "end": self._limit()}}

    # lines ----------------------------------------------------------------------------------------

    @property
    def line(self) -> int:
        """The number of the line of its input that it begins in; the first is 0."""
        return self._source.newlines_before(self.start) - self._source.newlines_before(self.input.start)

    def _line_count(self) -> int:
        source, end = self._source, self._limit()
        if end <= self.start:
            return 0
        is_open = source.read(end - 1, end) != b"\n"
        return source.newlines_before(end) - source.newlines_before(self.start) + is_open

    def _line_start(self, number: int) -> int:
        return self._source.line_start(self._source.newlines_before(self.start) + number) if number else self.start

    def _line(self, number: int) -> Piece:
        first, last = next(scan.line_spans(self._source, self._line_start(number), self._limit()))
        return Piece(self.input, first, last)


class Input(Piece):
    """One input of a run: `.name`, `.size`, `.path` (a file to be opened by libraries), and what a piece has."""

    __slots__ = ("id", "source")
    __module__ = "__main__"

    def __init__(self, told: Dict[str, Any]) -> None:
        self.source = Source(told)
        self.id: str = told["id"]
        end = told["end"]
        super().__init__(self, told["start"], end)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.source.name

    @property
    def path(self) -> str:
        """The file, as it is; raises `InputError` where the input is only a part of it."""
        if self.start or (self._end is not None and self._end < self.source.size):
            raise InputError(f"{self.name!r} is a part of a file, and no file. Read its .text or its .lines().")
        return self.source.path

    def __repr__(self) -> str:
        size = "" if self._end is None else f" {self.size:,} bytes"
        return f"<input {self.name!r}{size} {self._shown()}>"


class AllInputs(Readable):
    """Several inputs, gone through one after the other; `CONTEXT_DATA[0]` and `CONTEXT_DATA["name"]` are one each."""

    __slots__ = ("_inputs",)
    __module__ = "__main__"

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = inputs

    def _parts(self) -> Sequence[Piece]:
        return self._inputs

    @property
    def size(self) -> int:
        """The bytes of all."""
        return sum(each.size for each in self._inputs)

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def peek(self, n: int = PEEK) -> str:
        """Return the first `n` characters of each, under its name."""
        return "\n".join(f"== {each.name} ==\n{each.peek(n)}" for each in self._inputs)

    def slice(self, start: int = 0, end: Optional[int] = None) -> Piece:
        """Raise `InputError`: offsets are those of one input."""
        raise InputError(f"There are {len(self._inputs)} inputs, and offsets are those of one: {self._named()}")

    def _named(self) -> str:
        return ", ".join(f"CONTEXT_DATA[{each.name!r}].slice(...)" for each in self._inputs[:SHOWN])

    @property
    def text(self) -> str:
        """What all of them say; raises `InputError` if that is more than fits into one text."""
        if self.size > MAX_TEXT:
            self._inputs[-1]._refuse()
        return "\n".join(each.text for each in self._inputs)

    def __str__(self) -> str:
        return self.text

    def as_data(self) -> str:
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
        raise KeyError(f"no input is called {which!r}. {did_you_mean(which, self.names)}There are {listed}.")

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Input]:
        return iter(self._inputs)

    def __repr__(self) -> str:
        return "\n".join(f"[{number}] {each!r}" for number, each in enumerate(self._inputs))


class Provided:
    """The inputs that the namespace has now."""

    ids: ClassVar[List[Any]] = []


def provide(namespace: Dict[str, Any], told: Sequence[Dict[str, Any]]) -> None:
    """Have `CONTEXT` and `CONTEXT_DATA` be the inputs that the host tells of, if they are not; none: remove them."""
    ids = [(each["id"], each["name"], each["path"], each["problem"]) for each in told]
    if ids == Provided.ids:
        return
    Provided.ids = ids
    for name in NAMES:
        namespace.pop(name, None)
    if told:
        inputs = [Input(each) for each in told]
        context = inputs[0] if len(inputs) == 1 else AllInputs(inputs)
        namespace.update(
            CONTEXT=context, CONTEXT_DATA=InputList(inputs), InputError=InputError, InputChanged=InputChanged
        )
