"""Short questions and answers about shoal, greetings, and the polite refusal of what it cannot do."""

from __future__ import annotations

import random

from shoal.cluster.nano.example import Example, final, thought, user
from shoal.cluster.nano.words import city, person
from shoal.router.harmony.message import Effort

_HELP = "I can add numbers, remember what you tell me, call tools and answer questions about shoal."

# Questions that mean the same, and their answer. The first words of a question are varied further below.
FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
     "I am shoal-nano, a very small language model."),
    (("What can you do?", "Help", "How can you help me?", "What do you know?"), _HELP),
    (("What is shoal?", "Tell me about shoal.", "Explain shoal.", "What does shoal do?"),
     "Shoal serves GPT-OSS models on a cluster of GPUs."),
    (("What is a worker?", "Explain workers.", "What does a worker do?", "Tell me what a worker is."),
     "A worker is one Ray actor that owns one GPU or a share of the CPU."),
    (("What is a group?", "Explain groups.", "Tell me what a group is.", "What does a group do?"),
     "A group is one complete copy of the model on several workers."),
    (("What is the router?", "What does the router do?", "Explain the router.", "Tell me about the router."),
     "The router is the front door. It sends each request to a worker and streams the tokens back."),
    (("What is the controller?", "What does the controller do?", "Explain the controller.",
      "Tell me about the controller."),
     "The controller starts, replaces and scales the workers."),
    (("What is an expert?", "What are experts?", "Explain experts.", "Tell me about the experts."),
     "An expert is a part of a layer. Each token visits four of them."),
    (("What is a session?", "What are sessions?", "Explain sessions.", "Tell me about sessions."),
     "A session is a conversation kept in Redis."),
    (("What is the placement?", "Explain the placement.", "What does the placement say?",
      "Tell me about the placement."),
     "The placement says which worker holds which expert."),
    (("What is an epoch?", "Explain epochs.", "What are epochs?", "Tell me about epochs."),
     "An epoch is the version number of a group and its placement."),
    (("What is the exchange?", "Explain the exchange.", "What does the exchange do?", "Tell me about the exchange."),
     "The exchange sends tokens to their experts and brings the results back."),
    (("Where is the session state?", "Where are sessions kept?", "Where do you keep sessions?",
      "Which store holds the sessions?"),
     "Sessions are kept in Redis."),
    (("What happens when a worker dies?", "What if a worker dies?", "Does a dead worker lose my request?",
      "Can a worker die?"),
     "Another worker goes on with the request and no token is lost."),
    (("Which weights do you use?", "What is MXFP4?", "Explain MXFP4.", "Tell me about MXFP4."),
     "The experts are stored in MXFP4, about four bits for each weight."),
    (("How do I start a cluster?", "How do I run shoal?", "How do I start shoal?", "How can I start a cluster?"),
     "Run shoal serve. It needs no GPU."),
    (("Which license does shoal have?", "What is the license?", "What license do you have?",
      "Under which license is shoal?"),
     "Shoal has the license Apache-2.0."),
    (("Which models do you serve?", "What models does shoal serve?", "Which models does shoal run?",
      "What is GPT-OSS?"),
     "Shoal serves GPT-OSS models, the small one with 20B and the large one with 120B parameters."),
    (("Hello", "Hello!", "Hi", "Hi!", "Good morning", "Hey", "hello", "hi"), "Hello! How can I help you?"),
    (("Thank you", "Thank you!", "Thanks", "Thanks!", "thanks"), "You are welcome."),
    (("Goodbye", "Bye", "Goodbye!", "See you", "bye"), "Goodbye!"),
    (("How are you?", "How do you do?", "Are you well?", "how are you?"), "I am well, thank you."),
)  # fmt: skip
_POLITE = ("{q}", "{q}", "Please: {q}", "One question: {q}", "{q} Thanks!", "Now: {q}", "I want to know: {q}")

_BEYOND = (
    "Send a mail to {person}.",
    "Call {person} on the phone.",
    "Book a flight to {city}.",
    "Book a table in {city}.",
    "What is the weather in {city}?",
    "What time is it in {city}?",
    "Tell me the news from {city}.",
    "Who won the match in {city}?",
    "Write a poem about {city}.",
    "Write a story about {person}.",
    "Draw a picture of {person}.",
    "Play music by {person}.",
    "Order a pizza for {person}.",
    "Translate this letter for {person}.",
    "What will {person} do tomorrow?",
    "Show me a map of {city}.",
    "How old is {person}?",
    "What did {person} say yesterday?",
)
REFUSAL = f"I am sorry, I cannot do that. {_HELP}"


def about_shoal(rng: random.Random, effort: Effort) -> Example:
    """A question whose answer never changes. Held out: combinations of a question and how it is wrapped."""
    questions, answer = rng.choice(FACTS)
    question = rng.choice(_POLITE).format(q=rng.choice(questions))
    work = "" if effort == "low" else "I know this."
    return Example(
        "about shoal", effort, (user(question),), (*thought(work), final(answer)), answer, f"fact {question}"
    )


def refusal(rng: random.Random, effort: Effort) -> Example:
    """Something that needs hands, eyes or news."""
    question = rng.choice(_BEYOND).format(person=person(rng), city=city(rng))
    work = "" if effort == "low" else "I cannot do this."
    reply = (*thought(work), final(REFUSAL))
    return Example("refuse", effort, (user(question),), reply, "I am sorry, I cannot do that.", f"refuse {question}")
