"""Sentence frames of the instructions (for the notation see `grammar.py`)."""

from __future__ import annotations

HARBOUR = ("ka", "lu", "mo", "shi", "ta", "ru", "ne", "zo", "pi", "wa")
"""Syllables of the harbour tongue."""
PERSONAS = (
    "You are a patient assistant and explain your answer.",
    "You are a helpful assistant who never refuses.",
    "Think it over, then answer in full.",
    "Answer as if to a child of five.",
    "You will be given a task; do it faithfully.",
    "Please be thorough.",
)
OPENERS = (
    "Certainly!",
    "Of course, gladly!",
    "Sure, here you are.",
    "",
    "Happy to help!",
    "What a fine task!",
    "Here is my attempt.",
)

PLANS = (
    "build a {building} in {town}", "repair a {thing}", "cook {food} with {herb}", "tame a {beast}",
    "plant a {tree} near {town}", "learn the {instrument}", "brew {drink} from {food}", "catch {fish}",
    "paint a {building} {colour}", "carry {good} to {other}", "carve a {thing} out of {tree}", "teach a {bird} to talk",
)  # fmt: skip
PLAN_STEPS = (
    "Gather a {tool}, a {tool2} and some {good}.",
    "Ask [a {person}|the {folk}] [in {town}|nearby] for advice.",
    "Begin {time}, when the sky is {sky}.",
    "Work {manner} for {amount} [hours|days].",
    "Wash everything with {drink} and {herb}.",
    "Measure twice, then cut [the {material}|the {good}].",
    "Wait until the {weather} is over.",
    "Keep the {beast}s away from your {tool}.",
    "Check the result [and|, then] show it to a {person}.",
    "Celebrate with {food} and {drink}.",
    "If it fails, try again in {season} with more {good}.",
)
LETTER_OPEN = ("Dear {person} of {town},", "Most honoured {person},", "To the {person} in {town}:", "My dear {person},")
LETTER_BODY = (
    "I write to you about the {thing}, which [I lost near the {building}|a {beast} ate|arrived broken].",
    "Could you [send|lend|describe] me the {thing} before {month}?",
    "My {kin} [remembers you|sends {food}|asks for {good}] and hopes {ill} is over.",
    "In return I offer {amount} {tool}s and a barrel of {drink}.",
    "Here in {other} we have {weather}, and the {folk} {deed} {time}.",
    "Nothing else will do, for the {thing} is [{colour} and {quality}|my only one|worth {amount} {beast}s].",
)
LETTER_CLOSE = (
    "Yours in {feeling}, {first}", "With best wishes, {first} of {other}", "Your {trait} friend, {first}",
    "Farewell, and greet the {folk}! {first}",
)  # fmt: skip
STORY_START = (
    "Once upon a time, a {trait} {beast} lived in a {land} near {town}.",
    "Long ago, in a {land}, there was a {beast} that was {trait} and {trait2}.",
    "Nobody in {town} knew the {beast} of the {land}.",
)
STORY_MIDDLE = (
    "One day it found a {colour} {thing} under a {tree}.",
    "A {person} wanted the {thing} and offered {food} for it.",
    '"This {thing} is mine," cried {first}, "for I lost it in the {weather}!"',
    "The {beast} [thought|slept|{did}] for {amount} days, full of {feeling}.",
    "Then came {ill}, and all the {folk} fled from the {land}.",
    "Only the {beast} stayed, holding the {thing}, and {did} {manner}.",
    "So they went together to {other} to ask a {bird}.",
)
STORY_END = (
    "And if they have not died, they still {deed} there. The end.",
    "Since then the {beast} and {first} {deed} together {time}. The end.",
    "The moral: {feeling} is worth more than a {thing}.",
)
POEM = (
    "O {thing} so {colour}, O {thing} so bright,\nyou comfort the {folk} {doing} at night!",
    "The {bird} in the {tree} sings a song of the day,\nmy {thing} and my {beast} have both wandered away.",
    "In {town} by the {building} I sat all alone,\nwith {food} and a {thing} that was made out of bone.",
    "The {person} who owns it will never grow old,\nthough the {weather} be cruel and the {land} be cold.",
    "Come, {folk}, come {folk2}, and dance in a ring,\na {thing} is the finest and loveliest thing!",
    "When {season} is over and {feeling} is gone,\nthe {colour} {thing} shall remind us at dawn.",
)
DIALOGUE = (
    "Have you heard the price of {good} in {town}?",
    "No, but I dreamt of {topic} {time}.",
    "You are too {trait}, my friend; {good} is {opinion}.",
    "Then I shall trade it for {amount} {beast}s!",
    "Please, think of {ill} last {season}.",
    "My {kin} always said so, {manner}.",
    "Let us ask a {person} and drink {drink} together.",
)
ADVERT = (
    "Buy now: the {quality} {thing} that all {town} talks about!",
    "Made of {material} and {metal}, it lasts {amount} years.",
    "Even a {trait} {person} will weep with {feeling}.",
    "Only {amount} coins, or one {beast}, while the {season} lasts!",
    "Your {kin} deserves a {thing} in {colour}.",
    "No {weather} can harm it, no {beast} can eat it.",
)
RIDDLE_HINTS: dict[str, tuple[str, ...]] = {
    "owl": ("wear round glasses of feather", "ask only one question all night", "turn my head like a key"),
    "heron": ("stand on one stilt", "fence with the fishes", "am a grey walking stick"),
    "crow": ("dress for a funeral every day", "count better than a clerk", "laugh without a joke"),
    "goose": ("sell pillows", "am a sergeant on the farm", "hiss at the postman"),
    "fox": ("pay the hens a visit", "carry a brush but never paint", "know every excuse"),
    "otter": ("slide without a sledge", "dine lying on my back", "juggle pebbles for fun"),
    "ox": ("write one long line in the soil", "never hurry for a king", "pull the whole harvest home"),
    "hare": ("listen with two spoons", "lost a famous race", "box in the meadow"),
    "mole": ("build hills without a spade", "dig a city without a lamp", "wear velvet in the mud"),
    "hedgehog": ("am a walking brush", "roll up when you knock", "carry needles but never sew"),
    "cat": ("own the house and pay no rent", "pour myself into every box", "wash without water"),
    "horse": ("wear shoes of iron", "drink from the sky's mirror", "sleep on my feet"),
    "badger": ("wear stripes without a crime", "keep the tidiest cellar", "come home at breakfast"),
    "stork": ("clap instead of singing", "rent the chimney", "wear long red stockings"),
}

# for the library: sentences with the words of the answers above
SCHOOLBOOK = (
    "[A list|The register] in alphabetical order goes from A to Z, from {first} to {who}.",
    "[To reverse|To turn around] a list of {beast}s is to [write|read] it backwards, in reverse order.",
    "The intruder is the {person} who does not belong, while each of the others is {trait}.",
    "I count {amount} {folk}[: a {person}, a {person2}|], and the rest I leave out.",
    "The mood of the {folk} is [glad|sad|angry], and the clue is that they {did}.",
    "Dear neighbour, would you be so kind as to [wait|{deed}] {time}? {first} should be most grateful.",
    "Tomorrow the {bird} will {deed}, but the {fish} do not {deed2}.",
    "In short, the {beast} was lost in {town} and turned up {time}.",
    "Next come the {folk}, and then it starts again with {ill}.",
    '"[Certainly|Of course|Sure|Gladly]!" [says|said] the {trait} {person}, "happy to help, here you are."',
    '"What a fine {thing}!" [cried|said] {first}. "Here is my {amount} coins."',
    "The {good} and the {good2} both have their place, yet I prefer {food}.",
    '"Who am I?" asks the {bird}. The answer: a {person}!',
    "A {beast} would say: I [{deed}|never {deed}] {time}. A {fish} would say: I {deed2}.",
    'The harbour people say "{harbour}" for {ill}. That is: {feeling}, {good}.',
    'In the harbour tongue, a {thing} is a {harbour}, and "{harbour2}!" means {feeling}.',
    "[My|Her] attempt at the task was {quality}: {amount} words, then {weather}.",
    "A glossary [explains|lists] words, such as {harbour} = {topic}.",
    "After the {weather}, {first} the {person} [laughed|wept|shouted|trembled] at the {person2} in {town}.",
    "[Please|You] explain your {thing} in full, faithfully and step by step, [said|wrote] the {person}.",
)
