"""Skills: code that worked, saved as a function with types and recorded cases, and importable.

A skill is a folder of the Agent Skills standard and a Python module. `saving` makes skills:
`extraction` turns recorded runs into a function (`slicing` selects the statements, `parameters` the
literals that become parameters), `lint` refuses what cannot be a skill, and `gate` tests it in a
clean sandbox. `store` keeps all versions of a principal's skills and knows which ones others may
use, and `library` finds them.
"""
