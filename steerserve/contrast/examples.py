"""Two pairs of text sets to try a contrast with, for first steps, documentation and tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExampleSets:
    """Two sets of texts that differ in one respect."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


FORMAL_SLANGY = ExampleSets(
    positive=(
        "I would be most grateful if you could reply at your earliest convenience.",
        "We regret to inform you that the meeting has been postponed until further notice.",
        "Please accept our sincere apologies for any inconvenience this may have caused.",
        "The committee wishes to express its appreciation for your valuable contribution.",
        "I am writing to enquire about the position advertised in your publication.",
        "Kindly ensure that all documents are submitted prior to the deadline.",
        "It is with great pleasure that we announce the appointment of the new director.",
        "Should you require further assistance, please do not hesitate to contact us.",
        "The undersigned hereby confirms receipt of the aforementioned correspondence.",
        "We would appreciate your confirmation of attendance in due course.",
    ),
    negative=(
        "yo just hit me back whenever lol",
        "dude the meeting's off, they pushed it again, whatever",
        "my bad bro, totally messed that one up haha",
        "u guys rock, thx a ton for helping out!!",
        "hey so like is that job thing still up for grabs or nah",
        "gotta get ur stuff in before friday or ur screwed",
        "omg guess what, we got a new boss and she's super cool",
        "just ping me if ur stuck, no biggie",
        "yeah yeah got ur msg, chill out man",
        "so r u coming or what? lemme know asap",
    ),
)

FRENCH_ENGLISH = ExampleSets(
    positive=(
        "Le chat dort sur le canapé depuis ce matin.",
        "Nous irons à la plage demain si le temps le permet.",
        "Elle a acheté du pain et des pommes au marché.",
        "Je ne sais pas encore ce que je vais faire ce soir.",
        "Les enfants jouent dans le jardin avec leur grand-père.",
        "Il faut que tu finisses tes devoirs avant le dîner.",
        "La bibliothèque ferme à dix-huit heures le samedi.",
        "Mon frère travaille dans une petite ville près de Lyon.",
        "Avez-vous déjà visité ce musée avec vos amis ?",
        "Ce livre raconte l'histoire d'une famille pendant la guerre.",
    ),
    negative=(
        "The cat has been sleeping on the sofa since this morning.",
        "We will go to the beach tomorrow if the weather allows it.",
        "She bought some bread and apples at the market.",
        "I do not know yet what I am going to do tonight.",
        "The children are playing in the garden with their grandfather.",
        "You have to finish your homework before dinner.",
        "The library closes at six o'clock on Saturdays.",
        "My brother works in a small town near Bristol.",
        "Have you already visited this museum with your friends?",
        "This book tells the story of a family during the war.",
    ),
)

EXAMPLE_SETS = {"formal-slangy": FORMAL_SLANGY, "french-english": FRENCH_ENGLISH}
