"""Skills: working code that was kept, with its types, its recorded cases and its history, and is importable again.

A skill is a folder of the Agent Skills standard and a Python module. `extract` makes one of recorded runs (`slices`
finds the statements, `literals` the parameters, `annotate` the types), `lint` says what it must not be, `gate` has it
prove itself in a clean sandbox, `store` keeps its versions (`folder`), and `library` is what server and sandboxes ask.
"""
