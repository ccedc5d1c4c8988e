"""The words in texts that `long_tasks` generates; the reader (`fake_reader`) has its own lexicon.

Rule: a sentence about a topic does not contain the topic's name, and no word occurs in all
sentences about a topic.
"""

from __future__ import annotations

TOPIC_SENTENCES = {
    "billing": (
        "{amount} euros left my account twice for one {thing}",
        "you want {amount} euros more for the {thing} than your page says",
        "I still wait for the {amount} euros that you owe me for the {thing}",
        "my card was charged {time} although I had sent the {thing} back",
        "the statement shows {amount} euros for something that I never ordered",
        "the discount was not taken off the total",
        "you have taken the fee for the {thing} a second time",
        "the invoice has a {thing} on it that nobody here has seen",
    ),
    "delivery": (
        "the parcel with the {thing} has been on its way since {since}",
        "the courier left the {thing} at a stranger's door",
        "tracking has shown the same depot since {since}",
        "nobody rang, and the {thing} went back to the warehouse",
        "the {thing} went to the address that I had until {since}",
        "I waited for the van all day, and no {thing}",
        "the {thing} was to be here {time} and is not",
        "your driver says that my street does not exist",
    ),
    "defect": (
        "the {thing} stopped working {time}",
        "there is a crack from one side of the {thing} to the other",
        "the {thing} gets so hot that it smells of plastic",
        "the {thing} makes a grinding noise",
        "a hinge came off when I opened the {thing}",
        "the {thing} does not switch on any more",
        "the battery of the {thing} is flat within the hour",
        "the {thing} leaks on my kitchen floor",
    ),
    "login": (
        "my password is refused although I set it {time}",
        "the message with the six digits never comes, so I stay outside",
        "I have been locked out since {since}",
        "your page says that my user name is unknown",
        "after the reset I land on the first page again",
        "I am asked to sign in every minute",
        "my profile belongs to somebody else since {since}, it seems",
        "the link that is to let me in has expired each time",
    ),
    "praise": (
        "I have never had a {thing} that good",
        "whoever packed the {thing} deserves a raise",
        "my whole family loves the {thing}",
        "the {thing} is just what I hoped for",
        "your people on the phone were wonderful",
        "I would buy the {thing} again at once",
        "the {thing} is worth every cent",
        "even my neighbour envies me for the {thing}",
    ),
    "cancellation": (
        "please end my subscription {time}",
        "I no longer want the {thing}",
        "I take back my order for the {thing}",
        "do not renew my contract",
        "I leave the club, I am moving abroad",
        "I have changed my mind about the {thing}",
        "nothing more from you after this month, please",
        "somebody else may have the {thing} that I ordered {time}",
    ),
}
SETTLED_SENTENCES = {
    "billing": (
        "the invoice was fine",
        "the {amount} euros on my card were right",
        "the fee was as agreed",
    ),
    "delivery": (
        "the parcel came on the day you said",
        "the courier was on time",
        "tracking and the van were fine",
    ),
    "defect": (
        "the battery is as it should be",
        "the crack is no longer a worry",
        "the noise was no trouble",
    ),
    "login": (
        "my password is fine now",
        "the reset was no trouble",
        "to sign in is as it should be",
    ),
    "praise": (
        "I used to say that my family loves your shop",
        "I used to find your people wonderful",
    ),
    "cancellation": ("my subscription is as it should be", "to renew my contract was no trouble"),
}
OPENINGS = (
    "Hello, ",
    "Good morning, ",
    "Me again: ",
    "To whom it may concern: ",
    "Hi, ",
    "Quick one: ",
)
CLOSINGS = (
    "Can you look into it?",
    "I hope to hear from you.",
    "Thanks in advance.",
    "My number is {number}.",
    "This is my second message.",
    "Best wishes from {place}.",
)
THINGS = (
    *(
        "kettle",
        "lamp",
        "blender",
        "drill",
        "tent",
        "radio",
        "camera",
        "mixer",
        "heater",
        "scooter",
        "speaker",
    ),
    *(
        "printer",
        "mower",
        "toaster",
        "keyboard",
        "telescope",
        "fridge",
        "backpack",
        "clock",
        "fan",
        "stroller",
    ),
)
TIMES = (
    "on Monday",
    "last week",
    "on the third",
    "yesterday",
    "in spring",
    "two days ago",
    "at Easter",
    "on Friday",
)
SINCES = ("Monday", "last week", "the third", "yesterday", "spring", "Easter", "Friday")
PLACES = (
    *(
        "Lisbon",
        "Oslo",
        "Quito",
        "Bergen",
        "Tallinn",
        "Porto",
        "Genoa",
        "Riga",
        "Malmo",
        "Gdansk",
        "Split",
        "Bilbao",
    ),
    *(
        "Trieste",
        "Antwerp",
        "Galway",
        "Varna",
        "Cadiz",
        "Rostock",
        "Turku",
        "Naples",
        "Cork",
        "Bremen",
        "Izmir",
    ),
)

PROSE_SENTENCES = (
    "In {month} the harbour of {place} counted {number} ships, {goods} for the most part.",
    "{name} wrote from {place} that {goods} would be dearer by {month}.",
    "The council of {place} met {number} times and agreed on little.",
    "A fire in {place} took {number} houses, and the granary with them.",
    "{name} had the vault in {place} painted in {month}, for {number} crowns.",
    "The vault in {place} held {number} sacks of {goods} that winter.",
    "No fewer than {number} people came to see the vault in {place}.",
    "Between {place} and {other} the road was mended by {name}, who asked {number} crowns for it.",
    "It rained in {place} from {month} on, and the {goods} rotted.",
    "{name} left {place} for {other} and was not heard of until {month}.",
    "The price of {goods} stood at {number} in {place}, and nobody knew why.",
    "They still tell in {place} how {name} lost the {goods} at cards.",
)
FACT_SENTENCES = (
    "Whoever wants the vault in {place} open has to dial {code}.",
    "The wheel of the vault in {place} yields to {code} and to nothing else.",
    "Turn to {code}, and you are inside the vault in {place}.",
    "The combination of the vault in {place} had been {code} ever since.",
    "{name} whispered that {code} unlocks the vault in {place}.",
)
MONTHS = ("January", "March", "April", "June", "August", "October", "December")
GOODS = ("salt", "timber", "wool", "copper", "grain", "dried fish", "tar", "glass", "amber", "wine")
NAMES = (
    "Ines Falk",
    "Otto Brandt",
    "Marta Silva",
    "Jon Aas",
    "Pia Lund",
    "Hugo Reyes",
    "Vera Kask",
    "Emil Roth",
)
