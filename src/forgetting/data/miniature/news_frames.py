"""Words and sentence frames of the news (for the notation see `grammar.py`)."""

from __future__ import annotations

from dataclasses import dataclass

_LINES: dict[str, str] = {
    "offices": "mayor|minister of railways|chief inspector|president of the council|director of health"
    "|union leader|police commissioner|secretary of trade|ambassador|opposition leader",
    "speaker": "spokeswoman|inspector|councillor|engineer|reporter|eyewitness|shareholder|passenger|economist"
    "|professor|striker|detective|surgeon|voter|fan|pilot",
    "group": "commuters|shareholders|protesters|voters|detectives|reporters|tourists|miners|dockers|students"
    "|engineers|tenants|conscripts|volunteers|investors|critics",
    "mood": "outraged|delighted|sceptical|relieved|exhausted|optimistic|alarmed|divided|unimpressed|ecstatic",
    "machine": "locomotive|airship|turbine|telegraph|tramway|dynamo|steamer|elevator|submarine|generator"
    "|typewriter|excavator",
    "policy": "the tariff|the curfew|the census|the subsidy|the embargo|the pension law|the speed limit"
    "|conscription|the smoke ban|the ballot",
    "claim": "completely unacceptable|a historic step|a triumph of engineering|deeply regrettable|premature"
    "|a disgrace|long overdue|pure speculation|an avoidable tragedy|nothing short of a miracle",
    "measure": "an inquiry|a referendum|compensation|emergency aid|an appeal|a boycott|new safety rules"
    "|an international conference|a public apology|fresh elections",
    "cause": "a faulty valve|negligence|a short circuit|an unpaid invoice|sabotage|overcrowding|a signalling error"
    "|falling profits|a leaked memorandum|contaminated milk",
    "headverb": "rejects|welcomes|fears|denies|celebrates|condemns|awaits|survives",
    "percent": "two per cent|nine per cent|a tenth|a quarter|one third|half|almost all",
    "media": "telegram|press conference|radio address|editorial|pamphlet|interview|statement|letter to the editor",
    "venue": "stadium|courthouse|railway station|laboratory|hospital|stock exchange|parliament|airfield|factory"
    "|cinema|power station|embassy",
    "when": "on Monday|overnight|shortly after noon|early on Thursday|late on Saturday|last week|yesterday"
    "|within hours|during the weekend",
    "title": "Crisis|Breakthrough|Scandal|Row|Alarm|Deal|Mystery|Record",
}
WORDS_OF_NEWS: dict[str, tuple[str, ...]] = {name: tuple(words.split("|")) for name, words in _LINES.items()}


@dataclass(frozen=True)
class EventKind:
    """A kind of event and how it is reported."""

    headlines: tuple[str, ...]
    leads: tuple[str, ...]
    details: tuple[str, ...]


LEADS = (
    "{title} in {town}: {group} are {mood}, the {company} is silent, and {who} has called for {measure}.",
    "What began {when} as a dispute about {policy} has become a {title} that {town} will not forget.",
    "Readers of this newspaper will know {who}, {office}[, from our {media} of {month}|]; few expected this.",
)
QUOTES = (
    '"It is {claim}," said {who}[, {office}|].',
    '"[We|They] [never expected|demand|cannot afford] {measure}," {witness}, a {speaker}, told '
    "[reporters|the {paper}].",
    '"{policy} [must|will|cannot] [stay|go|wait]," [declared|insisted|added] {rival} in a {media}.',
    '{rival} [called the decision|described it as] "{claim}".',
    'A {speaker} [who asked not to be named|at the {venue}] [said|remarked]: "[I am|We are|Everybody is] {mood}."',
)
BACKGROUND = (
    "The {company}[, which employs {count} {group},|] [introduced|patented|exported] the {invention} in {year}.",
    "In a {media}, {rival} [had already warned of|blamed] {cause}[ {when}|].",
    "{share} per cent of {group} [support|oppose] {policy}, according to [a survey|an {media}] by the {paper}.",
    "[Similar|Comparable] [incidents|scenes] were reported from {other}, where {group} [occupied|left] the {venue}.",
)
OUTLOOK = (
    "[A decision|A ruling|{measure}] is expected {when}.",
    "The {venue} [remains closed|reopens {when}], the {speaker} [said|confirmed].",
    "Investigations [continue|are under way]; {group} are asked to [come forward|stay at home].",
    "Trading in {company} shares [was suspended|rose by {share} per cent|fell sharply].",
)
KINDS: tuple[EventKind, ...] = (
    EventKind(
        ("Strike paralyses {town}", "{count} {group} walk out at {company}", "{company} {headverb} strike"),
        (
            "[Some|About] {count} {group} at the {company} [downed tools|went on strike] {when} over {policy}.",
            "A strike led by {who} has [halted|paralysed] production of the {invention} in {town}.",
        ),
        (
            "The union[, led by {who},|] demands {sum} crowns and {measure}.",
            "Negotiations at the {venue} [collapsed|broke down|were adjourned] {when}.",
            "{rival}, for the company, [spoke of|blamed] {cause}.",
            "Pickets [surrounded|blocked] the {machine} of the {company}.",
        ),
    ),
    EventKind(
        ("{who} elected {office}", "Landslide for {surname} in {town}", "{rival} concedes defeat"),
        (
            "{who} was elected {office} with {share} per cent of the vote[ {when}|].",
            "Voters in {town} have chosen {who} over {rival}[ as {office}|].",
        ),
        (
            "Turnout reached {count} per cent[, officials said|].",
            "{surname} campaigned against {policy} and promised {measure}.",
            "{rival} [demanded|asked for] a recount at the {venue}.",
            "The winner travelled to {other} by {machine} to thank {group}.",
        ),
    ),
    EventKind(
        ("Explosion at {company}", "{count} injured in {town} blast", "{venue} in ruins after blast"),
        (
            "An explosion caused by {cause} [destroyed|damaged] the {venue} in {town} {when}[, injuring {count}|].",
            "{count} {group} were injured when a {machine} of the {company} exploded.",
        ),
        (
            "{who}, {office}, [visited|inspected] the site {when}.",
            "Damage is estimated at {sum} crowns.",
            "Ambulances carried the injured to a hospital in {other}.",
            "{witness} rescued {group} from the burning {machine}.",
        ),
    ),
    EventKind(
        ("{invention} unveiled in {town}", "{surname} patents {invention}", "{company} bets on {invention}"),
        (
            "The inventor {who} [unveiled|demonstrated] the {invention}, a new kind of {machine}, at the {venue}.",
            "The {company} will [build|manufacture] the {invention}, invented by {who}[, in {town}|].",
        ),
        (
            "The device costs {sum} crowns and replaces {count} {group}.",
            "[Critics|Rivals] such as {rival} consider the {invention} {claim}.",
            "Its {machine} is {share} per cent more efficient.",
            "The first model was sold to {other}.",
        ),
    ),
    EventKind(
        ("{surname} breaks record", "{who} wins {town} cup", "{rival} beaten in {town}"),
        (
            "{who} beat {rival} by {count} points in the final at the {venue} of {town}.",
            "Before {sum} spectators, {who} won the {town} cup {when}.",
        ),
        (
            "The prize of {sum} crowns was paid by the {company}.",
            "{rival} retired injured after {count} minutes.",
            "{group} celebrated with a {machine} parade.",
            "The coach, {witness}, [was {mood}|dedicated the victory to {other}].",
        ),
    ),
    EventKind(
        ("{surname} on trial", "{who} jailed for fraud", "Court: {company} was robbed"),
        (
            "A court in {town} sentenced {who} to {count} months for defrauding the {company} of {sum} crowns.",
            "{who}, former {office}, went on trial {when}, accused of stealing the {invention}.",
        ),
        (
            "The prosecutor, {rival}, produced a {media} as evidence.",
            "The defendant [pleaded not guilty|blamed {cause}|remained silent].",
            "The stolen {machine} was found in {other}.",
            "Judge {witness} [rejected|granted] {measure}.",
        ),
    ),
    EventKind(
        ("First {machine} reaches {town}", "{town} line opened", "{company} opens {machine} line to {other}"),
        (
            "{who}, {office}, opened the {machine} line between {town} and {other} {when}.",
            "{count} passengers travelled on the first {machine} of the {company} from {town} to {other}.",
        ),
        (
            "The journey takes {count} minutes and costs {share} crowns.",
            "The line cost {sum} crowns[, far more than planned|].",
            "{group} [cheered|protested] at the {venue}.",
            "The engineer {witness} installed the {invention} on board.",
        ),
    ),
    EventKind(
        ("Epidemic spreads in {town}", "{count} cases in {town}", "{town} under quarantine"),
        (
            "Doctors in {town} have counted {count} cases of {river} fever[, {who} said {when}|].",
            "{who}, {office}, placed {town} under quarantine {when}.",
        ),
        (
            "The infection was traced to {cause} at the {venue}.",
            "{share} per cent of {group} have been vaccinated.",
            "The serum of Doctor {rival} costs {sum} crowns.",
            "Every {machine} to {other} is disinfected.",
        ),
    ),
    EventKind(
        ("{company} bankrupt", "Shares of {company} collapse", "{surname} resigns from {company}"),
        (
            "The {company} has declared bankruptcy with debts of {sum} crowns.",
            "{who} resigned as head of the {company} {when} after {cause}.",
        ),
        (
            "{count} {group} in {town} lose their jobs.",
            "{rival} offered to buy the {invention} patents.",
            "The bank of {other} refused {measure}.",
            "Shares fell by {share} per cent at the {venue}.",
        ),
    ),
    EventKind(
        ("Flood of the {river} hits {town}", "{count} homeless in {town}", "Dam bursts at {town}"),
        (
            "The {river} burst its dam at {town} {when} and left {count} families homeless.",
            "{who}, {office}, declared a state of emergency in {town} as the {river} rose.",
        ),
        (
            "The {company} supplied a {machine} and {sum} blankets.",
            "Experts blame {cause}.",
            "Telegraph lines to {other} were cut.",
            "{witness} steered a {machine} through the flooded {venue}.",
        ),
    ),
)
