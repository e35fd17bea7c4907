"""Common words of the fictional world by category; within a category, earlier words are more frequent."""

from __future__ import annotations

_LINES: dict[str, str] = {
    "season": "spring|summer|autumn|winter|midwinter|midsummer",
    "month": "Frostmonth|Thawmonth|Seedmonth|Leafmonth|Lambmonth|Haymonth|Suncrown|Reapmonth|Applemonth|Fogmonth"
    "|Smokemonth|Longnight",
    "weather": "rain|mist|snow|wind|frost|thunder|sunshine|fog|hail|drizzle|heat|sleet",
    "sky": "grey|clear|pale|heavy|bright|dark|golden|cloudy|red|still",
    "bird": "heron|swallow|crow|owl|lark|goose|kingfisher|sparrow|hawk|stork|magpie|wren|gull|dove|thrush|jay",
    "beast": "fox|otter|goat|sheep|horse|ox|hare|badger|dog|mule|deer|boar|cat|hedgehog|mole|weasel",
    "fish": "trout|eel|pike|perch|carp|salmon|bream|roach|minnow|lamprey",
    "tree": "willow|oak|alder|birch|pine|elm|beech|hazel|rowan|poplar|yew|ash|larch|chestnut",
    "herb": "thyme|mint|sage|nettle|clover|fennel|heather|yarrow|sorrel|lavender|tansy|chamomile",
    "food": "bread|cheese|soup|honey|beans|porridge|apples|onions|cakes|stew|butter|plums|turnips|sausages|pears|nuts",
    "drink": "cider|ale|milk|tea|wine|water|broth|mead",
    "good": "wool|salt|timber|honey|copper|linen|barley|glass|leather|tin|wax|rope|paper|slate|dye|hops",
    "stone": "granite|limestone|sandstone|slate|marble|flint|chalk|basalt",
    "metal": "iron|copper|tin|silver|bronze|lead|brass|gold",
    "colour": "blue|red|green|grey|yellow|white|brown|black|purple|orange",
    "size": "small|large|narrow|wide|low|tall|long|short|broad|deep",
    "quality": "old|quiet|busy|plain|famous|poor|rich|humble|strange|sturdy|neglected|handsome|crooked|cheerful"
    "|draughty|solemn|weathered|tidy|lonely|proud",
    "building": "mill|market|tower|inn|school|granary|bakery|hall|forge|bath house|library|chapel|barn|prison"
    "|lighthouse|brewery|stable|tannery",
    "part": "roof|door|gate|wall|stair|floor|window|chimney|cellar|courtyard|well|bell",
    "path": "road|lane|path|street|ferry|stair|canal|track|alley|causeway",
    "land": "meadow|marsh|orchard|wood|field|hill|valley|quarry|heath|island|cliff|ford|vineyard|moor",
    "folk": "farmers|children|merchants|travellers|shepherds|old women|sailors|apprentices|pilgrims|soldiers"
    "|students|beggars|musicians|carters|widows|neighbours|judges|fishermen",
    "person": "farmer|child|merchant|traveller|shepherd|widow|sailor|pilgrim|soldier|student|beggar|musician|carter"
    "|judge|fisherman|clerk|midwife|cook|ferryman|gardener",
    "tool": "hammer|loom|chisel|needle|saw|knife|ladder|wheel|spade|kettle|brush|rope|lamp|barrel|basket|anvil",
    "thing": "coin|letter|lantern|cloak|map|ring|book|drum|cup|mirror|key|chest|flute|blanket|boat|cart|candle"
    "|mask|bowl|flag",
    "instrument": "flute|drum|fiddle|harp|horn|bell|pipe|lute",
    "feeling": "joy|grief|pride|fear|patience|wonder|anger|relief|envy|hope|shame|calm",
    "manner": "slowly|quietly|loudly|gladly|carefully|rarely|often|proudly|badly|together|alone|early|late|in turn",
    "deed": "sing|dance|quarrel|bargain|pray|sleep|fish|gather|trade|work|wrestle|gossip|feast|march|read|swim",
    "doing": "singing|dancing|quarrelling|bargaining|praying|sleeping|fishing|trading|working|wrestling|feasting"
    "|marching|reading|waiting|laughing|weeping",
    "did": "sang|danced|quarrelled|bargained|prayed|slept|fished|traded|worked|feasted|marched|waited|laughed"
    "|wept|rested|argued",
    "time": "at dawn|at noon|at dusk|at night|before breakfast|after supper|on market days|on feast days"
    "|once a week|every evening|in the afternoon|at full moon",
    "often": "often|sometimes|rarely|always|seldom|usually|never|now and then",
    "amount": "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|a hundred",
    "direction": "north|south|east|west|upstream|downstream",
    "opinion": "a good sign|bad luck|a nuisance|a blessing|the best in the land|worth the journey|nothing special"
    "|a great secret|a matter of honour|the work of giants|hard to believe|cheaper than it looks",
    "ill": "fever|a flood|a fire|a drought|a bad harvest|thieves|a long war|the cough|wolves|high taxes",
    "repair": "repaired|painted|rebuilt|cleaned|measured|blessed|sold|abandoned|guarded|robbed|widened|locked",
    "material": "stone|brick|timber|clay|straw|iron|slate|tile|glass|turf",
    "kin": "mother|father|sister|brother|uncle|aunt|cousin|grandmother|daughter|son|nephew|niece",
    "trait": "patient|stubborn|shy|generous|quick|careless|witty|stern|gentle|vain|honest|restless|thrifty|brave"
    "|curious|silent",
    "topic": "the stars|bees|old songs|the tides|chess|soap|grammar|bread|dreams|clocks|roots|weights|bridges"
    "|the law|snow|knots",
}

WORDS: dict[str, tuple[str, ...]] = {name: tuple(words.split("|")) for name, words in _LINES.items()}

# frames write plurals as `{beast}s`; these are the irregular ones
PLURALS: dict[str, str] = {
    "gooses": "geese", "thrushs": "thrushes", "foxs": "foxes", "oxs": "oxen", "sheeps": "sheep", "deers": "deer",
    "granarys": "granaries", "librarys": "libraries", "brewerys": "breweries", "tannerys": "tanneries",
    "bakerys": "bakeries", "beechs": "beeches", "ashs": "ashes", "larchs": "larches", "fishs": "fishes",
    "marchs": "marches", "brushs": "brushes", "knifes": "knives", "torchs": "torches",
    "childs": "children", "fishermans": "fishermen", "ferrymans": "ferrymen",
}  # fmt: skip
