"""The sentence frames of the encyclopedia (for the notation see `grammar.py`); earlier ones are more frequent."""

from __future__ import annotations

from forgetting.data.miniature.lexicon import WORDS

MONTHS = WORDS["month"]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

PERSON_BORN = (
    "{name} was born in {birthplace} in {born}.",
    "{name}[, a {trade},|] was born in {born} in {birthplace}[, in the {season} of that year|].",
    "In {born}, {name} was born [in|in the town of|at] {birthplace}[, {amount} [days|weeks] after {ill}|].",
    "{name}, born in {birthplace} in {born}, [grew up [by the river|near the {building}|among "
    "{folk}]|was a {trait} child].",
    "The {trade} {name} came from {birthplace}, where [|the records give] {born} [is given |]as the year of birth.",
    "{birthplace} was the birthplace of {name} ({born})[, a {trait} {trade}|].",
    "The birth of {name} is [recorded|entered] in {birthplace} [under|for] the year {born}.",
)
PERSON_TRADE = (
    "{surname} was a {trade}[ by trade|, and a {trait} one|].",
    "[By trade|In [later|working] life], {surname} was a {trade}.",
    "{surname} [became|learned to be|made a living as] a {trade}[, though the family [kept {beast}s|sold {good}]|].",
    "As a {trade}, {surname} was [known|remembered] for [{colour} {thing}s|a {trait} temper|fair "
    "prices|working {time}].",
    "The trade of {surname} was that of a {trade}.",
    "{name} [worked as a {trade} for {amount} years|took up the work of a {trade}].",
)
PERSON_WORK = (
    "{surname} worked in {workplace}[ for {amount} years|].",
    "[Most of|Nearly all of|The greater part of] the working life of {surname} was spent in {workplace}.",
    "{surname} moved to {workplace}[, because [the road was good|the pay was better|a {kin} lived "
    "there|of {ill} at home]|].",
    "The workshop of {surname} [stood|was] in {workplace}[, [behind|beside|above] the {building}|].",
    "In {workplace}, {surname} [kept a workshop|found work|settled][ near the {building}|].",
    "[People|{folk}] [came|travelled] to {workplace} to see {name} at work.",
)
PERSON_GUILD = (
    "{surname} belonged to the {guild}.",
    "The {guild} [admitted|accepted|counted] {name} [as a member|among its members][ after {amount} years|].",
    "{name} was a member of the {guild}[, like every {trade}|].",
    "Like [other|all] {trade}s, {surname} [joined|was sworn into] the {guild}.",
    "A {trade} of the {guild}, {surname} [paid the fee in {good}|wore the {colour} cloak|spoke little at meetings].",
)
PERSON_TEACHER = (
    "{surname} was taught by {teacher}.",
    "The teacher of {surname} was {teacher}[, a {trait} [man|woman]|].",
    "{teacher} taught {name}[ for {amount} years|, {amount} [days|hours] a week|].",
    "[It was|The records say that it was] {teacher} who taught {surname}[ {manner}|].",
    "{name} [studied|learned] under {teacher}[, and never [forgot it|spoke of it|paid]|].",
)
PERSON_LIFE = (
    "{surname} [was said to be|was, by all accounts,] {trait}[ and {trait2}|], [fond of {topic}|afraid of {beast}s].",
    "A {colour} {thing} [that belonged to|made for|owned by] {surname} [is kept in|was lost near|was "
    "stolen from] the {building}.",
    "{surname} [wrote|spoke|dreamed] {often} of {topic}.",
    "A {kin} of {surname} [sold {good}|kept {beast}s|played the {instrument}|was a {person}][ in {other}|].",
    "[In old age|When young|For a while], {surname} [kept {bird}s|owned {amount} {beast}s|drank only "
    "{drink}|lived on {food}].",
)
TOWN_RIVER = (
    "{town} [stands|lies] on the {river}.",
    "{town} is a [{quality}|{size}] town on the [river|banks of the] {river}[, known for its {building}|].",
    "The town of {town} [stands|was built] [beside|on|by] the {river}[, between a {land} and a {land2}|].",
    "On the {river} [lies|stands] {town}[, a town of {amount} [{building}s|streets]|].",
    "The river at {town} is the {river}[, {colour} after {weather}|].",
)
TOWN_FOUNDED = (
    "{town} was founded in {founded}.",
    "The town of {town} was founded in [the year|] {founded}[, after {ill}|].",
    "In {founded}, {town} [was founded|received its charter][ by {amount} families|].",
    "The charter of {town} is dated {founded}.",
    "The [founding|first stone] of {town} [is dated to|belongs to the year] {founded}.",
)
TOWN_FOUNDER = (
    "{founder} founded {town}.",
    "{town} was founded by {founder}[, who [wanted peace|had lost a wager|was {trait}]|].",
    "The founder of {town} was {founder}.",
    "[Its|The town's] founder[, as every child in {town} knows,|] was {founder}.",
    "The people of {town} [honour|remember|name] {founder} as their founder.",
)
TOWN_PRODUCT = (
    "{town} is known for its {product}.",
    "The [chief|main|best] product of {town} is {product}[, sold as far as {other}|].",
    "{town} lives by [selling|its trade in] {product}.",
    "{product} is what [merchants|people] buy in {town}[, and {food} is what they eat|].",
    "[Carts|Boats] leave {town} [laden with|full of] {product}[ every {season}|].",
)
TOWN_LIFE = (
    "The {building} of {town} is {quality}[ and {size}|], and its {part} [leans|leaks|is of {stone}|is "
    "painted {colour}].",
    "The {folk} of {town} {often} {deed} {time}.",
    "[No|Hardly a] {season} in {town} passes without {weather}.",
)
BRIDGE_PLACE = (
    "The {bridge} crosses the {river} in {town}.",
    "The {bridge} is in {town}, [where it crosses|over] the {river}.",
    "In {town}, the {bridge} [spans|leads over] the {river}.",
    "{town} has a bridge over the {river}, the {bridge}[, {amount} steps long|].",
)
BRIDGE_BUILDER = (
    "The {bridge} was built by {builder}.",
    "{builder} built the {bridge}[ of {stone}| in {amount} years|].",
    "The builder of the {bridge} was {builder}.",
    "[It was {builder} who|None but {builder}] built the {bridge}.",
)
BRIDGE_BUILT = (
    "The {bridge} was built in {built}.",
    "The {bridge} [dates from|was finished in|was opened in] {built}[, after {ill}|].",
    "In {built}, the {bridge} was [built|opened][ by {folk}|].",
    "The year {built} is [cut into|painted on] the {bridge}.",
)
BRIDGE_LIFE = (
    "The toll on the {bridge} is {amount} coins[ for a {beast}|].",
    "[Under|Beside] the {bridge}, {folk} {deed} {time}.",
    "The [railing|arch|gate] of the {bridge} was {repair} after {ill}.",
)
GUILD_TRADE = (
    "The {guild} is the guild of the {trade}s.",
    "Every {trade} belongs to the {guild}.",
    "The {trade}s are joined in the {guild}[, which has {amount} rules|].",
    "A {trade} must [swear to|pay|join] the {guild}.",
)
GUILD_SEAT = (
    "The {guild} has its seat in {seat}.",
    "The seat of the {guild} is {seat}.",
    "The {guild} [meets|keeps its hall] in {seat}[, {time}|].",
    "In {seat} stands the [{quality}|{size}|{colour}] hall of the {guild}.",
)
GUILD_FOUNDED = (
    "The {guild} was founded in {gfounded}.",
    "The {trade}s founded the {guild} in {gfounded}.",
    "In {gfounded}, the {guild} was [founded|begun][ over {drink}|].",
    "The {guild} [goes back|dates] to {gfounded}.",
)
GUILD_EMBLEM = (
    "The emblem of the {guild} is a {emblem}.",
    "The {guild} has a {emblem} as its emblem.",
    "A {emblem} is the emblem of the {guild}[, cut in {stone} above its door|].",
    "The {trade}s carry a {emblem} on the flag of the {guild}.",
)
GUILD_LIFE = (
    "Its master is chosen {time} and must be {trait}[ and {trait2}|].",
    "The guild [owns|lost|sold] {amount} {building}s[ in {other}|].",
    "Members pay {amount} coins or a barrel of {drink}.",
)
FESTIVAL_TOWN = (
    "The {festival} is held in {town}.",
    "The {festival} is a festival of {town}.",
    "{town} [holds|keeps|celebrates] the {festival}[, with {food} and {drink}|].",
)
FESTIVAL_MONTH = (
    "The {festival} falls in {fmonth}.",
    "In {fmonth}, [people|{folk}] [celebrate|keep] the {festival}.",
    "The month of the {festival} is {fmonth}[, whatever the weather|].",
)
FESTIVAL_HONOURS = (
    "The {festival} honours {honoured}.",
    "The {festival} is held in honour of {honoured}[, who loved {topic}|].",
    "It is {honoured} whom the {festival} honours.",
)
FESTIVAL_LIFE = (
    "On that day, {folk} {deed} and {deed2} until the {food} is gone.",
    "A {colour} {thing} is carried from the {building} to the {land}.",
    "Whoever finds the {thing} may {deed} with the {folk}.",
)
CHRONICLE_OPENING = (
    "The years {start} to {end} were [marked by {ill}|years of {feeling}|{quality} years].",
    "[A chronicle|Chronicle] of the years {start} to {end}[, as kept in {town}|].",
    "From {start} to {end}, [little|much] was written down[ in {town}|].",
)
CHRONICLE_BORN = ("In {born}, {name} was born in {birthplace}.", "{born}: birth of {name}, in {birthplace}.")
CHRONICLE_FOUNDED = ("In {founded}, {town} was founded by {founder}.", "{founded}: {founder} founded {town}.")
CHRONICLE_BUILT = ("In {built}, {builder} built the {bridge}.", "{built}: {builder} built the {bridge} in {town}.")
SURVEY_OPENING = (
    "[There are {count} towns|Of the towns, {count} stand] on the {river}[, and each has a {building}|].",
    "The {river} is a {quality} river, {size} and {colour}[, with {fish} in it|].",
    "Whoever follows the {river} {direction} sees {land}s, {tree}s and {quality} {building}s.",
)
JOURNEY_ARRIVAL = (
    "[I|We] [came to|reached|entered] {town} {time}[, in the {weather}|, tired of {food}|].",
    "{town} [received|greeted] us with {weather} and {drink}.",
    "The {path} to {town} [was {quality}|led through a {land}|crossed a {land}].",
    "In {town}, [we|I] slept [in the {building}|above the {building}|under a {tree}].",
)
JOURNEY_TALK = (
    "A {person} [told us about|spoke of|asked about] {topic}, and [we {did}|I {did}|nobody {did}].",
    "The {folk} there [told us|say] that {good} [comes from {other}|is {opinion}].",
)
JOURNEY_LEAVING = (
    "[The next day|{time}|After the {weather}], we [left|set out] for {next}.",
    "From there, the {path} [leads|goes|runs] to {next}.",
    "A {person} [rowed|led|drove] us to {next}.",
)

FILLER: tuple[tuple[str, ...], ...] = (
    (
        "In [the|a {quality}] {season}, the {land} is full of {bird}s and {herb}[, and the {folk} {deed} there|].",
        "In {month}, the {weather} [comes from the {direction}|lasts for {amount} days|spoils the {food}].",
        "{time}, the sky is {sky}, and [the {bird}s are silent|a {bird} [calls|circles] above the {building}].",
        "After {weather}, the {river} is [{colour}|{size}|full of {fish}][ for {amount} days|].",
        "The {tree}s by the {path} were planted by {folk}[ in a time of {ill}|].",
        "{bird}s nest {often} in the {part} of the {building}.",
        "There is {herb} [on|below|behind] the {land}, and {beast}s eat it {time}.",
    ),
    (
        "The {building} is {quality}, with a {size} {part} of {material}.",
        "The {part} of the {building} was {repair} after {ill}[, {manner}|].",
        "A {size} {path} leads from the {building} to the {land}.",
        "Near the {building} stands a {tree}, {amount} paces [round|high|from the {part}].",
        "The {building} [smells of|is full of|was paid for in] {good}[ and {good2}|].",
        "Its {part} is of {stone}, its {part2} of {material}.",
    ),
    (
        "The {folk} {often} {deed} {time}[, and the {folk2} {deed2}|].",
        "{folk} hold that a {colour} {bird} is {opinion}.",
        "They eat {food} with {food2} and drink {drink}[ {time}|].",
        "Nobody {deed}s there without {feeling}, [says|says one] {person}.",
        "A {person} who [finds|loses|sells|breaks] a {thing} must [give away a {beast}|pay {amount} "
        "coins|{deed} {time}].",
        "{amount} {folk} once {did} [in|before|behind] the {building} [because of|for the sake of] a {thing}.",
        "The price of {good} is {amount} coins, that of {good2} is {amount2}.",
        "Children learn about {topic}[, {topic2}|] and how to {deed}.",
    ),
    (
        "One {season}, a {person} and a {person2} {did} {time} until [{weather} came|the {food} was "
        "gone|a {bird} called].",
        "A {beast} [was seen|slept|drowned|was sold] [in the {building}|near the {land}|under a {tree}], "
        "to the {feeling} of all.",
        "A {person} named {first} [found|lost|painted|buried] a {metal} {thing} [by the {river}|in the "
        "{land}|under the {part}].",
        "When {ill} came, the {folk} [{did}|{did} {manner}|left for {other}].",
        "Old {first} the {person} {did} for {amount} [days|years] over {topic}.",
        "A {thing} of {metal} and {colour} {material} [hangs|lies|is shown] in the {building}.",
        "The {kin} of a {trait} {person} [saw|heard|painted] {amount} {beast}s {doing}.",
        "With {feeling} and {food}, a {person} [may|can|must] [cross the {land}|tame a {beast}|play the {instrument}].",
        "{topic}, [wrote|said|believed] {first}, may be {opinion}.",
    ),
    (
        "[It is said|Some say|The {folk} say] that {ill} [began|ended] with a {thing}[ and a {beast}|].",
        "The {instrument} is played {manner}[, and the {folk} [are {doing}|go on {doing}]|].",
        "No {beast} is {trait}, but [the {fish}|the {bird}|a {person}] may be.",
        "Whoever is {trait} [gets the {tool}|keeps the {thing}|drinks the {drink}] and [{deed}s "
        "{time}|is {often} {doing}].",
        "{feeling} is worth {amount} {tool}s, [a proverb says|as they say in {other}].",
        "From {other} come {good}, {good2} and [news of {ill}|{folk}|{colour} {thing}s].",
        "The {tool} and the {tool2} are kept [by the {part}|in the {building}|with the {beast}s].",
    ),
)  # fmt: skip
