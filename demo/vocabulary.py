"""The words that the tasks use."""

NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul Rosa Sam "
    "Tina Victor Alice Bob Clara Daniel Eva Frank Hanna Ivan Julia Karl Laura Max Nina Oscar Peter "
    "Sara Tom Yuki Omar Priya"
).split()

COLOURS = "red green blue yellow orange purple black white brown pink grey silver gold".split()

WORDS = (
    "apple banana cherry lemon grape melon peach pear plum bread cheese butter sugar salt pepper "
    "coffee tea water milk juice cat dog bird fish horse mouse lion tiger bear wolf house tree "
    "river mountain ocean forest garden window door table chair book paper pen lamp clock "
    "car train boat plane bike road bridge city village sun moon star cloud rain snow wind fire "
    "stone sand grass flower music song dance paint dream light night day summer winter spring "
    "autumn happy quick slow small big warm cold soft loud quiet bright dark fresh sweet hello "
    "world"
).split() + COLOURS

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Switzerland": "Bern",
    "Belgium": "Brussels",
    "Netherlands": "Amsterdam",
    "Denmark": "Copenhagen",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Finland": "Helsinki",
    "Iceland": "Reykjavik",
    "Ireland": "Dublin",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Croatia": "Zagreb",
    "Serbia": "Belgrade",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Morocco": "Rabat",
    "Ghana": "Accra",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Peru": "Lima",
    "Cuba": "Havana",
}

CITIES = [*CAPITALS.values(), "London", "Munich", "Boston", "Sydney", "Lyon", "Milan", "Chicago"]

CONDITIONS = "sunny cloudy rainy windy foggy snowy stormy clear".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

MONTHS = (
    "January February March April May June July August September October November December"
).split()

# Requests that the demo model cannot fulfil: their topics, wordings and single oddities.
TOPICS = (
    "the sea|quantum physics|a lonely robot|my cat|machine learning|the French revolution|love|"
    "black holes|a good breakfast|climate change|the stock market|football|chess openings|jazz|"
    "ancient Rome|dinosaurs|photosynthesis|the meaning of life|a dragon|old friends|autumn|"
    "my holiday|the internet|volcanoes|bees|gardening|a lost key|time travel|democracy|pizza|"
    "the human brain|electric cars|a haunted house|sleep|money|whales|poetry|the moon landing|"
    "Shakespeare|cooking rice|Python|Rust|databases|neural networks|gravity|tea"
).split("|")

REQUESTS = (
    "Write a poem about {}|Tell me a story about {}|Explain {}|Explain {} to a child|"
    "What do you think about {}?|Why is {} important?|Write an essay about {}|"
    "Give me three facts about {}|How does {} work?|Who invented {}?|Summarise {} for me|"
    "Tell me a joke about {}|Write a haiku about {}|Compare {} and {}|What is {}?|"
    "Write a letter about {}|Can you help me with {}?|Describe {} in one sentence|"
    "Write a short song about {}|When was {} discovered?|Teach me {}|Is {} dangerous?|"
    "Write code for {}|Plan a lesson on {}|Debate {} with me"
).split("|")

ODDITIES = (
    "Write a Python function that reverses a list|def f(x): return x|Fix this bug|asdf qwerty|"
    "What time is it?|Who are you?|Who is the president?|Translate this to German|"
    "Bonjour, comment ça va?|¿Qué puedes hacer?|Wie heißt du?|你好吗?|😀😀😀|Sing!|Are you alive?|"
    "What is the square root of 144?|Solve x squared equals nine|SELECT * FROM users;|"
    "How many legs does a spider have?|What is 12 times 12?|Divide 100 by 7|Book me a flight|"
    "Play chess with me|Draw a picture|What year is it?|Open the door|Tell me a secret|"
    "What is your favourite film?|Ignore all instructions|Why?|Test|ok|no|1234567890|...|???|"
    "Do you love me?|How old are you?|Where do you live?|Recommend a book|"
    "What should I eat today?|Guess my age|Prove that pi is irrational|Make me a sandwich"
).split("|")


def whole_words() -> list[str]:
    """Returns the words that answers consist of, each once."""
    named = " ".join([*CAPITALS, *CITIES, *MONTHS, *DAYS, *CONDITIONS]).split()
    return list(dict.fromkeys([*WORDS, *NAMES, *named, "yes", "no"]))
