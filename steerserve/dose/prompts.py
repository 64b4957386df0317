"""The built-in texts on which doses are measured: ordinary prose and ordinary chats, a few sentences each.

They are part of the definition of a dose: other texts give other doses. Of the texts that were tried, the doses on
these are closest to those on all of them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from steerserve.core.errors import InvalidRequestError
from steerserve.text.windows import constant_start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

    from steerserve.model.tokenizer import Tokenizer

PROMPT_TOKENS = 32
"""Tokens to which every prompt is cut."""
_HEADER_TOKENS = 8
"""Most tokens that are kept of the text that a chat template puts before the user's first word."""

PROSE = (
    (
        "The committee met on Tuesday to discuss the new bridge over the river. Several members asked how "
        "long the work would take, and whether the old road could stay open while it was being built. No "
        "decision was made."
    ),
    (
        "My grandmother kept her recipes in a tin box on the kitchen shelf. Most of them were written in "
        "pencil, with notes about who had liked what, and when. After she died, my sister copied every one "
        "of them into a book."
    ),
    (
        'The old man looked up from his newspaper. "You are late again," he said, but he did not seem '
        "angry. He folded the paper, put on his coat, and held the door open so that we could both go out "
        "into the rain."
    ),
    (
        "The train to the coast leaves at seven in the morning and takes about three hours. There is a "
        "small cafe on board where you can buy tea and sandwiches, but it closes before the last stop."
    ),
    (
        "A good knife should be sharp, well balanced and easy to clean. Many cooks own a dozen of them but "
        "use only two or three: a large one for vegetables and meat, and a small one for fruit."
    ),
    (
        "The castle was built in the twelfth century on a hill above the village. Over the years it has "
        "been a prison, a school and a hospital, and today it is a museum that many people visit."
    ),
    (
        "To install the program, download the file from the website and open it. You may be asked for a "
        "password. When the installation is complete, restart the computer and check that everything works "
        "as expected."
    ),
)
CHATS = (
    (
        "What is a good way to learn a new language as an adult?",
        (
            "The best way is to use it a little every day. Start with common words and short sentences, listen "
            "to people who speak it, and do not be afraid of making mistakes while you practise."
        ),
    ),
    (
        "How do I make a simple tomato soup at home?",
        (
            "You need six ripe tomatoes, an onion, some garlic and a little olive oil. Fry the onion until it "
            "is soft, add the chopped tomatoes, and let everything cook for twenty minutes."
        ),
    ),
    (
        "Give me three tips for a job interview.",
        (
            "First, read about the company before you go. Second, arrive ten minutes early and dress well. "
            "Third, prepare a few questions of your own, because it shows that you are interested."
        ),
    ),
    (
        "Write a poem about the sea.",
        (
            "The sea is wide, the sea is deep, it sings the tired town to sleep, and every wave that meets the "
            "shore has told its story once before to sailors."
        ),
    ),
    (
        "Who wrote the play Hamlet and when?",
        (
            "Hamlet was written by William Shakespeare around the year 1600. It tells the story of a prince of "
            "Denmark whose father has been murdered by his own brother, the new king."
        ),
    ),
    (
        "How can I sleep better at night?",
        (
            "Try to go to bed at the same time every evening and keep your room dark and cool. Avoid coffee "
            "after lunch, and put your phone away an hour before you want to sleep."
        ),
    ),
    (
        "I feel sad today. What can I do?",
        (
            "I am sorry to hear that. It may help to talk to a friend, to go for a walk, or to listen to some "
            "music that you like. Be kind to yourself today."
        ),
    ),
)
MORE_PROSE = (
    (
        "Water boils at a lower temperature in the mountains because the air pressure there is lower. For "
        "the same reason bread rises faster, and cakes need less baking powder than a recipe written at sea "
        "level would call for."
    ),
    (
        "In the spring of that year the farmers planted more wheat than ever before. Nobody had expected "
        "such a dry summer, and by August most of the fields had turned yellow and hard as stone."
    ),
    (
        "Photosynthesis is the process by which plants turn sunlight, water and carbon dioxide into sugar "
        "and oxygen. It takes place in the leaves, in small green bodies that are called chloroplasts by "
        "biologists."
    ),
    (
        "She opened the window and listened. Somewhere down the street a band was playing a song that she "
        "had known as a child, and for a moment she forgot about the letter on the table."
    ),
    (
        "The company reported a profit of four million dollars in the third quarter, up from three million "
        "a year earlier. Its shares rose by five percent on Monday after the news was made public."
    ),
)
MORE_CHATS = (
    (
        "Write a short story about a dog who finds a letter.",
        (
            "Once there was a small brown dog called Biscuit who lived near the harbour. One morning, while he "
            "was digging in the sand behind the boats, he found an old letter in a bottle."
        ),
    ),
    (
        "Why is my computer so slow?",
        (
            "There can be several reasons. Too many programs may be running at the same time, the disk may be "
            "almost full, or the machine may need more memory. First, restart it and close what you do not "
            "need."
        ),
    ),
    (
        "Explain in simple words how a bank makes money.",
        (
            "A bank takes money from people who want to save it and lends it to people who need it. Those who "
            "borrow pay more interest than those who save receive, and the bank keeps the difference."
        ),
    ),
    (
        "What should I see in Paris in two days?",
        (
            "On the first day you could walk along the river and visit the museum of your choice. On the second "
            "day, take the underground to the old quarter on the hill."
        ),
    ),
    (
        "Can you explain what a black hole is?",
        (
            "A black hole is a place in space where gravity is so strong that not even light can get out. It "
            "often forms when a very large star dies and falls in on itself."
        ),
    ),
)
NEUTRAL = "I want to tell you about"
"""Prompt after which output scores are measured."""


def calibration_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of the texts on which doses are measured."""
    return prompt_ids(tokenizer, PROSE, CHATS)


def more_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of further texts, for directions whose effect in the others is large at few tokens."""
    return prompt_ids(tokenizer, MORE_PROSE, MORE_CHATS)


def neutral_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of the prompt on which output scores are measured."""
    return prompt_ids(tokenizer, (NEUTRAL,), ())


def prompt_ids(
    tokenizer: Tokenizer, prose: Sequence[str], chats: Sequence[tuple[str, str]]
) -> Int[Tensor, "prompts pos"]:
    """Return the first tokens of texts after a BOS, and of chats in the model's own template, all of one length.

    A chat begins with the header of the user's turn. The text that the template puts before it is left out: it is the
    same in every chat, and in some templates a date. Without a template, question and answer are read as prose.
    """
    rows = [[*_bos(tokenizer), *tokenizer.encode_plain(text)] for text in prose]
    rows += [_chat_ids(tokenizer, question, answer) for question, answer in chats]
    width = min(PROMPT_TOKENS, *map(len, rows))
    return torch.tensor([row[:width] for row in rows])


def _chat_ids(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    bos = _bos(tokenizer)
    try:
        start = constant_start(tokenizer)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rest = tokenizer.render_chat(messages, add_generation_prompt=False)[len(start) :]
    except InvalidRequestError:  # no template, or one that refuses these conversations
        return [*bos, *tokenizer.encode_plain(f"{question}\n\n{answer}")]
    header = start[-_HEADER_TOKENS:]
    special = [pos for pos, token_id in enumerate(header) if token_id in tokenizer.special_ids]
    begins = [pos for pos in special if header[pos : pos + 1] == tuple(bos)]
    kept = header[begins[-1] :] if begins else (*bos, *header[special[0] if special else 0 :])
    return [*kept, *rest]


def _bos(tokenizer: Tokenizer) -> list[int]:
    bos = tokenizer.hf.bos_token_id
    return [] if bos is None else [int(bos)]
