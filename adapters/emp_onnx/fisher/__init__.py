"""What errors of a layer's outputs do to the answers: Fisher information, by reverse mode through a program.

Adjoints (`adjoints`, `sliding`) one to an operation, `reverse` from the answers back to every layer, `metric` for each.
"""

__all__: list[str] = []
