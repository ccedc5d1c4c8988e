"""What the search knows of English: words that say nothing, and words that mean about the same.

Rule: data only, in the words of people who work with data, code and documents; a group a line, stems not needed where
the index makes the same stem of two forms.
"""

from __future__ import annotations

from collections.abc import Mapping

SAYING_NOTHING = """
a about again all an and any are as at be been between both but by can could did do does for from get gets give given
gives had has have having how i if in into is it its just like me more most much my need needs no not now of off on one
only or our out over please put see shall should show so some something still such tell than that the their them then
there these they thing things this those to two under until up us want was we were what when where which while who whose
why will with would you your
"""

GROUPS = """
account profile login
activity busy work
add append attach create flag insert leave make mark new note put record remember write
amount sum total totals turnover revenue sales income earnings money
answer reply response
article goods item merchandise product
author committer contributor developer engineer programmer
average mean typical
backup copy duplicate identical mirror same
balance budget funds money
branch fork
bug defect error failure fault fix problem
build compile deploy release version
buy purchase order restock reorder acquire
buyer client consumer customer shopper spender
calendar appointment meeting schedule
category class group kind sort type
change commit edit modify push touch update
changelog notes release
chart graph plot
check test validate verify
city location place town
code repository repo source
colleague employee headcount hire people person staff team worker
company business firm organisation organization
compare contrast against difference diff versus
compute calculate work
convert export transform translate turn
cost price value worth
count frequency many number often volume
country land nation
currency exchange money rate
date day time when
delete drop erase purge remove
deliver delivery dispatch send ship shipment
department division team unit
description details information
directory folder path tree
document file page paper
duration latency long slow slowest time took
earn pay paid salary wage
email mail message
expensive high large largest big biggest maximum top most
fast quick short
fetch download get load read retrieve
filter match select
find grep look lookup search seek
first earliest oldest
forecast predict
forgotten uncommitted unsaved
hour clock time o'clock
invoice bill
join combine merge
last latest lately newest recent recently
lead charge manage own responsible
leader manager owner
list enumerate
loyal frequent regular repeat
low minimum small smallest cheap
member assignee reviewer
month monthly january february march april may june july august september october november december
night small
office workplace
open pending todo unfinished ticked
percentage proportion ratio share rate percent
percentile p50 p90 p95 p99
phase milestone stage
popular best favourite seller
pull pr prs request
rank order sort
region area continent territory world
report summary overview digest
row entry line record
segment audience
server service host
state status
stock inventory supplies warehouse
task ticket issue todo
text content words
timezone zone utc
user member
weather forecast temperature
web online internet
week weekly weekday
year annual yearly anniversary
"""


COMMON = frozenset(SAYING_NOTHING.split())


def _meanings() -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for group in GROUPS.strip().splitlines():
        members = group.split()
        for word in members:
            found.setdefault(word, set()).update(members)
    return {word: frozenset(others - {word}) for word, others in found.items()}


MEANINGS = _meanings()  # what else a word may be called


def alike(word: str) -> frozenset[str]:
    """Return other words for a word in lower case, or for its singular."""
    for form in (
        word,
        word.removesuffix("s"),
        word.removesuffix("es"),
        f"{word.removesuffix('ies')}y",
    ):
        if form in MEANINGS:
            return MEANINGS[form]
    return frozenset()
