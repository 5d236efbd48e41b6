"""What the user says in 20 conversations, turn by turn; the model's answers come between."""

CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("What is the capital of France?", "And of Italy?", "Which of the two is older?"),
    ("Name three planets.", "Which of them is the largest?"),
    ("What is 17 + 25?", "Multiply that by 3.", "Is the result an even number?"),
    ("Write a Python function that reverses a string.", "Now without slicing.", "Add a docstring."),
    ("¿Cuál es la capital de España?", "¿Y cuántos habitantes tiene?"),
    ("Was ist der Unterschied zwischen Wetter und Klima?", "Nenne mir bitte ein Beispiel dafür."),
    ("Écris une phrase sur la mer.", "Encore une, avec un bateau."),
    ("日本の首都はどこですか?", "そこで何を食べられますか?"),
    ("Explain photosynthesis in one sentence.", "Now to a child.", "Now in five words."),
    ("hi", "how are you", "ok bye"),
    ("Sort these numbers: 42, 7, 19, 3, 88, 54.", "And in descending order?"),
    ("Continue: 1, 1, 2, 3, 5, 8,", "What is this sequence called?"),
    (
        'Fix this JSON: {"name": "Ann", "age": 31,, "tags": ["a" "b"]}',
        "Which characters did you change?",
    ),
    ("Write a SQL query that counts the rows of a table `orders`.", "Only those of 2025."),
    ("Summarise: The cat sat on the mat. It rained. The cat went in.", "Shorter, please."),
    ("Tell me a joke about computers.", "Explain it.", "Another one 😀 please!"),
    ("Translate to Italian: Where is the train station?", "And to German?"),
    ('What does the following print?\n\n```c\nprintf("%d\\n", 7 / 2);\n```', "Why?"),
    ("Who wrote Hamlet?", "Name two other plays of the same author.", "When did the author die?"),
    ("Give me a recipe for pancakes with 3 ingredients.", "Replace the milk.", "   Thanks!   "),
)
